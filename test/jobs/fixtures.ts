/** What tests of jobs need again and again: claims, states, codes, and a database clock that can be moved. */
import { type AnyKysely, createExecutor, type Executor } from "../../src/database/executor.ts";
import type { Settlement } from "../../src/index.ts";
import { type ClaimedJob, isLedgerError, type Lease, type Ledger } from "../../src/index.ts";
import type { TestDatabase } from "../support/database.ts";

export const globally = { global: true } as const;
export const unknownId = "0190a5f0-7b1c-7e3a-9f00-0123456789ab";

/** An executor as the ledger makes one, for functions that it does not export. */
export function executorOf(db: AnyKysely, lockWaitMs = 5000): Executor {
  return createExecutor(db, "runledger", { notify: false, lockWaitMs });
}

/** Enqueues one job of the type and claims it. */
export async function leased(ledger: Ledger, type: string, options: LeasedOptions = {}): Promise<ClaimedJob> {
  const { workerId = "worker", payload = {}, ...rest } = options;
  await ledger.jobs.enqueue(type, payload, rest);
  return claimedOne(ledger, type, workerId);
}

interface LeasedOptions {
  readonly workerId?: string;
  readonly payload?: unknown;
  readonly maxAttempts?: number;
  readonly organizationId?: string;
  readonly tags?: readonly string[];
}

/** Claims exactly one job of the type. */
export async function claimedOne(ledger: Ledger, type: string, workerId = "worker"): Promise<ClaimedJob> {
  const [job, ...more] = await ledger.jobs.claim({ workerId, limit: 1, types: [type] });
  if (job === undefined || more.length > 0) throw new Error(`no job of type ${type} could be claimed`);
  return job;
}

/** The code of the LedgerError that the call ends in; what else came of it is shown as it is. */
export async function codeOf(call: () => Promise<unknown>): Promise<unknown> {
  try {
    return { resolved: await call() };
  } catch (error) {
    return isLedgerError(error) ? error.code : error;
  }
}

/** The error that the call ends in. */
export async function errorOf(call: Promise<unknown>): Promise<unknown> {
  try {
    await call;
  } catch (error) {
    return error;
  }
  throw new Error("the call succeeded");
}

/** Moves the end of leases into the past, as time would. */
export async function expire(database: Pick<TestDatabase, "pool">, jobIds: readonly string[]): Promise<void> {
  await database.pool.query(
    "update runledger.job_queue set lease_expires_at = clock_timestamp() - interval '1 second' where id = any($1)",
    [jobIds],
  );
}

/** Makes retried jobs due now. */
export async function makeDue(database: Pick<TestDatabase, "pool">, jobIds: readonly string[]): Promise<void> {
  await database.pool.query("update runledger.job_queue set run_at = now() where id = any($1) and status = 'PENDING'", [
    jobIds,
  ]);
}

/** All that a fenced write could have changed, to compare before and after. */
export async function everythingOf(database: Pick<TestDatabase, "pool">, jobId: string): Promise<unknown> {
  const queries = [
    "select * from runledger.job_queue where id = $1",
    "select * from runledger.job_ledger where id = $1 order by run_number",
    "select * from runledger.job_attempts where job_id = $1 order by run_number, attempt",
    "select * from runledger.job_logs where job_id = $1 order by id",
    "select * from runledger.job_events where job_id = $1 order by id",
  ];
  return Promise.all(queries.map(async (text) => (await database.pool.query(text, [jobId])).rows));
}

export function success(lease: Lease, output?: unknown): Settlement {
  return { lease, success: output === undefined ? {} : { output } };
}

export function failure(
  lease: Lease,
  kind: "RETRYABLE" | "TERMINAL" | "PANICKED" | "TIMEOUT" = "RETRYABLE",
): Settlement {
  return { lease, failure: { kind, code: "test.failed", message: "It failed." } };
}
