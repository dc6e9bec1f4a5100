/**
 * `npm run bench:memory [-- --jobs 100000] [--docs]`: the memory of a worker's process while it drains a million jobs that do
 * nothing, with the default settings and tuned for throughput. It should be flat, and under 150 MiB.
 */
import { fork } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { Kysely, PostgresDialect } from "kysely";
import pg from "pg";
import { migrate } from "../db/index.ts";
import { table } from "../docs/markdown.ts";
import { createLedger } from "../src/index.ts";
import { cloneDatabase, createTemplate, startPostgres } from "../src/testing/index.ts";
import { circumstances } from "./harness/report.ts";
import { settingsOf } from "./harness/server.ts";
import { writeFigures } from "./harness/write.ts";
import type { MemorySample, MemoryWorkerArguments } from "./memory-worker.ts";

const { values } = parseArgs({
  options: { jobs: { type: "string", default: "1000000" }, docs: { type: "boolean", default: false } },
});
const jobs = Number(values.jobs);
const TARGET_MIB = 150;
const SHARES = [0.1, 0.25, 0.5, 0.75, 1];
const ENQUEUED_AT_ONCE = 5_000;
const WORKER = new URL("results/compiled/bench/memory-worker.js", import.meta.url);

const server = await startPostgres({ url: false, durable: true, container: false });
try {
  const { name } = await createTemplate(server.url, "memory", fill);
  const settings: Record<string, Summary> = {};
  for (const tuned of [false, true]) {
    const { url } = await cloneDatabase(server.url, name);
    const result = summary(await drain({ url, jobs, tuned }));
    settings[tuned ? "tuned" : "defaults"] = result;
    print(`${(tuned ? "tuned" : "defaults").padEnd(10)} ${described(result)}`);
  }
  const about = circumstances(await settingsOf(server.url), jobs < 1_000_000 ? "quick" : "full", 1);
  const figures = { jobs, targetMiB: TARGET_MIB, settings };
  print(await writeFigures("memory", about, figures, values.docs ? markdown(settings) : undefined));
} finally {
  await server.stop();
}

async function fill(url: string): Promise<void> {
  const pool = new pg.Pool({ connectionString: url, max: 1 });
  pool.on("error", () => {});
  const db = new Kysely<unknown>({ dialect: new PostgresDialect({ pool }) });
  await migrate(db);
  const ledger = createLedger({ db });
  for (let from = 0; from < jobs; from += ENQUEUED_AT_ONCE) {
    const count = Math.min(ENQUEUED_AT_ONCE, jobs - from);
    await ledger.jobs.enqueueMany(
      Array.from({ length: count }, (_, n) => ({ type: "noop", payload: { n: from + n } })),
    );
  }
  await pool.query("vacuum (analyze) runledger.job_queue");
  await db.destroy();
}

interface Drained {
  readonly samples: readonly MemorySample[];
  readonly seconds: number;
}

async function drain(options: MemoryWorkerArguments): Promise<Drained> {
  const child = fork(fileURLToPath(WORKER), [JSON.stringify(options)], { execArgv: [] });
  const exited = once(child, "exit");
  const samples: MemorySample[] = [];
  const began = performance.now();
  await new Promise<void>((resolve, reject) => {
    child.on("message", (sample: MemorySample) => {
      samples.push(sample);
      if (sample.done === options.jobs) resolve();
    });
    child.on("exit", (code, signal) => reject(new Error(`The worker's process ended with ${signal ?? code}.`)));
  });
  const seconds = (performance.now() - began) / 1000;
  child.send("stop");
  await exited;
  return { samples, seconds };
}

type Summary = ReturnType<typeof summary>;

function summary({ samples, seconds }: Drained) {
  const at = (share: number) => samples.find(({ done }) => done >= share * jobs)?.rssMiB ?? Number.NaN;
  return {
    jobsPerSecond: Math.round(jobs / seconds),
    /** CPU time of the worker's process, in microseconds. */
    cpuPerJob: Math.round((Math.max(...samples.map(({ cpuMs }) => cpuMs)) * 1_000) / jobs),
    beforeMiB: Math.round(at(0)),
    rssMiB: Object.fromEntries(SHARES.map((share) => [`${share * 100} %`, Math.round(at(share))])),
    peakMiB: Math.round(Math.max(...samples.map(({ peakMiB }) => peakMiB))),
    /** The second half should need no more than the first. */
    growthMiB: Math.round(mostIn(samples, 0.5, 1) - mostIn(samples, 0.1, 0.5)),
  };
}

function mostIn(samples: readonly MemorySample[], from: number, to: number): number {
  const within = samples.filter(({ done }) => done >= from * jobs && done <= to * jobs);
  return Math.max(...within.map(({ rssMiB }) => rssMiB));
}

function described(result: Summary): string {
  const { jobsPerSecond, cpuPerJob, beforeMiB, rssMiB, peakMiB, growthMiB } = result;
  const shares = Object.entries(rssMiB).map(([share, mib]) => `${share}: ${mib}`);
  const verdict = peakMiB <= TARGET_MIB ? `within ${TARGET_MIB}` : `over ${TARGET_MIB}`;
  return `${jobsPerSecond} jobs/s, ${cpuPerJob} µs of CPU each; MiB before ${beforeMiB}, at ${shares.join(", ")}; peak ${peakMiB}, ${verdict}; second half ${growthMiB >= 0 ? "+" : ""}${growthMiB}`;
}

function markdown(settings: Readonly<Record<string, Summary>>): string {
  const head = ["MiB", "before", ...SHARES.map((share) => `${share * 100} %`), "peak", "jobs/s", "CPU for each, µs"];
  const rows = Object.entries(settings).map(([name, { beforeMiB, rssMiB, peakMiB, jobsPerSecond, cpuPerJob }]) =>
    [name, beforeMiB, ...Object.values(rssMiB), peakMiB, jobsPerSecond, cpuPerJob].map(String),
  );
  return `A drain of ${jobs} jobs by one process.\n\n${table(head, rows)}`;
}

function print(text: string): void {
  process.stdout.write(`${text}\n`);
}
