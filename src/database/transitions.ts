/**
 * The state machines of jobs, steps and runs: every transition, who makes it, and under which locks. The
 * resolution refuses a change of a step that is not here; docs/state-machines.md is made from it; and a test
 * compares it with what the statements do to the tables.
 */
import { LedgerError } from "../errors.ts";
import type { JobStatus, RunStatus, StepStatus } from "./statuses.ts";

/** What is locked, in the words of the lock order. */
export type Lock =
  | "limit keys that nobody holds"
  | "job rows"
  | "job rows that nobody holds"
  | "release lock shared"
  | "release lock shared, if free"
  | "release lock exclusive"
  | "step rows"
  | "run rows"
  | "source run row, in share mode";

/** One way of changing statuses: public functions, the statements that they send, and the locks before these. */
export interface Maker {
  /** As calls on a ledger. */
  readonly calls: readonly string[];
  /** In words that follow the call, where a call has several ways. */
  readonly when: string | null;
  /** As they stand in pg_stat_activity. */
  readonly statements: readonly string[];
  /** In the order in which they are taken. */
  readonly locks: readonly Lock[];
}

const ofSteps = ["job rows", "release lock shared", "step rows", "run rows"] as const;
const ofCancel = ["job rows", "release lock exclusive", "step rows", "run rows"] as const;
const settles = ["jobs.settle", "jobs.settleAndClaim"] as const;
const resolving = ["apply_step_resolution", "expand_map_steps"] as const;

export const makers = {
  enqueue: {
    calls: ["jobs.enqueue", "jobs.enqueueMany", "schedules.fireDue", "schedules.triggerNow"],
    when: null,
    statements: ["enqueue_job", "enqueue_jobs", "enqueue_keyed_jobs", "enqueue_jobs_with_expired_keys"],
    locks: [],
  },
  enqueueLive: {
    calls: ["jobs.enqueue", "jobs.enqueueMany"],
    when: "with an active or a debounce key",
    statements: ["enqueue_jobs_with_live_keys"],
    locks: ["job rows"],
  },
  claim: {
    calls: ["jobs.claim"],
    when: null,
    statements: ["claim_jobs", "claim_jobs_of_all_types"],
    locks: ["job rows that nobody holds"],
  },
  claimLimited: {
    calls: ["jobs.claim"],
    when: "where jobs with a limit are due",
    statements: ["claim_limited_jobs", "claim_limited_jobs_of_all_types"],
    locks: ["limit keys that nobody holds", "job rows that nobody holds"],
  },
  handBack: { calls: ["jobs.handBack"], when: null, statements: ["hand_back_jobs"], locks: ["job rows"] },
  complete: {
    calls: ["jobs.complete", ...settles],
    when: "of a job without a run",
    statements: ["complete_jobs", "settle_attempts", "settle_attempts_with_again"],
    locks: ["job rows"],
  },
  completeStep: {
    calls: ["jobs.complete", ...settles],
    when: "of a step's job",
    statements: ["complete_step_jobs", "append_workflow_steps", ...resolving],
    locks: ofSteps,
  },
  completeStepAndClaim: {
    calls: ["jobs.settleAndClaim"],
    when: "of a step's job, on the short way",
    statements: ["complete_step_jobs_eagerly"],
    locks: ofSteps,
  },
  fail: {
    calls: ["jobs.fail", ...settles],
    when: "with attempts left, or without a run",
    statements: ["settle_attempts", "settle_attempts_with_again"],
    locks: ["job rows"],
  },
  snooze: {
    calls: ["jobs.snooze", ...settles],
    when: null,
    statements: ["settle_attempts_with_again"],
    locks: ["job rows"],
  },
  continue: {
    calls: ["jobs.continue", ...settles],
    when: null,
    statements: ["settle_attempts_with_again"],
    locks: ["job rows"],
  },
  failStep: {
    calls: ["jobs.fail", ...settles],
    when: "of a step's last attempt",
    statements: resolving,
    locks: ofSteps,
  },
  reap: {
    calls: ["jobs.reap"],
    when: "with attempts left, or without a run",
    statements: ["settle_expired_attempts"],
    locks: ["job rows that nobody holds"],
  },
  reapStep: {
    calls: ["jobs.reap"],
    when: "of a step's last attempt",
    statements: resolving,
    locks: ["job rows that nobody holds", "release lock shared", "step rows", "run rows"],
  },
  cancelJob: {
    calls: ["jobs.cancel", "jobs.cancelMany"],
    when: null,
    statements: ["cancel_jobs"],
    locks: ["job rows"],
  },
  requeue: { calls: ["jobs.requeue", "jobs.requeueMany"], when: null, statements: ["requeue_jobs"], locks: [] },
  replay: { calls: ["jobs.replay", "jobs.replayMany"], when: null, statements: ["replay_jobs"], locks: [] },
  enqueueRun: {
    calls: ["runs.enqueue", "runs.enqueueMany", "schedules.fireDue", "schedules.triggerNow"],
    when: null,
    statements: ["enqueue_workflow_runs", "enqueue_keyed_workflow_runs", "enqueue_workflow_runs_with_expired_keys"],
    locks: [],
  },
  append: {
    calls: ["runs.append"],
    when: null,
    statements: ["append_workflow_steps", ...resolving],
    locks: ["step rows", "release lock shared, if free", "run rows"],
  },
  startChild: {
    calls: ["runs.advanceChild"],
    when: "before the child run",
    statements: ["hand_step_over_to_child_run", "enqueue_workflow_runs"],
    locks: ["job rows", "release lock shared", "step rows"],
  },
  endChild: {
    calls: ["runs.advanceChild"],
    when: "after the child run",
    statements: ["complete_step_jobs", ...resolving],
    locks: ofSteps,
  },
  cancelRun: {
    calls: ["runs.cancel", "runs.cancelMany"],
    when: null,
    statements: ["cancel_workflow_runs"],
    locks: ofCancel,
  },
  passDeadline: {
    calls: ["runs.fireTimers"],
    when: "for a deadline",
    statements: ["cancel_workflow_runs"],
    locks: ofCancel,
  },
  expireGate: {
    calls: ["runs.fireTimers"],
    when: "for a gate",
    statements: resolving,
    locks: ["release lock shared, if free", "step rows", "run rows"],
  },
  completeGate: {
    calls: ["steps.complete"],
    when: null,
    statements: resolving,
    locks: ["step rows", "release lock shared, if free", "run rows"],
  },
  retry: {
    calls: ["runs.retry"],
    when: null,
    statements: ["retry_workflow_run"],
    locks: ["release lock exclusive", "step rows", "run rows"],
  },
  recover: {
    calls: ["runs.recover"],
    when: null,
    statements: ["copy_workflow_run"],
    locks: ["source run row, in share mode"],
  },
  rerun: {
    calls: ["runs.rerun"],
    when: null,
    statements: ["copy_workflow_run"],
    locks: ["source run row, in share mode"],
  },
} as const satisfies Record<string, Maker>;

export type MakerName = keyof typeof makers;

export interface Transition<Status extends string = string> {
  /** Null: it did not exist. */
  readonly from: Status | null;
  readonly to: Status;
  /** In a few words, for who reads the diagram. */
  readonly why: string;
  readonly by: readonly MakerName[];
}

/** Whatever ends a step, with all that follows in its run. */
const endings = ["completeStep", "failStep", "reapStep", "endChild", "completeGate", "expireGate"] as const;
/** Whatever ends a step without success only. */
const cancels = ["cancelRun", "passDeadline"] as const;
/** What ends steps, and has no more to do than to release others. */
const releasing = [...endings, "completeStepAndClaim"] as const;
const gateEnds = ["completeGate", "expireGate"] as const;
const copies = ["recover", "rerun"] as const;
const starts = ["enqueueRun", "startChild", ...copies] as const;
const additions = ["append", "completeStep"] as const;

/** The end of a run of a job is its move from the queue to the ledger; the row there never changes again. */
const job: readonly Transition<JobStatus>[] = [
  {
    from: null,
    to: "PENDING",
    why: "enqueued, or its step was released",
    by: ["enqueue", "enqueueLive", "replay", ...starts, ...releasing, "append", "retry"],
  },
  { from: null, to: "LEASED", why: "released to who ended the step before it", by: ["completeStepAndClaim"] },
  { from: "PENDING", to: "LEASED", why: "claimed", by: ["claim", "claimLimited"] },
  {
    from: "LEASED",
    to: "PENDING",
    why: "handed back, snoozed, or to be tried again",
    by: ["handBack", "fail", "reap", "snooze"],
  },
  {
    from: "LEASED",
    to: "SUCCEEDED",
    why: "the attempt succeeded",
    by: ["complete", "completeStep", "completeStepAndClaim", "continue", "startChild", "endChild"],
  },
  {
    from: "LEASED",
    to: "DEAD_LETTERED",
    why: "the last attempt failed",
    by: ["fail", "reap", "failStep", "reapStep", "endChild"],
  },
  { from: "PENDING", to: "CANCELED", why: "cancelled, or its run", by: ["cancelJob", ...cancels] },
  { from: "LEASED", to: "CANCELED", why: "cancelled, or its run", by: ["cancelJob", ...cancels] },
  {
    from: "SUCCEEDED",
    to: "PENDING",
    why: "next run number, it continues or its child run has ended",
    by: ["continue", ...endings, ...cancels],
  },
  {
    from: "DEAD_LETTERED",
    to: "PENDING",
    why: "next run number, requeued or its step retried",
    by: ["requeue", "retry"],
  },
  { from: "CANCELED", to: "PENDING", why: "next run number, requeued", by: ["requeue"] },
];

const step: readonly Transition<StepStatus>[] = [
  {
    from: null,
    to: "ENQUEUED",
    why: "nothing to wait for, or a map's item",
    by: [...starts, ...endings, "append"],
  },
  { from: null, to: "BLOCKED", why: "prerequisites are pending", by: [...starts, ...additions] },
  { from: null, to: "WAITING_FOR_EXTERNAL", why: "a gate with nothing to wait for", by: [...starts, ...additions] },
  { from: null, to: "SUCCEEDED", why: "taken over, or an added map of no items", by: [...copies, ...additions] },
  { from: null, to: "FAILED", why: "taken over, or an added map of no array", by: ["rerun", ...additions] },
  { from: null, to: "CANCELED", why: "taken over, or added and unsatisfied", by: ["rerun", ...additions] },
  { from: "BLOCKED", to: "ENQUEUED", why: "released", by: releasing },
  { from: "BLOCKED", to: "WAITING_FOR_EXTERNAL", why: "the gate opens", by: releasing },
  { from: "BLOCKED", to: "SUCCEEDED", why: "kept completion, or a map is collected", by: endings },
  { from: "BLOCKED", to: "FAILED", why: "kept completion, or a map of no array", by: endings },
  {
    from: "BLOCKED",
    to: "CANCELED",
    why: "unsatisfied, kept completion, or run cancelled",
    by: [...endings, ...cancels],
  },
  { from: "ENQUEUED", to: "RUNNING", why: "its child run starts", by: ["startChild"] },
  { from: "ENQUEUED", to: "SUCCEEDED", why: "its job succeeded", by: ["completeStep", "completeStepAndClaim"] },
  { from: "ENQUEUED", to: "FAILED", why: "its job was dead-lettered", by: ["failStep", "reapStep"] },
  { from: "ENQUEUED", to: "CANCELED", why: "run cancelled", by: cancels },
  { from: "RUNNING", to: "SUCCEEDED", why: "its child run succeeded", by: ["endChild", "completeStep"] },
  {
    from: "RUNNING",
    to: "FAILED",
    why: "its child run did not succeed, or its job",
    by: ["endChild", "failStep", "reapStep"],
  },
  { from: "RUNNING", to: "CANCELED", why: "run cancelled", by: cancels },
  { from: "WAITING_FOR_EXTERNAL", to: "SUCCEEDED", why: "completed so, or expired so", by: gateEnds },
  { from: "WAITING_FOR_EXTERNAL", to: "FAILED", why: "completed so, or expired so", by: gateEnds },
  {
    from: "WAITING_FOR_EXTERNAL",
    to: "CANCELED",
    why: "completed so, expired so, or run cancelled",
    by: [...gateEnds, ...cancels],
  },
  { from: "FAILED", to: "ENQUEUED", why: "retried", by: ["retry"] },
  { from: "FAILED", to: "WAITING_FOR_EXTERNAL", why: "gate retried", by: ["retry"] },
  { from: "FAILED", to: "BLOCKED", why: "retried behind another", by: ["retry"] },
  { from: "CANCELED", to: "ENQUEUED", why: "taken over as cancelled and retried", by: ["retry"] },
  { from: "CANCELED", to: "WAITING_FOR_EXTERNAL", why: "gate retried", by: ["retry"] },
  { from: "CANCELED", to: "BLOCKED", why: "its prerequisite is retried", by: ["retry"] },
];

const run: readonly Transition<RunStatus>[] = [
  { from: null, to: "RUNNING", why: "created", by: starts },
  { from: null, to: "WAITING_FOR_EXTERNAL", why: "created with open gates only", by: starts },
  { from: "RUNNING", to: "WAITING_FOR_EXTERNAL", why: "only open gates are left", by: releasing },
  {
    from: "RUNNING",
    to: "SUCCEEDED",
    why: "all steps succeeded",
    by: ["completeStep", "completeStepAndClaim", "endChild", ...gateEnds],
  },
  { from: "RUNNING", to: "COMPLETED_WITH_ERRORS", why: "all ended, not all well", by: releasing },
  { from: "RUNNING", to: "CANCELED", why: "cancelled", by: cancels },
  { from: "WAITING_FOR_EXTERNAL", to: "RUNNING", why: "a step was added", by: ["append"] },
  { from: "WAITING_FOR_EXTERNAL", to: "SUCCEEDED", why: "all steps succeeded", by: gateEnds },
  { from: "WAITING_FOR_EXTERNAL", to: "COMPLETED_WITH_ERRORS", why: "all ended, not all well", by: gateEnds },
  { from: "WAITING_FOR_EXTERNAL", to: "CANCELED", why: "cancelled", by: cancels },
  { from: "COMPLETED_WITH_ERRORS", to: "RUNNING", why: "retried", by: ["retry"] },
  { from: "COMPLETED_WITH_ERRORS", to: "WAITING_FOR_EXTERNAL", why: "only gates are retried", by: ["retry"] },
];

export const transitions = { job, step, run } as const;

export type Machine = keyof typeof transitions;

const stepTransitions = new Set(step.map(({ from, to }) => `${from} ${to}`));

/** Throws `workflow.internal_state` unless a step may go from the one status to the other, or stays as it is. */
export function requireStepTransition(from: StepStatus | null, to: StepStatus): void {
  if (from === to || stepTransitions.has(`${from} ${to}`)) return;
  throw new LedgerError("workflow.internal_state", {
    message: `A step cannot go from ${from ?? "nothing"} to ${to}.`,
  });
}
