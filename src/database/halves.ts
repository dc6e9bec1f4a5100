/** A batch that fails is halved until the items that spoil it stand alone. */
import { isLedgerError, type LedgerError } from "../errors.ts";
import type { Executor } from "./executor.ts";

/**
 * Does the work for all items at once and, where that fails, for each half; `setAside` is told of each
 * item that fails alone. In a transaction around it there is no second try, so the error is thrown, and
 * so it is when the database is gone.
 */
export async function inHalves<T>(
  executor: Executor,
  items: readonly T[],
  work: (items: readonly T[]) => Promise<void>,
  setAside: (item: T, error: LedgerError) => void,
): Promise<void> {
  const [first, ...more] = items;
  if (first === undefined) return;
  try {
    await work(items);
  } catch (error) {
    if (executor.transaction !== "none" || !isLedgerError(error) || isDatabaseGone(error)) throw error;
    if (more.length === 0) return setAside(first, error);
    const middle = Math.ceil(items.length / 2);
    await inHalves(executor, items.slice(0, middle), work, setAside);
    await inHalves(executor, items.slice(middle), work, setAside);
  }
}

/** Nothing is wrong with the items. */
function isDatabaseGone({ code }: LedgerError): boolean {
  return code === "db.unavailable" || code === "db.commit_unconfirmed" || code === "schema.missing";
}
