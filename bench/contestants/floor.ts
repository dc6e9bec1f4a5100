/**
 * The floor: hand-written SQL on plain pg with named statements and a minimal row. It keeps no history
 * and promises nothing; no queue on this server can be faster.
 */
import pg from "pg";
import type { Contestant, Payload, Started } from "../harness/contestant.ts";

const CLAIM = 500;
const CONNECTIONS = 2;

export async function open(url: string): Promise<Contestant> {
  const pool = new pg.Pool({ connectionString: url, max: 16 });
  pool.on("error", () => {});
  return {
    pending: "select count(*) from floor_jobs",
    install: async () => {
      await pool.query(schema);
    },
    enqueue: (payload) => pool.query({ name: "insert", text: insert, values: ["noop", JSON.stringify(payload)] }),
    enqueueMany: (payloads) =>
      pool.query({ name: "insert_many", text: insertMany, values: ["noop", payloads.map((p) => JSON.stringify(p))] }),
    work: async (started) => {
      for (let n = 0; n < CONNECTIONS; n += 1) void drain(pool, started);
    },
    close: () => pool.end(),
  };
}

/** Until nothing is due: it measures what a queue could do, and is none. */
async function drain(pool: pg.Pool, started: Started): Promise<void> {
  for (;;) {
    const { rows } = await pool.query<{ id: string; payload: Payload }>({
      name: "claim",
      text: claim,
      values: [CLAIM],
    });
    if (rows.length === 0) return;
    for (const { payload } of rows) started(payload);
    await pool.query({ name: "delete", text: remove, values: [rows.map(({ id }) => id)] });
  }
}

const schema = `
  create table floor_jobs (
    id bigint generated always as identity primary key,
    type text not null,
    payload jsonb not null,
    status smallint not null default 0,
    run_at timestamptz not null default now(),
    attempt int not null default 0
  );
  create index floor_jobs_pending on floor_jobs (run_at, id) where status = 0`;

const insert = "insert into floor_jobs (type, payload) values ($1, $2::jsonb)";

const insertMany = "insert into floor_jobs (type, payload) select $1, p::jsonb from unnest($2::text[]) as p";

const claim = `
  update floor_jobs set status = 1, attempt = attempt + 1
  where id = any(array(
    select id from floor_jobs where status = 0 and run_at <= now() order by run_at, id limit $1 for update skip locked
  ))
  returning id, type, payload`;

const remove = "delete from floor_jobs where id = any($1::bigint[])";
