import { isLedgerError, LedgerError } from "../errors.ts";
import type { Executor } from "./executor.ts";
import { codeOf, driverFacts } from "./sqlstate.ts";

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
