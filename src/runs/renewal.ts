/**
 * What a new run takes over from an ended one, and what starts anew in it: recovering and rerunning
 * (FEATURES F-W11). Pure, and linear in steps and edges.
 */
import type { StepStatus } from "../database/statuses.ts";
import { requireStepTransition } from "../database/transitions.ts";
import { LedgerError } from "../errors.ts";
import type { Edge } from "../steps/resolve.ts";
import { counterOf } from "../steps/run-status.ts";
import type { PlacedStep, RunStructure } from "./structure.ts";

/** A step of the new run. */
export interface RenewedStep {
  readonly step: PlacedStep;
  /** Whether it starts anew; else it is taken over as it ended. */
  readonly anew: boolean;
  readonly status: StepStatus;
  readonly pendingCount: number;
  readonly unsatisfiedCount: number;
  readonly dependentCount: number;
  readonly itemCount: number | null;
}

export interface Renewal {
  /** In id order. */
  readonly steps: readonly RenewedStep[];
  /** Between these steps, by their old ids. */
  readonly edges: readonly Edge[];
  readonly open: number;
  readonly waiting: number;
  readonly errored: number;
}

/**
 * Everything that has not succeeded starts anew; with a map step that failed also its source, which did not
 * put out an array. Throws `workflow.rerun_item_needed`.
 */
export function recovery(run: RunStructure): Renewal {
  const anew = new Set(run.steps.filter(({ status }) => status !== "SUCCEEDED").map(({ id }) => id));
  for (const { status, mapSourceId } of run.steps) {
    if (status === "FAILED" && mapSourceId !== null) anew.add(mapSourceId);
  }
  const emptied = run.steps.filter(({ id, mapSourceId }) => anew.has(id) && anew.has(mapSourceId ?? ""));
  return renewed(run, anew, new Set(emptied.map(({ id }) => id)));
}

/**
 * The named steps start anew, and all that comes after them, in whatever way. A map step that comes after one
 * of them fans out anew; one that is named itself keeps its items, and they start anew with it. Throws
 * `workflow.rerun_step_unsatisfied`, `workflow.rerun_map_step`, `workflow.rerun_item_needed`.
 */
export function rerun(run: RunStructure, named: ReadonlySet<string>): Renewal {
  const { anew, emptied } = reached(run, named);
  for (const { id, key, kind, itemCount } of run.steps) {
    if (kind === "MAP" && named.has(id) && !emptied.has(id) && (itemCount ?? 0) === 0) {
      throw new LedgerError("workflow.rerun_map_step", { details: { stepKey: key } });
    }
  }
  const renewal = renewed(run, anew, emptied);
  const lost = renewal.steps.find(({ step, unsatisfiedCount }) => named.has(step.id) && unsatisfiedCount > 0);
  if (lost !== undefined)
    throw new LedgerError("workflow.rerun_step_unsatisfied", { details: { stepKey: lost.step.key } });
  return renewal;
}

/** The steps that start anew, and the map steps among them that lose their items. */
function reached({ steps, edges }: RunStructure, named: ReadonlySet<string>) {
  const known = new Map(steps.map((step) => [step.id, step]));
  const dependents = grouped(edges, ({ prerequisiteId }) => prerequisiteId);
  const items = grouped(steps, ({ mapStepId }) => mapStepId);
  const itemIds = (id: string) => (items.get(id) ?? []).map((item) => item.id);
  const anew = new Set([...named, ...[...named].flatMap(itemIds)]);
  const emptied = new Set<string>();
  // The set grows while it is walked.
  for (const id of anew) {
    for (const { stepId } of dependents.get(id) ?? []) {
      anew.add(stepId);
      if (known.get(stepId)?.kind !== "MAP" || known.get(id)?.mapStepId === stepId || emptied.has(stepId)) continue;
      emptied.add(stepId);
      for (const item of itemIds(stepId)) anew.add(item);
    }
  }
  return { anew, emptied };
}

function grouped<T>(values: readonly T[], groupOf: (value: T) => string | null): Map<string, T[]> {
  const groups = new Map<string, T[]>();
  for (const value of values) {
    const group = groupOf(value);
    if (group === null) continue;
    const known = groups.get(group);
    if (known) known.push(value);
    else groups.set(group, [value]);
  }
  return groups;
}

/** The steps of the new run with their counts, without the items of the emptied map steps. */
function renewed({ steps, edges }: RunStructure, anew: ReadonlySet<string>, emptied: ReadonlySet<string>): Renewal {
  const drafts = new Map(
    steps
      .filter(({ mapStepId }) => mapStepId === null || !emptied.has(mapStepId))
      .map((step) => [step.id, new Draft(step, anew.has(step.id), emptied.has(step.id))]),
  );
  const kept: Edge[] = [];
  const mapStepOf = new Map(steps.map(({ id, mapStepId }) => [id, mapStepId]));
  for (const edge of edges) {
    const { prerequisiteId, stepId, kind } = edge;
    const [prerequisite, dependent] = [drafts.get(prerequisiteId), drafts.get(stepId)];
    if (dependent === undefined) continue;
    if (prerequisite === undefined) {
      if (mapStepOf.get(prerequisiteId) === stepId) continue;
      throw new LedgerError("workflow.rerun_item_needed", { details: { stepKey: dependent.step.key } });
    }
    kept.push(edge);
    prerequisite.dependents += 1;
    if (prerequisite.anew) dependent.pending += 1;
    else if (kind === "ON_SUCCESS" && prerequisite.step.status !== "SUCCEEDED") dependent.unsatisfied += 1;
  }
  return tallied(
    [...drafts.values()].map(({ result }) => result),
    kept,
  );
}

class Draft {
  readonly step: PlacedStep;
  readonly anew: boolean;
  readonly #emptied: boolean;
  pending = 0;
  unsatisfied = 0;
  dependents = 0;

  constructor(step: PlacedStep, anew: boolean, emptied: boolean) {
    this.step = step;
    this.anew = anew;
    this.#emptied = emptied;
  }

  get result(): RenewedStep {
    return {
      step: this.step,
      anew: this.anew,
      status: this.anew ? this.#firstStatus() : this.step.status,
      pendingCount: this.pending,
      unsatisfiedCount: this.unsatisfied,
      dependentCount: this.dependents,
      itemCount: this.#emptied ? null : this.step.itemCount,
    };
  }

  /** A map step that starts anew has something before it that does: an item, or what it fans out over. */
  #firstStatus(): StepStatus {
    if (this.pending > 0) return "BLOCKED";
    if (this.step.kind === "MAP") throw new LedgerError("workflow.internal_state");
    return this.step.kind === "JOB" ? "ENQUEUED" : "WAITING_FOR_EXTERNAL";
  }
}

function tallied(steps: readonly RenewedStep[], edges: readonly Edge[]): Renewal {
  const counts = { open: 0, waiting: 0, errored: 0 };
  for (const { status } of steps) {
    requireStepTransition(null, status);
    const counter = counterOf(status);
    if (counter !== null) counts[counter] += 1;
  }
  return { steps, edges, ...counts };
}
