/** Validation of a graph in memory, the first error wins, and the topological order of its steps (FEATURES F-W1). */
import { dependencyKinds } from "../database/statuses.ts";
import { LedgerError, type LedgerErrorCode } from "../errors.ts";
import { mapKeyOf } from "../steps/item-keys.ts";
import { isTerminalOutcome } from "../steps/resolve.ts";
import type { AdditionSpec, GateExpiry, GraphSpec, StepSpec } from "./spec.ts";

const MAX_KEY_BYTES = 512;
/** What an item's number adds to the key of its map step. */
const MAX_ITEM_SUFFIX_BYTES = 12;
const RESERVED_TYPES = "runledger.";

/**
 * Returns the steps with every prerequisite before its dependents, else in the order they were added.
 * Throws a `workflow.invalid_dag_*` code with the step's key in the details.
 */
export function topologicallySorted(graph: GraphSpec): StepSpec[] {
  const { steps } = graph;
  if (isBlank(graph.type)) throw new LedgerError("workflow.invalid_dag_blank_type");
  requireNames(steps);
  if (Buffer.byteLength(graph.type) > MAX_KEY_BYTES || !isText(graph.type)) {
    throw new LedgerError("workflow.invalid_dag_step_shape", {
      message: `A workflow type must be text of at most ${MAX_KEY_BYTES} bytes.`,
    });
  }
  const sorted = validSteps(steps, false);
  if (graph.resultStep !== null && !steps.some(({ key }) => key === graph.resultStep)) {
    throw invalid("workflow.invalid_dag_result_step", graph.resultStep);
  }
  return sorted;
}

/** The same for steps that are added to a live run: a dependency that is not among them is a step of the run. */
export function topologicallySortedAddition({ steps }: AdditionSpec): StepSpec[] {
  requireNames(steps);
  return validSteps(steps, true);
}

function validSteps(steps: readonly StepSpec[], toLiveRun: boolean): StepSpec[] {
  if (steps.length === 0) throw new LedgerError("workflow.invalid_dag_no_steps");
  for (const step of steps) requireShape(step);
  requireDistinctKeys(steps);
  requireDependencies(steps, toLiveRun);
  return sortedByDependencies(steps);
}

function requireNames(steps: readonly StepSpec[]): void {
  for (const { key, job } of steps) {
    if (isBlank(key)) throw new LedgerError("workflow.invalid_dag_blank_step_key");
    if (job !== undefined && isBlank(job.type)) throw invalid("workflow.invalid_dag_blank_type", key);
  }
}

function isBlank(name: unknown): boolean {
  return typeof name !== "string" || name.trim() === "";
}

function requireShape(step: StepSpec): void {
  const wrong = (message: string) =>
    new LedgerError("workflow.invalid_dag_step_shape", { message, details: { stepKey: step.key } });
  const fault = faultOfNames(step) ?? faultOfKind(step) ?? faultOfSettings(step);
  if (fault !== undefined) throw wrong(fault);
}

function faultOfNames({ key, dependencies, job, map }: StepSpec): string | undefined {
  const longest = map === undefined ? MAX_KEY_BYTES : MAX_KEY_BYTES - MAX_ITEM_SUFFIX_BYTES;
  if (Buffer.byteLength(key) > longest || !isText(key)) return `A step key must be text of at most ${longest} bytes.`;
  if (!dependencies.every(({ kind }) => dependencyKinds.includes(kind))) {
    return `The kind of a dependency is one of ${dependencyKinds.join(", ")}.`;
  }
  if (job === undefined) return undefined;
  if (Buffer.byteLength(job.type) > MAX_KEY_BYTES || !isText(job.type)) {
    return `A job type must be text of at most ${MAX_KEY_BYTES} bytes.`;
  }
  return job.type.startsWith(RESERVED_TYPES) ? `Job types that begin with ${RESERVED_TYPES} are reserved.` : undefined;
}

function faultOfKind(step: StepSpec): string | undefined {
  const { job, child, map, expires, dependencies } = step;
  if (job !== undefined && child !== undefined) return "A step is a job or a child run, not both.";
  if (job === undefined && child === undefined) {
    const settings = ["priority", "maxAttempts", "timeoutSeconds", "delaySeconds", "limit", "continues", "payload"];
    if (settings.some((name) => name in step)) return "An EXTERNAL step has no job settings.";
    if (map !== undefined) return "A MAP step needs a job for its items.";
    return expires === undefined ? undefined : faultOfExpiry(expires);
  }
  if (expires !== undefined) return "Only an EXTERNAL step expires.";
  if (map === undefined) return undefined;
  if (child !== undefined) return "The items of a MAP step are jobs.";
  if (map.onItemFailure !== undefined && !["cancel", "continue"].includes(map.onItemFailure)) {
    return "onItemFailure is cancel or continue.";
  }
  const over = dependencies.find(({ key }) => key === map.over);
  return over?.kind === "ON_SUCCESS" ? undefined : "A MAP step depends ON_SUCCESS on the step that it fans out over.";
}

function faultOfExpiry({ afterSeconds, outcome, output }: GateExpiry): string | undefined {
  if (typeof afterSeconds !== "number" || !(afterSeconds > 0)) return "expires.afterSeconds must be above 0.";
  if (!isTerminalOutcome(outcome)) return "expires.outcome must be SUCCEEDED, FAILED or CANCELED.";
  return output === undefined || outcome === "SUCCEEDED" ? undefined : "expires.output goes with SUCCEEDED only.";
}

function faultOfSettings({ job, child }: StepSpec): string | undefined {
  for (const settings of [job ?? {}, job?.defaults ?? {}, child ?? {}]) {
    if (!isPositive(settings.maxAttempts)) return "maxAttempts must be a positive integer.";
    if (!isPositive(settings.timeoutSeconds)) return "timeoutSeconds must be a positive integer.";
    if (!isInt4(settings.priority)) return "priority must be an integer.";
  }
  if (!["undefined", "boolean"].includes(typeof job?.continues)) return "continues must be true or false.";
  return undefined;
}

function isText(value: string): boolean {
  return !value.includes("\0") && value.isWellFormed();
}

function isPositive(value: number | undefined): boolean {
  return isInt4(value) && (value === undefined || value > 0);
}

function isInt4(value: number | undefined): boolean {
  return value === undefined || (Number.isInteger(value) && Math.abs(value) <= 2_147_483_647);
}

function requireDistinctKeys(steps: readonly StepSpec[]): void {
  const keys = new Set<string>();
  const maps = new Set(steps.flatMap(({ key, map }) => (map === undefined ? [] : [key])));
  for (const { key } of steps) {
    const map = mapKeyOf(key);
    const takesItemKey = map !== undefined && maps.has(map);
    if (keys.has(key) || takesItemKey) throw invalid("workflow.invalid_dag_duplicate_step_key", key);
    keys.add(key);
  }
}

function requireDependencies(steps: readonly StepSpec[], toLiveRun: boolean): void {
  const keys = new Set(steps.map(({ key }) => key));
  firstWrong(steps, "workflow.invalid_dag_blank_dependency", () => isBlank);
  firstWrong(steps, "workflow.invalid_dag_self_dependency", (step) => (dependency) => dependency === step.key);
  firstWrong(steps, "workflow.invalid_dag_duplicate_dependency", () => {
    const seen = new Set<string>();
    return (dependency) => seen.size === seen.add(dependency).size;
  });
  if (toLiveRun) return;
  firstWrong(steps, "workflow.invalid_dag_missing_dependency", () => (dependency) => !keys.has(dependency));
}

/** Throws the code for the first dependency that the test of its step finds wrong. */
function firstWrong(
  steps: readonly StepSpec[],
  code: LedgerErrorCode,
  testOf: (step: StepSpec) => (dependency: string) => boolean,
): void {
  for (const step of steps) {
    const wrong = testOf(step);
    const found = step.dependencies.find(({ key }) => wrong(key));
    if (found) throw new LedgerError(code, { details: { stepKey: step.key, dependency: String(found.key) } });
  }
}

function sortedByDependencies(steps: readonly StepSpec[]): StepSpec[] {
  const keys = new Set(steps.map(({ key }) => key));
  const pending = new Map(
    steps.map(({ key, dependencies }) => [key, dependencies.filter((dependency) => keys.has(dependency.key)).length]),
  );
  const dependents = dependentsByKey(steps);
  const sorted = steps.filter(({ key }) => pending.get(key) === 0);
  for (const step of sorted) {
    for (const dependent of dependents.get(step.key) ?? []) {
      const left = (pending.get(dependent.key) ?? 0) - 1;
      pending.set(dependent.key, left);
      if (left === 0) sorted.push(dependent);
    }
  }
  if (sorted.length < steps.length) throw cycle(steps, pending);
  return sorted;
}

function dependentsByKey(steps: readonly StepSpec[]): Map<string, StepSpec[]> {
  const dependents = new Map<string, StepSpec[]>();
  for (const step of steps) {
    for (const { key } of step.dependencies) {
      const known = dependents.get(key);
      if (known) known.push(step);
      else dependents.set(key, [step]);
    }
  }
  return dependents;
}

/** Names one cycle: each step that is left has a prerequisite that is left, so walking up comes round. */
function cycle(steps: readonly StepSpec[], pending: ReadonlyMap<string, number>): LedgerError {
  const left = new Map(steps.filter(({ key }) => (pending.get(key) ?? 0) > 0).map((step) => [step.key, step]));
  const path: string[] = [];
  const places = new Map<string, number>();
  let step = left.values().next().value;
  while (step !== undefined && !places.has(step.key)) {
    places.set(step.key, path.push(step.key) - 1);
    step = step.dependencies.map(({ key }) => left.get(key)).find((prerequisite) => prerequisite !== undefined);
  }
  const names = path.slice(step === undefined ? 0 : places.get(step.key)).reverse();
  return new LedgerError("workflow.invalid_dag_cycle", { details: { stepKey: names[0] ?? "", cycle: names } });
}

function invalid(code: LedgerErrorCode, stepKey: string): LedgerError {
  return new LedgerError(code, { details: { stepKey } });
}
