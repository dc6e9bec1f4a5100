/** Retrying what the database gave up on (LOCKS.md §5). */
import { isLedgerError } from "../errors.ts";
import type { Executor } from "./executor.ts";
import { driverFacts } from "./sqlstate.ts";

/**
 * How often a transaction is tried in all, by the SQLSTATE that ended it. A lock that was not granted
 * has already been waited for up to the bound.
 */
const triesBySqlstate: Readonly<Record<string, number>> = { "40001": 5, "40P01": 5, "55P03": 2 };
const BASE_DELAY_MS = 10;

/**
 * Runs `attempt` again after 40001, 40P01 or 55P03, a few times with jittered delays, where it is a
 * transaction of its own; inside a transaction only who began it can start over.
 */
export async function retrying<T>(executor: Executor, attempt: () => Promise<T>): Promise<T> {
  if (executor.transaction !== "none") return attempt();
  for (let tries = 1; ; tries += 1) {
    try {
      return await attempt();
    } catch (error) {
      if (tries >= triesFor(error)) throw error;
      await delay(Math.random() * BASE_DELAY_MS * 2 ** tries);
    }
  }
}

/** The error is one of ours, or the driver's own from what the service does in the transaction. */
function triesFor(error: unknown): number {
  const sqlstate = isLedgerError(error) ? error.sqlstate : driverFacts(error).sqlstate;
  return sqlstate === undefined ? 1 : (triesBySqlstate[sqlstate] ?? 1);
}

function delay(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
