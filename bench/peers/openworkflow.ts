/** OpenWorkflow. `tuned`: more runs at once, and a connection for each, as openworkflow.dev/docs/production says for work that waits. */
import { OpenWorkflow, type Worker } from "openworkflow";
import { BackendPostgres } from "openworkflow/postgres";
import postgres from "postgres";
import { type Contestant, type Fan, now, type Payload, type Started, type Tuning } from "../harness/contestant.ts";

const CONNECTIONS = 100;
/** It has no call for many: so many are under way at once. */
const CLIENTS = 16;

export async function open(url: string, tuning: Tuning): Promise<Contestant> {
  let installed: BackendPostgres | undefined;
  // The pool that it makes by itself has ten connections and these column names.
  const pool = postgres(url, {
    ...(tuning === "tuned" ? { max: CONNECTIONS } : {}),
    transform: { column: { from: postgres.toCamel } },
  });
  const workflows = new OpenWorkflow({ backend: BackendPostgres.fromPool(pool) });
  let started: Started = () => {};
  const { job, chain, fan } = define(workflows, (payload) => started(payload));
  let worker: Worker | undefined;
  return {
    pending:
      "select count(*) from openworkflow.workflow_runs where status not in ('completed', 'succeeded', 'failed', 'canceled')",
    install: async () => {
      installed = await BackendPostgres.connect(url);
      await installed.stop();
    },
    work: async (on) => {
      started = on;
      worker = workflows.newWorker(tuning === "tuned" ? { concurrency: CONNECTIONS } : {});
      await worker.start();
    },
    enqueue: (payload) => job.run(payload),
    enqueueMany: (payloads) => atOnce(payloads, (payload) => job.run(payload)),
    enqueueChains: (runs, steps) =>
      atOnce(
        Array.from({ length: runs }, () => steps),
        (length) => chain.run(length),
      ),
    enqueueFan: (width, how) => fan.run({ width, how }),
    close: async () => {
      await worker?.stop();
      await pool.end();
    },
  };
}

function define(workflows: OpenWorkflow, started: Started) {
  const job = workflows.defineWorkflow<Payload, void, undefined>({ name: "job" }, async ({ input }) => started(input));
  const chain = workflows.defineWorkflow<number, void, undefined>({ name: "chain" }, async ({ input, step }) => {
    let at: number | undefined;
    for (let n = 0; n < input; n += 1) {
      at = await step.run({ name: `step-${n}` }, () => seen(started, { n, ...(at === undefined ? {} : { at }) }));
    }
  });
  const fan = workflows.defineWorkflow<{ width: number; how: Fan }, void, undefined>(
    { name: "fan" },
    async ({ input: { width, how }, step }) => {
      await step.run({ name: "first" }, () => seen(started, { n: 0 }));
      const items = Array.from({ length: width }, (_, n) => {
        const [name, payload] = [`item-${n}`, { n: n + 1 }];
        if (how === "steps") return step.run({ name }, () => seen(started, payload));
        return step.runWorkflow(job.workflow.spec, payload, { name });
      });
      await Promise.all<unknown>(items);
      await step.run({ name: "join" }, () => seen(started, { n: width + 1 }));
    },
  );
  return { job, chain, fan };
}

function seen(started: Started, payload: Payload): number {
  started(payload);
  return now();
}

async function atOnce<Item>(items: readonly Item[], start: (item: Item) => Promise<unknown>): Promise<void> {
  const left = items[Symbol.iterator]();
  const client = async () => {
    for (const item of left) await start(item);
  };
  await Promise.all(Array.from({ length: CLIENTS }, client));
}
