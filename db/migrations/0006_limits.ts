import { sql } from "kysely";
import { jobsView, timelineView } from "./0001_jobs.ts";
import { type QualifiedName, qualifiedNames, runAll, type SchemaMigration } from "./names.ts";

/** Concurrency and rate limits per key: what jobs and steps carry, what is known of each key, and what is worth a look. */
export function limits(schema: string): SchemaMigration {
  const name = qualifiedNames(schema);
  return {
    async up(db) {
      await runAll(db, [
        ...columns(name),
        ...lanes(name),
        keys(name),
        ...wakes(name),
        ...triggers(name),
        // Not in place: a view that is replaced keeps its grants and loses security_invoker.
        sql`drop view ${name("job_timeline")}`,
        sql`drop view ${name("jobs")}`,
        jobsViewWithKey(name),
        timelineView(name),
      ]);
    },
    async down(db) {
      await runAll(db, [
        sql`drop view ${name("job_timeline")}`,
        sql`drop view ${name("jobs")}`,
        ...["insert", "update", "delete"].map(
          (event) => sql`drop trigger ${sql.id(`job_queue_limit_${event}`)} on ${name("job_queue")}`,
        ),
        sql`drop function ${name("wake_job_limit")}`,
        sql`drop table ${name("job_limit_wakes")}`,
        sql`drop table ${name("job_limits")}`,
        sql`drop index ${name("job_queue_limited")}`,
        sql`drop index ${name("job_queue_limited_leased")}`,
        sql`drop index ${name("job_queue_pending")}`,
        sql`
        create index job_queue_pending on ${name("job_queue")} (type, priority desc, run_at, id)
        where status = 'PENDING'`,
        ...["job_queue", "job_ledger", "workflow_steps"].map(
          (table) => sql`
          alter table ${name(table)}
            drop column limit_key, drop column limit_concurrency, drop column limit_starts,
            drop column limit_period_seconds`,
        ),
        jobsView(name),
        timelineView(name),
      ]);
    },
  };
}

/** All null for jobs without a limit, which costs no bytes. */
function columns(name: QualifiedName) {
  const shapes: Readonly<Record<string, string>> = {
    job_queue: "job_queue_limit_shape",
    workflow_steps: "workflow_steps_limit_shape",
  };
  return ["job_queue", "job_ledger", "workflow_steps"].flatMap((table) => {
    const added = sql`
      alter table ${name(table)}
        add column limit_key            text,
        add column limit_concurrency    integer,
        add column limit_starts         integer,
        add column limit_period_seconds double precision`;
    const shape = shapes[table];
    if (shape === undefined) return [added];
    return [
      added,
      sql`
      alter table ${name(table)}
        add constraint ${sql.id(shape)} check (
          (limit_key is null) = (limit_concurrency is null and limit_starts is null)
          and (limit_starts is null) = (limit_period_seconds is null)
          and octet_length(limit_key) between 1 and 512
          and limit_concurrency > 0 and limit_starts > 0 and limit_period_seconds > 0
        )`,
    ];
  });
}

/**
 * Jobs with a key are in no claim lane: a claim finds them through their keys, so that a hundred thousand
 * that must wait stand in nobody's way. How many of a key run is the number of its leased rows.
 */
function lanes(name: QualifiedName) {
  return [
    sql`drop index ${name("job_queue_pending")}`,
    sql`
    create index job_queue_pending on ${name("job_queue")} (type, priority desc, run_at, id)
    where status = 'PENDING' and limit_key is null`,
    sql`
    create index job_queue_limited on ${name("job_queue")}
      (limit_key, (coalesce(organization_id::text, 'global')), type, priority, run_at, id)
    where status = 'PENDING' and limit_key is not null`,
    sql`
    create index job_queue_limited_leased on ${name("job_queue")}
      (limit_key, (coalesce(organization_id::text, 'global')))
    where status = 'LEASED' and limit_key is not null`,
  ];
}

/**
 * The settings of a key are those of the job enqueued last, among those that a claim has been told of. Starts of the
 * last period are counted in buckets, each by the time of its end. Rows are made, locked and changed by claims only.
 */
function keys(name: QualifiedName) {
  return sql`
    create table ${name("job_limits")} (
      tenant          text not null,
      key             text not null,
      settings_job_id uuid,
      concurrency     integer,
      starts          integer,
      period_seconds  double precision,
      bucket_ends     timestamptz[] not null default '{}',
      bucket_starts   integer[] not null default '{}',
      wake_at         timestamptz,
      constraint job_limits_pkey primary key (tenant, key)
    ) with (
      fillfactor = 50,
      autovacuum_vacuum_scale_factor = 0,
      autovacuum_vacuum_threshold = 2000,
      autovacuum_vacuum_cost_delay = 0
    )`;
}

/**
 * A wake says that from a time on a key is worth a look: for a type, whose job became PENDING, or, with no
 * type (''), for all of them, when a slot came free. It ranks as its job: the one that is due, or the one whose slot it
 * was. Everybody inserts and nobody waits; only a claim that holds the key deletes.
 */
function wakes(name: QualifiedName) {
  return [
    sql`
    create table ${name("job_limit_wakes")} (
      tenant         text not null,
      key            text not null,
      due_at         timestamptz not null,
      id             bigint generated always as identity,
      type           text not null,
      priority       integer not null,
      job_id         uuid not null,
      concurrency    integer,
      starts         integer,
      period_seconds double precision,
      constraint job_limit_wakes_pkey primary key (tenant, key, due_at, id)
    ) with (
      autovacuum_vacuum_scale_factor = 0,
      autovacuum_vacuum_threshold = 2000,
      autovacuum_vacuum_cost_delay = 0
    )`,
    // Where a few keys have most wakes, as of jobs in the future, the planner would look for the due ones of a key by
    // reading all.
    sql`alter table ${name("job_limit_wakes")} alter column key set (n_distinct = -0.2)`,
    // Whether there is anything to look at, and then what comes first.
    sql`create index job_limit_wakes_due on ${name("job_limit_wakes")} (type, due_at)`,
    sql`
    create index job_limit_wakes_order on ${name("job_limit_wakes")} (type, priority, due_at, job_id)`,
  ];
}

/** By row, under conditions that a job without a limit does not meet: it pays for asking and nothing else. */
function triggers(name: QualifiedName) {
  const on = (event: string, when: string) => sql`
    create trigger ${sql.id(`job_queue_limit_${event}`)} after ${sql.raw(event)} on ${name("job_queue")}
    for each row when (${sql.raw(when)}) execute function ${name("wake_job_limit")}()`;
  return [
    sql`
    create function ${name("wake_job_limit")}() returns trigger
    language plpgsql as $function$
    begin
      if tg_op <> 'INSERT' then
        if old.status = 'LEASED' and old.limit_key is not null and (tg_op = 'DELETE' or new.status <> 'LEASED') then
          ${freed(name)};
        end if;
        if tg_op = 'DELETE' then
          return null;
        end if;
      end if;
      if new.status = 'PENDING' and new.limit_key is not null then
        ${wake(name)};
      end if;
      return null;
    end
    $function$`,
    on("insert", "new.limit_key is not null"),
    on(
      "update",
      `(new.limit_key is not null or old.limit_key is not null)
        and (new.status, new.run_at, new.type, new.priority, new.limit_key)
          is distinct from (old.status, old.run_at, old.type, old.priority, old.limit_key)
        and (new.status = 'PENDING' or old.status = 'LEASED')`,
    ),
    on("delete", "old.limit_key is not null and old.status = 'LEASED'"),
  ];
}

const wakeColumns = sql.raw("tenant, key, due_at, type, priority, job_id, concurrency, starts, period_seconds");

/** A slot came free. Each writes its wake: to look for another that would do costs as much again. */
function freed(name: QualifiedName) {
  return sql`
    insert into ${name("job_limit_wakes")} (${wakeColumns}) values
      (coalesce(old.organization_id::text, 'global'), old.limit_key, now(), '', old.priority, old.id,
        old.limit_concurrency, old.limit_starts, old.limit_period_seconds)`;
}

/**
 * One that this transaction has written, and that says the same, will do: both are seen from its commit on. A batch of
 * jobs of one key leaves one wake. Only the key finds it: the other indexes would go through all keys of the batch.
 */
function wake(name: QualifiedName) {
  return sql`
    insert into ${name("job_limit_wakes")} (${wakeColumns})
    select coalesce(new.organization_id::text, 'global'), new.limit_key, new.run_at, new.type, new.priority, new.id,
      new.limit_concurrency, new.limit_starts, new.limit_period_seconds
    where not exists (
      select from ${name("job_limit_wakes")} as w
      where w.tenant = coalesce(new.organization_id::text, 'global') and w.key = new.limit_key
        and w.due_at = new.run_at and (w.type, w.priority, w.concurrency, w.starts, w.period_seconds)
          is not distinct from
          (new.type, new.priority, new.limit_concurrency, new.limit_starts, new.limit_period_seconds)
        and w.xmin = pg_current_xact_id()::xid
    )`;
}

const sharedColumns = sql.raw(`
        id, run_number, status, type, organization_id, priority, run_at, attempt, max_attempts, timeout_seconds,
        worker_id, leased_at, lease_expires_at, enqueued_at, workflow_run_id, workflow_step_id, progress_done,
        progress_total, payload, checkpoint, tags`);

/** `more` are columns that jobs have in the queue and in the ledger, added by later migrations. */
export function jobsViewWithKey(name: QualifiedName, more: readonly string[] = []) {
  const last = sql.join(["limit_key", ...more].map((column) => sql.id(column)));
  return sql`
    create view ${name("jobs")} as
      select ${sharedColumns},
        null::timestamptz as ended_at, null::${name("failure_kind")} as failure_kind, null::text as error_code,
        null::text as error_message, null::text as canceled_reason, null::jsonb as output, ${last}
      from ${name("job_queue")}
      union all
      select ${sharedColumns},
        ended_at, failure_kind, error_code, error_message, canceled_reason, output, ${last}
      from ${name("job_ledger")} as ended
      where not exists (select from ${name("job_queue")} as live where live.id = ended.id)
        and not exists (
          select from ${name("job_ledger")} as later
          where later.id = ended.id and later.run_number > ended.run_number
        )`;
}
