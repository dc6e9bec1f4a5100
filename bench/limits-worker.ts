/** One of the processes of `limits.ts`: a worker that writes down when its handlers ran. */
import { setImmediate } from "node:timers/promises";
import { Kysely, PostgresDialect } from "kysely";
import pg from "pg";
import { createLedger, defineJob, prepared, typed } from "../src/index.ts";
import { createWorker, handle, type Worker } from "../src/worker/index.ts";

/** Key, begin and end, in seconds of the machine's monotonic clock, which all processes share. */
export type Interval = readonly [key: string, begin: number, end: number];
export type Order = { readonly prepare: string } | { readonly start: true } | { readonly stop: true };
export type Answer = { readonly ready: true } | { readonly done: number } | { readonly intervals: readonly Interval[] };

const intervals: Interval[] = [];
const now = () => Number(process.hrtime.bigint()) / 1e9;
let worker: Worker | undefined;
let pool: pg.Pool | undefined;
let unreported = 0;

process.on("message", async (order: Order) => {
  if ("prepare" in order) {
    worker = await workerOn(order.prepare);
    answer({ ready: true });
  } else if ("start" in order) {
    await worker?.start();
    setInterval(report, 50).unref();
  } else {
    await worker?.stop({ timeoutMs: 1000 });
    await pool?.end();
    answer({ intervals }, () => process.disconnect());
  }
});

async function workerOn(url: string): Promise<Worker> {
  pool = prepared(new pg.Pool({ connectionString: url, max: 8 }));
  const db = new Kysely<unknown>({ dialect: new PostgresDialect({ pool }) });
  const handlers = ["limited", "free"].map((type) =>
    handle(defineJob(type, { input: typed<{ key: string }>() }), async ({ payload: { key } }) => {
      const begin = now();
      await setImmediate();
      intervals.push([key, begin, now()]);
    }),
  );
  const onEvent = ({ type }: { type: string }) => {
    if (type === "succeeded") unreported += 1;
  };
  return createWorker({ ledger: createLedger({ db }), handlers, concurrency: 100, reap: false, onEvent });
}

function report(): void {
  if (unreported > 0) answer({ done: unreported });
  unreported = 0;
}

function answer(value: Answer, sent = () => {}): void {
  process.send?.(value, sent);
}
