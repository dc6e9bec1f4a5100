/** Which errors pass by themselves, and how long to wait for that. */
import { isLedgerError, type LedgerError } from "../index.ts";

const FIRST_DELAY_MS = 50;
const MAX_DELAY_MS = 5_000;

/**
 * The database is away or busy: the same call may succeed later. A missing schema is not that, nor is
 * anything that is not an error of the ledger. A commit without an answer is: what it was about is
 * fenced, so that it can be asked for again.
 */
export function isTransient(error: unknown): error is LedgerError {
  return (
    isLedgerError(error) && error.code !== "schema.missing" && (error.retryable || error.category === "unavailable")
  );
}

const PATIENCE = 8;

/**
 * Whether to try again after so many failures in a row. An error of the database that the ledger has no
 * code for is borne for some seconds: it may be the tail of an outage that the driver reports in its own words.
 */
export function mayPass(error: unknown, failures: number): boolean {
  return isTransient(error) || (isLedgerError(error) && error.code === "db.error" && failures < PATIENCE);
}

/** The database could not be reached or did not answer: no single job can be the cause. */
export function isUnreachable(error: unknown): boolean {
  return isLedgerError(error) && (error.code === "db.unavailable" || error.code === "db.commit_unconfirmed");
}

/** The delay after so many failures in a row, in milliseconds; random, so that workers do not come back together. */
export function retryDelayMs(failures: number): number {
  return Math.min(MAX_DELAY_MS, FIRST_DELAY_MS * 2 ** failures) * (0.5 + Math.random() / 2);
}
