/**
 * Which steps of an ended run live again when some of them are retried in place (FEATURES F-W11). Pure,
 * and linear in steps and edges.
 */
import type { StepStatus } from "../database/statuses.ts";
import { requireStepTransition } from "../database/transitions.ts";
import { DEPENDENCY_UNSATISFIED } from "../steps/apply.ts";
import type { CounterDeltas } from "../steps/run-status.ts";
import type { PlacedStep, RunStructure } from "./structure.ts";

/** A step that lives again. */
export interface ReopenedStep {
  readonly step: PlacedStep;
  /** BLOCKED behind another one that lives again, else runnable or open. */
  readonly status: Extract<StepStatus, "BLOCKED" | "ENQUEUED" | "WAITING_FOR_EXTERNAL">;
  readonly pendingCount: number;
  readonly unsatisfiedCount: number;
}

/** A step that stays as it ended, with prerequisites that live again. */
export interface RecountedStep {
  readonly step: PlacedStep;
  readonly pendingCount: number;
  readonly unsatisfiedCount: number;
}

export interface Reopening {
  readonly reopened: readonly ReopenedStep[];
  readonly recounted: readonly RecountedStep[];
  readonly deltas: CounterDeltas;
}

/**
 * Reopens the chosen steps, and after them every step that was cancelled only because of such steps: one
 * whose ON_SUCCESS prerequisites have all succeeded or live again. All others stay as they ended.
 */
export function reopen({ steps, edges }: RunStructure, chosen: ReadonlySet<string>): Reopening {
  const states = new Map(steps.map((step) => [step.id, new State(step)]));
  for (const { prerequisiteId, stepId, kind } of edges) {
    const [prerequisite, dependent] = [states.get(prerequisiteId), states.get(stepId)];
    if (prerequisite === undefined || dependent === undefined) continue;
    prerequisite.dependents.push({ dependent, needsSuccess: kind === "ON_SUCCESS" });
    if (kind === "ON_SUCCESS" && prerequisite.step.status !== "SUCCEEDED") dependent.unsatisfied += 1;
  }
  const queue = [...states.values()].filter(({ step }) => chosen.has(step.id));
  for (const state of queue) state.live = true;
  // The queue grows while it is walked.
  for (const { dependents } of queue) {
    for (const { dependent, needsSuccess } of dependents) {
      dependent.pending += 1;
      if (needsSuccess) dependent.unsatisfied -= 1;
      if (dependent.live || dependent.unsatisfied > 0 || !wasUnsatisfied(dependent.step)) continue;
      dependent.live = true;
      queue.push(dependent);
    }
  }
  return reopeningOf([...states.values()]);
}

/** Whether it was cancelled because of its prerequisites, not by somebody. */
export function wasUnsatisfied({ status, errorCode }: PlacedStep): boolean {
  return status === "CANCELED" && errorCode === DEPENDENCY_UNSATISFIED;
}

class State {
  readonly step: PlacedStep;
  readonly dependents: { readonly dependent: State; readonly needsSuccess: boolean }[] = [];
  /** Prerequisites that live again. */
  pending = 0;
  /** ON_SUCCESS prerequisites that stay as they ended, without success. */
  unsatisfied = 0;
  live = false;

  constructor(step: PlacedStep) {
    this.step = step;
  }

  get counts() {
    return { step: this.step, pendingCount: this.pending, unsatisfiedCount: this.unsatisfied };
  }

  get recounts(): boolean {
    return this.pending !== this.step.pendingCount || this.unsatisfied !== this.step.unsatisfiedCount;
  }

  get status(): ReopenedStep["status"] {
    if (this.pending > 0) return "BLOCKED";
    return this.step.kind === "JOB" ? "ENQUEUED" : "WAITING_FOR_EXTERNAL";
  }
}

function reopeningOf(states: readonly State[]): Reopening {
  const reopened = states.filter(({ live }) => live).map((state) => ({ ...state.counts, status: state.status }));
  for (const { step, status } of reopened) requireStepTransition(step.status, status);
  const recounted = states.filter(({ live, recounts }) => !live && recounts).map(({ counts }) => counts);
  const waiting = reopened.filter(({ status }) => status === "WAITING_FOR_EXTERNAL").length;
  return {
    reopened,
    recounted,
    deltas: { steps: 0, open: reopened.length - waiting, waiting, errored: -reopened.length },
  };
}
