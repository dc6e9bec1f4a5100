/** Deadlines: a run that has not ended in its time is cancelled (FEATURES F-W12). */
import type { Executor } from "../database/executor.ts";
import { inHalves } from "../database/halves.ts";
import type { LedgerError } from "../errors.ts";
import { cancelRun } from "./cancel.ts";

/** The reason of a run that was cancelled because of its deadline. */
export const DEADLINE_EXCEEDED = "workflow.deadline_exceeded";

export interface EnforcedDeadlines {
  /** The ids of the runs that were cancelled; the others had ended meanwhile. */
  readonly canceled: readonly string[];
  readonly setAside: readonly { readonly runId: string; readonly error: LedgerError }[];
}

/**
 * Cancels runs that are past their deadline, each in the round trips of `cancelRun`. In a caller's
 * transaction a run that cannot be cancelled ends the call with its error.
 */
export async function enforceDeadlines(executor: Executor, runIds: readonly string[]): Promise<EnforcedDeadlines> {
  const canceled: string[] = [];
  const setAside: { runId: string; error: LedgerError }[] = [];
  for (const runId of runIds) {
    await inHalves(
      executor,
      [runId],
      async () => {
        const run = await cancelRun(executor, runId, { scope: { admin: true }, reason: DEADLINE_EXCEEDED });
        if (run.canceled) canceled.push(run.id);
      },
      (id, error) => setAside.push({ runId: id, error }),
    );
  }
  return { canceled, setAside };
}
