/** Bulk replay: all succeeded jobs that a filter finds, in bounded batches, each job once for a key (FEATURES F-J9). */
import type { Executor } from "../database/executor.ts";
import { inHalves } from "../database/halves.ts";
import { scopeArguments } from "../database/scope.ts";
import { requireReadCommitted } from "../database/transaction.ts";
import type { LedgerError } from "../errors.ts";
import { validInteger, validName } from "./arguments.ts";
import { type BulkOptions, type EndedJobFilter, preparedFilter, requireFunction, validBatchSize } from "./filter.ts";
import { type ReplaySettings, replayJobs } from "./replay.ts";
import { walk } from "./walk.ts";

export interface ReplayManyOptions extends ReplaySettings, BulkOptions<ReplayProgress> {
  /** Must be given: `{}` for all succeeded jobs in the scope. */
  readonly filter: EndedJobFilter;
}

/** How far it has come. */
export interface ReplayProgress {
  readonly replayed: number;
  readonly alreadyReplayed: number;
  readonly failed: number;
  /** The sum of these. */
  readonly done: number;
}

export interface ReplayedJobs {
  readonly replayed: number;
  /** Jobs that the key has replayed before: the same call again goes on where one that broke off stopped. */
  readonly alreadyReplayed: number;
  readonly failed: readonly { readonly jobId: string; readonly error: LedgerError }[];
}

const filterKeys = ["type", "tags", "enqueuedAfter", "enqueuedBefore", "endedAfter", "endedBefore"];

/**
 * Replays the jobs that the filter finds; jobs of workflow runs, and those that succeed meanwhile, are left alone. Two
 * round trips a batch, three where jobs were replayed before, one more where the filter finds nothing in some thousand
 * ended jobs. A batch that fails is halved until the job stands alone that is in the way. In a caller's transaction,
 * one more at first and three a batch, and the first error of the database ends the call. Throws `input.invalid`,
 * `scope.required`, `job.replay_unsupported_isolation`, `db.*` when the database is gone.
 */
export async function replayManyJobs(executor: Executor, options: ReplayManyOptions): Promise<ReplayedJobs> {
  const filter = preparedFilter(options.filter, filterKeys);
  const scope = scopeArguments(options.scope);
  const size = validBatchSize(options.batchSize);
  const limit = validInteger(options.limit, "limit", 1);
  validName(options.key, "key");
  requireFunction(options.onProgress, "onProgress");
  await requireReadCommitted(executor, "job.replay_unsupported_isolation");
  const failed: { jobId: string; error: LedgerError }[] = [];
  let [replayed, alreadyReplayed] = [0, 0];
  const replay = async (ids: readonly string[]) => {
    for (const answer of await replayJobs(executor, ids, options)) {
      if (!answer.ok) failed.push({ jobId: answer.id, error: answer.error });
      else if (answer.job.disposition === "inserted") replayed += 1;
      else alreadyReplayed += 1;
    }
  };
  for await (const jobs of walk(executor, "SUCCEEDED", { filter, scope, size, limit })) {
    const ids = jobs.map(({ id }) => id);
    await inHalves(executor, ids, replay, (jobId, error) => failed.push({ jobId, error }));
    const done = replayed + alreadyReplayed + failed.length;
    await options.onProgress?.({ replayed, alreadyReplayed, failed: failed.length, done });
  }
  return { replayed, alreadyReplayed, failed };
}
