/** Retention: what has ended longer ago than it is to be kept goes, in bounded batches (FEATURES F-H2). */
import type { Executor } from "../database/executor.ts";
import { LedgerError } from "../errors.ts";
import { validInteger } from "../jobs/arguments.ts";
import { FIRST_SCHEDULE, forgetFires } from "./fires.ts";
import { type Batch, FIRST_JOB, retireJobs } from "./jobs.ts";
import { forgetExpiredKeys } from "./keys.ts";
import { dropPartitions } from "./partitions.ts";
import { type PreparedPolicies, preparedPolicies, type RetentionPolicies } from "./policies.ts";
import { FIRST_RUN, retireRuns } from "./runs.ts";

export interface RetainOptions {
  readonly policies: RetentionPolicies;
  /** At most so many rows of the ledger, fires, or steps of runs, in one transaction; a larger run is one by itself. 1 to 10 000. Default 1000. */
  readonly batchSize?: number;
  /** Ends the pass after the batch that is under way. */
  readonly signal?: AbortSignal;
  /** Called, and waited for, after each batch. What it throws ends the call; what the batches before deleted is gone. */
  readonly onProgress?: (progress: RetainProgress) => void | Promise<void>;
}

/** How far it has come. */
export interface RetainProgress {
  readonly jobs: number;
  readonly runs: number;
  readonly keys: number;
  readonly fires: number;
}

export interface Retained extends RetainProgress {
  /** Partitions of the ledger that were dropped, with all jobs in them. */
  readonly droppedPartitions: readonly string[];
  /** Partitions that are past but were in use whenever it was tried: their turn comes with the next pass. */
  readonly blockedPartitions: readonly string[];
  /** Whether everything was looked at: not when another process deletes at the same time, or after a signal. */
  readonly complete: boolean;
}

const DEFAULT_BATCH = 1000;
const MAX_BATCH = 10_000;

/**
 * Deletes what is past by its policy: runs with their steps, mutations and jobs; partitions of the ledger of which nothing is to be
 * kept; jobs with their attempts, events, logs and keys; fires of schedules; keys whose time to live is over. Kept are jobs and runs with a
 * live idempotency key, jobs of a run that is there, runs whose parent lives, and each schedule's last fire. Each batch is one short transaction that waits for
 * no row; only one process deletes at a time. It takes transactions of its own: throws
 * `maintenance.transaction_unsupported` in a caller's, `input.invalid`.
 */
export async function retain(executor: Executor, options: RetainOptions): Promise<Retained> {
  const policies = preparedPolicies(options.policies);
  const limit = validInteger(options.batchSize, "batchSize", 1, MAX_BATCH) ?? DEFAULT_BATCH;
  if (options.onProgress !== undefined && typeof options.onProgress !== "function") {
    throw new LedgerError("input.invalid", { message: "onProgress must be a function." });
  }
  if (executor.transaction !== "none") throw new LedgerError("maintenance.transaction_unsupported");
  const pass = new Pass(executor, policies, limit, options);
  await pass.run();
  return pass.result;
}

/** One walk through everything there is. */
class Pass {
  readonly #executor: Executor;
  readonly #policies: PreparedPolicies;
  readonly #limit: number;
  readonly #options: RetainOptions;
  readonly #tally = { jobs: 0, runs: 0, keys: 0, fires: 0 };
  #dropped: readonly string[] = [];
  #blocked: readonly string[] = [];
  #complete = true;

  constructor(executor: Executor, policies: PreparedPolicies, limit: number, options: RetainOptions) {
    this.#executor = executor;
    this.#policies = policies;
    this.#limit = limit;
    this.#options = options;
  }

  get result(): Retained {
    return {
      ...this.#tally,
      droppedPartitions: this.#dropped,
      blockedPartitions: this.#blocked,
      complete: this.#complete,
    };
  }

  async run(): Promise<void> {
    const { jobs, runs, keys, fires } = this.#policies;
    await this.#repeat("keys", () => forgetExpiredKeys(this.#executor, this.#limit));
    if (fires !== null) {
      await this.#walk("fires", FIRST_SCHEDULE, (after) => forgetFires(this.#executor, fires, after, this.#limit));
    }
    if (runs !== null) {
      await this.#walk("runs", FIRST_RUN, (after) => retireRuns(this.#executor, runs, keys, after, this.#limit));
    }
    if (jobs === null || this.#ended) return;
    const partitions = await dropPartitions(this.#executor, jobs, keys, this.#options.signal);
    [this.#dropped, this.#blocked] = [partitions.dropped, partitions.blocked];
    await this.#count("jobs", partitions.jobs);
    await this.#walk("jobs", FIRST_JOB, (after) => retireJobs(this.#executor, jobs, keys, after, this.#limit));
  }

  get #ended(): boolean {
    if (this.#options.signal?.aborted) this.#complete = false;
    return !this.#complete;
  }

  async #repeat(what: keyof RetainProgress, batch: () => Promise<number>): Promise<void> {
    for (let deleted = this.#limit; deleted >= this.#limit && !this.#ended; ) {
      deleted = await batch();
      await this.#count(what, deleted);
    }
  }

  async #walk<Position>(
    what: keyof RetainProgress,
    from: Position,
    batch: (after: Position) => Promise<Batch<Position>>,
  ): Promise<void> {
    for (let after: Position | null = from; after !== null && !this.#ended; ) {
      const { deleted, next, busy }: Batch<Position> = await batch(after);
      if (busy) this.#complete = false;
      after = next;
      await this.#count(what, deleted);
    }
  }

  async #count(what: keyof RetainProgress, deleted: number): Promise<void> {
    if (deleted === 0) return;
    this.#tally[what] += deleted;
    await this.#options.onProgress?.({ ...this.#tally });
  }
}
