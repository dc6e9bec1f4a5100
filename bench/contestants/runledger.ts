/** Ourselves, through what every user imports. */
import { Kysely, PostgresDialect } from "kysely";
import pg from "pg";
import { migrate } from "../../db/index.ts";
import {
  createLedger,
  defineJob,
  defineWorkflow,
  type GraphSpec,
  type Ledger,
  prepared,
  type StepRef,
  typed,
  WorkflowBuilder,
} from "../../src/index.ts";
import { createWorker, handle, type Worker } from "../../src/worker/index.ts";
import { type Contestant, type Fan, now, type Payload, type Started, type Tuning } from "../harness/contestant.ts";

const noop = defineJob("noop", { input: typed<Payload>() });
/** A step puts out when it ended, so that the next one can tell how long it waited. */
const step = defineJob("step", { input: typed<Payload>(), output: typed<number>() });

const item = defineWorkflow("item", {
  input: typed<Payload>(),
  build: (graph, payload) => graph.job("item", step, payload),
});

export async function open(url: string, tuning: Tuning): Promise<Contestant> {
  // As the README shows it.
  const pool = prepared(new pg.Pool({ connectionString: url, ...(tuning === "tuned" ? { max: 20 } : {}) }));
  pool.on("error", () => {});
  const db = new Kysely<unknown>({ dialect: new PostgresDialect({ pool }) });
  const ledger = createLedger({ db, listen: () => new pg.Client({ connectionString: url }) });
  let worker: Worker | undefined;
  return {
    pending: "select count(*) from runledger.job_queue",
    install: () => migrate(db).then(() => {}),
    work: async (started) => {
      worker = createWorker({ ledger, handlers: handlers(started), ...settings[tuning] });
      await worker.start();
    },
    enqueue: (payload) => ledger.jobs.enqueue(noop, payload),
    enqueueMany: (payloads) => ledger.jobs.enqueueMany(payloads.map((payload) => ({ type: "noop", payload }))),
    enqueueChains: (runs, steps) =>
      ledger.runs.enqueueMany(Array.from({ length: runs }, () => ({ graph: chain(steps) }))),
    enqueueFan: (width, fan) => enqueueFan(ledger, width, fan),
    close: async () => {
      await worker?.stop({ timeoutMs: 1_000 });
      await db.destroy();
    },
  };
}

const settings = { tuned: { concurrency: 500, batchSize: 500, prefetch: 1_000 }, defaults: {} } as const;

function handlers(started: Started) {
  return [
    handle(noop, ({ payload }) => started(payload)),
    handle(step, ({ payload, prerequisites }) => {
      const ends = Object.values(prerequisites).filter((output) => typeof output === "number");
      started(ends.length === 0 ? payload : { ...payload, at: Math.max(...ends) });
      return now();
    }),
  ];
}

function chain(length: number): GraphSpec {
  const graph = new WorkflowBuilder("chain");
  let previous: StepRef = graph.job("step-0", step, { n: 0 });
  for (let n = 1; n < length; n += 1) previous = graph.job(`step-${n}`, step, { n }, { onSuccess: [previous] });
  return graph.build();
}

function enqueueFan(ledger: Ledger, width: number, fan: Fan) {
  const graph = new WorkflowBuilder("fan");
  const first = graph.job("first", step, { n: 0 });
  const items = Array.from({ length: width }, (_, n): StepRef => {
    const payload = { n: n + 1 };
    if (fan === "child runs") return graph.child(`item-${n}`, item, payload, { onSuccess: [first] });
    return graph.job(`item-${n}`, step, payload, { onSuccess: [first] });
  });
  graph.job("join", step, { n: width + 1 }, { onSuccess: items });
  return ledger.runs.enqueue(graph.build());
}
