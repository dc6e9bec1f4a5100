/** Housekeeping of limits: keys that nobody uses go, and a key that was forgotten, which cannot be, is woken. */
import { type RawBuilder, sql } from "kysely";
import { toNumber } from "../database/decode.ts";
import type { Executor } from "../database/executor.ts";
import { writing } from "../database/statement.ts";
import { LedgerError } from "../errors.ts";
import { validInteger } from "./arguments.ts";

export interface SweepLimitsOptions {
  /** At most this many keys are deleted, and as many woken. Default 1000. */
  readonly limit?: number;
}

export interface SweptLimits {
  /** Keys without jobs and without starts that still count. */
  readonly deleted: number;
  /** Keys with due jobs and room for them that no wake spoke of: always 0, unless rows were changed by hand. */
  readonly woken: number;
}

const DEFAULT_LIMIT = 1000;
const MAX_LIMIT = 100_000;

/** Reads all keys; waits for no lock. One round trip. Throws `input.invalid`. */
export async function sweepLimits(executor: Executor, options: SweepLimitsOptions = {}): Promise<SweptLimits> {
  const limit = validInteger(options.limit, "limit", 1, MAX_LIMIT) ?? DEFAULT_LIMIT;
  const row = await sweep.executeFirst(executor, { limit });
  if (row === undefined) throw new LedgerError("db.error");
  return { deleted: toNumber(row.deleted), woken: toNumber(row.woken) };
}

type Table = (name: string) => RawBuilder<unknown>;

/** The WITH of `forgotten`: for each type, one due job of a key that has room for it and no wake that says so. */
export function forgottenJobs(table: Table): RawBuilder<unknown> {
  const tenant = sql`coalesce(q.organization_id::text, 'global')`;
  const first = (after: RawBuilder<unknown>) => sql`
    select q.limit_key as key, ${tenant} as tenant, q.type from ${table("job_queue")} as q
    where q.status = 'PENDING' and q.limit_key is not null ${after}
    order by q.limit_key, ${tenant}, q.type limit 1`;
  return sql`
    key_type(key, tenant, type) as (
      (${first(sql``)})
      union all
      select later.* from key_type as k
      cross join lateral (${first(sql`and (q.limit_key, ${tenant}, q.type) > (k.key, k.tenant, k.type)`)}) as later
    ), forgotten as (
      select k.tenant, due.*
      from key_type as k
      left join ${table("job_limits")} as l on l.tenant = k.tenant and l.key = k.key
      cross join lateral (
        select q.* from ${table("job_queue")} as q
        where q.status = 'PENDING' and q.limit_key = k.key and ${tenant} = k.tenant and q.type = k.type
          and q.run_at <= now()
        limit 1
      ) as due
      where (l.concurrency is null or l.concurrency > (
          select count(*) from ${table("job_queue")} as q
          where q.status = 'LEASED' and q.limit_key = k.key and ${tenant} = k.tenant
        ))
        and not exists (
          select from ${table("job_limit_wakes")} as w
          where w.tenant = k.tenant and w.key = k.key and (w.type = '' or (w.type = k.type and w.due_at <= now()))
        )
    )`;
}

// A claim that holds a key, or changed its row since this snapshot, keeps it.
const sweep = writing("sweep_job_limits", { limit: "int4" }, (_db, p, schema) => {
  const table: Table = (name) => sql.id(schema, name);
  return sql<{ deleted: string; woken: string }>`
    with recursive ${forgottenJobs(table)}, idle as materialized (
      select k.tenant, k.key from ${table("job_limits")} as k
      where not exists (
          select from unnest(k.bucket_ends) as bucket(ends_at)
          where bucket.ends_at + make_interval(secs => k.period_seconds) > clock_timestamp()
        )
        and not exists (
          select from ${table("job_queue")} as q
          where q.limit_key = k.key and coalesce(q.organization_id::text, 'global') = k.tenant and q.status = 'PENDING'
        )
        and not exists (
          select from ${table("job_queue")} as q
          where q.limit_key = k.key and coalesce(q.organization_id::text, 'global') = k.tenant and q.status = 'LEASED'
        )
      limit ${p.limit} for update skip locked
    ), deleted as (
      delete from ${table("job_limits")} as k using idle where k.tenant = idle.tenant and k.key = idle.key
      returning k.key
    ), woken as (
      insert into ${table("job_limit_wakes")}
        (tenant, key, due_at, type, priority, job_id, concurrency, starts, period_seconds)
      select tenant, limit_key, run_at, type, priority, id, limit_concurrency, limit_starts, limit_period_seconds
      from forgotten limit ${p.limit}
      returning key
    )
    select (select count(*) from deleted) as deleted, (select count(*) from woken) as woken`;
});
