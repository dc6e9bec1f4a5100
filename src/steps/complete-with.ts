/** A completion in one commit with what the handler writes: its effect happens exactly once (FEATURES F-J8). */
import { type AnyTransaction, type Executor, transactionOf } from "../database/executor.ts";
import { inTransaction, requireReadCommitted, takenBackOnError } from "../database/transaction.ts";
import { LedgerError } from "../errors.ts";
import type { SettledJob } from "../jobs/outcome.ts";
import type { StepOutcome } from "./cascade.ts";
import { settled, settleOutcomes } from "./settle.ts";

/** What the service writes in the commit of a completion. What it resolves with is not used. */
export type TransactionBody = (trx: AnyTransaction) => Promise<unknown>;

/**
 * Runs `body` and completes the job, both or neither: when `body` throws, or the lease is lost by the
 * time it ends, nothing is kept. `body` gets a READ COMMITTED transaction of the service's handle, or
 * the caller's where there is one. It must await all that it sends, and do nothing that a rollback does
 * not undo: after a conflict (40001, 40P01, 55P03) an own transaction runs again as a whole, `body` too.
 *
 * In a caller's transaction an error takes back what `body` wrote, and the transaction can go on.
 *
 * Throws what `body` throws, as `settleOutcomes` answers, and `db.commit_unconfirmed` when the answer to the commit
 * was lost: whether it was done is in the job's status. Round trips besides those of `body` and of
 * `settleOutcomes`: two, and one more for a job of a run; the same in a caller's transaction.
 */
export async function completeWith(
  executor: Executor,
  outcome: StepOutcome,
  body: TransactionBody,
): Promise<SettledJob> {
  if (typeof body !== "function") {
    throw new LedgerError("input.invalid", { message: "What runs in the transaction must be a function." });
  }
  return inTransaction(executor, async (trx) => {
    if (outcome.lease.workflowRunId !== null) {
      await requireReadCommitted(trx, "workflow.terminal_completion_unsupported_isolation");
    }
    return takenBackOnError(trx, async () => {
      // First the body: a job row that is held while it runs would keep heartbeats waiting.
      await body(transactionOf(trx));
      return settled(await settleOutcomes(trx, [outcome]));
    });
  });
}
