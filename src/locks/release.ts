/** The release lock of a run: one transaction-scoped advisory lock, by LOCKS.md §1. */
import { sql } from "kysely";
import type { Executor } from "../database/executor.ts";
import { reading } from "../database/statement.ts";
import { isLedgerError, LedgerError } from "../errors.ts";
import { sortedRunReleaseKeys } from "./key.ts";
import { withBoundedWait } from "./wait.ts";

/**
 * Takes the release locks of the runs exclusively, in ascending key order, and waits for each. The name
 * is the rule: every live job row of the runs is locked before. The bound of the waits is the caller's
 * to set. One round trip.
 */
export async function lockRunReleaseExclusiveAfterJobs(executor: Executor, runIds: readonly string[]): Promise<void> {
  await exclusive.execute(executor, { keys: sortedRunReleaseKeys(runIds) });
}

/**
 * Takes the release locks of the runs shared, in ascending key order, and waits for each up to the
 * bound. Three round trips. Throws `workflow.release_conflict` when the wait ends without the lock.
 */
export async function lockRunReleaseShared(executor: Executor, runIds: readonly string[]): Promise<void> {
  if (runIds.length === 0) return;
  const keys = sortedRunReleaseKeys(runIds);
  await withBoundedWait(executor, async () => {
    try {
      await shared.execute(executor, { keys });
    } catch (error) {
      throw releaseConflict(error);
    }
  });
}

/**
 * Takes the release locks shared where that needs no wait: all of them, or throws
 * `workflow.release_conflict`. One round trip.
 */
export async function tryLockRunReleaseShared(executor: Executor, runIds: readonly string[]): Promise<void> {
  if (runIds.length === 0) return;
  const row = await tryShared.executeFirst(executor, { keys: sortedRunReleaseKeys(runIds) });
  if (row?.granted !== true) throw new LedgerError("workflow.release_conflict");
}

/** 55P03 and, by a stricter statement_timeout, 57014: both say that the lock was not granted in time. */
function releaseConflict(error: unknown): unknown {
  if (!isLedgerError(error) || (error.sqlstate !== "55P03" && error.sqlstate !== "57014")) return error;
  return new LedgerError("workflow.release_conflict", { sqlstate: error.sqlstate, cause: error.cause });
}

// unnest gives the keys in the order of the array, and the function runs once for each row of it.
const exclusive = reading(
  "lock_workflow_run_release",
  { keys: "int8[]" },
  (_db, p) => sql`select pg_advisory_xact_lock(key) from unnest(${p.keys}) as key`,
);

const shared = reading(
  "lock_workflow_run_release_shared",
  { keys: "int8[]" },
  (_db, p) => sql`select pg_advisory_xact_lock_shared(key) from unnest(${p.keys}) as key`,
);

const tryShared = reading(
  "try_lock_workflow_run_release_shared",
  { keys: "int8[]" },
  (_db, p) => sql<{ granted: boolean }>`
    select bool_and(pg_try_advisory_xact_lock_shared(key)) as granted from unnest(${p.keys}) as key`,
);
