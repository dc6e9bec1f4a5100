/** Settling attempts of any jobs: those of workflow runs go on to their steps and what depends on them. */
import type { Executor } from "../database/executor.ts";
import { requireReadCommitted, rollbackToSavepoint, savepoint, takenBackOnError } from "../database/transaction.ts";
import { isLedgerError, LedgerError } from "../errors.ts";
import type { ClaimedJob } from "../jobs/claimed.ts";
import { completeJobs } from "../jobs/complete.ts";
import type { EagerClaim } from "../jobs/eager.ts";
import { leaseKey, leaseLost } from "../jobs/lease.ts";
import type { PreparedOutcome, SettledJob, SettleResult } from "../jobs/outcome.ts";
import { settleAttempts } from "../jobs/settle.ts";
import { boundedInCaller } from "../locks/wait.ts";
import { advance, advanceEagerly } from "./advance.ts";
import { endStepJobs, type StepOutcome } from "./cascade.ts";

/**
 * Settles many attempts of any jobs and runs and answers in their order; each item has its own
 * outcome. Successes of jobs outside of runs take one statement, other outcomes of such jobs another, successes in runs
 * a third, and ends that need more a transaction. In a caller's transaction two more round trips, for the bound of
 * the waits, and two for jobs of runs, for its level and a savepoint. An error that concerns all of a group (the
 * database is gone) is thrown. Throws `workflow.terminal_completion_unsupported_isolation`.
 */
export async function settleOutcomes(
  executor: Executor,
  outcomes: readonly StepOutcome[],
  eager?: Eager,
): Promise<SettleResult[]> {
  // A transaction takes all job rows at once, in one order: there the statement for all outcomes does these too.
  if (executor.transaction !== "none") return settleAny(executor, outcomes);
  const completed = await completeJobs(executor, outcomes);
  const others = completed.size === 0 ? outcomes : outcomes.filter((_, place) => !completed.has(place));
  const answers = (await settleAny(executor, others, eager)).values();
  return outcomes.map((_, place) => (completed.has(place) ? succeeded : (answers.next().value ?? lost())));
}

/** What was settled, and what was claimed with it. */
export interface SettledAndClaimed {
  readonly results: readonly SettleResult[];
  /** Jobs of steps that the settlements released. */
  readonly claimed: readonly ClaimedJob[];
  /** A claim may find jobs: some were released that are not among `claimed`, or were due before. */
  readonly more: boolean;
}

/**
 * The same, and claims jobs of steps that are released on the short way, where no other job that the claim could take is
 * due. In a caller's transaction nothing is claimed: the caller may roll it back. An error that concerns those that go
 * another way is the answer of each of these, where something is claimed. No further round trips.
 */
export async function settleOutcomesEagerly(
  executor: Executor,
  outcomes: readonly StepOutcome[],
  claim: EagerClaim,
): Promise<SettledAndClaimed> {
  if (executor.transaction !== "none") {
    return { results: await settleOutcomes(executor, outcomes), claimed: [], more: true };
  }
  const eager: Eager = { claim, claimed: [], more: false };
  return { results: await settleOutcomes(executor, outcomes, eager), claimed: eager.claimed, more: eager.more };
}

/** A claim that goes with settlements, and what comes of it. */
interface Eager {
  readonly claim: EagerClaim;
  claimed: readonly ClaimedJob[];
  more: boolean;
}

async function settleAny(executor: Executor, outcomes: readonly StepOutcome[], eager?: Eager): Promise<SettleResult[]> {
  if (outcomes.length === 0) return [];
  const results = new Map<string, SettleResult>();
  const distinct = eachLeaseOnce(outcomes);
  const settling = new Set(distinct);
  if (distinct.some(({ lease }) => lease.workflowRunId !== null)) {
    await requireReadCommitted(executor, "workflow.terminal_completion_unsupported_isolation");
  }
  if (executor.transaction === "none") await settleApart(executor, distinct, results, eager);
  else await settleTogether(executor, distinct, results);
  return outcomes.map((outcome) => (settling.has(outcome) ? results.get(keyOf(outcome)) : undefined) ?? lost());
}

/** The answer of a batch of one. Throws its error. */
export function settled([result]: readonly SettleResult[]): SettledJob {
  if (result === undefined) throw new LedgerError("input.invalid");
  if (!result.ok) throw result.error;
  return { status: result.status, runAt: result.runAt };
}

/** Each statement is a transaction of its own, and keeps no lock from the one before. */
async function settleApart(
  executor: Executor,
  outcomes: readonly StepOutcome[],
  results: Map<string, SettleResult>,
  eager?: Eager,
): Promise<void> {
  const [successes, others] = partition(outcomes, isStepSuccess);
  const ends = await settleWithoutSteps(executor, others, results);
  const runs = new Set(ends.map(({ lease }) => lease.workflowRunId));
  // All that is settled of a run goes one way, so that its rows are locked and written once.
  const [together, alone] = partition(successes, ({ lease }) => runs.has(lease.workflowRunId));
  const heldBack = await settleSuccesses(executor, alone, results, eager);
  const ending = [...ends, ...together, ...heldBack];
  if (eager !== undefined && ending.length > 0) eager.more = true;
  try {
    await settleEnding(executor, ending, results);
  } catch (error) {
    // What is claimed by now is leased: it must not be lost with an error of the others.
    if (eager === undefined || eager.claimed.length === 0 || !isLedgerError(error)) throw error;
    for (const outcome of ending) if (!results.has(keyOf(outcome))) results.set(keyOf(outcome), { ok: false, error });
  }
}

/**
 * In a transaction every statement adds to the locks of those before. So all job rows are taken by the
 * first, and when the short way holds some job back, what it took is given back and all are ended by
 * one pass in the order of LOCKS.md §3.
 */
async function settleTogether(
  executor: Executor,
  outcomes: readonly StepOutcome[],
  results: Map<string, SettleResult>,
): Promise<void> {
  const inOrder = () => boundedInCaller(executor, () => settleInOrder(executor, outcomes, results));
  // An addition that does not fit is found out late: what was settled before it must not stay without its answer.
  const adds = outcomes.some(({ additions = [] }) => additions.length > 0);
  return adds ? takenBackOnError(executor, inOrder) : inOrder();
}

async function settleInOrder(
  executor: Executor,
  outcomes: readonly StepOutcome[],
  results: Map<string, SettleResult>,
): Promise<void> {
  const ending = outcomes.every(isStepSuccess) ? outcomes : await settleWithoutSteps(executor, outcomes, results);
  if (ending.length > 0 && ending.every(isStepSuccess)) {
    await savepoint(executor);
    const heldBack = await settleSuccesses(executor, ending, results);
    if (heldBack.length === 0) return;
    await rollbackToSavepoint(executor);
  }
  await settleEnding(executor, ending, results);
}

/** A success that one statement can store, if nothing else follows from it. */
function isStepSuccess({ lease, kind, again, additions = [] }: StepOutcome): boolean {
  return lease.workflowRunId !== null && kind === null && again === undefined && additions.length === 0;
}

/** Retries, jobs that stay in the queue, and ends of jobs outside of runs; returns those whose end is the end of a step. */
async function settleWithoutSteps(
  executor: Executor,
  outcomes: readonly StepOutcome[],
  results: Map<string, SettleResult>,
): Promise<StepOutcome[]> {
  if (outcomes.length === 0) return [];
  const attempts = await settleAttempts(executor, outcomes);
  const stepEnds = new Set<string>();
  for (const { leaseKey: key, state, runAt } of attempts) {
    if (state === "STEP_ENDS") stepEnds.add(key);
    else if (state === "LOST") results.set(key, lost());
    else if (state === "REFUSED") results.set(key, refused());
    else results.set(key, { ok: true, status: state, runAt });
  }
  return outcomes.filter((outcome) => stepEnds.has(keyOf(outcome)));
}

/** Successes in runs that need no more than one statement; returns the others. */
async function settleSuccesses(
  executor: Executor,
  outcomes: readonly StepOutcome[],
  results: Map<string, SettleResult>,
  eager?: Eager,
): Promise<StepOutcome[]> {
  if (outcomes.length === 0) return [];
  const heldBack = new Set<string>();
  for (const { leaseKey: key, state } of await advanced(executor, outcomes, eager)) {
    if (state === "HELD_BACK") heldBack.add(key);
    else results.set(key, state === "LOST" ? lost() : succeeded);
  }
  return outcomes.filter((outcome) => heldBack.has(keyOf(outcome)));
}

async function advanced(executor: Executor, outcomes: readonly StepOutcome[], eager?: Eager) {
  if (eager === undefined) return advance(executor, outcomes);
  const { jobs, claimed, more } = await advanceEagerly(executor, outcomes, eager.claim);
  eager.claimed = claimed;
  eager.more = more;
  return jobs;
}

/** Ends of steps, one transaction for all; when a run is in the way, each run for itself. */
async function settleEnding(
  executor: Executor,
  outcomes: readonly StepOutcome[],
  results: Map<string, SettleResult>,
): Promise<void> {
  if (outcomes.length === 0) return;
  try {
    const held = await endStepJobs(executor, outcomes, "live");
    for (const outcome of outcomes)
      results.set(keyOf(outcome), held.has(keyOf(outcome)) ? endedResult(outcome) : lost());
  } catch (error) {
    if (executor.transaction !== "none" || !isLedgerError(error) || error.category === "unavailable") throw error;
    const parts = apart(outcomes);
    if (parts.length === 1) for (const outcome of outcomes) results.set(keyOf(outcome), { ok: false, error });
    else for (const part of parts) await settleEnding(executor, part, results);
  }
}

/** Each run for itself; those of one run one by one, where something is added: it may be one item that does not fit. */
function apart(outcomes: readonly StepOutcome[]): StepOutcome[][] {
  const byRun = new Map<string | null, StepOutcome[]>();
  for (const outcome of outcomes) {
    const { workflowRunId } = outcome.lease;
    byRun.set(workflowRunId, [...(byRun.get(workflowRunId) ?? []), outcome]);
  }
  if (byRun.size > 1 || outcomes.every(({ additions = [] }) => additions.length === 0)) return [...byRun.values()];
  return outcomes.map((outcome) => [outcome]);
}

const succeeded: SettleResult = { ok: true, status: "SUCCEEDED", runAt: null };

function endedResult({ kind }: PreparedOutcome): SettleResult {
  return kind === null ? succeeded : { ok: true, status: "DEAD_LETTERED", runAt: null };
}

function lost(): SettleResult {
  return { ok: false, error: leaseLost() };
}

function refused(): SettleResult {
  return { ok: false, error: new LedgerError("workflow.step_continuation_not_declared") };
}

function keyOf({ lease }: PreparedOutcome): string {
  return leaseKey(lease);
}

/** One lease can be settled once: of several items for it the first counts, the others find it lost. */
function eachLeaseOnce(outcomes: readonly StepOutcome[]): StepOutcome[] {
  const byLease = new Map<string, StepOutcome>();
  for (const outcome of outcomes) if (!byLease.has(keyOf(outcome))) byLease.set(keyOf(outcome), outcome);
  return [...byLease.values()];
}

function partition<T>(items: readonly T[], belongs: (item: T) => boolean): [T[], T[]] {
  return [items.filter(belongs), items.filter((item) => !belongs(item))];
}
