/** Deadlines: a run that has not ended in its time is cancelled (FEATURES F-W12). */
import type { Executor } from "../database/executor.ts";
import { inHalves } from "../database/halves.ts";
import type { LedgerError } from "../errors.ts";
import { cancelRuns } from "./cancel.ts";

/** The reason of a run that was cancelled because of its deadline. */
const DEADLINE_EXCEEDED = "workflow.deadline_exceeded";

export interface EnforcedDeadlines {
  /** The ids of the runs that were cancelled; the others had ended meanwhile. */
  readonly canceled: readonly string[];
  readonly setAside: readonly { readonly runId: string; readonly error: LedgerError }[];
}

/**
 * Cancels runs that are past their deadline, together, in the round trips of one; one that is in somebody's way
 * alone does not stop the others. In a caller's transaction it ends the call with its error.
 */
export async function enforceDeadlines(executor: Executor, runIds: readonly string[]): Promise<EnforcedDeadlines> {
  const asked = new Set(runIds);
  const canceled: string[] = [];
  const setAside: { runId: string; error: LedgerError }[] = [];
  await inHalves(
    executor,
    runIds,
    async (ids) => {
      const runs = await cancelRuns(executor, ids, { scope: { admin: true }, reason: DEADLINE_EXCEEDED });
      // Of those that were asked for: other child runs went with their parents.
      canceled.push(...runs.filter((run) => run.canceled && asked.has(run.id)).map(({ id }) => id));
    },
    (runId, error) => setAside.push({ runId, error }),
  );
  return { canceled, setAside };
}
