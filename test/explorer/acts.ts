/** The operations, made for what a world has: leases, runs, gates. */
import type { ClaimedJob, Lease, Ledger, StepSettlement } from "../../src/index.ts";
import { failure, globally, graphOf } from "../runs/fixtures.ts";
import { inWords, type Operation, settle, wordOf } from "./operations.ts";

const LEASE_SECONDS = 86_400;
const lost = ["job.lease_owner_mismatch"] as const;
const gateTaken = [
  "workflow.release_conflict",
  "workflow.external_step_not_waiting",
  "workflow.external_step_conflicting_completion_retry",
] as const;

export async function leaseOf(ledger: Ledger, type: string): Promise<Lease> {
  const [job]: ClaimedJob[] = await ledger.jobs.claim({
    workerId: "worker",
    limit: 1,
    types: [type],
    leaseSeconds: LEASE_SECONDS,
  });
  if (job === undefined) throw new Error(`no job of type ${type}`);
  return job.lease;
}

export function claim(type: string): Operation {
  return {
    name: `claim ${type}`,
    call: async (ledger) =>
      (await ledger.jobs.claim({ workerId: "late", limit: 5, types: [type] })).map((job) => job.type),
  };
}

/** Claims a job of a type, if there is one, and completes it. */
export function works(type: string): Operation {
  const complete = async (ledger: Ledger, { lease }: ClaimedJob) => (await settle(ledger, [{ lease, success: {} }]))[0];
  return takes(type, `work on ${type}`, complete);
}

/** Two operations of one session: claims a job of a type, if there is one, and does something with it. */
function takes(type: string, name: string, use: (ledger: Ledger, job: ClaimedJob) => Promise<unknown>): Operation {
  let job: ClaimedJob | undefined;
  const take = async (ledger: Ledger) => {
    [job] = await ledger.jobs.claim({ workerId: "late", limit: 1, types: [type] });
    return job?.type ?? "nothing";
  };
  const finish = async (ledger: Ledger) => {
    const taken = job;
    job = undefined;
    return taken === undefined ? "nothing" : inWords(use(ledger, taken));
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

export function completes(what: string, lease: Lease): Operation {
  return {
    name: `complete ${what}`,
    codes: lost,
    call: (ledger) => settle(ledger, [{ lease, success: { output: what } }]),
  };
}

export function fails(what: string, lease: Lease): Operation {
  return { name: `fail ${what}`, codes: lost, call: (ledger) => settle(ledger, [{ lease, failure }]) };
}

export function retries(what: string, lease: Lease): Operation {
  const again = { code: "again", message: "" };
  return { name: `retry ${what}`, codes: lost, call: (ledger) => settle(ledger, [{ lease, failure: again }]) };
}

export function cancelsRun(what: string, id: string): Operation {
  return {
    name: `cancel ${what}`,
    transaction: true,
    call: async (ledger) => {
      const { status, canceled } = await ledger.runs.cancel(id, { ...globally, reason: "explored" });
      return { status, canceled };
    },
  };
}

export function cancelsJob(what: string, id: string): Operation {
  return {
    name: `cancel ${what}`,
    call: async (ledger) => {
      const { status, canceled } = await ledger.jobs.cancel(id, globally);
      return { status, canceled };
    },
  };
}

export function reaps(): Operation {
  return {
    name: "reap",
    call: async (ledger) => {
      const { setAside } = await ledger.jobs.reap();
      // Two that reap at the same time share the leases, so only what they set aside is compared.
      return setAside.map(({ error }) => wordOf(error.code));
    },
  };
}

export function enqueuesRun(): Operation {
  return {
    name: "enqueue a run by key",
    call: async (ledger) =>
      (await ledger.runs.enqueue(graphOf("keyed", { x: [], y: ["x"] }), { idempotencyKey: "k" })).disposition,
  };
}

export function enqueuesJob(): Operation {
  return {
    name: "enqueue a job by key",
    call: async (ledger) => (await ledger.jobs.enqueue("keyed", null, { idempotencyKey: "k" })).disposition,
  };
}

export function byName(operations: readonly Operation[]): Record<string, Operation> {
  return Object.fromEntries(operations.map((operation) => [operation.name, operation]));
}

export function completesGate(what: string, id: string, outcome: "SUCCEEDED" | "FAILED" = "SUCCEEDED"): Operation {
  return {
    name: `gate of ${what} ${outcome === "FAILED" ? "fails" : "succeeds"}`,
    transaction: true,
    codes: gateTaken,
    call: async (l) => (await l.steps.complete(id, "gate", { ...globally, outcome })).completed,
  };
}

/** Says how the gate ends before it is open. */
export function keepsGate(what: string, id: string, key: string): Operation {
  return {
    name: `keep the end of ${what}`,
    transaction: true,
    codes: gateTaken,
    call: async (l) => (await l.steps.complete(id, key, { ...globally, keep: true })).status,
  };
}

type OldSteps = readonly [first: string, second: string];

const added = (type: string, [first, second]: OldSteps) => ({
  key: "addition",
  graph: { steps: graphOf(type, { new: [], more: ["new", `${first}?`], last: ["more?", `${second}?`] }).steps },
});

/** Adds three steps: one that can run at once, and two that wait for old and new ones. */
export function appends(what: string, id: string, old: OldSteps): Operation {
  return {
    name: `append to ${what}`,
    transaction: true,
    codes: ["workflow.release_conflict", "workflow.append_no_open_gate", "workflow.append_run_ended"],
    call: async (l) => (await l.runs.append(id, { ...globally, ...added(what, old) })).disposition,
  };
}

/** The same addition, with the end of a running step. */
export function completesAndAppends(what: string, lease: Lease, old: OldSteps): Operation {
  const item: StepSettlement = { lease, success: { append: added(what, old) } };
  return { name: `complete a step of ${what} and append`, codes: lost, call: (l) => settle(l, [item]) };
}

export function retriesRun(what: string, id: string): Operation {
  return {
    name: `retry ${what}`,
    transaction: true,
    codes: ["workflow.retry_not_failed", "workflow.retry_run_canceled"],
    call: async (l) => (await l.runs.retry(id, globally)).retried,
  };
}

export function startsAgain(what: string, id: string): Operation {
  return {
    name: `recover ${what}`,
    transaction: true,
    codes: ["workflow.recover_not_ended"],
    call: async (l) => (await l.runs.recover(id, { ...globally, key: "again" })).disposition,
  };
}

/** Who is in the way of a timer is left alone: that is as good as not having come. */
export function firesTimers(): Operation {
  return {
    name: "fire timers",
    codes: ["workflow.release_conflict", "db.lock_timeout", "workflow.external_step_not_waiting"],
    call: async (l) => {
      const { expiredGates, canceledRuns, setAside } = await l.runs.fireTimers();
      return setAside.length > 0
        ? setAside.map(({ error }) => wordOf(error.code))
        : [expiredGates.length, canceledRuns.length];
    },
  };
}

/** What a worker does with the job of a child run. */
export function worksOnChild(): Operation {
  return takes("runledger.child_run", "work on a child run", async (ledger, job) => {
    const { state } = await ledger.runs.advanceChild(job);
    return state;
  });
}
