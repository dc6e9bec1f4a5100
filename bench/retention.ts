/**
 * `npm run bench:retention [-- --quick]`: what a drain loses while retention deletes a large history beside it. Two sessions claim and
 * settle a backlog, with and without, in turns on one server; printed are their jobs a second and their longest claim.
 */
import { parseArgs } from "node:util";
import { Kysely, PostgresDialect } from "kysely";
import pg from "pg";
import { migrate, rollback } from "../db/index.ts";
import { createLedger, type Ledger } from "../src/index.ts";
import { startPostgres } from "../src/testing/index.ts";
import { withPast } from "./harness/past.ts";
import { median } from "./measure.ts";

const { values } = parseArgs({ options: { quick: { type: "boolean", default: false } } });
const sizes = values.quick
  ? { jobs: 50_000, runs: 2_000, backlog: 10_000, repetitions: 2 }
  : { jobs: 200_000, runs: 10_000, backlog: 30_000, repetitions: 5 };
const BATCH = 100;
const SESSIONS = 2;

interface Drained {
  readonly jobsPerSecond: number;
  readonly longestClaimMs: number;
  readonly deleted: number;
}

const server = await startPostgres({ durable: true, container: false });
const pool = new pg.Pool({ connectionString: server.url, max: 10 });
const db = new Kysely<unknown>({ dialect: new PostgresDialect({ pool }) });
const ledger = createLedger({ db });
const results: { alone: Drained[]; beside: Drained[] } = { alone: [], beside: [] };
try {
  for (let turn = 0; turn <= sizes.repetitions; turn += 1) {
    for (const which of ["alone", "beside"] as const) {
      const drained = await measured(which === "beside");
      if (turn > 0) results[which].push(drained);
    }
  }
  for (const [which, all] of Object.entries(results)) {
    const of = (what: keyof Drained) => all.map((one) => one[what]);
    process.stdout.write(
      `${which.padEnd(8)} ${Math.round(median(of("jobsPerSecond")))} jobs/s, longest claim ${median(of("longestClaimMs")).toFixed(0)} ms (at most ${Math.max(...of("longestClaimMs")).toFixed(0)}), deleted meanwhile ${median(of("deleted"))}\n`,
    );
  }
  const ratios = results.alone.map(
    ({ jobsPerSecond }, turn) => (results.beside[turn]?.jobsPerSecond ?? 0) / jobsPerSecond,
  );
  process.stdout.write(`ratio    ${median(ratios).toFixed(2)}\n`);
} finally {
  await db.destroy();
  await server.stop();
}

async function measured(withRetention: boolean): Promise<Drained> {
  await prepare();
  const stop = new AbortController();
  const policies = { jobs: { SUCCEEDED: 30 }, runs: { SUCCEEDED: 30 } };
  const retaining = withRetention ? ledger.maintenance.retain({ policies, signal: stop.signal }) : undefined;
  const started = performance.now();
  const longest = await Promise.all(Array.from({ length: SESSIONS }, (_, n) => drain(ledger, `w${n}`)));
  const seconds = (performance.now() - started) / 1000;
  stop.abort();
  const retained = await retaining;
  return {
    jobsPerSecond: sizes.backlog / seconds,
    longestClaimMs: Math.max(...longest),
    deleted: (retained?.jobs ?? 0) + (retained?.runs ?? 0),
  };
}

/** Answers the longest claim. */
async function drain(own: Ledger, workerId: string): Promise<number> {
  for (let longest = 0; ; ) {
    const asked = performance.now();
    const claimed = await own.jobs.claim({ workerId, limit: BATCH, types: ["noop"] });
    longest = Math.max(longest, performance.now() - asked);
    if (claimed.length === 0) return longest;
    await own.jobs.settle(claimed.map(({ lease }) => ({ lease, success: {} })));
  }
}

/** A history of twenty weeks in its partitions, of which some hold a job that is kept, old runs, and a backlog. */
async function prepare(): Promise<void> {
  await rollback(db);
  await migrate(db);
  await withPast(pool, 22);
  await pool.query(
    `insert into runledger.job_ledger (id, run_number, status, failure_kind, type, priority, run_at, attempt, max_attempts,
       timeout_seconds, enqueued_at, ended_at, payload)
     select public.id_at(age, n), 1, (case when dead then 'DEAD_LETTERED' else 'SUCCEEDED' end)::runledger.job_status,
       (case when dead then 'TERMINAL' end)::runledger.failure_kind, 'noop', 100, now(), 1, 8, 900, now(),
       now() - age * interval '1 day', '{"n": 1}'
     from generate_series(1, $1::int) as n,
       lateral (select 150 - 110 * n::float8 / $1 as age, n % 5000 = 0 and n > $1 / 2 as dead) as at`,
    [sizes.jobs],
  );
  await pool.query(
    `with run as (
       insert into runledger.workflow_runs (id, type, status, step_count, open_count, waiting_count, errored_count, ended_at)
       select public.id_at(60, n), 'old', 'SUCCEEDED', 3, 0, 0, 0, now() - interval '60 days' from generate_series(1, $1::int) as n
       returning id
     )
     insert into runledger.workflow_steps (run_id, id, step_key, kind, status, pending_count, unsatisfied_count, dependent_count,
       job_id, job_type, payload, ended_at)
     select id, public.id_at(60, k), 'k' || k, 'JOB', 'SUCCEEDED', 0, 0, 0, id, 'noop', '{}', now()
     from run, generate_series(1, 3) as k`,
    [sizes.runs],
  );
  await pool.query("vacuum analyze runledger.job_ledger, runledger.workflow_runs, runledger.workflow_steps");
  const requests = Array.from({ length: sizes.backlog }, (_, n) => ({ type: "noop", payload: { n } }));
  await ledger.jobs.enqueueMany(requests);
}
