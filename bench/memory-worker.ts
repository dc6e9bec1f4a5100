/**
 * The process that `memory.ts` watches: a worker that drains the queue. Compiled by `npm run bench:memory`, because what
 * runs TypeScript takes memory too.
 */
import { Kysely, PostgresDialect } from "kysely";
import pg from "pg";
import { createLedger, defineJob, prepared, typed } from "../src/index.ts";
import { createWorker, handle } from "../src/worker/index.ts";

/** In the process's first argument, as JSON. */
export interface MemoryWorkerArguments {
  readonly url: string;
  readonly jobs: number;
  readonly tuned: boolean;
}

/** How many jobs are done, how much memory the process has then and had at most so far, and what CPU time it has used. */
export interface MemorySample {
  readonly done: number;
  readonly rssMiB: number;
  readonly peakMiB: number;
  readonly cpuMs: number;
}

const SAMPLES = 100;
const { url, jobs, tuned }: MemoryWorkerArguments = JSON.parse(process.argv[2] ?? "");
const pool = new pg.Pool({ connectionString: url, max: tuned ? 20 : 10 });
pool.on("error", () => {});
const db = new Kysely<unknown>({ dialect: new PostgresDialect({ pool: tuned ? prepared(pool) : pool }) });
let done = 0;

const worker = createWorker({
  ledger: createLedger({ db }),
  handlers: [handle(defineJob("noop", { input: typed<{ n: number }>() }), () => {})],
  ...(tuned ? { concurrency: 500, batchSize: 1_000, prefetch: 1_000 } : {}),
  onEvent: ({ type }) => {
    if (type !== "succeeded") return;
    done += 1;
    if (done % Math.ceil(jobs / SAMPLES) === 0 || done === jobs) report();
  },
});
process.on("message", stop);
process.on("disconnect", () => process.exit(1));
report();
await worker.start();

function report(): void {
  const { user, system } = process.cpuUsage();
  const sample: MemorySample = {
    done,
    rssMiB: process.memoryUsage.rss() / 2 ** 20,
    peakMiB: process.resourceUsage().maxRSS / 2 ** 10,
    cpuMs: (user + system) / 1_000,
  };
  process.send?.(sample);
}

async function stop(): Promise<void> {
  await worker.stop();
  await db.destroy();
  process.exit(0);
}
