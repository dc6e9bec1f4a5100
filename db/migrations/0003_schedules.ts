import { sql } from "kysely";
import { qualifiedNames, runAll, type SchemaMigration } from "./names.ts";

/** Schedules: the due time is a row, a fire is unique per schedule and intended time. */
export function schedules(schema: string): SchemaMigration {
  const name = qualifiedNames(schema);
  return {
    async up(db) {
      await runAll(db, [
        sql`create type ${name("schedule_target")} as enum ('JOB', 'WORKFLOW')`,
        sql`create type ${name("schedule_catch_up")} as enum ('SKIP', 'ONCE', 'BACKFILL')`,
        sql`create type ${name("schedule_overlap")} as enum ('ALLOW', 'SKIP', 'QUEUE')`,
        sql`
        create table ${name("job_schedules")} (
          id              uuid not null,
          name            text not null,
          organization_id uuid,
          tenant          text not null generated always as (coalesce(organization_id::text, 'global')) stored,
          cron            text not null,
          time_zone       text not null default 'UTC',
          target          ${name("schedule_target")} not null,
          target_type     text not null,
          payload         jsonb not null,
          catch_up        ${name("schedule_catch_up")} not null default 'ONCE',
          overlap         ${name("schedule_overlap")} not null default 'ALLOW',
          jitter_seconds  integer not null default 0,
          enabled         boolean not null default true,
          catalogue       text,
          due_at          timestamptz,
          created_at      timestamptz not null default now(),
          updated_at      timestamptz not null default now(),
          constraint job_schedules_pkey primary key (id),
          constraint job_schedules_name_key unique (tenant, name),
          constraint job_schedules_name_length check (octet_length(name) between 1 and 512),
          constraint job_schedules_jitter_in_range check (jitter_seconds >= 0),
          constraint job_schedules_enabled_is_due check (not enabled or due_at is not null)
        )`,
        sql`create index job_schedules_due on ${name("job_schedules")} (due_at) where enabled`,
        sql`
        create table ${name("job_schedule_fires")} (
          schedule_id uuid not null,
          intended_at timestamptz not null,
          fired_at    timestamptz not null default now(),
          job_id      uuid,
          run_id      uuid,
          constraint job_schedule_fires_pkey primary key (schedule_id, intended_at),
          constraint job_schedule_fires_schedule_fkey foreign key (schedule_id)
            references ${name("job_schedules")} (id) on delete cascade
        )`,
      ]);
    },
    async down(db) {
      await runAll(db, [
        sql`drop table ${name("job_schedule_fires")}`,
        sql`drop table ${name("job_schedules")}`,
        sql`drop type ${name("schedule_overlap")}`,
        sql`drop type ${name("schedule_catch_up")}`,
        sql`drop type ${name("schedule_target")}`,
      ]);
    },
  };
}
