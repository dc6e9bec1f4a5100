/** Enqueue of jobs of which some have keys: those of live jobs go by `active.ts`, all others by `idempotency.ts`. */
import type { Executor } from "../database/executor.ts";
import { allOrNothing, inTransaction, requireReadCommitted } from "../database/transaction.ts";
import type { LedgerErrorCode } from "../errors.ts";
import { boundedInCaller } from "../locks/wait.ts";
import { isOfLiveJob, takeOrJoin } from "./active.ts";
import { takeOrFind } from "./idempotency.ts";
import { type EnqueuedJob, type EnqueueOptions, insertedJob } from "./insertion.ts";
import type { KeyedJob, PreparedKey } from "./keys.ts";

/**
 * Enqueues jobs of which some have a key. A single job: one round trip when its key is free or the job of the key is
 * replaced, two when another job is found under it, three when it has expired. Several: the same within one
 * transaction, first for keys that outlast their jobs, then for those of live jobs. In a caller's transaction three
 * more, for its level and the bound of the wait for who takes the same key, and for several another, for a savepoint.
 */
export async function enqueueKeyed(
  executor: Executor,
  jobs: readonly KeyedJob[],
  options: EnqueueOptions,
): Promise<EnqueuedJob[]> {
  await requireReadCommitted(executor, isolationCodeOf(jobs));
  // A single job whose key is taken has written nothing, so there is nothing to take back.
  if (jobs.length === 1) return boundedInCaller(executor, () => enqueueAll(executor, jobs, options));
  return inTransaction(executor, (trx) =>
    allOrNothing(trx, () => boundedInCaller(trx, () => enqueueAll(trx, jobs, options))),
  );
}

async function enqueueAll(
  executor: Executor,
  jobs: readonly KeyedJob[],
  options: EnqueueOptions,
): Promise<EnqueuedJob[]> {
  const others = jobs.filter((job) => !isOfLiveJob(job));
  const answers = new Map([
    ...(await takeOrFind(executor, others, options)),
    ...(await takeOrJoin(executor, jobs.filter(isOfLiveJob), options)),
  ]);
  return jobs.map(({ id }) => answers.get(id) ?? insertedJob(id));
}

const isolationCodes: Readonly<Record<PreparedKey["kind"], LedgerErrorCode>> = {
  idempotency: "job.enqueue_idempotency_unsupported_isolation",
  active: "job.enqueue_active_key_unsupported_isolation",
  debounce: "job.enqueue_debounce_unsupported_isolation",
  throttle: "job.enqueue_throttle_unsupported_isolation",
};

/** By the first key among the jobs. */
function isolationCodeOf(jobs: readonly KeyedJob[]): LedgerErrorCode {
  const first = jobs.find(({ key }) => key !== null);
  return isolationCodes[first?.key?.kind ?? "idempotency"];
}
