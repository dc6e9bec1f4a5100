/**
 * Resolution (FEATURES F-W3): what follows when steps become terminal. Pure: it works on the steps that
 * were locked and says so when they do not suffice.
 */
import type { DependencyKind, StepKind, StepStatus } from "../database/statuses.ts";
import { type CounterDeltas, counterOf } from "./run-status.ts";

/** A step under its row lock. */
export interface ResolvableStep {
  readonly runId: string;
  readonly id: string;
  readonly kind: StepKind;
  readonly status: StepStatus;
  readonly pendingCount: number;
  readonly unsatisfiedCount: number;
  readonly dependentCount: number;
}

export interface Edge {
  readonly prerequisiteId: string;
  readonly stepId: string;
  readonly kind: DependencyKind;
}

export const terminalOutcomes = ["SUCCEEDED", "FAILED", "CANCELED"] as const;

export type TerminalStatus = (typeof terminalOutcomes)[number];

export function isTerminalOutcome(value: unknown): value is TerminalStatus {
  return terminalOutcomes.some((outcome) => outcome === value);
}

/** A step that becomes terminal from outside: by its job's end or an external completion. */
export interface EndedStep {
  readonly id: string;
  readonly status: TerminalStatus;
}

/** The new state of a step. */
export interface StepChange {
  readonly runId: string;
  readonly id: string;
  readonly status: StepStatus;
  readonly pendingCount: number;
  readonly unsatisfiedCount: number;
}

export interface Resolution {
  /** In id order, each step once. */
  readonly changes: readonly StepChange[];
  readonly deltas: ReadonlyMap<string, CounterDeltas>;
}

/**
 * Follows the dependencies of the ended steps: each dependent loses one pending, and an ON_SUCCESS edge
 * from a step that did not succeed makes it unsatisfied. At zero pending it is released, or, when
 * unsatisfied, cancelled, and so on down. Null when a step or the edges of a step are missing.
 */
export function resolve(
  steps: readonly ResolvableStep[],
  edges: readonly Edge[],
  ended: readonly EndedStep[],
): Resolution | null {
  const states = new Map(steps.map((step) => [step.id, new StepState(step)]));
  const outgoing = edgesByPrerequisite(edges);
  const queue: EndedStep[] = [...ended];
  for (let next = queue.shift(); next !== undefined; next = queue.shift()) {
    const state = states.get(next.id);
    const dependents = outgoing.get(next.id) ?? [];
    if (state === undefined || dependents.length !== state.before.dependentCount) return null;
    state.status = next.status;
    for (const edge of dependents) {
      const dependent = states.get(edge.stepId);
      if (dependent === undefined) return null;
      if (dependent.losePrerequisite(edge.kind === "ON_SUCCESS" && next.status !== "SUCCEEDED") === "CANCELED") {
        queue.push({ id: edge.stepId, status: "CANCELED" });
      }
    }
  }
  return resolutionOf([...states.values()].filter((state) => state.changed));
}

class StepState {
  readonly before: ResolvableStep;
  status: StepStatus;
  pendingCount: number;
  unsatisfiedCount: number;

  constructor(step: ResolvableStep) {
    this.before = step;
    this.status = step.status;
    this.pendingCount = step.pendingCount;
    this.unsatisfiedCount = step.unsatisfiedCount;
  }

  get changed(): boolean {
    return this.status !== this.before.status || this.pendingCount !== this.before.pendingCount;
  }

  /** Counts a prerequisite as ended and returns the status that this leads to. */
  losePrerequisite(unsatisfied: boolean): StepStatus {
    this.pendingCount -= 1;
    if (unsatisfied) this.unsatisfiedCount += 1;
    if (this.pendingCount === 0) this.status = this.statusAtZero();
    return this.status;
  }

  private statusAtZero(): StepStatus {
    if (this.unsatisfiedCount > 0) return "CANCELED";
    return this.before.kind === "JOB" ? "ENQUEUED" : "WAITING_FOR_EXTERNAL";
  }
}

function edgesByPrerequisite(edges: readonly Edge[]): Map<string, Edge[]> {
  const byPrerequisite = new Map<string, Edge[]>();
  for (const edge of edges) {
    const known = byPrerequisite.get(edge.prerequisiteId);
    if (known) known.push(edge);
    else byPrerequisite.set(edge.prerequisiteId, [edge]);
  }
  return byPrerequisite;
}

function resolutionOf(states: readonly StepState[]): Resolution {
  const deltas = new Map<string, { open: number; waiting: number; errored: number }>();
  for (const { before, status } of states) {
    const delta = deltas.get(before.runId) ?? { open: 0, waiting: 0, errored: 0 };
    const [from, to] = [counterOf(before.status), counterOf(status)];
    if (from !== null) delta[from] -= 1;
    if (to !== null) delta[to] += 1;
    deltas.set(before.runId, delta);
  }
  const changes = states.map(({ before, status, pendingCount, unsatisfiedCount }) => ({
    runId: before.runId,
    id: before.id,
    status,
    pendingCount,
    unsatisfiedCount,
  }));
  return { changes: changes.sort((a, b) => (a.id < b.id ? -1 : 1)), deltas };
}
