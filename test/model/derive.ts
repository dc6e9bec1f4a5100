/** What follows from what the model remembers: statuses and counts, by looking at everything (FEATURES F-W3, F-W4). */
import type { DependencyKind, RunStatus, StepStatus } from "../../src/index.ts";
import type { Job, Need, Output, Run, Step } from "./state.ts";

export function isEnded(status: StepStatus): boolean {
  return status === "SUCCEEDED" || status === "FAILED" || status === "CANCELED";
}

export function statusesOf(run: Run): Map<string, StepStatus> {
  const statuses = new Map<string, StepStatus>();
  for (const step of run.steps) derive(run, step, statuses);
  return statuses;
}

/** Prerequisites first; each step once. */
function derive(run: Run, step: Step, statuses: Map<string, StepStatus>): StepStatus {
  const derived = statuses.get(step.key);
  if (derived !== undefined) return derived;
  const needs = needsOf(step).map(({ key, kind }) => ({ kind, status: derive(run, stepOf(run, key), statuses) }));
  const status = statusOf(run, step, needs);
  statuses.set(step.key, status);
  return status;
}

function statusOf(run: Run, step: Step, needs: readonly { kind: DependencyKind; status: StepStatus }[]): StepStatus {
  if (step.end !== null) return step.end.status;
  if (needs.some(({ status }) => !isEnded(status))) return "BLOCKED";
  if (needs.some(({ kind, status }) => kind === "ON_SUCCESS" && status !== "SUCCEEDED")) return "CANCELED";
  if (step.plan.map !== null) return fannedOut(run, step);
  if (step.job === null) return step.kept?.status ?? "WAITING_FOR_EXTERNAL";
  return step.job.lease === null ? "ENQUEUED" : "RUNNING";
}

/** With nothing left to wait for. Blocked only in passing: its items are about to come. */
function fannedOut(run: Run, step: Step): StepStatus {
  if (!Array.isArray(mapSource(run, step))) return "FAILED";
  return step.items === null ? "BLOCKED" : "SUCCEEDED";
}

/** What a step waits for: a map step its prerequisites, and then its items too. */
export function needsOf({ plan, items }: Step): readonly Need[] {
  const kind = plan.map?.onItemFailure === "continue" ? "ON_TERMINAL" : "ON_SUCCESS";
  return [...plan.needs, ...(items ?? []).map((key) => ({ key, kind }) as const)];
}

/** The output of the step that a map step fans out over, once it has succeeded. */
export function mapSource(run: Run, { plan }: Step): Output {
  const source = plan.map && stepOf(run, plan.map.over);
  return source ? outputAtEnd(run, source) : undefined;
}

function outputAtEnd(run: Run, step: Step): Output {
  const known = step.end ?? step.kept;
  return known === null ? collected(run, step) : known.output;
}

export function outputOf(run: Run, step: Step): Output {
  if (step.end !== null) return step.end.output;
  if (step.kept !== null) return step.kept.output;
  return statusesOf(run).get(step.key) === "SUCCEEDED" ? collected(run, step) : undefined;
}

/** What a map step puts out: the outputs of its items, null for those that have none. */
function collected(run: Run, { plan, items }: Step): Output {
  return plan.map === null ? undefined : (items ?? []).map((key) => stepOf(run, key).end?.output ?? null);
}

export function runStatusOf(run: Run): RunStatus {
  if (run.canceled !== null) return "CANCELED";
  const statuses = [...statusesOf(run).values()];
  const any = (...wanted: StepStatus[]) => statuses.some((status) => wanted.includes(status));
  if (any("BLOCKED", "ENQUEUED", "RUNNING")) return "RUNNING";
  if (any("WAITING_FOR_EXTERNAL")) return "WAITING_FOR_EXTERNAL";
  if (any("FAILED", "CANCELED")) return "COMPLETED_WITH_ERRORS";
  return "SUCCEEDED";
}

export const UNSATISFIED = "workflow.dependency_unsatisfied";

/** The code of a step's end, or of the end that it is to have. */
export function errorCodeOf(run: Run, step: Step): string | null {
  if (step.end !== null) return step.end.errorCode;
  const status = statusesOf(run).get(step.key);
  if (step.plan.map !== null && status === "FAILED") return "workflow.map_source_not_array";
  if (status === "CANCELED" && unsatisfiedOf(run, step) > 0) return UNSATISFIED;
  return step.kept?.errorCode ?? null;
}

export function isOver(run: Run): boolean {
  return ["SUCCEEDED", "COMPLETED_WITH_ERRORS", "CANCELED"].includes(runStatusOf(run));
}

/** Prerequisites that have not ended. A cancelled run leaves the count as it was: what is waited for will not come. */
export function pendingOf(run: Run, step: Step): number {
  return needsOf(step).filter(({ key }) => isPending(run, key)).length;
}

/** ON_SUCCESS prerequisites that ended without success. */
export function unsatisfiedOf(run: Run, step: Step): number {
  const statuses = statusesOf(run);
  return needsOf(step).filter(
    ({ key, kind }) => kind === "ON_SUCCESS" && !isPending(run, key) && known(statuses, key) !== "SUCCEEDED",
  ).length;
}

function isPending(run: Run, key: string): boolean {
  return !isEnded(known(statusesOf(run), key)) || stepOf(run, key).end?.withRun === true;
}

export function dependentsOf(run: Run, step: Step): number {
  return run.steps.flatMap(needsOf).filter(({ key }) => key === step.key).length;
}

/** Whether the step was ever runnable. A map step never is, nor is a gate that ends as it opens. */
export function wasReleased(run: Run, step: Step): boolean {
  if (step.end?.released != null) return step.end.released;
  if (step.plan.map !== null || step.kept !== null) return false;
  return pendingOf(run, step) === 0 && unsatisfiedOf(run, step) === 0;
}

/** Whether the job stands in the queue. */
export function isLive(job: Job, runs: readonly Run[]): boolean {
  if (job.run === null) return job.ended.every(({ runNumber }) => runNumber < job.runNumber);
  const run = runs.find(({ name }) => name === job.run);
  const step = run?.steps.find((candidate) => candidate.job === job);
  const status = run && step ? statusesOf(run).get(step.key) : undefined;
  return status === "ENQUEUED" || status === "RUNNING";
}

export function stepOf(run: Run, key: string): Step {
  const step = run.steps.find((candidate) => candidate.key === key);
  if (step === undefined) throw new Error(`${run.name} has no step ${key}`);
  return step;
}

function known(statuses: ReadonlyMap<string, StepStatus>, key: string): StepStatus {
  const status = statuses.get(key);
  if (status === undefined) throw new Error(`the model does not know the status of ${key}`);
  return status;
}
