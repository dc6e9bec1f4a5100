/** Bulk requeue: all dead-lettered, or all cancelled, jobs that a filter finds, in bounded batches (FEATURES F-J9). */
import type { Executor } from "../database/executor.ts";
import { inHalves } from "../database/halves.ts";
import { type Scope, scopeArguments } from "../database/scope.ts";
import { requireReadCommitted } from "../database/transaction.ts";
import { LedgerError } from "../errors.ts";
import { validInteger } from "./arguments.ts";
import { type BulkOptions, type EndedJobFilter, preparedFilter, requireFunction, validBatchSize } from "./filter.ts";
import {
  type ExpectedJob,
  type RequeueableStatus,
  type RequeueSettings,
  requeueableStatuses,
  requeueJobs,
} from "./requeue.ts";
import { walk } from "./walk.ts";

export interface RequeueFilter extends EndedJobFilter {
  readonly status: RequeueableStatus;
  /** The code with which the last attempt failed. */
  readonly errorCode?: string;
}

export interface RequeueManyOptions extends RequeueSettings, BulkOptions<RequeueProgress> {
  readonly scope: Scope;
  readonly filter: RequeueFilter;
}

/** How far it has come. */
export interface RequeueProgress {
  readonly requeued: number;
  readonly alreadyChanged: number;
  readonly failed: number;
  /** The sum of these. */
  readonly done: number;
}

export interface RequeuedJobs {
  readonly requeued: number;
  /** Jobs that somebody else requeued between their being found and their turn. */
  readonly alreadyChanged: number;
  /** Jobs that are as they were, such as a cancelled one whose lease has not ended: `job.cancellation_not_quiesced`. */
  readonly failed: readonly { readonly jobId: string; readonly error: LedgerError }[];
}

const filterKeys = [
  "status",
  "type",
  "tags",
  "errorCode",
  "enqueuedAfter",
  "enqueuedBefore",
  "endedAfter",
  "endedBefore",
];

/**
 * Requeues the jobs that the filter finds; jobs of workflow runs, and those that end meanwhile, are left alone. Two
 * round trips a batch, one more where the filter finds nothing in some thousand ended jobs. A batch that fails is halved
 * until the job stands alone that is in the way. In a caller's transaction, one more at first and three a batch, and the first
 * error of the database ends the call. Throws `input.invalid`, `scope.required`, `job.requeue_unsupported_isolation`,
 * `db.*` when the database is gone.
 */
export async function requeueManyJobs(executor: Executor, options: RequeueManyOptions): Promise<RequeuedJobs> {
  const filter = preparedFilter(options.filter, filterKeys);
  const status = validStatus(options.filter.status);
  const scope = scopeArguments(options.scope);
  const size = validBatchSize(options.batchSize);
  const limit = validInteger(options.limit, "limit", 1);
  requireFunction(options.onProgress, "onProgress");
  await requireReadCommitted(executor, "job.requeue_unsupported_isolation");
  const failed: { jobId: string; error: LedgerError }[] = [];
  let [requeued, alreadyChanged] = [0, 0];
  const requeue = async (jobs: readonly ExpectedJob[]) => {
    for (const answer of await requeueJobs(executor, jobs, options)) {
      if (answer.ok) requeued += 1;
      else if (answer.error.code === "job.requeue_conflict") alreadyChanged += 1;
      else failed.push({ jobId: answer.id, error: answer.error });
    }
  };
  for await (const jobs of walk(executor, status, { filter, scope, size, limit })) {
    const expected = jobs.map((job) => ({ ...job, status }));
    await inHalves(executor, expected, requeue, ({ id }, error) => failed.push({ jobId: id, error }));
    const done = requeued + alreadyChanged + failed.length;
    await options.onProgress?.({ requeued, alreadyChanged, failed: failed.length, done });
  }
  return { requeued, alreadyChanged, failed };
}

function validStatus(status: RequeueableStatus): RequeueableStatus {
  if (requeueableStatuses.includes(status)) return status;
  throw new LedgerError("input.invalid", { message: "filter.status must be DEAD_LETTERED or CANCELED." });
}
