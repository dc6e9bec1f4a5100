/** What is counted: each work does so many units, by the calls that a worker makes, in batches of the same size. */
import {
  type ClaimedJob,
  type GraphSpec,
  type Lease,
  type Ledger,
  type StepRef,
  WorkflowBuilder,
} from "../../src/index.ts";
import type { Calls } from "./count.ts";

export interface Work {
  /** How many jobs or steps `run` does: the figures are for one. */
  readonly units: number;
  /** Not counted, before each `run`. */
  prepare?(ledger: Ledger): Promise<unknown>;
  run(ledger: Ledger, calls: Calls): Promise<unknown>;
}

const JOBS = 5_000;
const BATCH = 500;
const BEATS = 10;
const STEPS = 5;
const WIDTH = 1_000;
const FANS = 4;
const payload = { text: "x".repeat(500) };
let beating: readonly Lease[] = [];
/** As long as a worker's own. */
const workerId = "worker-7d9f8b6c5-x2k4q:1:0f8fad5b";

export const works = {
  "enqueue, 1000 at once": {
    units: JOBS,
    run: async (ledger, calls) => {
      for (let from = 0; from < JOBS; from += 1000)
        await calls("enqueueMany of 1000", () => ledger.jobs.enqueueMany(noops(from, 1000)));
    },
  },
  "enqueue, one at a time": {
    units: 1000,
    run: async (ledger, calls) => {
      for (let n = 0; n < 1000; n += 1) await calls("enqueue", () => ledger.jobs.enqueue("noop", { n }));
    },
  },
  "from claim to ledger": {
    units: JOBS,
    prepare: (ledger) => ledger.jobs.enqueueMany(noops(0, JOBS)),
    run: (ledger, calls) => drain(ledger, calls, ["noop"], BATCH),
  },
  "from enqueue to ledger, 500 bytes of payload": {
    units: JOBS,
    run: async (ledger, calls) => {
      for (let from = 0; from < JOBS; from += 1000)
        await calls("enqueueMany of 1000", () => ledger.jobs.enqueueMany(Array(1000).fill({ type: "noop", payload })));
      await drain(ledger, calls, ["noop"], BATCH);
    },
  },
  heartbeat: {
    units: BEATS * BATCH,
    prepare: async (ledger) => {
      await ledger.jobs.enqueueMany(noops(0, BATCH));
      const jobs = await ledger.jobs.claim({ workerId, limit: BATCH, types: ["noop"] });
      beating = jobs.map(({ lease }) => lease);
    },
    run: async (ledger, calls) => {
      for (let n = 0; n < BEATS; n += 1) await calls("heartbeat of 500", () => ledger.jobs.heartbeat(beating));
    },
  },
  "runs of 5 steps in a chain": {
    units: BATCH * STEPS,
    run: async (ledger, calls) => {
      const requests = Array.from({ length: BATCH }, () => ({ graph: chain() }));
      await calls("runs.enqueueMany of 500", () => ledger.runs.enqueueMany(requests));
      await drain(ledger, calls, ["step"], BATCH);
    },
  },
  "runs of 5 steps in a chain, each claimed with the end of the one before": {
    units: BATCH * STEPS,
    run: async (ledger, calls) => {
      const requests = Array.from({ length: BATCH }, () => ({ graph: chain() }));
      await calls("runs.enqueueMany of 500", () => ledger.runs.enqueueMany(requests));
      const claim = { workerId, limit: BATCH, types: ["step"] };
      let jobs: readonly ClaimedJob[] = await calls("claim", () => ledger.jobs.claim(claim));
      while (jobs.length > 0) {
        const settlements = jobs.map(({ lease }) => ({ lease, success: {} }));
        jobs = (await calls("settleAndClaim", () => ledger.jobs.settleAndClaim(settlements, claim))).claimed;
      }
    },
  },
  "runs of 1 step, 1000 after it, 1 after those": {
    units: FANS * (WIDTH + 2),
    run: async (ledger, calls) => {
      for (let n = 0; n < FANS; n += 1) {
        await calls("runs.enqueue", () => ledger.runs.enqueue(fan()));
        await drain(ledger, calls, ["step"], BATCH);
      }
    },
  },
} as const satisfies Record<string, Work>;

/** Claims and settles until there is nothing; the claim that finds nothing is part of it. */
async function drain(ledger: Ledger, calls: Calls, types: readonly string[], limit: number): Promise<void> {
  for (;;) {
    const jobs = await calls("claim", () => ledger.jobs.claim({ workerId, limit, types }));
    if (jobs.length === 0) return;
    await calls("settle", () => ledger.jobs.settle(jobs.map(({ lease }) => ({ lease, success: {} }))));
  }
}

function noops(from: number, count: number) {
  return Array.from({ length: count }, (_, n) => ({ type: "noop", payload: { n: from + n } }));
}

function chain(): GraphSpec {
  const graph = new WorkflowBuilder("chain");
  let previous: StepRef = graph.job("step-0", "step", { n: 0 });
  for (let n = 1; n < STEPS; n += 1) previous = graph.job(`step-${n}`, "step", { n }, { onSuccess: [previous] });
  return graph.build();
}

function fan(): GraphSpec {
  const graph = new WorkflowBuilder("fan");
  const first = graph.job("first", "step", { n: 0 });
  const items = Array.from({ length: WIDTH }, (_, n) =>
    graph.job(`item-${n}`, "step", { n: n + 1 }, { onSuccess: [first] }),
  );
  graph.job("join", "step", { n: WIDTH + 1 }, { onSuccess: items });
  return graph.build();
}
