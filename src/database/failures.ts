import { isLedgerError, LedgerError } from "../errors.ts";
import type { Executor } from "./executor.ts";
import { codeOf, driverFacts, isDriverError } from "./sqlstate.ts";

/**
 * The LedgerError for a driver's error. A statement that writes outside a transaction commits by
 * itself: when the connection breaks under it, nobody knows whether it did.
 */
export function failure(error: unknown, executor: Executor, writes: boolean): LedgerError {
  if (isLedgerError(error)) return error;
  executor.health.failed = true;
  const { sqlstate, constraint, connectionLost } = driverFacts(error);
  const unconfirmed = connectionLost && writes && executor.transaction === "none";
  return new LedgerError(unconfirmed ? "db.commit_unconfirmed" : codeOf(error), { sqlstate, constraint, cause: error });
}

/**
 * What a driver's error means in the ledger's words: for statements of the service's own that call `enqueue_job`, or
 * whose triggers do. Null for what is no error of the database.
 */
export function ledgerErrorOf(error: unknown): LedgerError | null {
  if (isLedgerError(error)) return error;
  if (!isDriverError(error)) return null;
  const { sqlstate, constraint } = driverFacts(error);
  return new LedgerError(codeOf(error), { sqlstate, constraint, cause: error });
}
