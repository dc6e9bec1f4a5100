/** Reads of one job. */
import { sql } from "kysely";
import type { JsonValue } from "../database/column-types.ts";
import { toDate, toDateOrNull, toNumberOrNull } from "../database/decode.ts";
import type { Executor } from "../database/executor.ts";
import { validUuid } from "../database/ids.ts";
import { inScope, type Scope, scopeArguments, scopeParameters } from "../database/scope.ts";
import { reading } from "../database/statement.ts";
import { decodeFailureKind, decodeJobStatus, type FailureKind, type JobStatus } from "../database/statuses.ts";
import type { ValueKind } from "../database/values/codec.ts";
import { type ReadOptions, shownValues } from "../database/values/read.ts";
import { LedgerError } from "../errors.ts";
import { type ScheduleTick, tickOf } from "./tick.ts";

/** What a list says of a job. */
export interface JobSummary {
  readonly id: string;
  readonly runNumber: number;
  readonly type: string;
  readonly status: JobStatus;
  readonly organizationId: string | null;
  readonly priority: number;
  readonly runAt: Date;
  readonly attempt: number;
  readonly maxAttempts: number;
  readonly timeoutSeconds: number;
  readonly workerId: string | null;
  readonly leasedAt: Date | null;
  readonly leaseExpiresAt: Date | null;
  readonly enqueuedAt: Date;
  readonly endedAt: Date | null;
  readonly progress: { readonly done: number; readonly total: number | null } | null;
  readonly failureKind: FailureKind | null;
  readonly errorCode: string | null;
  readonly errorMessage: string | null;
  readonly canceledReason: string | null;
  readonly workflowRunId: string | null;
  readonly workflowStepId: string | null;
  readonly tags: readonly string[];
  /** The key whose limit the job runs under, or null. */
  readonly limitKey: string | null;
  /** The tick of a schedule that it is for, or null. */
  readonly schedule: ScheduleTick | null;
}

/** A job as it stands: its live row, else its latest run. */
export interface Job extends JobSummary {
  readonly payload: JsonValue;
  readonly checkpoint: JsonValue | null;
  /** Null for a job of a workflow run: its output is the step's. */
  readonly output: JsonValue | null;
}

/**
 * One round trip. Throws `job.not_found`, `scope.required`, `input.invalid`, `payload.undecodable`,
 * `payload.codec_unavailable`.
 */
export async function getJob(executor: Executor, jobId: string, scope: Scope, options: ReadOptions = {}): Promise<Job> {
  const row = await get.executeFirst(executor, { id: validUuid(jobId, "jobId"), ...scopeArguments(scope) });
  if (row === undefined) throw new LedgerError("job.not_found");
  const shown = async (kind: ValueKind, text: string | null) =>
    (await shownValues(executor.settings.values, kind, [text], options))(0);
  return {
    ...summaryOf(row),
    payload: await shown("payload", row.payload),
    checkpoint: await shown("checkpoint", row.checkpoint),
    output: await shown("output", row.output),
  };
}

const get = reading("get_job", { id: "uuid", ...scopeParameters }, (db, p) =>
  db
    .selectFrom("jobs as j")
    .where("j.id", "=", p.id)
    .where(inScope("j.organization_id", p))
    .select([
      "j.id",
      "j.run_number",
      "j.type",
      "j.status",
      "j.organization_id",
      "j.priority",
      "j.run_at",
      "j.attempt",
      "j.max_attempts",
      "j.timeout_seconds",
      "j.worker_id",
      "j.leased_at",
      "j.lease_expires_at",
      "j.enqueued_at",
      "j.ended_at",
      "j.progress_done",
      "j.progress_total",
      "j.failure_kind",
      "j.error_code",
      "j.error_message",
      "j.canceled_reason",
      "j.workflow_run_id",
      "j.workflow_step_id",
      "j.tags",
      "j.limit_key",
      sql<string | null>`j.metadata::text`.as("metadata"),
      sql<string>`j.payload::text`.as("payload"),
      sql<string | null>`j.checkpoint::text`.as("checkpoint"),
      sql<string | null>`j.output::text`.as("output"),
    ]),
);

type Row = Awaited<ReturnType<typeof get.execute>>[number];

export function summaryOf(row: Omit<Row, "payload" | "checkpoint" | "output">): JobSummary {
  const done = toNumberOrNull(row.progress_done);
  return {
    id: row.id,
    runNumber: row.run_number,
    type: row.type,
    status: decodeJobStatus(row.status),
    organizationId: row.organization_id,
    priority: row.priority,
    runAt: toDate(row.run_at),
    attempt: row.attempt,
    maxAttempts: row.max_attempts,
    timeoutSeconds: row.timeout_seconds,
    workerId: row.worker_id,
    leasedAt: toDateOrNull(row.leased_at),
    leaseExpiresAt: toDateOrNull(row.lease_expires_at),
    enqueuedAt: toDate(row.enqueued_at),
    endedAt: toDateOrNull(row.ended_at),
    progress: done === null ? null : { done, total: toNumberOrNull(row.progress_total) },
    failureKind: row.failure_kind === null ? null : decodeFailureKind(row.failure_kind),
    errorCode: row.error_code,
    errorMessage: row.error_message,
    canceledReason: row.canceled_reason,
    workflowRunId: row.workflow_run_id,
    workflowStepId: row.workflow_step_id,
    tags: row.tags ?? [],
    limitKey: row.limit_key,
    schedule: tickOf(row.metadata),
  };
}
