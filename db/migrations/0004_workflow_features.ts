import { sql } from "kysely";
import { type QualifiedName, qualifiedNames, runAll, type SchemaMigration } from "./names.ts";

/** Map steps, gates that expire or are completed early, delays, deadlines, child runs, retries and lineage. */
export function workflowFeatures(schema: string): SchemaMigration {
  const name = qualifiedNames(schema);
  return {
    async up(db) {
      await runAll(db, [
        ...runColumns(name),
        ...stepColumns(name),
        ...stepShapes(name),
        ...openGates(name),
        ...lookUps(name),
      ]);
    },
    async down(db) {
      await runAll(db, [
        ...withoutNewerRuns(name),
        ...lookUpsBefore(name),
        ...openGatesBefore(name),
        ...stepShapesBefore(name),
        ...stepKindBefore(name),
        sql`
        alter table ${name("workflow_steps")}
          drop column job_run_number, drop column child_run_id, drop column item_edge, drop column item_count,
          drop column map_index, drop column map_step_id, drop column map_source_id, drop column kept_outcome,
          drop column expiry_output, drop column expiry_outcome, drop column expires_at,
          drop column expires_after_seconds, drop column open_since, drop column delay_seconds`,
        sql`drop index ${name("workflow_runs_live")}`,
        sql`drop index ${name("workflow_runs_deadline")}`,
        sql`drop index ${name("workflow_runs_children")}`,
        sql`
        alter table ${name("workflow_runs")}
          drop column deadline_at, drop column parent_run_id, drop column parent_step_id,
          drop column source_run_id, drop column source_kind`,
      ]);
    },
  };
}

function runColumns(name: QualifiedName) {
  return [
    sql`
    alter table ${name("workflow_runs")}
      add column deadline_at    timestamptz,
      add column parent_run_id  uuid,
      add column parent_step_id uuid,
      add column source_run_id  uuid,
      add column source_kind    text,
      add constraint workflow_runs_parent_is_step check ((parent_run_id is null) = (parent_step_id is null)),
      add constraint workflow_runs_source_kind check (
        source_kind in ('recover', 'rerun') and (source_kind is null) = (source_run_id is null)
      )`,
    // Live runs by type: what a bulk cancel walks through. Only a run's end touches it.
    sql`create index workflow_runs_live on ${name("workflow_runs")} (type, id) where ended_at is null`,
    sql`
    create index workflow_runs_deadline on ${name("workflow_runs")} (deadline_at)
    where ended_at is null and deadline_at is not null`,
    sql`
    create index workflow_runs_children on ${name("workflow_runs")} (parent_run_id) where parent_run_id is not null`,
  ];
}

function stepColumns(name: QualifiedName) {
  return [
    // The value cannot be named before the migrations' transaction has ended: the checks below do without it.
    sql`alter type ${name("step_kind")} add value if not exists 'MAP'`,
    sql`
    alter table ${name("workflow_steps")}
      add column delay_seconds         double precision,
      add column open_since            timestamptz,
      add column expires_after_seconds double precision,
      add column expires_at            timestamptz,
      add column expiry_outcome        ${name("step_status")},
      add column expiry_output         jsonb,
      add column kept_outcome          ${name("step_status")},
      add column map_source_id         uuid,
      add column map_step_id           uuid,
      add column map_index             integer,
      add column item_count            integer,
      add column item_edge             ${name("dependency_kind")},
      add column child_run_id          uuid,
      add column job_run_number        integer not null default 1`,
    sql`
    update ${name("workflow_steps")} set open_since = coalesce(released_at, now())
    where status = 'WAITING_FOR_EXTERNAL'`,
  ];
}

function stepShapes(name: QualifiedName) {
  return [
    sql`
    alter table ${name("workflow_steps")}
      drop constraint workflow_steps_job_shape,
      drop constraint workflow_steps_external_shape,
      add constraint workflow_steps_job_shape check (
        (kind = 'JOB') = (job_id is not null) and (kind = 'JOB') = (payload is not null)
        and (kind <> 'EXTERNAL') = (job_type is not null)
      ),
      add constraint workflow_steps_external_shape check (
        kind <> 'EXTERNAL'
        or (priority is null and max_attempts is null and timeout_seconds is null and delay_seconds is null)
      ),
      add constraint workflow_steps_gate_shape check (
        kind = 'EXTERNAL'
        or (expires_after_seconds is null and expires_at is null and expiry_outcome is null and kept_outcome is null)
      ),
      add constraint workflow_steps_map_shape check (
        (kind not in ('JOB', 'EXTERNAL')) = (map_source_id is not null)
        and (map_source_id is not null) = (item_edge is not null)
        and (item_count is null or map_source_id is not null)
      ),
      add constraint workflow_steps_item_shape check ((map_step_id is null) = (map_index is null)),
      add constraint workflow_steps_open_since check ((status = 'WAITING_FOR_EXTERNAL') = (open_since is not null)),
      add constraint workflow_steps_expiry check (
        expiry_outcome in ('SUCCEEDED', 'FAILED', 'CANCELED')
        and (expires_after_seconds is null) = (expiry_outcome is null)
        and (expiry_output is null or expiry_outcome = 'SUCCEEDED')
      ),
      add constraint workflow_steps_kept_outcome check (kept_outcome in ('SUCCEEDED', 'FAILED', 'CANCELED')),
      add constraint workflow_steps_delay_positive check (delay_seconds > 0 and expires_after_seconds > 0),
      add constraint workflow_steps_job_run_positive check (job_run_number > 0)`,
  ];
}

/** An update stays HOT while no column of any index changes, so open gates are not found by their status. */
function openGates(name: QualifiedName) {
  return [
    sql`drop index ${name("workflow_steps_open_gates")}`,
    sql`
    create index workflow_steps_open_gates on ${name("workflow_steps")} (run_id, id)
    where open_since is not null`,
    sql`
    create index workflow_steps_expiring_gates on ${name("workflow_steps")} (expires_at)
    where open_since is not null and expires_at is not null`,
  ];
}

/**
 * One index for each way of looking up, so that a plan made before the first ANALYZE cannot choose one that reads a
 * whole run for each row: steps of a run by id and edges by prerequisite have the only indexes that begin with the
 * run; steps by key and edges by dependent have indexes that do not.
 */
function lookUps(name: QualifiedName) {
  return [
    sql`
    alter table ${name("workflow_steps")}
      drop constraint workflow_steps_step_key_key,
      add constraint workflow_steps_step_key_key unique (step_key, run_id)`,
    sql`drop index ${name("workflow_step_dependencies_by_step")}`,
    sql`create index workflow_step_dependencies_by_step on ${name("workflow_step_dependencies")} (step_id)`,
  ];
}

function lookUpsBefore(name: QualifiedName) {
  return [
    sql`drop index ${name("workflow_step_dependencies_by_step")}`,
    sql`create index workflow_step_dependencies_by_step on ${name("workflow_step_dependencies")} (run_id, step_id)`,
    sql`
    alter table ${name("workflow_steps")}
      drop constraint workflow_steps_step_key_key,
      add constraint workflow_steps_step_key_key unique (run_id, step_key)`,
  ];
}

/** The schema before has no word for map steps and child runs: the runs that have them go. */
function withoutNewerRuns(name: QualifiedName) {
  return [
    sql`
    create temporary table newer_runs on commit drop as
      select distinct run_id as id from ${name("workflow_steps")}
      where map_source_id is not null or (child_run_id is not null and status = 'RUNNING')`,
    sql`delete from ${name("job_queue")} where workflow_run_id in (select id from newer_runs)`,
    sql`delete from ${name("workflow_idempotency_keys")} where run_id in (select id from newer_runs)`,
    sql`delete from ${name("workflow_runs")} where id in (select id from newer_runs)`,
    sql`drop table newer_runs`,
  ];
}

function openGatesBefore(name: QualifiedName) {
  return [
    sql`drop index ${name("workflow_steps_expiring_gates")}`,
    sql`drop index ${name("workflow_steps_open_gates")}`,
    sql`
    create index workflow_steps_open_gates on ${name("workflow_steps")} (run_id, id)
    where status = 'WAITING_FOR_EXTERNAL'`,
  ];
}

function stepShapesBefore(name: QualifiedName) {
  return [
    sql`
    alter table ${name("workflow_steps")}
      drop constraint workflow_steps_job_run_positive,
      drop constraint workflow_steps_delay_positive,
      drop constraint workflow_steps_kept_outcome,
      drop constraint workflow_steps_expiry,
      drop constraint workflow_steps_open_since,
      drop constraint workflow_steps_item_shape,
      drop constraint workflow_steps_map_shape,
      drop constraint workflow_steps_gate_shape,
      drop constraint workflow_steps_external_shape,
      drop constraint workflow_steps_job_shape`,
  ];
}

/** An enum's value cannot be dropped: the column moves to a type without it. */
function stepKindBefore(name: QualifiedName) {
  return [
    sql`alter table ${name("workflow_steps")} drop constraint workflow_steps_waiting_is_external`,
    sql`alter table ${name("workflow_steps")} drop constraint workflow_steps_enqueued_is_job`,
    sql`create type ${name("step_kind_before")} as enum ('JOB', 'EXTERNAL')`,
    sql`
    alter table ${name("workflow_steps")}
      alter column kind type ${name("step_kind_before")} using kind::text::${name("step_kind_before")}`,
    sql`drop type ${name("step_kind")}`,
    sql`alter type ${name("step_kind_before")} rename to step_kind`,
    sql`
    alter table ${name("workflow_steps")}
      add constraint workflow_steps_job_shape check (
        (kind = 'JOB') = (job_type is not null) and (kind = 'JOB') = (job_id is not null)
        and (kind = 'JOB') = (payload is not null)
      ),
      add constraint workflow_steps_external_shape check (
        kind = 'JOB' or (priority is null and max_attempts is null and timeout_seconds is null)
      ),
      add constraint workflow_steps_waiting_is_external check (status <> 'WAITING_FOR_EXTERNAL' or kind = 'EXTERNAL'),
      add constraint workflow_steps_enqueued_is_job check (status not in ('ENQUEUED', 'RUNNING') or kind = 'JOB')`,
  ];
}
