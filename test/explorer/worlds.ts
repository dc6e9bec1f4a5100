/** What the schedules start from, and the operations that meet there. */
import type { ClaimedJob, GraphSpec, Lease, Ledger } from "../../src/index.ts";
import { expire } from "../jobs/fixtures.ts";
import { failure, globally, graphOf } from "../runs/fixtures.ts";
import { type Operation, settle, wordOf } from "./operations.ts";
import type { Reset, Stage } from "./stage.ts";

const LEASE_SECONDS = 86_400;
const lost = ["job.lease_owner_mismatch"] as const;
const gateTaken = [
  "workflow.release_conflict",
  "workflow.external_step_not_waiting",
  "workflow.external_step_conflicting_completion_retry",
] as const;

export interface World {
  readonly reset: Reset;
  readonly operations: Readonly<Record<string, Operation>>;
}

/**
 * One run: two running roots with a dependent in common and a chain below it, a step for whatever
 * becomes of the second root, an open gate and one that opens, a step whose worker is gone, and one
 * that nobody has claimed; beside it a job without a run, and one whose lease has expired.
 */
export async function oneRun(stage: Stage): Promise<World> {
  const { ledger } = stage;
  const graph = graphOf("one", {
    a: [],
    b: [],
    gone: [],
    free: [],
    gate: [],
    both: ["a", "b"],
    after: ["both"],
    any: ["b?"],
    opened: ["gate", "a"],
    gateLater: ["a", "gone?"],
  });
  const { id } = await ledger.runs.enqueue(withAttempts(graph, "a"));
  await ledger.jobs.enqueue("lone", null);
  await ledger.jobs.enqueue("lone.gone", null);
  const [a, b, gone] = [
    await leaseOf(ledger, "one.a"),
    await leaseOf(ledger, "one.b"),
    await leaseOf(ledger, "one.gone"),
  ];
  const [lone, loneGone] = [await leaseOf(ledger, "lone"), await leaseOf(ledger, "lone.gone")];
  await expire(stage.database, [gone.jobId, loneGone.jobId]);
  const reset = await stage.keep();
  return {
    reset,
    operations: byName([
      claim("one.free"),
      claim("one.any"),
      completes("a", a),
      completes("b", b),
      fails("b", b),
      { name: "retry a", codes: lost, call: (l) => settle(l, [{ lease: a, failure: { code: "again", message: "" } }]) },
      cancelsRun("the run", id),
      cancelsJob("the lone job", lone.jobId),
      { ...cancelsJob("the job of a", a.jobId), codes: ["job.workflow_requeue_not_supported"] },
      completes("the lone job", lone),
      {
        name: "gate succeeds",
        transaction: true,
        codes: gateTaken,
        call: async (l) => (await l.steps.complete(id, "gate", globally)).completed,
      },
      {
        name: "gate fails",
        transaction: true,
        codes: gateTaken,
        call: async (l) => (await l.steps.complete(id, "gate", { ...globally, outcome: "FAILED" })).completed,
      },
      reaps(),
      enqueuesRun(),
      enqueuesJob(),
    ]),
  };
}

function withAttempts({ steps, ...graph }: GraphSpec, key: string): GraphSpec {
  return {
    ...graph,
    steps: steps.map((step) =>
      step.key === key && step.job ? { ...step, job: { ...step.job, maxAttempts: 3 } } : step,
    ),
  };
}

async function leaseOf(ledger: Ledger, type: string): Promise<Lease> {
  const [job]: ClaimedJob[] = await ledger.jobs.claim({
    workerId: "worker",
    limit: 1,
    types: [type],
    leaseSeconds: LEASE_SECONDS,
  });
  if (job === undefined) throw new Error(`no job of type ${type}`);
  return job.lease;
}

function claim(type: string): Operation {
  return {
    name: `claim ${type}`,
    call: async (ledger) =>
      (await ledger.jobs.claim({ workerId: "late", limit: 5, types: [type] })).map((job) => job.type),
  };
}

function completes(what: string, lease: Lease): Operation {
  return {
    name: `complete ${what}`,
    codes: lost,
    call: (ledger) => settle(ledger, [{ lease, success: { output: what } }]),
  };
}

function fails(what: string, lease: Lease): Operation {
  return { name: `fail ${what}`, codes: lost, call: (ledger) => settle(ledger, [{ lease, failure }]) };
}

function cancelsRun(what: string, id: string): Operation {
  return {
    name: `cancel ${what}`,
    transaction: true,
    call: async (ledger) => {
      const { status, canceled } = await ledger.runs.cancel(id, { ...globally, reason: "explored" });
      return { status, canceled };
    },
  };
}

function cancelsJob(what: string, id: string): Operation {
  return {
    name: `cancel ${what}`,
    call: async (ledger) => {
      const { status, canceled } = await ledger.jobs.cancel(id, globally);
      return { status, canceled };
    },
  };
}

function reaps(): Operation {
  return {
    name: "reap",
    call: async (ledger) => {
      const { setAside } = await ledger.jobs.reap();
      // Two that reap at the same time share the leases, so only what they set aside is compared.
      return setAside.map(({ error }) => wordOf(error.code));
    },
  };
}

function enqueuesRun(): Operation {
  return {
    name: "enqueue a run by key",
    call: async (ledger) =>
      (await ledger.runs.enqueue(graphOf("keyed", { x: [], y: ["x"] }), { idempotencyKey: "k" })).disposition,
  };
}

function enqueuesJob(): Operation {
  return {
    name: "enqueue a job by key",
    call: async (ledger) => (await ledger.jobs.enqueue("keyed", null, { idempotencyKey: "k" })).disposition,
  };
}

function byName(operations: readonly Operation[]): Record<string, Operation> {
  return Object.fromEntries(operations.map((operation) => [operation.name, operation]));
}
