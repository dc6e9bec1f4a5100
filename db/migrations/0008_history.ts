import { sql } from "kysely";
import { type QualifiedName, qualifiedNames, runAll, type SchemaMigration } from "./names.ts";

/** Counts by status that are kept, the indexes of lists and retention, dead letters and the timeline as views. */
export function history(schema: string): SchemaMigration {
  const name = qualifiedNames(schema);
  return {
    async up(db) {
      await runAll(db, [
        ...counts(name),
        ...jobTriggers(name),
        ...runTriggers(name),
        ...countsSoFar(name),
        ...truncateTriggers(name),
        ...indexes(name),
        deadLettersView(name),
        sql`drop view ${name("job_timeline")}`,
        timelineView(name),
        runTimelineView(name),
        ...partitionFunctions(name, schema),
      ]);
    },
    async down(db) {
      await runAll(db, [
        sql`drop function ${name("drop_job_ledger_partition")}(text)`,
        sql`drop function ${name("hold_job_ledger_partition")}(text)`,
        sql`drop view ${name("workflow_timeline")}`,
        sql`drop view ${name("job_timeline")}`,
        timelineViewBefore(name),
        sql`drop view ${name("job_dead_letters")}`,
        ...indexNames.map((index) => sql`drop index ${name(index)}`),
        ...triggers.map(([trigger, table]) => sql`drop trigger ${sql.id(trigger)} on ${name(table)}`),
        ...[...new Set(triggers.map(([, , run]) => run))].map((run) => sql`drop function ${name(run)}()`),
        sql`drop table ${name("status_count_deltas")}`,
        sql`drop table ${name("status_counts")}`,
      ]);
    },
  };
}

/**
 * Whatever changes a count appends a delta, so that nobody waits for anybody's counter; deltas are folded into the
 * counts now and then. The sum of both is exact in every snapshot. A live job counts as LIVE whether it is leased or not:
 * a claim writes nothing here.
 */
function counts(name: QualifiedName) {
  const shape = (constraint: string) => sql`
    constraint ${sql.id(constraint)} check (
      (subject = 'job' and status in ('LIVE', 'SUCCEEDED', 'DEAD_LETTERED', 'CANCELED'))
      or (subject = 'run' and status in
        ('RUNNING', 'WAITING_FOR_EXTERNAL', 'SUCCEEDED', 'COMPLETED_WITH_ERRORS', 'CANCELED'))
    )`;
  return [
    sql`
    create table ${name("status_counts")} (
      subject         text not null,
      type            text not null,
      organization_id uuid,
      tenant          text not null generated always as (coalesce(organization_id::text, 'global')) stored,
      status          text not null,
      count           bigint not null,
      constraint status_counts_pkey primary key (subject, tenant, type, status),
      ${shape("status_counts_status")}
    )`,
    // Rows live until they are folded: vacuum by their number, without delay, as in the queue.
    sql`
    create table ${name("status_count_deltas")} (
      subject         text not null,
      type            text not null,
      organization_id uuid,
      status          text not null,
      delta           bigint not null
    ) with (
      autovacuum_vacuum_scale_factor = 0,
      autovacuum_vacuum_threshold = 5000,
      autovacuum_vacuum_insert_threshold = -1,
      autovacuum_vacuum_cost_delay = 0
    )`,
  ];
}

/** Each trigger, its table, and its function. */
const triggers = [
  ["job_queue_count_inserted", "job_queue", "count_inserted_jobs"],
  ["job_ledger_count_inserted", "job_ledger", "count_ended_jobs"],
  ["job_ledger_count_deleted", "job_ledger", "count_forgotten_jobs"],
  ["workflow_runs_count_inserted", "workflow_runs", "count_inserted_runs"],
  ["workflow_runs_count_updated", "workflow_runs", "count_changed_run"],
  ["workflow_runs_count_deleted", "workflow_runs", "count_deleted_runs"],
  ["job_queue_recounted", "job_queue", "recount_jobs"],
  ["job_ledger_recounted", "job_ledger", "recount_jobs"],
  ["workflow_runs_recounted", "workflow_runs", "recount_runs"],
] as const;

const append = (name: QualifiedName) =>
  sql`insert into ${name("status_count_deltas")} (subject, type, organization_id, status, delta)`;

function triggerFunction(name: QualifiedName, called: string, body: ReturnType<typeof append>) {
  return sql`create function ${name(called)}() returns trigger language plpgsql as $function$ ${body} $function$`;
}

/**
 * By statement where rows come in batches. A job leaves the queue through the ledger, so its end there says both that
 * it has ended and that it lives no more: a trigger on the queue's deletes would cost as much again. A run of a job that
 * ended and left the job live, a slice that is continued, is no end of the job; and a job that is put back takes the
 * count of its end away again, holding the row that it follows on, so that this is not being deleted. Looked up row by
 * row: a join of a batch that the planner knows nothing of might read the whole queue.
 */
function jobTriggers(name: QualifiedName) {
  const isLive = (id: string) => sql`(select true from ${name("job_queue")} as q where q.id = ${sql.ref(id)})`;
  return [
    triggerFunction(
      name,
      "count_inserted_jobs",
      sql`begin
        ${append(name)}
        select 'job', type, organization_id, 'LIVE', count(*) from changed group by type, organization_id;
        if exists (select from changed where run_number > 1) then
          ${append(name)}
          select 'job', ended.type, ended.organization_id, ended.status::text, -1 from changed as c
          cross join lateral (
            select l.type, l.organization_id, l.status from ${name("job_ledger")} as l
            where l.id = c.id and l.run_number < c.run_number
            order by l.run_number desc limit 1 for key share
          ) as ended
          where c.run_number > 1;
        end if;
        return null;
      end`,
    ),
    sql`
    create trigger job_queue_count_inserted after insert on ${name("job_queue")}
    referencing new table as changed for each statement execute function ${name("count_inserted_jobs")}()`,
    triggerFunction(
      name,
      "count_ended_jobs",
      sql`begin
        ${append(name)}
        select 'job', e.type, e.organization_id, part.status, part.sign * e.jobs
        from (
          select c.type, c.organization_id, c.status, count(*) as jobs from changed as c
          where ${isLive("c.id")} is null
          group by c.type, c.organization_id, c.status
        ) as e
        cross join lateral (values (e.status::text, 1), ('LIVE', -1)) as part(status, sign);
        return null;
      end`,
    ),
    sql`
    create trigger job_ledger_count_inserted after insert on ${name("job_ledger")}
    referencing new table as changed for each statement execute function ${name("count_ended_jobs")}()`,
    triggerFunction(
      name,
      "count_forgotten_jobs",
      sql`begin
        ${append(name)}
        select 'job', c.type, c.organization_id, c.status::text, -count(*)
        from (
          select distinct on (id) id, type, organization_id, status from changed order by id, run_number desc
        ) as c
        where ${isLive("c.id")} is null
        group by c.type, c.organization_id, c.status;
        return null;
      end`,
    ),
    sql`
    create trigger job_ledger_count_deleted after delete on ${name("job_ledger")}
    referencing old table as changed for each statement execute function ${name("count_forgotten_jobs")}()`,
  ];
}

/** A run row is updated with each of its steps, and its status seldom changes: by row, for these alone. */
function runTriggers(name: QualifiedName) {
  const ofStatement = (factor: "" | "-") => sql`begin
        ${append(name)}
        select 'run', type, organization_id, status::text, ${sql.raw(factor)}count(*) from changed
        group by type, organization_id, status;
        return null;
      end`;
  return [
    triggerFunction(name, "count_inserted_runs", ofStatement("")),
    sql`
    create trigger workflow_runs_count_inserted after insert on ${name("workflow_runs")}
    referencing new table as changed for each statement execute function ${name("count_inserted_runs")}()`,
    triggerFunction(
      name,
      "count_changed_run",
      sql`begin
        ${append(name)} values
          ('run', old.type, old.organization_id, old.status, -1),
          ('run', new.type, new.organization_id, new.status, 1);
        return null;
      end`,
    ),
    sql`
    create trigger workflow_runs_count_updated after update of status on ${name("workflow_runs")}
    for each row when (old.status is distinct from new.status) execute function ${name("count_changed_run")}()`,
    triggerFunction(name, "count_deleted_runs", ofStatement("-")),
    sql`
    create trigger workflow_runs_count_deleted after delete on ${name("workflow_runs")}
    referencing old table as changed for each statement execute function ${name("count_deleted_runs")}()`,
  ];
}

/** Everything that is there, counted. */
function countsOf(name: QualifiedName) {
  const into = sql`insert into ${name("status_counts")} (subject, type, organization_id, status, count)`;
  const status = sql`case when status in ('PENDING', 'LEASED') then 'LIVE' else status::text end`;
  return {
    jobs: sql`
    ${into} select 'job', type, organization_id, ${status}, count(*) from ${name("jobs")}
    group by type, organization_id, ${status}`,
    runs: sql`
    ${into} select 'run', type, organization_id, status::text, count(*) from ${name("workflow_runs")}
    group by type, organization_id, status`,
  };
}

/** What is there already: the triggers have locked the tables against writers until the migration commits. */
function countsSoFar(name: QualifiedName) {
  const { jobs, runs } = countsOf(name);
  return [jobs, runs];
}

/**
 * TRUNCATE shows no rows to a trigger. It has waited for all who had written to the table, so that what is left can be
 * counted anew; who folds deltas is waited for as well.
 */
function truncateTriggers(name: QualifiedName) {
  const recount = (subject: "job" | "run", all: ReturnType<typeof sql>) =>
    triggerFunction(
      name,
      `recount_${subject}s`,
      sql`begin
        lock table ${name("status_counts")} in share row exclusive mode;
        delete from ${name("status_counts")} where subject = ${sql.lit(subject)};
        delete from ${name("status_count_deltas")} where subject = ${sql.lit(subject)};
        ${all};
        return null;
      end`,
    );
  const { jobs, runs } = countsOf(name);
  return [
    recount("job", jobs),
    recount("run", runs),
    ...triggers
      .filter(([, , called]) => called.startsWith("recount_"))
      .map(
        ([trigger, table, called]) => sql`
    create trigger ${sql.id(trigger)} after truncate on ${name(table)}
    for each statement execute function ${name(called)}()`,
      ),
  ];
}

const indexNames = [
  "job_ledger_by_type",
  "job_ledger_by_organization",
  "workflow_runs_by_type",
  "workflow_runs_by_organization",
  "workflow_runs_with_errors",
  "workflow_runs_canceled",
  "job_idempotency_keys_by_job",
  "job_idempotency_keys_expiring",
  "workflow_idempotency_keys_by_run",
  "workflow_idempotency_keys_expiring",
] as const;

/** Walked along by lists, and looked into by retention. Only a run's status changes, not with each of its steps. */
function indexes(name: QualifiedName) {
  return [
    sql`create index job_ledger_by_type on ${name("job_ledger")} (type, id)`,
    sql`
    create index job_ledger_by_organization on ${name("job_ledger")} (organization_id, id)
    where organization_id is not null`,
    sql`create index workflow_runs_by_type on ${name("workflow_runs")} (type, id)`,
    sql`
    create index workflow_runs_by_organization on ${name("workflow_runs")} (organization_id, id)
    where organization_id is not null`,
    // One for each status: under row-level security a comparison of enums may not be an index's condition.
    sql`
    create index workflow_runs_with_errors on ${name("workflow_runs")} (id) where status = 'COMPLETED_WITH_ERRORS'`,
    sql`create index workflow_runs_canceled on ${name("workflow_runs")} (id) where status = 'CANCELED'`,
    sql`create index job_idempotency_keys_by_job on ${name("job_idempotency_keys")} (job_id)`,
    sql`create index workflow_idempotency_keys_by_run on ${name("workflow_idempotency_keys")} (run_id)`,
    ...(["job", "workflow"] as const).map(
      (kind) => sql`
      create index ${sql.id(`${kind}_idempotency_keys_expiring`)} on ${name(`${kind}_idempotency_keys`)} (expires_at)
      where expires_at is not null`,
    ),
  ];
}

/**
 * Dropping a partition in two steps of one transaction. `hold` keeps rows from being added to it, and nobody from
 * anything else, so that what is in it can be looked at for as long as that takes; false when it is gone already. `drop` locks the whole ledger
 * against everybody, for a moment. Their waits are bounded by lock_timeout, which is the caller's to set.
 */
function partitionFunctions(name: QualifiedName, schema: string) {
  const isPartition = sql`exists (
        select from pg_inherits as part
        where part.inhparent = ${sql.lit(`"${schema}".job_ledger`)}::regclass
          and part.inhrelid = to_regclass(format('%I.%I', ${sql.lit(schema)}, partition_name))
      )`;
  return [
    sql`
    create function ${name("hold_job_ledger_partition")}(partition_name text) returns boolean
    language plpgsql as $function$
    begin
      if not ${isPartition} then
        return false;
      end if;
      execute format('lock table %I.%I in share mode', ${sql.lit(schema)}, partition_name);
      return true;
    exception when undefined_table then
      return false;
    end
    $function$`,
    sql`
    create function ${name("drop_job_ledger_partition")}(partition_name text) returns void
    language plpgsql as $function$
    begin
      lock table ${name("job_ledger")} in access exclusive mode;
      if not ${isPartition} then
        raise exception 'the ledger has no such partition' using errcode = 'undefined_table';
      end if;
      execute format('drop table %I.%I', ${sql.lit(schema)}, partition_name);
    end
    $function$`,
  ];
}

/** Jobs whose latest run is dead-lettered, and that are not live again. */
function deadLettersView(name: QualifiedName) {
  return sql`
    create view ${name("job_dead_letters")} as
      select id, run_number, type, organization_id, priority, attempt, max_attempts, enqueued_at, ended_at,
        failure_kind, error_code, error_message, workflow_run_id, workflow_step_id, payload, checkpoint, tags
      from ${name("job_ledger")} as ended
      where status = 'DEAD_LETTERED'
        and not exists (select from ${name("job_queue")} as live where live.id = ended.id)
        and not exists (
          select from ${name("job_ledger")} as later
          where later.id = ended.id and later.run_number > ended.run_number
        )`;
}

/**
 * Each run of a job from its row; each attempt from where it ended, or is under way; and what no row says from the
 * events. `place` orders what has the same time.
 */
function timelineView(name: QualifiedName) {
  return sql`
    create view ${name("job_timeline")} as
      select id as job_id, run_number, enqueued_at as at, 'enqueued' as event, null::integer as attempt,
        null::text as actor, null::text as code, null::text as message, null::jsonb as details, 1 as place
      from ${name("job_queue")}
      union all
      select id, run_number, enqueued_at, 'enqueued', null, null, null, null, null, 1
      from ${name("job_ledger")}
      union all
      select id, run_number, leased_at, 'leased', attempt, worker_id, null, null, null, 2
      from ${name("job_queue")} where status = 'LEASED'
      union all
      select id, run_number, leased_at, 'leased', attempt, worker_id, null, null, null, 2
      from ${name("job_ledger")} where leased_at is not null and failure_kind is null
      union all
      select job_id, run_number, started_at, 'leased', attempt, worker_id, null, null, null, 2
      from ${name("job_attempts")}
      union all
      select job_id, run_number, ended_at, 'attempt_failed', attempt, worker_id, error_code, error_message,
        jsonb_build_object('kind', failure_kind), 3
      from ${name("job_attempts")}
      union all
      select job_id, run_number, at, event, null, actor, null, null, details, 4
      from ${name("job_events")}
      union all
      select l.id, l.run_number,
        -- Both are written by one statement, in no order.
        greatest(l.ended_at, (
          select a.ended_at from ${name("job_attempts")} as a
          where l.failure_kind is not null
            and a.job_id = l.id and a.run_number = l.run_number and a.attempt = l.attempt
        )),
        lower(l.status::text), l.attempt, l.worker_id, l.error_code,
        coalesce(l.error_message, l.canceled_reason), null, 5
      from ${name("job_ledger")} as l`;
}

/** A run's own story and its steps', without their jobs'. A step under lease is looked up, row by row, in the queue. */
function runTimelineView(name: QualifiedName) {
  return sql`
    create view ${name("workflow_timeline")} as
      select id as run_id, created_at as at, 'created' as event, null::text as step_key, null::text as actor,
        null::text as code, null::text as message, null::jsonb as details, 1 as place
      from ${name("workflow_runs")}
      union all
      select run_id, created_at, mutation, null, null, null, null, jsonb_build_object('key', mutation_key), 4
      from ${name("workflow_run_mutations")}
      union all
      select run_id, released_at, case kind::text when 'EXTERNAL' then 'opened' else 'released' end, step_key,
        null, null, null, null, 2
      from ${name("workflow_steps")} where released_at is not null
      union all
      select s.run_id, coalesce(s.started_at, leased.at), 'started', s.step_key, leased.worker_id, null, null,
        case when s.child_run_id is not null then jsonb_build_object('child_run_id', s.child_run_id) end, 3
      from ${name("workflow_steps")} as s
      left join lateral (
        select q.leased_at as at, q.worker_id from ${name("job_queue")} as q
        where q.id = s.job_id and q.status = 'LEASED' offset 0
      ) as leased on true
      where s.started_at is not null or leased.at is not null
      union all
      select run_id, ended_at, lower(status::text), step_key, completed_by, error_code,
        coalesce(error_message, reason), null, 5
      from ${name("workflow_steps")} where ended_at is not null
      union all
      select r.id,
        -- The last step's end is written by the same statement.
        greatest(r.ended_at, (select max(s.ended_at) from ${name("workflow_steps")} as s where s.run_id = r.id)),
        lower(r.status::text), null, null, null, r.canceled_reason, null, 6
      from ${name("workflow_runs")} as r where r.ended_at is not null`;
}

function timelineViewBefore(name: QualifiedName) {
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
