/** Validation of a graph in memory, the first error wins, and the topological order of its steps (FEATURES F-W1). */
import { dependencyKinds } from "../database/statuses.ts";
import { LedgerError, type LedgerErrorCode } from "../errors.ts";
import type { GraphSpec, StepSpec } from "./graph.ts";

const MAX_KEY_BYTES = 512;

/**
 * Returns the steps with every prerequisite before its dependents, else in the order they were added.
 * Throws a `workflow.invalid_dag_*` code with the step's key in the details.
 */
export function topologicallySorted(graph: GraphSpec): StepSpec[] {
  const { steps } = graph;
  requireNames(graph);
  if (steps.length === 0) throw new LedgerError("workflow.invalid_dag_no_steps");
  for (const step of steps) requireShape(step);
  requireDistinctKeys(steps);
  requireDependencies(steps);
  const sorted = sortedByDependencies(steps);
  if (graph.resultStep !== null && !steps.some(({ key }) => key === graph.resultStep)) {
    throw invalid("workflow.invalid_dag_result_step", graph.resultStep);
  }
  return sorted;
}

function requireNames({ type, steps }: GraphSpec): void {
  if (isBlank(type)) throw new LedgerError("workflow.invalid_dag_blank_type");
  for (const { key, job } of steps) {
    if (isBlank(key)) throw new LedgerError("workflow.invalid_dag_blank_step_key");
    if (job !== undefined && isBlank(job.type)) throw invalid("workflow.invalid_dag_blank_type", key);
  }
  if (Buffer.byteLength(type) > MAX_KEY_BYTES || !isText(type)) {
    throw new LedgerError("workflow.invalid_dag_step_shape", {
      message: `A workflow type must be text of at most ${MAX_KEY_BYTES} bytes.`,
    });
  }
}

function isBlank(name: unknown): boolean {
  return typeof name !== "string" || name.trim() === "";
}

function requireShape(step: StepSpec): void {
  const { key, job } = step;
  const wrong = (message: string) =>
    new LedgerError("workflow.invalid_dag_step_shape", { message, details: { stepKey: key } });
  if (Buffer.byteLength(key) > MAX_KEY_BYTES || !isText(key)) {
    throw wrong(`A step key must be text of at most ${MAX_KEY_BYTES} bytes.`);
  }
  if (!step.dependencies.every(({ kind }) => dependencyKinds.includes(kind))) {
    throw wrong(`The kind of a dependency is one of ${dependencyKinds.join(", ")}.`);
  }
  if (job === undefined) {
    const settings = ["priority", "maxAttempts", "timeoutSeconds", "payload"].filter((name) => name in step);
    if (settings.length > 0) throw wrong("An EXTERNAL step has no job settings.");
    return;
  }
  if (Buffer.byteLength(job.type) > MAX_KEY_BYTES || !isText(job.type)) {
    throw wrong(`A job type must be text of at most ${MAX_KEY_BYTES} bytes.`);
  }
  for (const settings of [job, job.defaults ?? {}]) {
    if (!isPositive(settings.maxAttempts)) throw wrong("maxAttempts must be a positive integer.");
    if (!isPositive(settings.timeoutSeconds)) throw wrong("timeoutSeconds must be a positive integer.");
    if (!isInt4(settings.priority)) throw wrong("priority must be an integer.");
  }
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
  for (const { key } of steps) {
    if (keys.has(key)) throw invalid("workflow.invalid_dag_duplicate_step_key", key);
    keys.add(key);
  }
}

function requireDependencies(steps: readonly StepSpec[]): void {
  const keys = new Set(steps.map(({ key }) => key));
  firstWrong(steps, "workflow.invalid_dag_blank_dependency", () => isBlank);
  firstWrong(steps, "workflow.invalid_dag_self_dependency", (step) => (dependency) => dependency === step.key);
  firstWrong(steps, "workflow.invalid_dag_duplicate_dependency", () => {
    const seen = new Set<string>();
    return (dependency) => seen.size === seen.add(dependency).size;
  });
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
  const pending = new Map(steps.map((step) => [step.key, step.dependencies.length]));
  const dependents = dependentsByKey(steps);
  const sorted = steps.filter(({ dependencies }) => dependencies.length === 0);
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
