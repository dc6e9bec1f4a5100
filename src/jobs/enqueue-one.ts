/** One job, the most frequent request: its values stand for themselves, which a server starts faster on than on arrays of one. */
import { sql } from "kysely";
import { announceDue, announcing } from "../database/announce.ts";
import type { Executor } from "../database/executor.ts";
import type { Placeholders } from "../database/parameters.ts";
import { writing } from "../database/statement.ts";
import { type EnqueueOptions, enqueueFlags, insertAdmitted, refuseUnknownTypes } from "./insertion.ts";
import type { PreparedJob } from "./request.ts";

/** Inserts a prepared job and announces it. One round trip. Throws `job.definition_not_found_or_disabled`. */
export async function insertJob(executor: Executor, job: PreparedJob, options: EnqueueOptions): Promise<void> {
  const { id, type, payload, settings, runAt, organizationId, tags, metadata, limit } = job;
  const news = announcing(executor);
  const row = await insert.executeFirst(executor, {
    id,
    type,
    payload,
    priority: settings.priority,
    maxAttempts: settings.maxAttempts,
    timeout: settings.timeoutSeconds,
    runAt,
    organization: organizationId,
    tags,
    metadata,
    limitKey: limit?.key ?? null,
    limitConcurrency: limit?.concurrency ?? null,
    limitStarts: limit?.starts ?? null,
    limitPeriod: limit?.periodSeconds ?? null,
    ...enqueueFlags(news, options),
  });
  if (row === undefined) refuseUnknownTypes([type]);
  news.after({ jobs: row?.due === true });
}

const parameters = {
  id: "uuid",
  type: "text",
  payload: "jsonb",
  priority: "int4?",
  maxAttempts: "int4?",
  timeout: "int4?",
  runAt: "timestamptz?",
  organization: "uuid?",
  tags: "text?",
  metadata: "jsonb?",
  limitKey: "text?",
  limitConcurrency: "int4?",
  limitStarts: "int4?",
  limitPeriod: "float8?",
  strict: "bool",
  notify: "bool",
} as const;

const insert = writing("enqueue_job", parameters, (db, p, schema) =>
  insertAdmitted(
    db.with("input", (qb) => qb.selectNoFrom(inputRow(p))),
    sql`(d.enabled or not ${p.strict})`,
  ).returning(announceDue(p.notify, schema, sql`select where run_at <= now()`)),
);

function inputRow(p: Placeholders<typeof parameters>) {
  return [
    p.id.as("id"),
    p.type.as("type"),
    p.payload.as("payload"),
    p.priority.as("priority"),
    p.maxAttempts.as("max_attempts"),
    p.timeout.as("timeout_seconds"),
    p.runAt.as("run_at"),
    p.organization.as("organization_id"),
    p.tags.as("tags"),
    p.metadata.as("metadata"),
    p.limitKey.as("limit_key"),
    p.limitConcurrency.as("limit_concurrency"),
    p.limitStarts.as("limit_starts"),
    p.limitPeriod.as("limit_period_seconds"),
  ] as const;
}
