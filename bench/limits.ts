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
import { createLedger } from "../src/index.ts";
import { startPostgres } from "../src/testing/index.ts";
import type { Answer, Interval, Order } from "./limits-worker.ts";
import { median } from "./measure.ts";

const { values } = parseArgs({ options: { quick: { type: "boolean", default: false } } });
const sizes = values.quick
  ? { keys: 500, processes: 4, jobs: 10_000, dense: 20_000, claims: 50, turns: 3 }
  : { keys: 2_000, processes: 8, jobs: 100_000, dense: 100_000, claims: 200, turns: 5 };

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
  await enqueueKeyed(jobs, limited, (n) => `key-${n % keys}`);
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

/** Claims of 50 jobs without a limit, with nothing beside them, and beside a key whose jobs all wait for one. */
async function denseKey(): Promise<void> {
  const alone: number[] = [];
  const beside: number[] = [];
  const blocked: number[] = [];
  for (let turn = 0; turn <= sizes.turns; turn += 1) {
    await empty();
    const cost = await claimCost();
    await empty();
    await enqueueKeyed(sizes.dense, true, () => "dense");
    const began = performance.now();
    await ledger.jobs.claim({ workerId: "holder", limit: 1, types: ["limited"], leaseSeconds: 3600 });
    const first = performance.now() - began;
    const withDense = await claimCost();
    const times: number[] = [];
    for (let n = 0; n < sizes.claims; n += 1) times.push(await timed(() => claim(["limited"])));
    if (turn === 0) print(`first claim of a key of ${sizes.dense}: ${first.toFixed(1)} ms`);
    else {
      alone.push(cost);
      beside.push(withDense);
      blocked.push(median(times));
    }
  }
  const ratios = alone.map((cost, turn) => (beside[turn] ?? Number.NaN) / cost);
  print(`claim of 50 without a limit: ${ms(alone)}; beside a key of ${sizes.dense} that wait: ${ms(beside)}`);
  print(`  ratio ${median(ratios).toFixed(3)}; claim that finds only those: ${ms(blocked)}`);
}

async function claimCost(): Promise<number> {
  await ledger.jobs.enqueueMany(
    Array.from({ length: sizes.claims * 50 }, (_, n) => ({ type: "free", payload: { n } })),
  );
  const times: number[] = [];
  for (let n = 0; n < sizes.claims; n += 1) times.push(await timed(() => claim(["free", "limited"])));
  return median(times);
}

function claim(types: readonly string[]) {
  return ledger.jobs.claim({ workerId: "bench", limit: 50, types, leaseSeconds: 3600 });
}

async function timed(action: () => Promise<unknown>): Promise<number> {
  const began = performance.now();
  await action();
  return performance.now() - began;
}

async function enqueueKeyed(count: number, limited: boolean, keyOf: (n: number) => string): Promise<void> {
  for (let n = 0; n < count; n += 5_000) {
    await ledger.jobs.enqueueMany(
      Array.from({ length: Math.min(5_000, count - n) }, (_, place) => {
        const key = keyOf(n + place);
        return { type: "limited", payload: { key }, ...(limited ? { limit: { key, concurrency: 1 } } : {}) };
      }),
    );
  }
}

async function empty(): Promise<void> {
  await rollback(db);
  await migrate(db);
}

function ms(times: readonly number[]): string {
  return `${median(times).toFixed(2)} ms (${Math.min(...times).toFixed(2)}-${Math.max(...times).toFixed(2)})`;
}

function print(line: string): void {
  process.stdout.write(`${line}\n`);
}
