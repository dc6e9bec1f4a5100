import { sql } from "kysely";
import { type QualifiedName, qualifiedNames, runAll, type SchemaMigration } from "./names.ts";

/** Backoff by error code, continuations, and what has ended put back or done again. */
export function outcomes(schema: string): SchemaMigration {
  const name = qualifiedNames(schema);
  return {
    async up(db) {
      await runAll(db, [...columns(name), ...indexes(name), replays(name)]);
    },
    async down(db) {
      await runAll(db, [
        sql`drop table ${name("job_replays")}`,
        sql`drop index ${name("job_events_requeued")}`,
        sql`drop index ${name("job_ledger_canceled")}`,
        sql`alter table ${name("workflow_steps")} drop column continues`,
        sql`
        alter table ${name("job_ledger")}
          drop column continued, drop column source_job_id, drop column source_run_number`,
        sql`alter table ${name("job_queue")} drop column source_job_id, drop column source_run_number`,
        sql`alter table ${name("job_definitions")} drop column backoff_by_code`,
      ]);
    },
  };
}

function columns(name: QualifiedName) {
  return [
    sql`
    alter table ${name("job_definitions")}
      add column backoff_by_code jsonb,
      add constraint job_definitions_backoff_by_code check (jsonb_typeof(backoff_by_code) = 'object')`,
    sql`
    alter table ${name("job_queue")}
      add column source_job_id     uuid,
      add column source_run_number integer,
      add constraint job_queue_source check ((source_job_id is null) = (source_run_number is null))`,
    // continued: the run succeeded, and the job went on as its next run.
    sql`
    alter table ${name("job_ledger")}
      add column source_job_id     uuid,
      add column source_run_number integer,
      add column continued         boolean,
      add constraint job_ledger_source check ((source_job_id is null) = (source_run_number is null)),
      add constraint job_ledger_continued check (continued is null or (continued and status = 'SUCCEEDED'))`,
    sql`
    alter table ${name("workflow_steps")}
      add column continues boolean not null default false,
      add constraint workflow_steps_continues check (not continues or kind <> 'EXTERNAL')`,
  ];
}

function indexes(name: QualifiedName) {
  return [
    // Beside that of the dead jobs: what a bulk requeue walks along.
    sql`create index job_ledger_canceled on ${name("job_ledger")} (id) where status = 'CANCELED'`,
    // A run of a job follows on an ended one once, whoever asks for it at the same time.
    sql`
    create unique index job_events_requeued on ${name("job_events")} (job_id, run_number)
    where event = 'requeued'`,
  ];
}

/** The guard of a replay, which lives for as long as the job that it replays: nothing else may delete it. */
function replays(name: QualifiedName) {
  return sql`
    create table ${name("job_replays")} (
      source_job_id     uuid not null,
      key               text not null,
      source_run_number integer not null,
      job_id            uuid not null,
      requested         jsonb not null,
      created_at        timestamptz not null default now(),
      constraint job_replays_pkey primary key (source_job_id, key),
      constraint job_replays_key_length check (octet_length(key) between 1 and 512)
    )`;
}
