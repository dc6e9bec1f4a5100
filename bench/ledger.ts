/** The same work through the ledger's public functions, one connection, full history kept. */
import { Kysely, PostgresDialect } from "kysely";
import pg from "pg";
import { migrate, rollback } from "../db/index.ts";
import { createLedger, type GraphSpec, type StepRef, WorkflowBuilder } from "../src/index.ts";
import type { Scenario, Sizes } from "./measure.ts";

const BATCH = 1_000;
const CLAIM = 200;

export async function ledgerScenarios(url: string, sizes: Sizes) {
  const pool = new pg.Pool({ connectionString: url, max: 1 });
  const db = new Kysely<unknown>({ dialect: new PostgresDialect({ pool }) });
  const ledger = createLedger({ db });
  const empty = async () => {
    await rollback(db);
    await migrate(db);
  };
  const jobs = (count: number) => Array.from({ length: count }, (_, n) => ({ type: "noop", payload: { n } }));

  /** Claims and completes until nothing is due; answers how many jobs that were. */
  const drain = async (): Promise<number> => {
    for (let done = 0; ; ) {
      const claimed = await ledger.jobs.claim({ workerId: "bench", limit: CLAIM, types: ["noop"] });
      if (claimed.length === 0) return done;
      await ledger.jobs.settle(claimed.map(({ lease }) => ({ lease, success: {} })));
      done += claimed.length;
    }
  };

  const scenarios: Record<string, Scenario> = {
    "enqueue one at a time": {
      unit: "jobs",
      prepare: empty,
      async run() {
        for (let n = 0; n < sizes.single; n += 1) await ledger.jobs.enqueue("noop", { n });
        return sizes.single;
      },
    },
    "enqueue in batches of 1000": {
      unit: "jobs",
      prepare: empty,
      async run() {
        for (let batch = 0; batch < sizes.batches; batch += 1) await ledger.jobs.enqueueMany(jobs(BATCH));
        return sizes.batches * BATCH;
      },
    },
    "claim and complete in batches of 200": {
      unit: "jobs",
      async prepare() {
        await empty();
        await ledger.jobs.enqueueMany(jobs(sizes.drain));
      },
      run: drain,
    },
    "fan-out and join, enqueue to end": {
      unit: "steps",
      prepare: empty,
      async run() {
        await ledger.runs.enqueue(fan(sizes.fan));
        return drain();
      },
    },
    "runs of a 5-step chain, enqueue to end": {
      unit: "runs",
      prepare: empty,
      async run() {
        const runs = Math.ceil(sizes.single / 2);
        await ledger.runs.enqueueMany(Array.from({ length: runs }, () => ({ graph: chain(5) })));
        await drain();
        return runs;
      },
    },
  };
  return { scenarios, close: () => db.destroy() };
}

function fan(width: number): GraphSpec {
  const graph = new WorkflowBuilder("fan");
  const first = graph.job("first", "noop", {});
  const items = Array.from({ length: width }, (_, n) => graph.job(`item-${n}`, "noop", { n }, { onSuccess: [first] }));
  graph.job("join", "noop", {}, { onSuccess: items });
  return graph.build();
}

function chain(length: number): GraphSpec {
  const graph = new WorkflowBuilder("chain");
  let previous: StepRef = graph.job("step-0", "noop", {});
  for (let n = 1; n < length; n += 1) previous = graph.job(`step-${n}`, "noop", {}, { onSuccess: [previous] });
  return graph.build();
}
