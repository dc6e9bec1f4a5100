/** Completing jobs whose steps add further steps to their runs, in the same commit (FEATURES F-W7). */
import type { Executor } from "../database/executor.ts";
import { validUuid } from "../database/ids.ts";
import { LedgerError } from "../errors.ts";
import { prepareOutcome, type SettledJob, type Settlement, type SettleResult, type Success } from "../jobs/outcome.ts";
import type { StepOutcome } from "../steps/cascade.ts";
import { completeWith, type TransactionBody } from "../steps/complete-with.ts";
import { settleOutcomes } from "../steps/settle.ts";
import { type AppendRequest, prepareAddition } from "./additions.ts";

/** The attempt succeeded, and its step adds others to the run. */
export interface StepSuccess extends Success {
  /** Added in one commit with the step's end. A key that was applied before is passed over. */
  readonly append?: AppendRequest | readonly AppendRequest[];
}

/** One item of a batch: a lease and how its attempt ended. */
export type StepSettlement =
  | Extract<Settlement, { failure: unknown }>
  | { readonly lease: Settlement["lease"]; readonly success: StepSuccess };

/**
 * Settles attempts as `settleJobs` does, with additions. Throws besides, before anything is written,
 * `workflow.append_not_a_step`, `workflow.invalid_dag_*`, `payload.invalid`; an item whose addition does not fit
 * its run is answered with `workflow.append_conflicting_retry`, `workflow.append_unknown_dependency` or
 * `workflow.append_duplicate_step_key`, and nothing of it is written.
 */
export async function settle(executor: Executor, settlements: readonly StepSettlement[]): Promise<SettleResult[]> {
  const outcomes: StepOutcome[] = [];
  for (const settlement of settlements) outcomes.push(await prepared(settlement));
  return settleOutcomes(executor, outcomes);
}

/** Completes one job in one commit with what `body` writes: see `completeWith`. Throws as `settle` besides. */
export async function completeJobWith(
  executor: Executor,
  lease: Settlement["lease"],
  success: StepSuccess,
  body: TransactionBody,
): Promise<SettledJob> {
  return completeWith(executor, await prepared({ lease, success }), body);
}

async function prepared(settlement: StepSettlement): Promise<StepOutcome> {
  const outcome = prepareOutcome(settlement);
  const requests = "success" in settlement ? listOf(settlement.success.append) : [];
  if (requests.length === 0) return outcome;
  if (outcome.lease.workflowRunId === null) throw new LedgerError("workflow.append_not_a_step");
  const runId = validUuid(outcome.lease.workflowRunId, "lease.workflowRunId");
  const additions = [];
  for (const request of requests) additions.push(await prepareAddition(runId, request));
  return { ...outcome, additions };
}

function listOf(append: StepSuccess["append"]): readonly AppendRequest[] {
  if (append === undefined) return [];
  return "key" in append ? [append] : append;
}
