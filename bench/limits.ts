/**
 * `npm run bench:limits [-- --quick]`: limits per key (FEATURES F-J11). Eight processes on 2000 keys, each at one job
 * at a time, checked from the handlers' own records; and what a claim of jobs without a limit costs beside a key of
 * 100 000 jobs that wait.
 */
import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { Kysely, PostgresDialect } from "kysely";
import pg from "pg";
import { migrate, rollback } from "../db/index.ts";
import { createLedger, type Ledger } from "../src/index.ts";
import { startPostgres } from "../src/testing/index.ts";
import type { Answer, Interval, Order } from "./limits-worker.ts";
import { median } from "./measure.ts";

const { values } = parseArgs({ options: { quick: { type: "boolean", default: false } } });
const sizes = values.quick
  ? { keys: 500, processes: 4, jobs: 10_000, dense: 20_000, claims: 100 }
  : { keys: 2_000, processes: 8, jobs: 100_000, dense: 100_000, claims: 400 };

const server = await startPostgres({ durable: true, container: false });
const pool = new pg.Pool({ connectionString: server.url, max: 4 });
pool.on("error", () => {});
const db = new Kysely<unknown>({ dialect: new PostgresDialect({ pool }) });
const ledger = createLedger({ db });
try {
  const rates = { free: await manyKeys(false), limited: await manyKeys(true) };
  print(`  ratio to the same work without limits: ${(rates.limited / rates.free).toFixed(2)}`);
  await denseKey();
} finally {
  await db.destroy();
  await server.stop();
}

/** Jobs a second over all processes, and how many jobs of one key ran at the same time. */
async function manyKeys(limited: boolean): Promise<number> {
  const { keys, processes, jobs } = sizes;
  await empty();
  await enqueueKeyed(ledger, jobs, limited, (n) => `key-${n % keys}`);
  const workers = Array.from({ length: processes }, () =>
    fork(fileURLToPath(new URL("limits-worker.ts", import.meta.url))),
  );
  await Promise.all(workers.map((worker) => asked(worker, { prepare: server.url })));
  const startedAt = process.hrtime.bigint();
  const ended = new Promise<void>((resolve) => {
    let done = 0;
    for (const worker of workers) {
      worker.on("message", (answer: Answer) => {
        if ("done" in answer) done += answer.done;
        if (done >= jobs) resolve();
      });
      worker.send({ start: true } satisfies Order);
    }
  });
  await ended;
  const answers = await Promise.all(workers.map((worker) => asked(worker, { stop: true })));
  const intervals = answers.flatMap((answer) => ("intervals" in answer ? answer.intervals : []));
  const last = intervals.reduce((latest, [, , end]) => Math.max(latest, end), 0);
  const seconds = last - Number(startedAt) / 1e9;
  print(
    `${keys} keys, ${limited ? "one at a time" : "no limits"}, ${processes} processes: ${Math.round(jobs / seconds)} jobs/s`,
  );
  print(`  ${intervals.length} of ${jobs} handled, ${overlaps(intervals)} at the same time as another of their key`);
  return jobs / seconds;
}

async function asked(worker: ChildProcess, order: Order): Promise<Answer> {
  worker.send(order);
  for (;;) {
    const [answer]: Answer[] = await once(worker, "message");
    if (answer !== undefined && !("done" in answer)) return answer;
  }
}

function overlaps(intervals: readonly Interval[]): number {
  const sorted = [...intervals].sort(([, a], [, b]) => a - b);
  const endOf = new Map<string, number>();
  let found = 0;
  for (const [key, begin, end] of sorted) {
    if (begin < (endOf.get(key) ?? 0)) found += 1;
    endOf.set(key, Math.max(end, endOf.get(key) ?? 0));
  }
  return found;
}

/**
 * Claims of 50 jobs without a limit: in one schema there is nothing else, in the other a key whose jobs all wait for
 * one. They take turns, so that a noisy machine is noisy for both.
 */
async function denseKey(): Promise<void> {
  const [alone, beside] = ["alone", "beside"].map((schema) => createLedger({ db, schema, notify: false }));
  if (alone === undefined || beside === undefined) return;
  for (const { schema } of [alone, beside]) await migrate(db, { schema });
  await enqueueKeyed(beside, sizes.dense, true, () => "dense");
  const first = await timed(() =>
    beside.jobs.claim({ workerId: "w", limit: 1, types: ["limited"], leaseSeconds: 3600 }),
  );
  const times = { alone: [] as number[], beside: [] as number[], blocked: [] as number[] };
  for (const ledger of [alone, beside]) {
    for (let n = 0; n < sizes.claims; n += 20) await enqueueKeyed(ledger, 1000, false, () => "free");
  }
  for (let n = 0; n < sizes.claims; n += 1) {
    times.alone.push(await timed(() => claim(alone, ["limited", "free"])));
    times.beside.push(await timed(() => claim(beside, ["limited", "free"])));
    times.blocked.push(await timed(() => claim(beside, ["limited"])));
  }
  print(`first claim of a key of ${sizes.dense}: ${first.toFixed(1)} ms`);
  print(
    `claim of 50 without a limit: ${ms(times.alone)}; beside a key of ${sizes.dense} that wait: ${ms(times.beside)}`,
  );
  print(
    `  ratio ${(median(times.beside) / median(times.alone)).toFixed(3)}; claim that finds only those: ${ms(times.blocked)}`,
  );
}

function claim(ledger: Ledger, types: readonly string[]) {
  return ledger.jobs.claim({ workerId: "bench", limit: 50, types, leaseSeconds: 3600 });
}

async function timed(action: () => Promise<unknown>): Promise<number> {
  const began = performance.now();
  await action();
  return performance.now() - began;
}

async function enqueueKeyed(to: Ledger, count: number, limited: boolean, keyOf: (n: number) => string): Promise<void> {
  for (let n = 0; n < count; n += 5_000) {
    await to.jobs.enqueueMany(
      Array.from({ length: Math.min(5_000, count - n) }, (_, place) => {
        const key = keyOf(n + place);
        const limit = limited ? { limit: { key, concurrency: 1 } } : {};
        return { type: limited ? "limited" : "free", payload: { key }, ...limit };
      }),
    );
  }
}

async function empty(): Promise<void> {
  await rollback(db);
  await migrate(db);
}

function ms(times: readonly number[]): string {
  return `${median(times).toFixed(2)} ms (at least ${Math.min(...times).toFixed(2)})`;
}

function print(line: string): void {
  process.stdout.write(`${line}\n`);
}
