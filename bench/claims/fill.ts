/** A backlog and a history, written by the server itself: a million rows in seconds. */
import pg from "pg";
import { withPast } from "../harness/past.ts";

const CHUNK = 250_000;
const WEEKS = 22;
const DAYS = 150;

export interface Contents {
  /** Jobs that wait: half of them due and of the type that is drained, a fifth of it later, the rest due and of 30 other types. */
  readonly pending: number;
  /** Jobs that have ended within the last 150 days. */
  readonly finished: number;
}

export async function fill(url: string, { pending, finished }: Contents): Promise<void> {
  const pool = new pg.Pool({ connectionString: url, max: 1 });
  try {
    await withPast(pool, WEEKS);
    // Without triggers: what they count is not what is measured.
    await pool.query("set session_replication_role = replica");
    await chunks(pending, (from, count) => pool.query(PENDING, [from, count]));
    await chunks(finished, (from, count) => pool.query(FINISHED, [from, count, finished]));
    await pool.query("vacuum (analyze) runledger.job_queue");
    await pool.query("vacuum (analyze) runledger.job_ledger");
  } finally {
    await pool.end();
  }
}

async function chunks(total: number, insert: (from: number, count: number) => Promise<unknown>): Promise<void> {
  for (let from = 0; from < total; from += CHUNK) await insert(from, Math.min(CHUNK, total - from));
}

const PENDING = `
  insert into runledger.job_queue (id, type, priority, run_at, max_attempts, timeout_seconds, payload)
  select public.id_at(1 - 1e-8 * n, n), case when n % 10 < 7 then 'noop' else 'other-' || n % 30 end, 100,
    case when n % 10 in (5, 6) then now() + interval '30 days' else now() - interval '1 day' end, 8, 900, jsonb_build_object('n', n)
  from generate_series($1::bigint, $1::bigint + $2::bigint - 1) as n`;

const FINISHED = `
  insert into runledger.job_ledger (id, run_number, status, failure_kind, type, priority, run_at, attempt, max_attempts,
    timeout_seconds, enqueued_at, ended_at, payload)
  select public.id_at(age, n), 1, (case when dead then 'DEAD_LETTERED' else 'SUCCEEDED' end)::runledger.job_status,
    (case when dead then 'TERMINAL' end)::runledger.failure_kind, case when n % 2 = 0 then 'noop' else 'other-' || n % 30 end,
    100, at, 1, 8, 900, at, at, jsonb_build_object('n', n)
  from generate_series($1::bigint, $1::bigint + $2::bigint - 1) as n,
    lateral (select ${DAYS} * (1 - n::float8 / $3::float8) as age, n % 100 = 0 as dead) as aged,
    lateral (select now() - age * interval '1 day' as at) as past`;
