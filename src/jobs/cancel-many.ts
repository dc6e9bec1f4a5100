/** Bulk cancel: all live jobs that a filter finds, in bounded batches of which each is one transaction (FEATURES F-J9). */
import type { Executor } from "../database/executor.ts";
import { inHalves } from "../database/halves.ts";
import { scopeArguments } from "../database/scope.ts";
import { requireReadCommitted } from "../database/transaction.ts";
import type { LedgerError } from "../errors.ts";
import { validInteger } from "./arguments.ts";
import { type CancelJobOptions, cancelJobs } from "./cancel.ts";
import { type BulkOptions, type JobFilter, preparedFilter, requireFunction, validBatchSize } from "./filter.ts";
import { walk } from "./walk.ts";

export interface LiveJobFilter extends JobFilter {
  readonly statuses?: readonly ("PENDING" | "LEASED")[];
}

export interface CancelManyJobsOptions extends CancelJobOptions, BulkOptions<CancelJobsProgress> {
  /** Must be given: `{}` for all live jobs in the scope. */
  readonly filter: LiveJobFilter;
}

/** How far it has come. */
export interface CancelJobsProgress {
  readonly canceled: number;
  readonly alreadyEnded: number;
  readonly failed: number;
  /** The sum of these. */
  readonly done: number;
}

export interface CanceledJobs {
  readonly canceled: number;
  /** Jobs that were live when they were found, and had ended when it was their turn. */
  readonly alreadyEnded: number;
  /** Jobs that are as they were, such as one whose row somebody held for too long. */
  readonly failed: readonly { readonly jobId: string; readonly error: LedgerError }[];
}

const filterKeys = ["type", "statuses", "tags", "enqueuedAfter", "enqueuedBefore"];

/**
 * Cancels the live jobs that the filter finds; jobs of workflow runs, and those that are enqueued meanwhile, are left
 * alone. Two round trips a batch, one more where the filter finds nothing in some thousand jobs. A batch that fails is
 * halved until the job stands alone that is in the way. In a caller's transaction, one more at first and three a batch, and
 * the first error ends the call. Throws `input.invalid`, `scope.required`, `job.cancel_unsupported_isolation`, `db.*`
 * when the database is gone.
 */
export async function cancelManyJobs(executor: Executor, options: CancelManyJobsOptions): Promise<CanceledJobs> {
  const filter = preparedFilter(options.filter, filterKeys);
  const scope = scopeArguments(options.scope);
  const size = validBatchSize(options.batchSize);
  const limit = validInteger(options.limit, "limit", 1);
  requireFunction(options.onProgress, "onProgress");
  await requireReadCommitted(executor, "job.cancel_unsupported_isolation");
  const failed: { jobId: string; error: LedgerError }[] = [];
  let [canceled, alreadyEnded] = [0, 0];
  const cancel = async (ids: readonly string[]) => {
    const done = await cancelJobs(executor, ids, options);
    canceled += done.length;
    alreadyEnded += ids.length - done.length;
  };
  for await (const jobs of walk(executor, "live", { filter, scope, size, limit })) {
    const ids = jobs.map(({ id }) => id);
    await inHalves(executor, ids, cancel, (jobId, error) => failed.push({ jobId, error }));
    const done = canceled + alreadyEnded + failed.length;
    await options.onProgress?.({ canceled, alreadyEnded, failed: failed.length, done });
  }
  return { canceled, alreadyEnded, failed };
}
