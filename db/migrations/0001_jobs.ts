import { sql } from "kysely";
import { type QualifiedName, qualifiedNames, runAll, type SchemaMigration } from "./names.ts";

/** Jobs: definitions, the hot queue, the cold ledger, attempts, events, logs and idempotency keys. */
export function jobs(schema: string): SchemaMigration {
  const name = qualifiedNames(schema);
  return {
    async up(db) {
      await runAll(db, [
        sql`create schema if not exists ${sql.id(schema)}`,
        ...enums(name),
        definitions(name),
        ...queue(name),
        ...ledger(name, schema),
        ...history(name),
        idempotencyKeys(name),
        jobsView(name),
        timelineView(name),
      ]);
    },
    async down(db) {
      await runAll(db, [
        sql`drop view ${name("job_timeline")}`,
        sql`drop view ${name("jobs")}`,
        sql`drop table ${name("job_idempotency_keys")}`,
        sql`drop table ${name("job_logs")}`,
        sql`drop table ${name("job_events")}`,
        sql`drop table ${name("job_attempts")}`,
        sql`drop function ${name("ensure_job_ledger_partitions")}`,
        sql`drop table ${name("job_ledger")}`,
        sql`drop table ${name("job_queue")}`,
        sql`drop table ${name("job_definitions")}`,
        sql`drop type ${name("failure_kind")}`,
        sql`drop type ${name("job_status")}`,
      ]);
    },
  };
}

function enums(name: QualifiedName) {
  return [
    sql`create type ${name("job_status")} as enum ('PENDING', 'LEASED', 'SUCCEEDED', 'DEAD_LETTERED', 'CANCELED')`,
    sql`create type ${name("failure_kind")} as enum ('RETRYABLE', 'TERMINAL', 'PANICKED', 'TIMEOUT', 'LEASE_EXPIRED')`,
  ];
}

function definitions(name: QualifiedName) {
  return sql`
    create table ${name("job_definitions")} (
      type                    text primary key,
      version                 integer not null default 1,
      max_attempts            integer not null default 8,
      timeout_seconds         integer not null default 900,
      priority                integer not null default 100,
      enabled                 boolean not null default true,
      paused                  boolean not null default false,
      backoff_initial_seconds double precision not null default 1,
      backoff_factor          double precision not null default 2,
      backoff_max_seconds     double precision not null default 3600,
      backoff_jitter          double precision not null default 0.5,
      catalogue               text,
      created_at              timestamptz not null default now(),
      updated_at              timestamptz not null default now(),
      constraint job_definitions_type_length check (octet_length(type) between 1 and 512),
      constraint job_definitions_version_positive check (version > 0),
      constraint job_definitions_max_attempts_positive check (max_attempts > 0),
      constraint job_definitions_timeout_positive check (timeout_seconds > 0),
      constraint job_definitions_backoff_shape check (
        backoff_initial_seconds >= 0 and backoff_factor between 1 and 1000
        and backoff_max_seconds >= backoff_initial_seconds
        and backoff_jitter between 0 and 1
      )
    )`;
}

function queue(name: QualifiedName) {
  return [
    // fillfactor: a claim and each heartbeat write a new row version; room on the page keeps it
    // beside the old one, and lets heartbeats stay HOT.
    // autovacuum: rows live for seconds, so the share of dead rows says nothing; a fixed small
    // count with no delay keeps the table and its indexes short whatever the backlog.
    sql`
    create table ${name("job_queue")} (
      id               uuid not null,
      run_number       integer not null default 1,
      status           ${name("job_status")} not null default 'PENDING',
      type             text not null,
      organization_id  uuid,
      priority         integer not null,
      run_at           timestamptz not null,
      attempt          integer not null default 0,
      max_attempts     integer not null,
      timeout_seconds  integer not null,
      worker_id        text,
      leased_at        timestamptz,
      lease_expires_at timestamptz,
      enqueued_at      timestamptz not null default now(),
      workflow_run_id  uuid,
      workflow_step_id uuid,
      progress_done    bigint,
      progress_total   bigint,
      payload          jsonb not null,
      checkpoint       jsonb,
      tags             text[],
      constraint job_queue_pkey primary key (id),
      constraint job_queue_is_live check (status in ('PENDING', 'LEASED')),
      constraint job_queue_lease_has_owner check (
        (status = 'LEASED') = (worker_id is not null)
        and (status = 'LEASED') = (lease_expires_at is not null)
        and (status = 'LEASED') = (leased_at is not null)
      ),
      constraint job_queue_type_length check (octet_length(type) between 1 and 512),
      constraint job_queue_run_number_positive check (run_number > 0),
      constraint job_queue_attempt_in_range check (attempt between 0 and max_attempts),
      constraint job_queue_timeout_positive check (timeout_seconds > 0),
      constraint job_queue_progress_in_range check (progress_done >= 0 and progress_done <= progress_total),
      constraint job_queue_step_has_run check ((workflow_run_id is null) = (workflow_step_id is null))
    ) with (
      fillfactor = 80,
      autovacuum_vacuum_scale_factor = 0,
      autovacuum_vacuum_threshold = 2000,
      autovacuum_analyze_scale_factor = 0.05,
      autovacuum_vacuum_cost_delay = 0
    )`,
    // The order of a claim within one (type, priority) lane.
    sql`
    create index job_queue_pending on ${name("job_queue")} (type, priority desc, run_at, id)
    where status = 'PENDING'`,
    // The reaper's. Without the lease's end in the key, so that a heartbeat touches no index.
    sql`create index job_queue_leased on ${name("job_queue")} (id) where status = 'LEASED'`,
  ];
}

function ledger(name: QualifiedName, schema: string) {
  return [
    sql`
    create table ${name("job_ledger")} (
      id               uuid not null,
      run_number       integer not null,
      status           ${name("job_status")} not null,
      type             text not null,
      organization_id  uuid,
      priority         integer not null,
      run_at           timestamptz not null,
      attempt          integer not null,
      max_attempts     integer not null,
      timeout_seconds  integer not null,
      worker_id        text,
      leased_at        timestamptz,
      lease_expires_at timestamptz,
      enqueued_at      timestamptz not null,
      ended_at         timestamptz not null,
      workflow_run_id  uuid,
      workflow_step_id uuid,
      progress_done    bigint,
      progress_total   bigint,
      failure_kind     ${name("failure_kind")},
      error_code       text,
      error_message    text,
      canceled_reason  text,
      payload          jsonb not null,
      checkpoint       jsonb,
      output           jsonb,
      tags             text[],
      constraint job_ledger_pkey primary key (id, run_number),
      constraint job_ledger_has_ended check (status in ('SUCCEEDED', 'DEAD_LETTERED', 'CANCELED')),
      constraint job_ledger_failure_kind check ((status = 'DEAD_LETTERED') = (failure_kind is not null)),
      constraint job_ledger_run_number_positive check (run_number > 0)
    ) partition by range (id)`,
    // Takes what no partition was made ahead for: an ended job is never refused a place.
    sql`create table ${name("job_ledger_default")} partition of ${name("job_ledger")} default`,
    sql`create index job_ledger_dead on ${name("job_ledger")} (id) where status = 'DEAD_LETTERED'`,
    ledgerPartitions(name, schema),
    sql`select ${name("ensure_job_ledger_partitions")}(8)`,
  ];
}

/**
 * Weekly partitions from the current week on. A UUIDv7 starts with its 48-bit millisecond time, so
 * a week is a range of ids. Rows that already fell into the default partition move along, and a
 * partition is attached rather than created in place: that needs no lock against running inserts. Only
 * the default partition is locked, before its rows move: one that committed after the move and before
 * the attaching would be in the way of it.
 */
function ledgerPartitions(name: QualifiedName, schema: string) {
  return sql`
    create function ${name("ensure_job_ledger_partitions")}(weeks_ahead integer default 8) returns setof text
    language plpgsql as $function$
    declare
      monday timestamp := date_trunc('week', now() at time zone 'utc');
      starts timestamp;
      partition_name text;
      lower_id uuid;
      upper_id uuid;
    begin
      perform pg_advisory_xact_lock(hashtextextended(${sql.lit(`${schema}.job_ledger`)}, 0));
      for week in 0..weeks_ahead loop
        starts := monday + make_interval(weeks => week);
        partition_name := 'job_ledger_' || to_char(starts, 'YYYYMMDD');
        continue when to_regclass(format('%I.%I', ${sql.lit(schema)}, partition_name)) is not null;
        lower_id := (lpad(to_hex((extract(epoch from starts) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid;
        upper_id := (lpad(to_hex((extract(epoch from starts + interval '1 week') * 1000)::bigint), 12, '0')
          || repeat('0', 20))::uuid;
        execute format('lock table %I.job_ledger_default in access exclusive mode', ${sql.lit(schema)});
        execute format('create table %I.%I (like %I.job_ledger including defaults including constraints)',
          ${sql.lit(schema)}, partition_name, ${sql.lit(schema)});
        execute format(
          'with moved as (delete from %I.job_ledger_default where id >= %L and id < %L returning *)
           insert into %I.%I select * from moved',
          ${sql.lit(schema)}, lower_id, upper_id, ${sql.lit(schema)}, partition_name);
        execute format('alter table %I.job_ledger attach partition %I.%I for values from (%L) to (%L)',
          ${sql.lit(schema)}, ${sql.lit(schema)}, partition_name, lower_id, upper_id);
        return next partition_name;
      end loop;
    end
    $function$`;
}

function history(name: QualifiedName) {
  return [
    sql`
    create table ${name("job_attempts")} (
      job_id        uuid not null,
      run_number    integer not null,
      attempt       integer not null,
      worker_id     text,
      started_at    timestamptz not null,
      ended_at      timestamptz not null,
      failure_kind  ${name("failure_kind")} not null,
      error_code    text not null,
      error_message text not null,
      constraint job_attempts_pkey primary key (job_id, run_number, attempt)
    )`,
    sql`
    create table ${name("job_events")} (
      id         bigint generated always as identity,
      job_id     uuid not null,
      run_number integer not null,
      event      text not null,
      actor      text,
      details    jsonb,
      at         timestamptz not null default now(),
      constraint job_events_pkey primary key (job_id, id)
    )`,
    sql`
    create table ${name("job_logs")} (
      id         bigint generated always as identity,
      job_id     uuid not null,
      run_number integer not null,
      attempt    integer not null,
      level      text not null,
      message    text not null,
      fields     jsonb,
      at         timestamptz not null default clock_timestamp(),
      constraint job_logs_pkey primary key (job_id, id),
      constraint job_logs_level check (level in ('debug', 'info', 'warn', 'error'))
    )`,
  ];
}

function idempotencyKeys(name: QualifiedName) {
  // tenant: a plain key column for "this organization, or the global tenant"; unique indexes treat
  // nulls as different, and NULLS NOT DISTINCT needs PostgreSQL 15.
  return sql`
    create table ${name("job_idempotency_keys")} (
      type             text not null,
      organization_id  uuid,
      tenant           text not null generated always as (coalesce(organization_id::text, 'global')) stored,
      key              text not null,
      job_id           uuid not null,
      requested        jsonb not null,
      requested_run_at timestamptz,
      created_at       timestamptz not null default now(),
      expires_at       timestamptz,
      constraint job_idempotency_keys_pkey primary key (type, tenant, key),
      constraint job_idempotency_keys_key_length check (octet_length(key) between 1 and 512)
    )`;
}

const sharedColumns = sql.raw(`
        id, run_number, status, type, organization_id, priority, run_at, attempt, max_attempts, timeout_seconds,
        worker_id, leased_at, lease_expires_at, enqueued_at, workflow_run_id, workflow_step_id, progress_done,
        progress_total, payload, checkpoint, tags`);

/** As this migration leaves it: later ones go back to it. */
export function jobsView(name: QualifiedName) {
  return sql`
    create view ${name("jobs")} as
      select ${sharedColumns},
        null::timestamptz as ended_at, null::${name("failure_kind")} as failure_kind, null::text as error_code,
        null::text as error_message, null::text as canceled_reason, null::jsonb as output
      from ${name("job_queue")}
      union all
      select ${sharedColumns},
        ended_at, failure_kind, error_code, error_message, canceled_reason, output
      from ${name("job_ledger")} as ended
      where not exists (select from ${name("job_queue")} as live where live.id = ended.id)
        and not exists (
          select from ${name("job_ledger")} as later
          where later.id = ended.id and later.run_number > ended.run_number
        )`;
}

/** As this migration leaves it: later ones go back to it. */
export function timelineView(name: QualifiedName) {
  return sql`
    create view ${name("job_timeline")} as
      select id as job_id, run_number, enqueued_at as at, 'enqueued' as event, null::integer as attempt,
        null::text as actor, null::text as code, null::text as message, null::jsonb as details
      from ${name("jobs")}
      union all
      select id, run_number, leased_at, 'leased', attempt, worker_id, null, null, null
      from ${name("job_queue")} where status = 'LEASED'
      union all
      select job_id, run_number, ended_at, 'attempt_failed', attempt, worker_id, error_code, error_message,
        jsonb_build_object('kind', failure_kind, 'started_at', started_at)
      from ${name("job_attempts")}
      union all
      select job_id, run_number, at, event, null, actor, null, null, details
      from ${name("job_events")}
      union all
      select id, run_number, ended_at, lower(status::text), attempt, worker_id, error_code,
        coalesce(error_message, canceled_reason), null
      from ${name("job_ledger")}`;
}
