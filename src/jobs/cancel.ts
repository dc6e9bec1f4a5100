import { sql } from "kysely";
import { toDateOrNull } from "../database/decode.ts";
import type { Executor } from "../database/executor.ts";
import { validUuid } from "../database/ids.ts";
import { inScope, type Scope, scopeArguments, scopeParameters } from "../database/scope.ts";
import { writing } from "../database/statement.ts";
import type { JobStatus } from "../database/statuses.ts";
import { requireReadCommitted } from "../database/transaction.ts";
import { LedgerError } from "../errors.ts";
import { boundedHere, boundedInCaller, lockWaitFor } from "../locks/wait.ts";
import { appendEnded, canceledOfQueue } from "./ending.ts";
import { storableText } from "./outcome.ts";
import { getJob } from "./read.ts";

export interface CancelJobOptions {
  readonly scope: Scope;
  /** Kept with the job. */
  readonly reason?: string;
}

export interface CanceledJob {
  readonly id: string;
  /** CANCELED, or the status with which the job had ended before. */
  readonly status: JobStatus;
  /** Whether this call cancelled it. */
  readonly canceled: boolean;
  /** Until when a worker may still be at it: the end of the lease that was taken away, else null. */
  readonly leaseExpiresAt: Date | null;
}

/**
 * Cancels a PENDING or LEASED job; a job that has ended is returned unchanged. One round trip, two when
 * it had ended, three more in a caller's transaction. Throws `job.not_found`,
 * `job.workflow_requeue_not_supported`, `scope.required`, `input.invalid`, `job.cancel_unsupported_isolation`.
 */
export async function cancelJob(executor: Executor, jobId: string, options: CancelJobOptions): Promise<CanceledJob> {
  const id = validUuid(jobId, "jobId");
  const scope = scopeArguments(options.scope);
  const reason = options.reason === undefined ? null : storableText(options.reason);
  await requireReadCommitted(executor, "job.cancel_unsupported_isolation");
  const given = { ids: [id], reason, ...scope, lockWait: lockWaitFor(executor) };
  const row = await boundedInCaller(executor, () => cancel.executeFirst(executor, given));
  if (row === undefined) {
    const ended = await getJob(executor, id, options.scope);
    if (ended.workflowRunId !== null) throw new LedgerError("job.workflow_requeue_not_supported");
    return { id, status: ended.status, canceled: false, leaseExpiresAt: ended.leaseExpiresAt };
  }
  if (row.workflow_run_id !== null) throw new LedgerError("job.workflow_requeue_not_supported");
  return { id, status: "CANCELED", canceled: true, leaseExpiresAt: toDateOrNull(row.lease_expires_at) };
}

/**
 * Cancels those of the jobs that are live, in scope and of no run, and answers with their ids. One round trip; three
 * more in a caller's transaction. Throws `job.cancel_unsupported_isolation`, `scope.required`.
 */
export async function cancelJobs(
  executor: Executor,
  ids: readonly string[],
  { scope, reason }: CancelJobOptions,
): Promise<string[]> {
  const text = reason === undefined ? null : storableText(reason);
  const given = { ids, reason: text, ...scopeArguments(scope), lockWait: lockWaitFor(executor) };
  await requireReadCommitted(executor, "job.cancel_unsupported_isolation");
  const rows = await boundedInCaller(executor, () => cancel.execute(executor, given));
  return rows.filter((row) => row.workflow_run_id === null).map(({ id }) => id);
}

const cancel = writing(
  "cancel_jobs",
  { ids: "uuid[]", reason: "text?", lockWait: "int4?", ...scopeParameters },
  (db, p, schema) =>
    db
      .with(
        (cte) => cte("held").materialized(),
        (qb) =>
          qb
            .selectFrom("job_queue as q")
            .where(sql<boolean>`q.id = any(${p.ids})`)
            .where(inScope("q.organization_id", p))
            .where(boundedHere(p.lockWait))
            .select(["q.id", "q.workflow_run_id", "q.lease_expires_at"])
            .orderBy("q.id")
            .forUpdate("q"),
      )
      .with("ended", (qb) =>
        qb
          .deleteFrom("job_queue as q")
          .using("held")
          .whereRef("q.id", "=", "held.id")
          .where("held.workflow_run_id", "is", null)
          .returning(canceledOfQueue(schema, p.reason)),
      )
      .with("appended", (qb) => appendEnded(qb))
      .selectFrom("held")
      .select(["held.id", "held.workflow_run_id", "held.lease_expires_at"]),
);
