import { sql } from "kysely";
import { type QualifiedName, qualifiedNames, runAll, type SchemaMigration } from "./names.ts";

/** Keys of live jobs and runs, keys of jobs that wait for more requests, and keys that give one job per window. */
export function activeKeys(schema: string): SchemaMigration {
  const name = qualifiedNames(schema);
  return {
    async up(db) {
      await runAll(db, [...jobKeys(name), ...runKeys(name), ...windows(name)]);
    },
    async down(db) {
      await runAll(db, [
        ...windowsBefore(name),
        sql`drop index ${name("workflow_runs_active_key")}`,
        sql`alter table ${name("workflow_runs")} drop column active_key`,
        sql`drop index ${name("job_queue_debounce_key")}`,
        sql`drop index ${name("job_queue_active_key")}`,
        sql`alter table ${name("job_ledger")} drop column active_key`,
        sql`alter table ${name("job_queue")} drop column debounce_key, drop column active_key`,
      ]);
    },
  };
}

/**
 * "This organization, or the global tenant": a null is different from every other in a unique index. Without a cast to
 * text, which is not leakproof, so that the index is of use behind a policy too.
 */
const tenant = sql`
  (organization_id is null),
  (case when organization_id is null then '00000000-0000-0000-0000-000000000000'::uuid else organization_id end)`;

function jobKeys(name: QualifiedName) {
  return [
    // Debounced is pending: a claim takes the key away, and what is asked for from then on is another job.
    sql`
    alter table ${name("job_queue")}
      add column active_key   text,
      add column debounce_key text,
      add constraint job_queue_active_key_length check (octet_length(active_key) between 1 and 512),
      add constraint job_queue_debounce_key_length check (octet_length(debounce_key) between 1 and 512),
      add constraint job_queue_debounced_is_pending check (debounce_key is null or status = 'PENDING')`,
    sql`alter table ${name("job_ledger")} add column active_key text`,
    // A live job is a row of the queue: whatever ends it frees its key.
    sql`
    create unique index job_queue_active_key on ${name("job_queue")} (type, ${tenant}, active_key)
    where active_key is not null`,
    sql`
    create unique index job_queue_debounce_key on ${name("job_queue")} (type, ${tenant}, debounce_key)
    where debounce_key is not null`,
  ];
}

function runKeys(name: QualifiedName) {
  return [
    sql`
    alter table ${name("workflow_runs")}
      add column active_key text,
      add constraint workflow_runs_active_key_length check (octet_length(active_key) between 1 and 512)`,
    // Collated apart: before the first ANALYZE the index of live runs by type looks as good for a key, and reads them all.
    sql`
    create unique index workflow_runs_active_key on ${name("workflow_runs")} (type collate "C", ${tenant}, active_key)
    where active_key is not null and ended_at is null`,
  ];
}

/** The key of a window is an idempotency key that expires with it and compares nothing. */
function windows(name: QualifiedName) {
  return [
    sql`create type ${name("job_key_kind")} as enum ('IDEMPOTENCY', 'THROTTLE')`,
    sql`
    alter table ${name("job_idempotency_keys")}
      add column kind ${name("job_key_kind")} not null default 'IDEMPOTENCY',
      drop constraint job_idempotency_keys_pkey,
      add constraint job_idempotency_keys_pkey primary key (type, tenant, key, kind),
      add constraint job_idempotency_keys_window_ends check (kind = 'IDEMPOTENCY' or expires_at is not null)`,
  ];
}

function windowsBefore(name: QualifiedName) {
  return [
    sql`delete from ${name("job_idempotency_keys")} where kind = 'THROTTLE'`,
    sql`
    alter table ${name("job_idempotency_keys")}
      drop constraint job_idempotency_keys_pkey,
      add constraint job_idempotency_keys_pkey primary key (type, tenant, key),
      drop constraint job_idempotency_keys_window_ends,
      drop column kind`,
    sql`drop type ${name("job_key_kind")}`,
  ];
}
