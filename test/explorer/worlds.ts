/** What the schedules start from, and the operations that meet there. */
import type { ClaimedJob, GraphSpec, Lease, Ledger, Settlement } from "../../src/index.ts";
import { expire } from "../jobs/fixtures.ts";
import { failure, globally, graphOf } from "../runs/fixtures.ts";
import { type Operation, settle, settling, wordOf } from "./operations.ts";
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
export async function oneRun(stage: Stage): Promise<World & { readonly runId: string }> {
  const { ledger } = stage;
  const graph = graphOf("one", {
    a: [],
    b: [],
    gone: [],
    free: [],
    gate: [],
    freed: ["gate"],
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
    runId: id,
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
      works("one.freed"),
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

/** Claims a job of a type, if there is one, and completes it: two operations of one session. */
function works(type: string): Operation {
  const name = `work on ${type}`;
  let job: ClaimedJob | undefined;
  const take = async (ledger: Ledger) => {
    [job] = await ledger.jobs.claim({ workerId: "late", limit: 1, types: [type] });
    return job?.type ?? "nothing";
  };
  const finish = async (ledger: Ledger) => {
    const taken = job;
    job = undefined;
    return taken === undefined ? "nothing" : (await settle(ledger, [{ lease: taken.lease, success: {} }]))[0];
  };
  return {
    name,
    codes: lost,
    parts: [
      { name, call: take },
      { name, call: finish },
    ],
    call: async (ledger) => [await take(ledger), await finish(ledger)],
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

/** Two runs with two running roots each, a dependent of both and one of each, a gate, and a step whose worker is gone. */
export async function twoRuns(stage: Stage): Promise<World> {
  const { ledger } = stage;
  const [a, b] = [await halfDone(stage, "a"), await halfDone(stage, "b")];
  const reset = await stage.keep();
  const batch = (name: string, ...settlements: Settlement[]) => settling(name, settlements);
  const ok = (lease: Lease) => ({ lease, success: { output: 1 } });
  const bad = (lease: Lease) => ({ lease, failure });
  return {
    reset,
    operations: byName([
      batch("complete a1 b1", ok(a.r1), ok(b.r1)),
      batch("complete b2 a2", ok(b.r2), ok(a.r2)),
      batch("fail a1 b1", bad(a.r1), bad(b.r1)),
      batch("fail b2 a2", bad(b.r2), bad(a.r2)),
      batch("fail a1, complete b1", bad(a.r1), ok(b.r1)),
      batch("fail b2, complete a2", bad(b.r2), ok(a.r2)),
      cancelsRun("a", a.id),
      cancelsRun("b", b.id),
      completesGate("a", a.id),
      completesGate("b", b.id),
      reaps(),
    ]),
  };

  async function halfDone({ database }: Stage, type: string) {
    const { id } = await ledger.runs.enqueue(
      graphOf(type, {
        r1: [],
        r2: [],
        gone: [],
        gate: [],
        both: ["r1", "r2"],
        d1: ["r1", "gate"],
        d2: ["r2?"],
        sad: ["gone?", "r2"],
      }),
    );
    const [r1, r2] = [await leaseOf(ledger, `${type}.r1`), await leaseOf(ledger, `${type}.r2`)];
    await expire(database, [(await leaseOf(ledger, `${type}.gone`)).jobId]);
    return { id, r1, r2 };
  }
}

/** One step of three runs that all can be reached from two roots each; and what may stand in the way. */
export interface WideWorld extends World {
  /** Statements that each take one row, by a name for it. */
  readonly rows: Readonly<Record<string, string>>;
}

/** Three runs of six steps below two running roots: rows enough that two ways through them can differ. */
export async function wide(stage: Stage): Promise<WideWorld> {
  const { ledger } = stage;
  const runs = [];
  for (const type of ["u", "v", "w"]) {
    const steps = { r1: [], r2: [], d0: ["r1", "r2"], d1: ["r1", "r2"], d2: ["r1", "r2"], d3: ["r1", "r2"] };
    const { id } = await ledger.runs.enqueue(graphOf(type, steps));
    runs.push({ id, type, r1: await leaseOf(ledger, `${type}.r1`), r2: await leaseOf(ledger, `${type}.r2`) });
  }
  // Those of the run in the middle: there are rows before and after each.
  const rows = Object.fromEntries(
    runs
      .slice(1, 2)
      .flatMap(({ id, type }) => [
        [`run ${type}`, `select from runledger.workflow_runs where id = '${id}' for update`],
        ...["r1", "r2"].map((key) => [
          `job ${type}.${key}`,
          `select from runledger.job_queue where type = '${type}.${key}' for update`,
        ]),
        ...["d0", "d1", "d2", "d3"].map((key) => [
          `step ${type}.${key}`,
          `select from runledger.workflow_steps where run_id = '${id}' and step_key = '${key}' for update`,
        ]),
      ]),
  );
  const reset = await stage.keep();
  const batch = (name: string, leases: Lease[], outcome: object) =>
    settling(
      name,
      leases.map((lease) => ({ lease, ...outcome }) as Settlement),
    );
  const [firsts, seconds] = [runs.map(({ r1 }) => r1), runs.map(({ r2 }) => r2).reverse()];
  const all = runs.flatMap(({ r1, r2 }) => [r1, r2]);
  return {
    reset,
    rows,
    operations: byName([
      batch("complete the first roots", firsts, { success: {} }),
      batch("complete the second roots", seconds, { success: {} }),
      batch("fail the first roots", firsts, { failure }),
      batch("fail the second roots", seconds, { failure }),
      batch("complete all", all, { success: {} }),
      batch("complete all, last first", [...all].reverse(), { success: {} }),
      batch("fail all", all, { failure }),
      batch("fail all, last first", [...all].reverse(), { failure }),
      ...runs.map(({ id, type }) => cancelsRun(type, id)),
    ]),
  };
}

function completesGate(what: string, id: string): Operation {
  return {
    name: `gate of ${what}`,
    transaction: true,
    codes: gateTaken,
    call: async (l) => (await l.steps.complete(id, "gate", globally)).completed,
  };
}
