import { type RawBuilder, sql } from "kysely";
import { jobsChannel } from "../../src/database/channels.ts";
import { sqlstateOf } from "../../src/database/sqlstate.ts";
import { errorCodes, type LedgerErrorCode } from "../../src/errors.ts";
import { jobDefaults } from "../../src/jobs/defaults.ts";
import type { QualifiedName } from "./names.ts";

/**
 * The statements of an enqueue from SQL. Each function answers a list of requests, in rounds: what a key comes upon may
 * end or go away between two statements, and is then asked for again. Both write, lock and wait as the functions in
 * TypeScript do (src/jobs/idempotency.ts, src/jobs/active.ts). What is looked for in a list of the batch is looked for
 * by IN and NOT IN, which are hashed, and what is looked up in a table is looked up by LATERAL: whatever the planner
 * thinks of the numbers.
 */
export function requestTypes(name: QualifiedName) {
  return [
    sql`
    create type ${name("job_request")} as (
      place                integer,
      id                   uuid,
      type                 text,
      payload              jsonb,
      priority             integer,
      max_attempts         integer,
      timeout_seconds      integer,
      run_at               timestamptz,
      delay_seconds        double precision,
      organization_id      uuid,
      tags                 text,
      limit_key            text,
      limit_concurrency    integer,
      limit_starts         integer,
      limit_period_seconds double precision,
      key_kind             text,
      key                  text,
      ttl_seconds          double precision,
      replaces             boolean,
      wait_seconds         double precision,
      longest_wait_seconds double precision,
      requested            jsonb
    )`,
    sql`
    create type ${name("job_answer")} as (
      place integer, id uuid, status ${name("job_status")}, run_number integer, disposition text
    )`,
  ];
}

/** As many as in TypeScript. */
const MAX_ROUNDS = 10;

const nextRound = sql`round := round + 1;
        if round > ${sql.lit(MAX_ROUNDS)} then
          ${refuse("db.serialization_conflict")};
        end if;
`;

/**
 * Requests without a key, and those whose key outlasts its job: the key is taken first, and the job follows it. Keys are
 * taken in their own order, so that two batches which share some cannot wait for each other; so are those locked that
 * have expired, which only who has come upon one looks for.
 */
export function takeOrFind(name: QualifiedName, schema: string) {
  return sql`
    create function ${name("take_or_find_jobs")}(requests ${name("job_request")}[]) returns setof ${name("job_answer")}
    language plpgsql volatile as $function$
    #variable_conflict use_column
    declare
      rest ${name("job_request")}[] := requests;
      inserted uuid[];
      runnable boolean;
      found ${name("job_answer")}[];
      same boolean;
      round integer := 0;
    begin
      while cardinality(rest) > 0 loop
        ${nextRound}
        if round > 1 then
          delete from ${name("job_idempotency_keys")} as k
          where k.ctid = any (array(
            select stale.place from (
              select r.type, r.organization_id, r.key, r.key_kind from unnest(rest) as r
              where r.key is not null order by r.type, r.organization_id, r.key, r.key_kind
            ) as wanted
            cross join lateral (
              select k.ctid as place from ${name("job_idempotency_keys")} as k
              where ${isKeyOf("k", "wanted", name)} and k.expires_at <= clock_timestamp()
              for update of k
            ) as stale
          ));
        end if;

        with taken as (
          insert into ${name("job_idempotency_keys")}
            (job_id, type, organization_id, key, kind, requested, requested_run_at, expires_at)
          select r.id, r.type, r.organization_id, r.key, r.key_kind::${name("job_key_kind")}, r.requested, r.run_at,
            clock_timestamp() + make_interval(secs => r.ttl_seconds)
          from unnest(rest) as r
          where r.key is not null
          order by r.type, r.organization_id, r.key, r.key_kind, r.place
          on conflict do nothing
          returning job_id
        ), added as (
          ${insertJobs(name)}
          where r.key is null or r.id in (select job_id from taken)
          returning id, run_at
        )
        select array(select id from added), exists (select from added where run_at <= now()) into inserted, runnable;
        ${announceWhenRunnable(schema)}

        if cardinality(inserted) = cardinality(rest) then
          return query select ${insertedAnswer(name)} from unnest(rest) as r;
          return;
        end if;
        return query select ${insertedAnswer(name)} from unnest(rest) as r where r.id in (select unnest(inserted));
        rest := array(select r from unnest(rest) as r where r.id not in (select unnest(inserted)));

        select array_agg(${answer(
          name,
          sql`r.place, k.job_id, job.status, job.run_number, case k.kind when 'THROTTLE' then 'throttled' else 'existing' end`,
        )}),
          bool_and(k.kind = 'THROTTLE' or k.requested = r.requested and k.requested_run_at is not distinct from r.run_at)
        into found, same
        from unnest(rest) as r
        cross join lateral (
          select k.* from ${name("job_idempotency_keys")} as k
          where ${isKeyOf("k", "r", name)} and (k.expires_at > clock_timestamp()) is not false offset 0
        ) as k
        left join lateral (
          select q.status, q.run_number from ${name("job_queue")} as q where q.id = k.job_id
          union all
          select l.status, l.run_number from ${name("job_ledger")} as l where l.id = k.job_id
          order by run_number desc limit 1
        ) as job on true;
        if not same then
          ${refuse("job.idempotency_conflict")};
        end if;
        if exists (select from unnest(found) as a where a.status is null) then
          ${refuse("job.not_found", sql`'The job of a key is gone.'`)};
        end if;
        return query select * from unnest(found);
        rest := array(select r from unnest(rest) as r where r.place not in (select a.place from unnest(found) as a));
      end loop;
    end
    $function$`;
}

/**
 * Requests for active and debounce keys, which live jobs hold. Who holds a key is looked up without locks, and locked in
 * id order where it is pending still; of several requests for one job the last counts. Free keys are taken in their own
 * order; an insert waits for whoever inserts, changes or ends the job of the same key, and the next round goes by what
 * came of it.
 */
export function takeOrJoin(name: QualifiedName, schema: string) {
  return sql`
    create function ${name("take_or_join_jobs")}(requests ${name("job_request")}[]) returns setof ${name("job_answer")}
    language plpgsql volatile as $function$
    #variable_conflict use_column
    declare
      rest ${name("job_request")}[] := requests;
      places integer[];
      holders uuid[];
      inserted uuid[];
      runnable boolean;
      found ${name("job_answer")}[];
      round integer := 0;
    begin
      while cardinality(rest) > 0 loop
        ${nextRound}
        with seen as (
          select r.*, holder.job_id from unnest(rest) as r
          cross join lateral (
            select q.id as job_id from ${name("job_queue")} as q
            where q.active_key is not null and ${holds("q", "active_key", "ACTIVE")}
            union all
            select q.id from ${name("job_queue")} as q
            where q.debounce_key is not null and ${holds("q", "debounce_key", "DEBOUNCE")}
          ) as holder
          where r.replaces
        ), newest as (
          select distinct on (s.job_id) s.* from seen as s order by s.job_id, s.place desc
        ), held as materialized (
          select n.* from newest as n
          cross join lateral (
            select q.id from ${name("job_queue")} as q
            -- A claim that was given back has no debounce key any more.
            where q.id = n.job_id and q.status = 'PENDING' and (q.active_key is not null or q.debounce_key is not null)
            for update of q
          ) as pending
        ), replaced as (
          update ${name("job_queue")} as q set
            payload = h.payload,
            priority = coalesce(h.priority, q.priority),
            -- An attempt is left, whatever is asked for.
            max_attempts = greatest(coalesce(h.max_attempts, q.max_attempts), q.attempt + 1),
            timeout_seconds = coalesce(h.timeout_seconds, q.timeout_seconds),
            run_at = case
              when h.key_kind = 'ACTIVE' then coalesce(${startOf("h")}, q.run_at)
              else least(
                clock_timestamp() + make_interval(secs => h.wait_seconds),
                q.enqueued_at + make_interval(secs => h.longest_wait_seconds)
              )
            end,
            tags = coalesce(h.tags::text[], q.tags),
            -- A limit may follow from the payload: the one that comes with the new one counts, if there is one.
            limit_key = coalesce(h.limit_key, q.limit_key),
            limit_concurrency = ${limitOfNewest("limit_concurrency")},
            limit_starts = ${limitOfNewest("limit_starts")},
            limit_period_seconds = ${limitOfNewest("limit_period_seconds")},
            -- Of the payload before.
            checkpoint = null,
            progress_done = null,
            progress_total = null
          from held as h where q.id = h.job_id
          returning q.id, q.run_number, q.run_at, q.debounce_key
        ), noted as (
          insert into ${name("job_events")} (job_id, run_number, event)
          select r.id, r.run_number, 'replaced' from replaced as r where r.debounce_key is null
        )
        select array_agg(s.place), array_agg(s.job_id), bool_or(s.job_id in (select id from replaced where run_at <= now()))
        into places, holders, runnable
        from seen as s where s.job_id in (select id from replaced);
        ${announceWhenRunnable(schema)}

        return query
          select r.place, job.id, job.status, job.run_number, 'replaced'
          from unnest(places, holders) as r(place, job_id)
          cross join lateral (
            select q.id, q.status, q.run_number from ${name("job_queue")} as q where q.id = r.job_id offset 0
          ) as job;
        rest := array(select r from unnest(rest) as r where r.place not in (select unnest(places)));

        with added as (
          ${insertJobs(name)}
          order by r.type, r.organization_id, r.key_kind, r.key, r.place
          on conflict do nothing
          returning id, run_at
        )
        select array(select id from added), exists (select from added where run_at <= now()) into inserted, runnable;
        ${announceWhenRunnable(schema)}
        return query select ${insertedAnswer(name)} from unnest(rest) as r where r.id in (select unnest(inserted));
        rest := array(select r from unnest(rest) as r where r.id not in (select unnest(inserted)));

        -- A debounced job that is not there any more is a new one; an active one may be running.
        select array_agg(${answer(name, sql`r.place, job.id, job.status, job.run_number, 'existing_active'`)}) into found
        from unnest(rest) as r
        cross join lateral (
          select q.id, q.status, q.run_number from ${name("job_queue")} as q
          where q.active_key is not null and ${holds("q", "active_key", "ACTIVE")} limit 1
        ) as job
        where not (r.replaces and job.status = 'PENDING');
        return query select * from unnest(found);
        rest := array(select r from unnest(rest) as r where r.place not in (select a.place from unnest(found) as a));
      end loop;
    end
    $function$`;
}

/** Inserts jobs of `rest`, under the name r, with all settings resolved: which, and in what order, is said after it. */
function insertJobs(name: QualifiedName) {
  return sql`insert into ${name("job_queue")} (
            id, type, payload, priority, max_attempts, timeout_seconds, run_at, organization_id, tags,
            limit_key, limit_concurrency, limit_starts, limit_period_seconds, active_key, debounce_key
          )
          select r.id, r.type, r.payload,
            coalesce(r.priority, d.priority, ${sql.lit(jobDefaults.priority)}),
            coalesce(r.max_attempts, d.max_attempts, ${sql.lit(jobDefaults.maxAttempts)}),
            coalesce(r.timeout_seconds, d.timeout_seconds, ${sql.lit(jobDefaults.timeoutSeconds)}),
            coalesce(${startOf("r")}, clock_timestamp() + make_interval(secs => r.wait_seconds), now()),
            r.organization_id, r.tags::text[],
            r.limit_key, r.limit_concurrency, r.limit_starts, r.limit_period_seconds,
            case r.key_kind when 'ACTIVE' then r.key end, case r.key_kind when 'DEBOUNCE' then r.key end
          from unnest(rest) as r left join ${name("job_definitions")} as d on d.type = r.type`;
}

/** The time that a request names. */
function startOf(row: string) {
  const r = sql.raw(row);
  return sql`coalesce(${r}.run_at, now() + make_interval(secs => ${r}.delay_seconds))`;
}

/** Whether a key that outlasts its job is the one of a request. */
function isKeyOf(key: string, request: string, name: QualifiedName) {
  const [k, r] = [sql.raw(key), sql.raw(request)];
  return sql`${k}.type = ${r}.type and ${k}.tenant = coalesce(${r}.organization_id::text, 'global')
              and ${k}.key = ${r}.key and ${k}.kind = ${r}.key_kind::${name("job_key_kind")}`;
}

/** Whether a live job holds the key of the request r: as the unique indexes have it. */
function holds(job: string, column: "active_key" | "debounce_key", kind: string) {
  const q = sql.raw(job);
  const organization = (row: RawBuilder<unknown>) =>
    sql`(case when ${row}.organization_id is null then '00000000-0000-0000-0000-000000000000'::uuid else ${row}.organization_id end)`;
  return sql`${q}.type = r.type
              and (${q}.organization_id is null) = (r.organization_id is null)
              and ${organization(q)} = ${organization(sql.raw("r"))}
              and ${q}.${sql.raw(column)} = r.key and r.key_kind = ${sql.lit(kind)}`;
}

function limitOfNewest(column: string) {
  return sql`case when h.limit_key is null then q.${sql.raw(column)} else h.${sql.raw(column)} end`;
}

function answer(name: QualifiedName, columns: RawBuilder<unknown>) {
  return sql`row(${columns})::${name("job_answer")}`;
}

function insertedAnswer(name: QualifiedName) {
  return sql`r.place, r.id, ${name("job_status")} 'PENDING', 1, 'inserted'`;
}

/** The server sends one notification a transaction. */
function announceWhenRunnable(schema: string) {
  return sql`if runnable then
          perform pg_notify(${sql.lit(jobsChannel(schema))}, '');
        end if;`;
}

/** Raises the SQLSTATE that stands for the code, with the code as the hint. */
export function refuse(
  code: LedgerErrorCode,
  message: RawBuilder<unknown> = sql.lit(errorCodes[code].message),
  detail = sql`''`,
) {
  return sql`raise exception using errcode = ${sql.lit(sqlstateOf(code))}, message = ${message}, hint = ${sql.lit(code)}, detail = ${detail}`;
}
