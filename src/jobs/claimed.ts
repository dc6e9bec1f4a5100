/** Jobs as claims answer them: from rows under a lease to what a worker is given. */
import { sql } from "kysely";
import type { JsonValue } from "../database/column-types.ts";
import { dateOfMicroseconds } from "../database/decode.ts";
import type { Executor } from "../database/executor.ts";
import { readValues } from "../database/values/read.ts";
import type { LedgerError } from "../errors.ts";
import type { Lease } from "./lease.ts";
import { type ScheduleTick, tickOf } from "./tick.ts";

/** A job under a lease, ready to run. */
export interface ClaimedJob {
  readonly lease: Lease;
  readonly type: string;
  /** Reading it throws `undecodable` where that is not null. */
  readonly payload: JsonValue;
  /** Reading it throws `undecodable` where that is not null. */
  readonly checkpoint: JsonValue | null;
  /** Why payload or checkpoint could not be decoded; a worker fails such a job without calling its handler. Else null. */
  readonly undecodable: LedgerError | null;
  readonly organizationId: string | null;
  readonly priority: number;
  readonly maxAttempts: number;
  readonly timeoutSeconds: number;
  readonly runAt: Date;
  readonly enqueuedAt: Date;
  readonly leaseExpiresAt: Date;
  readonly workflowStepId: string | null;
  readonly tags: readonly string[];
  /** The tick of a schedule that it is for, or null. */
  readonly schedule: ScheduleTick | null;
  /** The key whose limit the job runs under, or null. */
  readonly limitKey: string | null;
}

/** What a claim answers of a row of job_queue. Times as numbers: a driver takes as long to read one as for the rest of the row. */
export const claimedColumns = [
  "id",
  "run_number",
  "attempt",
  "type",
  "organization_id",
  "priority",
  "max_attempts",
  "timeout_seconds",
  microseconds("run_at"),
  microseconds("enqueued_at"),
  microseconds("lease_expires_at"),
  "workflow_run_id",
  "workflow_step_id",
  "tags",
  "limit_key",
  sql<string>`payload::text`.as("payload"),
  sql<string | null>`checkpoint::text`.as("checkpoint"),
  sql<string | null>`metadata::text`.as("metadata"),
] as const;

function microseconds<Column extends "run_at" | "enqueued_at" | "lease_expires_at">(column: Column) {
  // A time without a number, such as -infinity, must not keep all jobs of a claim from being claimed.
  const time = sql`greatest(${sql.ref(column)}, timestamptz 'epoch')`;
  return sql<string>`(date_part('epoch', ${time}) * 1000000)::int8`.as(column);
}

/** A leased row, in these columns. */
export interface ClaimedRow {
  readonly id: string;
  readonly run_number: number;
  readonly attempt: number;
  readonly type: string;
  readonly organization_id: string | null;
  readonly priority: number;
  readonly max_attempts: number;
  readonly timeout_seconds: number;
  readonly run_at: string;
  readonly enqueued_at: string;
  readonly lease_expires_at: string;
  readonly workflow_run_id: string | null;
  readonly workflow_step_id: string | null;
  readonly tags: readonly string[] | null;
  readonly limit_key: string | null;
  readonly payload: string;
  readonly checkpoint: string | null;
  readonly metadata: string | null;
}

/** Such a row, or the one that a statement answers where it has leased nothing. */
export type MaybeClaimedRow = { readonly [K in keyof ClaimedRow]: ClaimedRow[K] | null };

export function isClaimed<Row extends MaybeClaimedRow>(row: Row): row is Row & ClaimedRow {
  return row.id !== null;
}

export function inClaimOrder(a: ClaimedRow, b: ClaimedRow): number {
  return b.priority - a.priority || Number(a.run_at) - Number(b.run_at) || (a.id < b.id ? -1 : 1);
}

/** A payload or checkpoint that does not decode is its job's own trouble. */
export async function claimedJobs(
  { settings }: Executor,
  workerId: string,
  rows: readonly ClaimedRow[],
): Promise<ClaimedJob[]> {
  const payloads = await readValues(
    settings.values,
    "payload",
    rows.map(({ payload }) => payload),
  );
  const checkpoints = await readValues(
    settings.values,
    "checkpoint",
    rows.map(({ checkpoint }) => checkpoint),
  );
  return rows.map((row, place) => {
    const undecodable = payloads.errors.get(place) ?? checkpoints.errors.get(place);
    if (undecodable !== undefined) return undecodableJob(row, workerId, undecodable);
    return claimedJob(row, workerId, payloads.at(place), checkpoints.at(place));
  });
}

/** Whoever overlooks that it could not be decoded is not given something else for it. */
function undecodableJob(row: ClaimedRow, workerId: string, undecodable: LedgerError): ClaimedJob {
  const refuse = (): never => {
    throw undecodable;
  };
  const refused = { get: refuse, enumerable: true };
  const job = { ...claimedJob(row, workerId, null, null), undecodable };
  return Object.defineProperties(job, { payload: refused, checkpoint: refused });
}

function claimedJob(row: ClaimedRow, workerId: string, payload: JsonValue, checkpoint: JsonValue | null): ClaimedJob {
  return {
    lease: {
      jobId: row.id,
      runNumber: row.run_number,
      attempt: row.attempt,
      workerId,
      workflowRunId: row.workflow_run_id,
    },
    type: row.type,
    payload,
    checkpoint,
    undecodable: null,
    organizationId: row.organization_id,
    priority: row.priority,
    maxAttempts: row.max_attempts,
    timeoutSeconds: row.timeout_seconds,
    runAt: dateOfMicroseconds(row.run_at),
    enqueuedAt: dateOfMicroseconds(row.enqueued_at),
    leaseExpiresAt: dateOfMicroseconds(row.lease_expires_at),
    workflowStepId: row.workflow_step_id,
    tags: row.tags ?? [],
    schedule: tickOf(row.metadata),
    limitKey: row.limit_key,
  };
}
