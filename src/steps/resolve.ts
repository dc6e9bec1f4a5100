/**
 * Resolution (FEATURES F-W3): what follows when steps become terminal, and what becomes of steps that are
 * added. Pure: it works on the steps that were locked and says so when they do not suffice.
 */
import { type DependencyKind, isTerminalStep, type StepKind, type StepStatus } from "../database/statuses.ts";
import { requireStepTransition } from "../database/transitions.ts";
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
  /** How a gate ends as soon as it opens, when somebody completed it before. */
  readonly keptOutcome: TerminalStatus | null;
  /** The step whose output a MAP step fans out over. */
  readonly mapSourceId: string | null;
  /** How many items a MAP step has; null until it has been expanded. */
  readonly itemCount: number | null;
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

/** A step that is added to a live run. */
export interface NewStep extends Pick<ResolvableStep, "runId" | "id" | "kind" | "mapSourceId"> {
  readonly prerequisites: readonly Edge[];
}

/** Everything that a resolution works on. */
export interface Resolvable {
  readonly steps: readonly ResolvableStep[];
  /** The edges that leave the steps that may end. */
  readonly edges: readonly Edge[];
  readonly ended: readonly EndedStep[];
  /** In topological order. */
  readonly added: readonly NewStep[];
  /** The length of the array that a step has put out; undefined or null when it is no array. */
  readonly lengths: ReadonlyMap<string, number | null>;
}

/** Why a step ended, when it was not its job or a completion that ended it. */
export type Cause = "unsatisfied" | "kept" | "collected" | "not_an_array";

/** The new state of a step. */
export interface StepChange {
  readonly runId: string;
  readonly id: string;
  readonly status: StepStatus;
  readonly pendingCount: number;
  readonly unsatisfiedCount: number;
  readonly itemCount: number | null;
  readonly cause: Cause | null;
}

/** A MAP step whose items are to be made: one for each element of its source's output. */
export interface Expansion {
  readonly runId: string;
  readonly stepId: string;
  readonly sourceId: string;
  readonly itemCount: number;
}

export interface Resolution {
  /** Of the steps that were there before, in id order, each once. */
  readonly changes: readonly StepChange[];
  /** Of the steps that are new, by id. */
  readonly added: ReadonlyMap<string, StepChange>;
  readonly deltas: ReadonlyMap<string, CounterDeltas>;
  readonly expansions: readonly Expansion[];
}

/**
 * Follows the dependencies of the ended steps: each dependent loses one pending, and an ON_SUCCESS edge
 * from a step that did not succeed makes it unsatisfied. At zero pending it is released, or, when
 * unsatisfied, cancelled, and so on down. Steps that are added find their prerequisites as this leaves
 * them. Null when a step or the edges of a step are missing. Throws `workflow.internal_state` for a change
 * that no step may make.
 */
export function resolve({ steps, edges, ended, added, lengths }: Resolvable): Resolution | null {
  const states = new Map(steps.map((step) => [step.id, new StepState(step)]));
  const lengthOf = (id: string) => states.get(id)?.itemCount ?? lengths.get(id) ?? null;
  const outgoing = edgesByPrerequisite(edges);
  const queue: EndedStep[] = [...ended];
  for (const { id, status } of queue) {
    const state = states.get(id);
    const dependents = outgoing.get(id) ?? [];
    if (state === undefined || dependents.length !== state.before.dependentCount) return null;
    state.status = status;
    for (const edge of dependents) {
      const dependent = states.get(edge.stepId);
      if (dependent === undefined) return null;
      dependent.losePrerequisite(edge.kind === "ON_SUCCESS" && status !== "SUCCEEDED", lengthOf);
      if (dependent.hasJustEnded()) queue.push({ id: edge.stepId, status: dependent.status });
    }
  }
  const changed = [...states.values()].filter((state) => state.changed);
  const fresh = addedStates(added, states, lengthOf);
  return fresh === null ? null : resolutionOf(changed, fresh);
}

type LengthOf = (stepId: string) => number | null;

/** The states of new steps, each after its prerequisites; null when one of these is unknown. */
function addedStates(added: readonly NewStep[], states: Map<string, StepState>, lengthOf: LengthOf) {
  const fresh: StepState[] = [];
  for (const { prerequisites, ...step } of added) {
    const state = new StepState(newStep(step, prerequisites.length));
    for (const { prerequisiteId, kind } of prerequisites) {
      const prerequisite = states.get(prerequisiteId);
      if (prerequisite === undefined) return null;
      if (!isTerminalStep(prerequisite.status)) continue;
      state.losePrerequisite(kind === "ON_SUCCESS" && prerequisite.status !== "SUCCEEDED", lengthOf);
    }
    if (prerequisites.length === 0) state.release(lengthOf);
    states.set(step.id, state);
    fresh.push(state);
  }
  return fresh;
}

function newStep(step: Omit<NewStep, "prerequisites">, pendingCount: number): ResolvableStep {
  return {
    ...step,
    status: "BLOCKED",
    pendingCount,
    unsatisfiedCount: 0,
    dependentCount: 0,
    keptOutcome: null,
    itemCount: null,
  };
}

class StepState {
  readonly before: ResolvableStep;
  status: StepStatus;
  pendingCount: number;
  unsatisfiedCount: number;
  itemCount: number | null;
  cause: Cause | null = null;
  #reported = false;

  constructor(step: ResolvableStep) {
    this.before = step;
    this.status = step.status;
    this.pendingCount = step.pendingCount;
    this.unsatisfiedCount = step.unsatisfiedCount;
    this.itemCount = step.itemCount;
  }

  get changed(): boolean {
    const { status, pendingCount, itemCount } = this.before;
    return this.status !== status || this.pendingCount !== pendingCount || this.itemCount !== itemCount;
  }

  /** Whether the step is to be followed: it has ended by what its prerequisites did, and was not asked before. */
  hasJustEnded(): this is { status: TerminalStatus } {
    if (this.#reported || this.cause === null) return false;
    this.#reported = true;
    return true;
  }

  /** Counts a prerequisite as ended. A step that has ended before keeps its end: its prerequisite was retried. */
  losePrerequisite(unsatisfied: boolean, lengthOf: LengthOf): void {
    this.pendingCount -= 1;
    if (unsatisfied) this.unsatisfiedCount += 1;
    if (this.pendingCount === 0 && this.status === "BLOCKED") this.release(lengthOf);
  }

  /** What becomes of the step when nothing is pending. */
  release(lengthOf: LengthOf): void {
    const { kind, keptOutcome } = this.before;
    if (this.unsatisfiedCount > 0) this.#end("CANCELED", "unsatisfied");
    else if (kind === "JOB") this.status = "ENQUEUED";
    else if (kind === "MAP") this.#expandOrCollect(lengthOf);
    else if (keptOutcome === null) this.status = "WAITING_FOR_EXTERNAL";
    else this.#end(keptOutcome, "kept");
  }

  /** A MAP step waits for its prerequisites first, and then for its items. */
  #expandOrCollect(lengthOf: LengthOf): void {
    const expanded = this.itemCount !== null;
    const length = expanded ? 0 : lengthOf(this.before.mapSourceId ?? "");
    if (length === null) {
      this.#end("FAILED", "not_an_array");
      return;
    }
    this.itemCount ??= length;
    this.pendingCount = length;
    if (length === 0) this.#end("SUCCEEDED", "collected");
  }

  #end(status: TerminalStatus, cause: Cause): void {
    this.status = status;
    this.cause = cause;
  }

  get expansion(): Expansion[] {
    const { runId, id, mapSourceId, itemCount } = this.before;
    if (mapSourceId === null || itemCount !== null || this.itemCount === null || this.itemCount === 0) return [];
    return [{ runId, stepId: id, sourceId: mapSourceId, itemCount: this.itemCount }];
  }

  get change(): StepChange {
    const { status, pendingCount, unsatisfiedCount, itemCount, cause } = this;
    return { runId: this.before.runId, id: this.before.id, status, pendingCount, unsatisfiedCount, itemCount, cause };
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

function resolutionOf(changed: readonly StepState[], added: readonly StepState[]): Resolution {
  const tally = new Tally();
  for (const { before, status } of changed) {
    requireStepTransition(before.status, status);
    tally.move(before.runId, before.status, status);
  }
  for (const { before, status } of added) {
    requireStepTransition(null, status);
    tally.add(before.runId, status);
  }
  const expansions = [...changed, ...added].flatMap((state) => state.expansion);
  for (const { runId, itemCount } of expansions) tally.add(runId, "ENQUEUED", itemCount);
  return {
    changes: changed.map(({ change }) => change).sort((a, b) => (a.id < b.id ? -1 : 1)),
    added: new Map(added.map(({ change }) => [change.id, change])),
    deltas: tally.deltas,
    expansions,
  };
}

class Tally {
  readonly deltas = new Map<string, { steps: number; open: number; waiting: number; errored: number }>();

  move(runId: string, from: StepStatus, to: StepStatus): void {
    this.#count(runId, from, -1);
    this.#count(runId, to, 1);
  }

  add(runId: string, status: StepStatus, steps = 1): void {
    this.#of(runId).steps += steps;
    this.#count(runId, status, steps);
  }

  #count(runId: string, status: StepStatus, by: number): void {
    const counter = counterOf(status);
    const delta = this.#of(runId);
    if (counter !== null) delta[counter] += by;
  }

  #of(runId: string) {
    const known = this.deltas.get(runId) ?? { steps: 0, open: 0, waiting: 0, errored: 0 };
    this.deltas.set(runId, known);
    return known;
  }
}
