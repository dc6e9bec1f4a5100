/** Everything that can be seen of what the model has, by the names that it gives. */
import {
  dependentsOf,
  errorCodeOf,
  isEnded,
  needsOf,
  outputOf,
  pendingOf,
  runStatusOf,
  statusesOf,
  unsatisfiedOf,
  wasReleased,
} from "./derive.ts";
import { type Model, Refused } from "./model.ts";
import type { Job, Output, Run, Step, StepPlan } from "./state.ts";

/** What the tables hold. */
export function expectedView(model: Model) {
  return {
    runs: Object.fromEntries(model.runs.map((run) => [run.name, expectedRun(run)])),
    queue: byName(model.liveJobs, expectedQueueRow),
    ledger: byName(model.jobs, ({ ended }) => ended.map(({ output, ...row }) => ({ ...row, output: stored(output) }))),
    attempts: byName(model.jobs, ({ failed }) => failed),
  };
}

function expectedRun(run: Run) {
  const statuses = [...statusesOf(run).values()];
  const count = (...wanted: string[]) => statuses.filter((status) => wanted.includes(status)).length;
  return {
    status: runStatusOf(run),
    stepCount: run.steps.length,
    openCount: count("BLOCKED", "ENQUEUED", "RUNNING"),
    waitingCount: count("WAITING_FOR_EXTERNAL"),
    erroredCount: count("FAILED", "CANCELED"),
    organizationId: run.plan.organization,
    canceledReason: run.canceled?.reason ?? null,
    ended: statuses.every(isEnded),
    steps: Object.fromEntries(run.steps.map((step) => [step.key, expectedStep(run, step)])),
  };
}

function expectedStep(run: Run, step: Step) {
  const { end, plan } = step;
  const status = statusesOf(run).get(step.key);
  const told = end ?? step.kept;
  return {
    kind: kindOf(plan),
    // A claim does not write the step: it is RUNNING while its job is leased.
    status: status === "RUNNING" ? "ENQUEUED" : status,
    jobType: plan.job?.type ?? null,
    needs: Object.fromEntries(needsOf(step).map(({ key, kind }) => [key, kind])),
    itemCount: step.items?.length ?? null,
    keptOutcome: step.kept?.status ?? null,
    pendingCount: pendingOf(run, step),
    unsatisfiedCount: unsatisfiedOf(run, step),
    dependentCount: dependentsOf(run, step),
    released: wasReleased(run, step),
    started: end?.started ?? false,
    ended: status !== undefined && isEnded(status),
    errorCode: errorCodeOf(run, step),
    errorMessage: end?.errorMessage ?? null,
    completedBy: told?.completedBy ?? null,
    reason: told?.reason ?? null,
    output: stored(outputOf(run, step)),
  };
}

function kindOf({ job, map }: StepPlan) {
  if (map !== null) return "MAP";
  return job === null ? "EXTERNAL" : "JOB";
}

function expectedQueueRow({ plan, runNumber, attempt, lease, organization }: Job) {
  return {
    runNumber,
    status: lease === null ? "PENDING" : "LEASED",
    type: plan.type,
    organizationId: organization,
    priority: plan.priority,
    attempt,
    maxAttempts: plan.maxAttempts,
    workerId: lease?.workerId ?? null,
    leased: lease !== null,
    expired: lease?.expired ?? false,
    payload: plan.payload,
  };
}

/** No deadline, and neither a run above it nor one that it was made from. */
const withoutOthers = { deadlineAt: null, parentRunId: null, parentStepId: null, sourceRunId: null, sourceKind: null };

/** What the public functions answer about a run: its reads, and its result. */
export function expectedRead(model: Model, run: Run) {
  const { ended, steps, ...counts } = expectedRun(run);
  return {
    run: { id: run.id, type: "model", ...counts, resultStep: run.plan.result, ended, ...withoutOthers },
    steps: Object.fromEntries(run.steps.map((step) => [step.key, expectedStepRead(run, step)])),
    result: expectedResult(model, run),
  };
}

function expectedStepRead(run: Run, step: Step) {
  const { unsatisfiedCount, dependentCount, needs, output, status, started, ...rest } = expectedStep(run, step);
  const running = status === "ENQUEUED" && step.job?.lease != null;
  return {
    ...rest,
    id: step.id,
    jobId: step.job?.id ?? null,
    mapIndex: mapIndexOf(run, step),
    childRunId: null,
    expiresAt: null,
    status: running ? "RUNNING" : status,
    started: started || running,
    output: output[0] ?? null,
  };
}

function mapIndexOf(run: Run, { key }: Step): number | null {
  const place = run.steps.flatMap(({ items }) => items?.indexOf(key) ?? -1).find((index) => index >= 0);
  return place ?? null;
}

function expectedResult(model: Model, run: Run) {
  try {
    return { value: model.result(run.name) };
  } catch (error) {
    if (error instanceof Refused) return { error: error.code };
    throw error;
  }
}

/** No output, or one that may be null. */
function stored(output: Output) {
  return output === undefined ? [] : [output];
}

function byName<T>(jobs: readonly Job[], view: (job: Job) => T): Record<string, T> {
  const entries = jobs.map((job) => [job.name, view(job)] as const);
  return Object.fromEntries(entries.filter(([, row]) => !Array.isArray(row) || row.length > 0));
}
