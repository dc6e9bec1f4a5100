/** Settling attempts, whose steps may add further steps to their runs in the same commit (FEATURES F-W7). */
import type { Executor } from "../database/executor.ts";
import { validUuid } from "../database/ids.ts";
import type { ValueRules } from "../database/values/rules.ts";
import { storedValues, valueText } from "../database/values/write.ts";
import { LedgerError } from "../errors.ts";
import { type EagerClaimOptions, validEagerClaim } from "../jobs/eager.ts";
import type { Lease } from "../jobs/lease.ts";
import {
  type Continuation,
  type Failure,
  prepareOutcome,
  type SettledJob,
  type Settlement,
  type SettleResult,
  type SnoozeRequest,
  type Success,
} from "../jobs/outcome.ts";
import type { StepOutcome } from "../steps/cascade.ts";
import { completeWith, type TransactionBody } from "../steps/complete-with.ts";
import { type SettledAndClaimed, settled, settleOutcomes, settleOutcomesEagerly } from "../steps/settle.ts";
import { type AppendRequest, prepareAddition } from "./additions.ts";

/** The attempt succeeded, and its step adds others to the run. */
export interface StepSuccess extends Success {
  /** Added in one commit with the step's end. A key that was applied before is passed over. */
  readonly append?: AppendRequest | readonly AppendRequest[];
}

/** One item of a batch: a lease and how its attempt ended. */
export type StepSettlement =
  | Exclude<Settlement, { success: unknown }>
  | { readonly lease: Settlement["lease"]; readonly success: StepSuccess };

/**
 * Completes a job, and with it its step: dependents are released in the same commit. One round trip
 * where no lock has to be waited for, no dependent is cancelled and nothing is added, else those of `endStepJobs` too.
 * Throws `job.lease_owner_mismatch`, `workflow.release_conflict`, `payload.not_json`, `payload.too_large`,
 * `payload.reserved`, `payload.unencodable`, `payload.codec_unavailable`, `input.invalid`,
 * `workflow.append_*`, `workflow.terminal_completion_unsupported_isolation`.
 */
export async function completeJob(executor: Executor, lease: Lease, success: StepSuccess): Promise<SettledJob> {
  return settled(await settle(executor, [{ lease, success }]));
}

/**
 * Fails an attempt: the job goes back to PENDING while attempts are left and the kind is retryable,
 * else it is dead-lettered and its step has FAILED. One round trip, and those of `endStepJobs` when a
 * step ends. Throws as `completeJob`.
 */
export async function failJob(executor: Executor, lease: Lease, failure: Failure): Promise<SettledJob> {
  return settled(await settle(executor, [{ lease, failure }]));
}

/**
 * Puts the job back for later without using the attempt; a step stays as it is. One round trip. Throws
 * `job.lease_owner_mismatch`, `input.invalid`, `workflow.terminal_completion_unsupported_isolation`.
 */
export async function snoozeJob(executor: Executor, lease: Lease, snooze: SnoozeRequest): Promise<SettledJob> {
  return settled(await settle(executor, [{ lease, snooze }]));
}

/**
 * Ends this run of the job as SUCCEEDED and puts the job back as its next run, with fresh attempts; its step goes on.
 * One round trip. Throws `job.lease_owner_mismatch`, `workflow.step_continuation_not_declared`, `payload.not_json`,
 * `input.invalid`, `workflow.terminal_completion_unsupported_isolation`.
 */
export async function continueJob(executor: Executor, lease: Lease, continuation: Continuation): Promise<SettledJob> {
  return settled(await settle(executor, [{ lease, continuation }]));
}

/**
 * Settles many attempts of any jobs and runs, each with its own outcome, as `settleOutcomes` does. Bad input of
 * any item is thrown before anything is written: a `payload.*` code, `input.invalid`, `workflow.append_not_a_step`,
 * `workflow.invalid_dag_*`. An item that its step does not allow is answered with
 * `workflow.step_continuation_not_declared`, and one whose addition does not fit its run with
 * `workflow.append_conflicting_retry`, `workflow.append_unknown_dependency` or
 * `workflow.append_duplicate_step_key`, and nothing of it is written.
 */
export async function settle(executor: Executor, settlements: readonly StepSettlement[]): Promise<SettleResult[]> {
  return settleOutcomes(executor, await preparedAll(executor, settlements));
}

/**
 * Settles many attempts as `settle` does, and claims jobs of steps that are released by it, so that who completes a step can go on
 * with the next without asking. None while other jobs are due that the claim could take, none with a limit or a
 * delay, and none in a caller's transaction. No more round trips than `settle`. Throws as `settle`.
 */
export async function settleAndClaim(
  executor: Executor,
  settlements: readonly StepSettlement[],
  options: EagerClaimOptions,
): Promise<SettledAndClaimed> {
  const claim = validEagerClaim(options);
  return settleOutcomesEagerly(executor, await preparedAll(executor, settlements), claim);
}

/** Completes one job in one commit with what `body` writes: see `completeWith`. Throws as `settle` besides. */
export async function completeJobWith(
  executor: Executor,
  lease: Lease,
  success: StepSuccess,
  body: TransactionBody,
): Promise<SettledJob> {
  const [outcome] = await preparedAll(executor, [{ lease, success }]);
  if (outcome === undefined) throw new LedgerError("input.invalid");
  return completeWith(executor, outcome, body);
}

async function preparedAll({ settings }: Executor, settlements: readonly StepSettlement[]): Promise<StepOutcome[]> {
  const { values } = settings;
  const output = await storedOf(values, settlements, "output");
  const checkpoint = await storedOf(values, settlements, "checkpoint");
  const outcomes: StepOutcome[] = [];
  for (const [place, settlement] of settlements.entries()) {
    const outcome = prepareOutcome(settlement, { output: output(place), checkpoint: checkpoint(place) });
    const requests = "success" in settlement ? listOf(settlement.success.append) : [];
    // Nothing is waited for where nothing is added: a batch of a thousand comes through here.
    outcomes.push(requests.length === 0 ? outcome : await withAdditions(values, outcome, requests));
  }
  return outcomes;
}

async function storedOf(rules: ValueRules, settlements: readonly StepSettlement[], name: "output" | "checkpoint") {
  const texts = settlements.map((settlement, place) => {
    const value = valuesOf(settlement)[name];
    if (value === undefined) return null;
    return valueText(rules, value, settlements.length > 1 ? `settlements[${place}].${name}` : name);
  });
  return storedValues(rules, name, texts);
}

function valuesOf(settlement: StepSettlement): { readonly output?: unknown; readonly checkpoint?: unknown } {
  if ("success" in settlement) return settlement.success;
  return "continuation" in settlement ? settlement.continuation : noValues;
}

const noValues = {};

async function withAdditions(
  rules: ValueRules,
  outcome: StepOutcome,
  requests: readonly AppendRequest[],
): Promise<StepOutcome> {
  if (outcome.lease.workflowRunId === null) throw new LedgerError("workflow.append_not_a_step");
  const runId = validUuid(outcome.lease.workflowRunId, "lease.workflowRunId");
  const additions = [];
  for (const request of requests) additions.push(await prepareAddition(rules, runId, request));
  return { ...outcome, additions };
}

function listOf(append: StepSuccess["append"]): readonly AppendRequest[] {
  if (append === undefined) return none;
  return "key" in append ? [append] : append;
}

const none: readonly AppendRequest[] = [];
