import { sql } from "kysely";
import { type QualifiedName, qualifiedNames, runAll, type SchemaMigration } from "./names.ts";

/** Workflow runs, their steps and dependencies, mutations and idempotency keys. */
export function workflows(schema: string): SchemaMigration {
  const name = qualifiedNames(schema);
  return {
    async up(db) {
      await runAll(db, [
        ...enums(name),
        runs(name),
        ...steps(name),
        ...dependencies(name),
        mutations(name),
        idempotencyKeys(name),
      ]);
    },
    async down(db) {
      await runAll(db, [
        sql`drop table ${name("workflow_idempotency_keys")}`,
        sql`drop table ${name("workflow_run_mutations")}`,
        sql`drop table ${name("workflow_step_dependencies")}`,
        sql`drop table ${name("workflow_steps")}`,
        sql`drop table ${name("workflow_runs")}`,
        sql`drop type ${name("dependency_kind")}`,
        sql`drop type ${name("step_status")}`,
        sql`drop type ${name("step_kind")}`,
        sql`drop type ${name("run_status")}`,
      ]);
    },
  };
}

function enums(name: QualifiedName) {
  return [
    sql`
    create type ${name("run_status")} as enum
      ('RUNNING', 'WAITING_FOR_EXTERNAL', 'SUCCEEDED', 'COMPLETED_WITH_ERRORS', 'CANCELED')`,
    sql`create type ${name("step_kind")} as enum ('JOB', 'EXTERNAL')`,
    sql`
    create type ${name("step_status")} as enum
      ('BLOCKED', 'WAITING_FOR_EXTERNAL', 'ENQUEUED', 'RUNNING', 'SUCCEEDED', 'FAILED', 'CANCELED')`,
    sql`create type ${name("dependency_kind")} as enum ('ON_SUCCESS', 'ON_TERMINAL')`,
  ];
}

function runs(name: QualifiedName) {
  // The counters decide the status (FEATURES F-W4); the check keeps the two from parting.
  // fillfactor: every completed step updates its run row, and no index has a changing column.
  return sql`
    create table ${name("workflow_runs")} (
      id              uuid not null,
      type            text not null,
      organization_id uuid,
      status          ${name("run_status")} not null,
      step_count      integer not null,
      open_count      integer not null,
      waiting_count   integer not null,
      errored_count   integer not null,
      result_step_id  uuid,
      canceled_reason text,
      created_at      timestamptz not null default now(),
      ended_at        timestamptz,
      constraint workflow_runs_pkey primary key (id),
      constraint workflow_runs_type_length check (octet_length(type) between 1 and 512),
      constraint workflow_runs_counters_in_range check (
        open_count >= 0 and waiting_count >= 0 and errored_count >= 0
        and open_count + waiting_count + errored_count <= step_count
      ),
      constraint workflow_runs_status_by_counters check (
        status = case
          when status = 'CANCELED' then 'CANCELED'
          when open_count > 0 then 'RUNNING'
          when waiting_count > 0 then 'WAITING_FOR_EXTERNAL'
          when errored_count > 0 then 'COMPLETED_WITH_ERRORS'
          else 'SUCCEEDED'
        end::${name("run_status")}
      ),
      constraint workflow_runs_ended_when_terminal check (
        (status in ('SUCCEEDED', 'COMPLETED_WITH_ERRORS', 'CANCELED')) = (ended_at is not null)
      )
    ) with (fillfactor = 50)`;
}

function steps(name: QualifiedName) {
  // fillfactor: a step is updated two or three times, never in an indexed column but for a gate's status.
  return [
    sql`
    create table ${name("workflow_steps")} (
      run_id            uuid not null,
      id                uuid not null,
      step_key          text not null,
      kind              ${name("step_kind")} not null,
      status            ${name("step_status")} not null,
      organization_id   uuid,
      pending_count     integer not null,
      unsatisfied_count integer not null,
      dependent_count   integer not null,
      job_id            uuid,
      job_type          text,
      priority          integer,
      max_attempts      integer,
      timeout_seconds   integer,
      released_at       timestamptz,
      started_at        timestamptz,
      ended_at          timestamptz,
      error_code        text,
      error_message     text,
      completed_by      text,
      reason            text,
      payload           jsonb,
      output            jsonb,
      constraint workflow_steps_pkey primary key (run_id, id),
      constraint workflow_steps_step_key_key unique (run_id, step_key),
      constraint workflow_steps_run_fkey foreign key (run_id)
        references ${name("workflow_runs")} (id) on delete cascade,
      constraint workflow_steps_step_key_length check (octet_length(step_key) between 1 and 512),
      constraint workflow_steps_job_shape check (
        (kind = 'JOB') = (job_type is not null) and (kind = 'JOB') = (job_id is not null)
        and (kind = 'JOB') = (payload is not null)
      ),
      constraint workflow_steps_external_shape check (
        kind = 'JOB' or (priority is null and max_attempts is null and timeout_seconds is null)
      ),
      constraint workflow_steps_attempts_positive check (max_attempts > 0),
      constraint workflow_steps_timeout_positive check (timeout_seconds > 0),
      constraint workflow_steps_counters_in_range check (
        pending_count >= 0 and unsatisfied_count >= 0 and dependent_count >= 0
      ),
      constraint workflow_steps_blocked_is_pending check (status <> 'BLOCKED' or pending_count > 0),
      constraint workflow_steps_waiting_is_external check (status <> 'WAITING_FOR_EXTERNAL' or kind = 'EXTERNAL'),
      constraint workflow_steps_enqueued_is_job check (status not in ('ENQUEUED', 'RUNNING') or kind = 'JOB'),
      constraint workflow_steps_ended_when_terminal check (
        (status in ('SUCCEEDED', 'FAILED', 'CANCELED')) = (ended_at is not null)
      )
    ) with (fillfactor = 70)`,
    sql`
    create index workflow_steps_open_gates on ${name("workflow_steps")} (run_id, id)
    where status = 'WAITING_FOR_EXTERNAL'`,
  ];
}

function dependencies(name: QualifiedName) {
  // Both keys lead with the run, so an edge cannot cross runs. The primary key serves a completed
  // step's look-up of its dependents, the second index a starting step's look-up of its prerequisites.
  return [
    sql`
    create table ${name("workflow_step_dependencies")} (
      run_id          uuid not null,
      prerequisite_id uuid not null,
      step_id         uuid not null,
      kind            ${name("dependency_kind")} not null,
      constraint workflow_step_dependencies_pkey primary key (run_id, prerequisite_id, step_id),
      constraint workflow_step_dependencies_prerequisite_fkey foreign key (run_id, prerequisite_id)
        references ${name("workflow_steps")} (run_id, id) on delete cascade,
      constraint workflow_step_dependencies_step_fkey foreign key (run_id, step_id)
        references ${name("workflow_steps")} (run_id, id) on delete cascade,
      constraint workflow_step_dependencies_not_self check (prerequisite_id <> step_id)
    )`,
    sql`
    create index workflow_step_dependencies_by_step on ${name("workflow_step_dependencies")} (run_id, step_id)`,
  ];
}

function mutations(name: QualifiedName) {
  return sql`
    create table ${name("workflow_run_mutations")} (
      run_id       uuid not null,
      mutation_key text not null,
      mutation     text not null,
      requested    jsonb not null,
      result       jsonb not null,
      created_at   timestamptz not null default now(),
      constraint workflow_run_mutations_pkey primary key (run_id, mutation_key),
      constraint workflow_run_mutations_run_fkey foreign key (run_id)
        references ${name("workflow_runs")} (id) on delete cascade,
      constraint workflow_run_mutations_key_length check (octet_length(mutation_key) between 1 and 512)
    )`;
}

function idempotencyKeys(name: QualifiedName) {
  return sql`
    create table ${name("workflow_idempotency_keys")} (
      type            text not null,
      organization_id uuid,
      tenant          text not null generated always as (coalesce(organization_id::text, 'global')) stored,
      key             text not null,
      run_id          uuid not null,
      requested       jsonb not null,
      created_at      timestamptz not null default now(),
      expires_at      timestamptz,
      constraint workflow_idempotency_keys_pkey primary key (type, tenant, key),
      constraint workflow_idempotency_keys_key_length check (octet_length(key) between 1 and 512)
    )`;
}
