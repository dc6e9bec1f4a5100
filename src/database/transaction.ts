/** The one place that begins transactions, and notices what became of their commit. */
import { sql } from "kysely";
import { isLedgerError, LedgerError, type LedgerErrorCode } from "../errors.ts";
import { createExecutor, type Executor } from "./executor.ts";
import { failure } from "./failures.ts";
import { retrying } from "./retry.ts";
import { isConnectionError, isDriverError } from "./sqlstate.ts";
import { reading } from "./statement.ts";

/**
 * Runs `body` in a READ COMMITTED transaction: the caller's where there is one, else an own one that
 * is retried after a conflict. Round trips of its own: none in a caller's transaction, else two.
 */
export async function inTransaction<T>(executor: Executor, body: (executor: Executor) => Promise<T>): Promise<T> {
  if (executor.transaction !== "none") return body(executor);
  return retrying(executor, () => inOwnTransaction(executor, body));
}

/** The same in a transaction that is always begun here, and not tried again. */
export async function inOwnTransaction<T>(executor: Executor, body: (executor: Executor) => Promise<T>): Promise<T> {
  let committing = false;
  let thrown: { readonly error: unknown } | undefined;
  try {
    return await executor.source
      .transaction()
      .setIsolationLevel("read committed")
      .execute(async (trx) => {
        try {
          const own: Executor = { ...createExecutor(trx, executor.schema, executor.settings), transaction: "own" };
          const result = await body(own);
          // Kysely before 0.29.8 takes the server's ROLLBACK for a commit.
          if (own.health.failed) throw new LedgerError("db.transaction_aborted");
          committing = true;
          return result;
        } catch (error) {
          thrown = { error };
          throw error;
        }
      });
  } catch (last) {
    // On a broken connection Kysely's rollback fails too, and its error takes the place of the first.
    if (thrown !== undefined) throw thrown.error;
    if (committing && isConnectionError(last)) throw new LedgerError("db.commit_unconfirmed", { cause: last });
    throw isDriverError(last) ? failure(last, executor, false) : last;
  }
}

/** Throws `code` before anything else is sent, unless the caller's transaction is READ COMMITTED. One round trip there, none elsewhere. */
export async function requireReadCommitted(executor: Executor, code: LedgerErrorCode): Promise<void> {
  if (executor.transaction !== "caller") return;
  const row = await isolationLevel.executeFirst(executor, {});
  if (row?.level !== "read committed" && row?.level !== "read uncommitted") throw new LedgerError(code);
}

const isolationLevel = reading(
  "isolation_level",
  {},
  () => sql<{ level: string }>`select current_setting('transaction_isolation') as level`,
);

/** Marks a point to go back to; going back gives up the locks taken since. One round trip each. */
export async function savepoint(executor: Executor): Promise<void> {
  await beginSavepoint.execute(executor, {});
}

export async function rollbackToSavepoint(executor: Executor): Promise<void> {
  await backToSavepoint.execute(executor, {});
  executor.health.failed = false;
}

/**
 * A caller's transaction may go on after an error of ours: what `body` had written until then is taken
 * back, so that it did all or nothing. One round trip there, none elsewhere.
 */
export async function allOrNothing<T>(executor: Executor, body: () => Promise<T>): Promise<T> {
  if (executor.transaction !== "caller") return body();
  await savepoint(executor);
  try {
    return await body();
  } catch (error) {
    if (isLedgerError(error) && error.sqlstate === undefined) await rollbackToSavepoint(executor);
    throw error;
  }
}

/**
 * As `allOrNothing`, for a body that is the service's own: whatever it throws, what it wrote is taken
 * back and a caller's transaction can go on. Two round trips there, none elsewhere.
 */
export async function takenBackOnError<T>(executor: Executor, body: () => Promise<T>): Promise<T> {
  if (executor.transaction !== "caller") return body();
  await beginOwnSavepoint.execute(executor, {});
  try {
    const result = await body();
    await releaseOwnSavepoint.execute(executor, {});
    return result;
  } catch (error) {
    await takeBack(executor).catch(() => {
      // The connection is lost, and everything with it: what was thrown first says why.
    });
    throw error;
  }
}

async function takeBack(executor: Executor): Promise<void> {
  await backToOwnSavepoint.execute(executor, {});
  await releaseOwnSavepoint.execute(executor, {});
  executor.health.failed = false;
}

const beginSavepoint = reading("savepoint", {}, () => sql<never>`savepoint runledger`);
const backToSavepoint = reading("rollback_to_savepoint", {}, () => sql<never>`rollback to savepoint runledger`);

// Under another name, and released: the body may set the other one, or come back here with another job.
const beginOwnSavepoint = reading("savepoint_of_body", {}, () => sql<never>`savepoint runledger_body`);
const backToOwnSavepoint = reading(
  "rollback_to_savepoint_of_body",
  {},
  () => sql<never>`rollback to savepoint runledger_body`,
);
const releaseOwnSavepoint = reading(
  "release_savepoint_of_body",
  {},
  () => sql<never>`release savepoint runledger_body`,
);
