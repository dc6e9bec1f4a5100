import { sql } from "kysely";
import { timelineView } from "./0001_jobs.ts";
import { jobsViewWithKey } from "./0006_limits.ts";
import { qualifiedNames, runAll, type SchemaMigration } from "./names.ts";

/** What a schedule needs to fire: settings of its target, pauses, bounds, overlap, failures; and jobs that know their tick. */
export function scheduleFeatures(schema: string): SchemaMigration {
  const name = qualifiedNames(schema);
  return {
    async up(db) {
      await runAll(db, [
        sql`create type ${name("schedule_fire_outcome")} as enum ('FIRED', 'TRIGGERED', 'SKIPPED')`,
        // intended_at is the next tick; due_at is when somebody looks at it, which is later after a failure or
        // while the fire before it lives. Both are null when there is nothing to fire. Up to forgotten_until fires have been
        // deleted.
        sql`
        alter table ${name("job_schedules")}
          add column priority         integer,
          add column max_attempts     integer,
          add column timeout_seconds  integer,
          add column tags             text[],
          add column limit_key        text,
          add column limit_concurrency integer,
          add column limit_starts     integer,
          add column limit_period_seconds double precision,
          add column deadline_seconds double precision,
          add column backfill_limit   integer not null default 100,
          add column grace_seconds    integer not null default 60,
          add column payload_digest   jsonb,
          add column starts_at        timestamptz,
          add column ends_at          timestamptz,
          add column paused           boolean not null default false,
          add column intended_at      timestamptz,
          add column last_intended_at timestamptz,
          add column last_job_id      uuid,
          add column last_run_id      uuid,
          add column forgotten_until  timestamptz,
          add column failed_at        timestamptz,
          add column failures         integer not null default 0,
          add column error_code       text,
          add column error_message    text`,
        sql`drop index ${name("job_schedules_due")}`,
        sql`alter table ${name("job_schedules")} drop constraint job_schedules_enabled_is_due`,
        sql`update ${name("job_schedules")} set due_at = null where not enabled`,
        sql`update ${name("job_schedules")} set intended_at = due_at`,
        sql`
        alter table ${name("job_schedules")}
          add constraint job_schedules_attempts_positive check (max_attempts > 0),
          add constraint job_schedules_timeout_positive check (timeout_seconds > 0),
          add constraint job_schedules_deadline_positive check (deadline_seconds > 0),
          add constraint job_schedules_limit_shape check (
            (limit_key is null) = (limit_concurrency is null and limit_starts is null)
            and (limit_starts is null) = (limit_period_seconds is null)
            and octet_length(limit_key) between 1 and 512
            and limit_concurrency > 0 and limit_starts > 0 and limit_period_seconds > 0
          ),
          add constraint job_schedules_backfill_in_range check (backfill_limit between 1 and 1000),
          add constraint job_schedules_grace_in_range check (grace_seconds >= 0),
          add constraint job_schedules_starts_before_end check (starts_at < ends_at),
          add constraint job_schedules_due_has_tick check ((due_at is null) = (intended_at is null)),
          add constraint job_schedules_active_when_due check (due_at is null or (enabled and not paused)),
          add constraint job_schedules_failures check (
            failures >= 0 and (failures > 0) = (failed_at is not null)
            and (failures > 0) = (error_code is not null) and (failures > 0) = (error_message is not null)
          )`,
        sql`
        create index job_schedules_due on ${name("job_schedules")} (due_at, id)
        where due_at is not null`,
        // A name is looked up in one tenant or in all of them, a list walks through a tenant.
        sql`
        alter table ${name("job_schedules")}
          drop constraint job_schedules_name_key,
          add constraint job_schedules_name_key unique (name, tenant)`,
        sql`create index job_schedules_by_tenant on ${name("job_schedules")} (tenant, name)`,
        sql`
        alter table ${name("job_schedule_fires")}
          add column outcome ${name("schedule_fire_outcome")} not null default 'FIRED',
          add constraint job_schedule_fires_target check (job_id is null or run_id is null)`,
        sql`alter table ${name("job_queue")} add column metadata jsonb`,
        sql`alter table ${name("job_ledger")} add column metadata jsonb`,
        // Not in place, as in the migration before.
        sql`drop view ${name("job_timeline")}`,
        sql`drop view ${name("jobs")}`,
        jobsViewWithKey(name, ["metadata"]),
        timelineView(name),
      ]);
    },
    async down(db) {
      await runAll(db, [
        sql`drop view ${name("job_timeline")}`,
        sql`drop view ${name("jobs")}`,
        sql`alter table ${name("job_ledger")} drop column metadata`,
        sql`alter table ${name("job_queue")} drop column metadata`,
        jobsViewWithKey(name),
        timelineView(name),
        // A tick that was passed over is no fire to the schema before.
        sql`delete from ${name("job_schedule_fires")} where outcome = 'SKIPPED'`,
        sql`
        alter table ${name("job_schedule_fires")}
          drop constraint job_schedule_fires_target, drop column outcome`,
        sql`drop index ${name("job_schedules_by_tenant")}`,
        sql`
        alter table ${name("job_schedules")}
          drop constraint job_schedules_name_key,
          add constraint job_schedules_name_key unique (tenant, name)`,
        sql`drop index ${name("job_schedules_due")}`,
        sql`
        alter table ${name("job_schedules")}
          drop constraint job_schedules_attempts_positive, drop constraint job_schedules_timeout_positive,
          drop constraint job_schedules_deadline_positive, drop constraint job_schedules_limit_shape,
          drop constraint job_schedules_backfill_in_range,
          drop constraint job_schedules_grace_in_range, drop constraint job_schedules_starts_before_end,
          drop constraint job_schedules_due_has_tick,
          drop constraint job_schedules_active_when_due, drop constraint job_schedules_failures`,
        // There it is due or disabled: a pause, or an end, is no other state.
        sql`update ${name("job_schedules")} set enabled = false where due_at is null`,
        sql`
        alter table ${name("job_schedules")}
          drop column priority, drop column max_attempts, drop column timeout_seconds, drop column tags,
          drop column limit_key, drop column limit_concurrency, drop column limit_starts,
          drop column limit_period_seconds, drop column deadline_seconds, drop column backfill_limit, drop column grace_seconds, drop column payload_digest, drop column starts_at,
          drop column ends_at, drop column paused, drop column intended_at, drop column last_intended_at,
          drop column last_job_id, drop column last_run_id, drop column forgotten_until, drop column failed_at, drop column failures,
          drop column error_code, drop column error_message,
          add constraint job_schedules_enabled_is_due check (not enabled or due_at is not null)`,
        sql`create index job_schedules_due on ${name("job_schedules")} (due_at) where enabled`,
        sql`drop type ${name("schedule_fire_outcome")}`,
      ]);
    },
  };
}
