/**
 * The reference model: what each operation answers and leaves behind, written from FEATURES.md and
 * from nothing in src/. It looks at everything each time and keeps no counters, so it is slow and plain.
 */
import type {
  ClaimedJob,
  JobStatus,
  JsonValue,
  Lease,
  LedgerErrorCode,
  RunStatus,
  Scope,
  StepStatus,
} from "../../src/index.ts";
import {
  errorCodeOf,
  isEnded,
  isLive,
  isOver,
  mapSource,
  needsOf,
  outputOf,
  runStatusOf,
  statusesOf,
  stepOf,
  UNSATISFIED,
  wasReleased,
} from "./derive.ts";
import type {
  Addition,
  Ended,
  FailedAttempt,
  Job,
  Kept,
  LoneJobPlan,
  Outcome,
  Output,
  Run,
  RunPlan,
  Settling,
  State,
  Step,
  StepEnd,
  StepPlan,
} from "./state.ts";

/** An operation that the ledger refuses. */
export class Refused extends Error {
  readonly code: LedgerErrorCode;

  constructor(code: LedgerErrorCode) {
    super(code);
    this.code = code;
  }
}

export interface GateCompletion {
  readonly scope: Scope;
  readonly outcome: Ended;
  readonly output: Output;
  readonly reason: string | null;
  readonly completedBy: string | null;
  /** Whether a gate that has not opened yet is to keep it. */
  readonly keep: boolean;
}

export type Settled = { readonly ok: true; readonly status: JobStatus } | { readonly ok: false; readonly code: string };
export type Enqueued<T> = { readonly item: T; readonly disposition: "inserted" | "existing" };
export type Claimed = Pick<
  ClaimedJob,
  "lease" | "type" | "payload" | "priority" | "maxAttempts" | "organizationId" | "workflowStepId"
>;

export class Model {
  #state: State = { runs: [], jobs: [], paused: new Set() };

  get runs(): readonly Run[] {
    return this.#state.runs;
  }

  get jobs(): readonly Job[] {
    return this.#state.jobs;
  }

  get liveJobs(): Job[] {
    return this.jobs.filter((job) => isLive(job, this.runs));
  }

  /** What a rollback goes back to. */
  saved(): State {
    return structuredClone(this.#state);
  }

  restore(state: State): void {
    this.#state = state;
  }

  // --- F-W2, F-J2, F-J3: enqueue

  enqueueRuns(plans: readonly RunPlan[]): Enqueued<Run>[] {
    return this.#allOrNothing(() => plans.map((plan) => this.#enqueueRun(plan)));
  }

  #enqueueRun(plan: RunPlan): Enqueued<Run> {
    const holder = this.runs.find((run) => sameKey(run.plan, plan));
    if (holder !== undefined) {
      if (!sameRequest(holder.plan, plan)) throw new Refused("workflow.enqueue_conflicting_retry");
      return { item: holder, disposition: "existing" };
    }
    const run: Run = {
      name: `run${this.runs.length + 1}`,
      id: "",
      plan,
      steps: [],
      additions: [],
      retries: [],
      canceled: null,
    };
    this.#state.runs.push(run);
    for (const step of plan.steps) this.#addStep(run, step);
    return { item: run, disposition: "inserted" };
  }

  #addStep(run: Run, plan: StepPlan): void {
    const { key, job, map } = plan;
    const place = { name: `${run.name}.${key}`, organization: run.plan.organization, run: run.name };
    const added = job === null || map !== null ? null : this.#addJob({ ...place, plan: job, idempotencyKey: null });
    run.steps.push({ id: "", key, plan, job: added, end: null, kept: null, items: null });
  }

  enqueueJobs(plans: readonly LoneJobPlan[]): Enqueued<Job>[] {
    return this.#allOrNothing(() => plans.map((plan) => this.#enqueueJob(plan)));
  }

  #enqueueJob({ organization, idempotencyKey, ...plan }: LoneJobPlan): Enqueued<Job> {
    const holder = this.jobs.find(
      (job) =>
        job.idempotencyKey !== null &&
        job.idempotencyKey === idempotencyKey &&
        job.organization === organization &&
        job.plan.type === plan.type,
    );
    if (holder !== undefined) {
      if (!sameValue(holder.plan, plan)) throw new Refused("job.idempotency_conflict");
      return { item: holder, disposition: "existing" };
    }
    const name = `job${this.jobs.filter(({ run }) => run === null).length + 1}`;
    const item = this.#addJob({ name, plan, organization, idempotencyKey, run: null });
    return { item, disposition: "inserted" };
  }

  #addJob(job: Pick<Job, "name" | "plan" | "organization" | "idempotencyKey" | "run">): Job {
    const added = {
      ...job,
      id: "",
      runNumber: 1,
      attempt: 0,
      lease: null,
      ended: [],
      failed: [],
      runAt: "",
      due: true,
    };
    this.#state.jobs.push(added);
    return added;
  }

  jobStatus(job: Job): JobStatus {
    if (isLive(job, this.runs)) return job.lease === null ? "PENDING" : "LEASED";
    const last = job.ended.at(-1);
    if (last === undefined) throw new Error(`${job.name} is neither live nor ended`);
    return last.status;
  }

  runStatus(run: Run): RunStatus {
    return runStatusOf(run);
  }

  isHeld(lease: Lease): boolean {
    return this.#held(lease) !== undefined;
  }

  // --- F-J1: pause

  pause(type: string, paused: boolean): void {
    if (paused) this.#state.paused.add(type);
    else this.#state.paused.delete(type);
  }

  // --- F-J4, F-W5: claim, and what the claimed find

  claim(workerId: string, limit: number, types: readonly string[] | null): Claimed[] {
    return this.#claimFrom(this.liveJobs, workerId, limit, types);
  }

  /** A claim that comes upon these jobs only. */
  claimAmong(ids: readonly string[], workerId: string, limit: number, types: readonly string[]): Claimed[] {
    const found = this.liveJobs.filter(({ id }) => ids.includes(id));
    return this.#claimFrom(found, workerId, limit, types);
  }

  #claimFrom(jobs: readonly Job[], workerId: string, limit: number, types: readonly string[] | null): Claimed[] {
    return jobs
      .filter(({ lease, due }) => lease === null && due)
      .filter(({ plan }) => !this.#state.paused.has(plan.type) && (types === null || types.includes(plan.type)))
      .sort(inClaimOrder)
      .slice(0, limit)
      .map((job) => this.#claimed(job, workerId));
  }

  #claimed(job: Job, workerId: string): Claimed {
    job.attempt += 1;
    job.lease = { workerId, expired: false };
    const { type, payload, priority, maxAttempts } = job.plan;
    const [run, step] = this.#placeOf(job);
    const { id: jobId, runNumber, attempt, organization: organizationId } = job;
    const lease = { jobId, runNumber, attempt, workerId, workflowRunId: run?.id ?? null };
    return { lease, type, payload, priority, maxAttempts, organizationId, workflowStepId: step?.id ?? null };
  }

  /** By job id; jobs of no run are not among them. */
  prerequisiteOutputs(leases: readonly Lease[]): Record<string, Record<string, JsonValue | null>> {
    return Object.fromEntries(
      leases.flatMap(({ jobId }) => {
        const [run, step] = this.#placeOf(this.#jobOf(jobId));
        return run && step ? [[jobId, outputsFor(run, step)]] : [];
      }),
    );
  }

  // --- F-J5, F-J6: the lease

  #held(lease: Lease): Job | undefined {
    const job = this.jobs.find(({ id }) => id === lease.jobId);
    if (job?.lease === null || job?.lease.expired || job?.lease.workerId !== lease.workerId) return undefined;
    return job.runNumber === lease.runNumber && job.attempt === lease.attempt ? job : undefined;
  }

  heartbeat(leases: readonly Lease[]): ("EXTENDED" | "CANCELED" | "LOST")[] {
    return leases.map((lease) => {
      if (this.#held(lease) !== undefined) return "EXTENDED";
      const job = this.jobs.find(({ id }) => id === lease.jobId);
      const canceled = job?.ended.some(
        ({ runNumber, status }) => runNumber === lease.runNumber && status === "CANCELED",
      );
      return canceled ? "CANCELED" : "LOST";
    });
  }

  handBack(leases: readonly Lease[]): string[] {
    return leases.flatMap((lease) => {
      const job = this.#held(lease);
      if (job === undefined) return [];
      job.attempt -= 1;
      job.lease = null;
      return [job.id];
    });
  }

  // --- F-J7: outcomes. One after another; of several items for one lease the first counts, whatever became of it.

  settle(settlings: readonly Settling[]): Settled[] {
    const tried = new Set<string>();
    return settlings.map(({ lease, outcome }) => {
      try {
        const job = tried.has(canonical(lease)) ? undefined : this.#held(lease);
        tried.add(canonical(lease));
        if (job === undefined) throw new Refused("job.lease_owner_mismatch");
        return { ok: true, status: this.#settled(job, outcome) };
      } catch (error) {
        if (error instanceof Refused) return { ok: false, code: error.code };
        throw error;
      }
    });
  }

  #settled(job: Job, outcome: Outcome): JobStatus {
    if (outcome.kind === "SUCCESS") {
      this.#succeed(job, outcome.output, outcome.append);
      return "SUCCEEDED";
    }
    const failure = { failureKind: outcome.kind, errorCode: outcome.code, errorMessage: outcome.message };
    job.failed.push({ ...attemptOf(job), ...failure });
    if (["RETRYABLE", "TIMEOUT", "LEASE_EXPIRED"].includes(outcome.kind) && job.attempt < job.plan.maxAttempts) {
      job.lease = null;
      return "PENDING";
    }
    this.#endJob(job, "DEAD_LETTERED", failure, undefined);
    return "DEAD_LETTERED";
  }

  /** The step's end and what it adds are one: when that does not fit, nothing has happened. */
  #succeed(job: Job, output: Output, addition: Addition | null): void {
    const [run] = this.#placeOf(job);
    const fits = run !== undefined && addition !== null && mayBeAdded(run, addition);
    this.#endJob(job, "SUCCEEDED", {}, output);
    if (fits) this.#add(run, addition);
  }

  #endJob(job: Job, status: "SUCCEEDED" | "DEAD_LETTERED", failure: Partial<FailedAttempt>, output: Output): void {
    const [, step] = this.#placeOf(job);
    const { failureKind = null, errorCode = null, errorMessage = null } = failure;
    if (step !== undefined) {
      const ended = status === "SUCCEEDED" ? "SUCCEEDED" : "FAILED";
      step.end = { ...endOf(ended), output, errorCode, errorMessage, started: true };
    }
    const kept = step === undefined ? output : undefined;
    endRun(job, { status, failureKind, errorCode, errorMessage, canceledReason: null, output: kept });
    this.#fanOut();
  }

  /** Whether something that a success adds would not fit. */
  refusesAny(settlings: readonly Settling[]): boolean {
    const before = this.saved();
    const refused = this.settle(settlings).some((result) => !result.ok && result.code.startsWith("workflow.append"));
    this.restore(before);
    return refused;
  }

  // --- F-J10: reap

  /** Time passes for this lease. */
  expire(jobId: string): void {
    const { lease } = this.#jobOf(jobId);
    if (lease !== null) lease.expired = true;
  }

  reap(limit: number): { returned: number; deadLettered: number } {
    const statuses = this.jobs
      .filter(({ lease }) => lease?.expired)
      .sort((a, b) => (a.id < b.id ? -1 : 1))
      .slice(0, limit)
      .map((job) => this.#settled(job, leaseExpired));
    const count = (wanted: JobStatus) => statuses.filter((status) => status === wanted).length;
    return { returned: count("PENDING"), deadLettered: count("DEAD_LETTERED") };
  }

  // --- F-J9: cancel a job

  cancelJob(jobId: string, scope: Scope, reason: string | null): { status: JobStatus; canceled: boolean } {
    const job = this.#jobOf(jobId);
    if (!inScope(job.organization, scope)) throw new Refused("job.not_found");
    // A step whose job was never released has none that could be found.
    if (!isLive(job, this.runs) && job.ended.length === 0) throw new Refused("job.not_found");
    if (job.run !== null) throw new Refused("job.workflow_requeue_not_supported");
    if (!isLive(job, this.runs)) return { status: this.jobStatus(job), canceled: false };
    endRun(job, canceledJob(reason));
    return { status: "CANCELED", canceled: true };
  }

  // --- F-W9: cancel a run

  cancelRun(name: string, scope: Scope, reason: string | null): { status: RunStatus; canceled: boolean } {
    const run = this.#runOf(name);
    if (!inScope(run.plan.organization, scope)) throw new Refused("workflow.run_not_found");
    if (isOver(run)) return { status: runStatusOf(run), canceled: false };
    for (const [key, status] of statusesOf(run)) {
      const step = stepOf(run, key);
      if (isEnded(status)) continue;
      // What a gate kept in vain stays with it.
      const kept = { ...endOf("CANCELED"), ...step.kept, status: "CANCELED" } as const;
      step.end = { ...kept, reason, started: step.job?.lease != null, withRun: true };
      if (step.job !== null && status !== "BLOCKED") endRun(step.job, canceledJob(reason));
    }
    run.canceled = { reason };
    return { status: "CANCELED", canceled: true };
  }

  // --- F-W6: external gates

  completeGate(name: string, key: string, completion: GateCompletion) {
    const { scope, keep } = completion;
    const run = this.#runOf(name);
    const step = run.steps.find((candidate) => candidate.key === key);
    if (step === undefined || !inScope(run.plan.organization, scope)) throw new Refused("workflow.step_not_found");
    if (step.plan.job !== null) throw new Refused("workflow.external_step_not_external");
    const status = statusesOf(run).get(key) ?? "BLOCKED";
    if (isEnded(status)) return repeated({ status, output: outputOf(run, step) }, completion, status);
    if (status === "BLOCKED" && !keep) throw new Refused("workflow.external_step_not_waiting");
    if (step.kept !== null) return { ...repeated(step.kept, completion, status), kept: true };
    if (status === "BLOCKED") {
      step.kept = told(completion);
      return { status, completed: true, kept: true };
    }
    step.end = { ...endOf(completion.outcome), ...told(completion) };
    this.#fanOut();
    return { status: completion.outcome, completed: true, kept: false };
  }

  // --- F-W7: append

  append(name: string, scope: Scope, gate: string | null, addition: Addition) {
    const run = this.#runOf(name);
    if (!inScope(run.plan.organization, scope)) throw new Refused("workflow.run_not_found");
    const disposition = mayBeAppended(run, gate, addition) ? "applied" : "already_applied";
    if (disposition === "applied") this.#add(run, addition);
    const applied = run.additions.find(({ key }) => key === addition.key);
    return { disposition, statuses: applied?.statuses };
  }

  #add(run: Run, addition: Addition): void {
    for (const step of addition.steps) this.#addStep(run, step);
    this.#fanOut();
    const statuses = statusesOf(run);
    run.additions.push({
      ...addition,
      statuses: Object.fromEntries(addition.steps.map(({ key }) => [key, statuses.get(key) ?? "BLOCKED"])),
    });
  }

  // --- F-W8: maps

  /** Gives items to the map steps whose prerequisites have ended well, until there is none left. */
  #fanOut(): void {
    for (let ready = readyMap(this.runs); ready !== null; ready = readyMap(this.runs)) {
      const { run, step, items } = ready;
      step.items = items.map(({ key }) => key);
      for (const item of items) this.#addStep(run, item);
    }
  }

  // --- F-W11: retry in place

  retry(name: string, scope: Scope, key: string | null, keys: readonly string[] | null) {
    const run = this.#runOf(name);
    if (!inScope(run.plan.organization, scope)) throw new Refused("workflow.run_not_found");
    const before = retryBefore(run, key, keys);
    if (before !== undefined) {
      return { status: runStatusOf(run), retried: before.retried.toSorted(), disposition: "already_applied" };
    }
    if (run.canceled !== null) throw new Refused("workflow.retry_run_canceled");
    if (runStatusOf(run) !== "COMPLETED_WITH_ERRORS") throw new Refused("workflow.retry_not_failed");
    const chosen = chosenSteps(run, keys);
    const living = livingAgain(run, chosen);
    for (const step of run.steps) if (!living.includes(step)) step.end = endAsItIs(run, step);
    for (const step of living) liveAgain(step, chosen.includes(step));
    const retried = chosen.map((step) => step.key).sort();
    run.retries.push({ key, steps: keys, retried });
    return { status: runStatusOf(run), retried, disposition: "applied" };
  }

  // --- F-W5, F-W10: the result

  result(name: string): JsonValue {
    const run = this.#runOf(name);
    if (run.plan.result === null) throw new Refused("workflow.result_not_declared");
    if (!isOver(run)) throw new Refused("workflow.result_wait_timeout");
    if (runStatusOf(run) !== "SUCCEEDED") throw new Refused("workflow.result_unsuccessful_terminal");
    const output = outputOf(run, stepOf(run, run.plan.result));
    if (output === undefined) throw new Refused("workflow.result_missing");
    return output;
  }

  #runOf(name: string): Run {
    const run = this.runs.find((candidate) => candidate.name === name);
    if (run === undefined) throw new Error(`the model has no ${name}`);
    return run;
  }

  #jobOf(id: string): Job {
    const job = this.jobs.find((candidate) => candidate.id === id);
    if (job === undefined) throw new Error(`the model has no job ${id}`);
    return job;
  }

  /** The run and step of a job; neither, when it belongs to none. */
  #placeOf(job: Job): readonly [Run, Step] | readonly [undefined, undefined] {
    if (job.run === null) return [undefined, undefined];
    const run = this.#runOf(job.run);
    const step = run.steps.find((candidate) => candidate.job === job);
    if (step === undefined) throw new Error(`${job.name} has no step`);
    return [run, step];
  }

  #allOrNothing<T>(change: () => T): T {
    const before = this.saved();
    try {
      return change();
    } catch (error) {
      this.restore(before);
      throw error;
    }
  }
}

const leaseExpired = {
  kind: "LEASE_EXPIRED",
  code: "job.lease_expired",
  message: "The lease expired before the attempt ended.",
} as const;

function endOf(status: Ended): StepEnd {
  const nothing = { output: undefined, errorCode: null, errorMessage: null, completedBy: null, reason: null };
  return { status, ...nothing, started: false, withRun: false, released: null };
}

function endRun(job: Job, end: Omit<Job["ended"][number], "runNumber" | "attempt" | "workerId">): void {
  const { runNumber, attempt } = job;
  job.ended.push({ runNumber, attempt, workerId: job.lease?.workerId ?? null, ...end });
  job.lease = null;
}

function canceledJob(canceledReason: string | null) {
  const none = { failureKind: null, errorCode: null, errorMessage: null, output: undefined };
  return { status: "CANCELED", ...none, canceledReason } as const;
}

function attemptOf({ runNumber, attempt, lease }: Job) {
  return { runNumber, attempt, workerId: lease?.workerId ?? "" };
}

function readyMap(runs: readonly Run[]): { run: Run; step: Step; items: StepPlan[] } | null {
  for (const run of runs) {
    for (const step of run.steps) {
      const items = itemsToCome(run, step);
      if (items !== null) return { run, step, items };
    }
  }
  return null;
}

/** The items of a map step that has none yet and may have them now; null for any other step. */
function itemsToCome(run: Run, step: Step): StepPlan[] | null {
  const { job, map } = step.plan;
  if (map === null || job === null || step.items !== null) return null;
  const statuses = statusesOf(run);
  const waits = step.plan.needs.some(({ key }) => !isEnded(statuses.get(key) ?? "BLOCKED"));
  // With nothing left to wait for, it is blocked only by having no items yet.
  const source = waits || statuses.get(step.key) !== "BLOCKED" ? null : mapSource(run, step);
  if (!Array.isArray(source)) return null;
  return source.map((payload, place) => ({
    key: `${step.key}[${place}]`,
    needs: [],
    job: { ...job, payload },
    map: null,
  }));
}

/** False when it was added before. */
function mayBeAppended(run: Run, gate: string | null, addition: Addition): boolean {
  if (!isNew(run, addition)) return false;
  if (isOver(run)) throw new Refused("workflow.append_run_ended");
  const open = [...statusesOf(run)].filter(([, status]) => status === "WAITING_FOR_EXTERNAL").map(([key]) => key);
  if (gate === null ? open.length === 0 : !open.includes(gate)) throw new Refused("workflow.append_no_open_gate");
  return mayBeAdded(run, addition);
}

function mayBeAdded(run: Run, addition: Addition): boolean {
  if (!isNew(run, addition)) return false;
  const [old, added] = [run.steps, addition.steps].map((steps) => steps.map(({ key }) => key));
  const overlaps = added?.some((key) => old?.includes(key));
  if (overlaps) throw new Refused("workflow.append_duplicate_step_key");
  const known = [...(old ?? []), ...(added ?? [])];
  const wanted = addition.steps.flatMap(({ needs }) => needs).map(({ key }) => key);
  if (wanted.some((key) => !known.includes(key))) throw new Refused("workflow.append_unknown_dependency");
  return true;
}

function isNew(run: Run, { key, steps }: Addition): boolean {
  if (run.retries.some((retry) => retry.key === key)) throw new Refused("workflow.append_conflicting_retry");
  const before = run.additions.find((addition) => addition.key === key);
  if (before === undefined) return true;
  if (!sameValue(requestedSteps(before.steps), requestedSteps(steps))) {
    throw new Refused("workflow.append_conflicting_retry");
  }
  return false;
}

function retryBefore(run: Run, key: string | null, keys: readonly string[] | null) {
  if (key === null) return undefined;
  const before = run.retries.find((retry) => retry.key === key);
  const requested = (steps: readonly string[] | null) => steps && [...new Set(steps)].sort();
  const other = before !== undefined && !sameValue(requested(before.steps), requested(keys));
  if (other || run.additions.some((addition) => addition.key === key))
    throw new Refused("workflow.retry_conflicting_key");
  return before;
}

/** Those that FAILED, or those that are named. */
function chosenSteps(run: Run, keys: readonly string[] | null): Step[] {
  const statuses = statusesOf(run);
  if (keys !== null) return [...new Set(keys)].sort().map((key) => retryable(run, key));
  const failed = run.steps.filter(({ key }) => statuses.get(key) === "FAILED");
  const chosen = failed.filter(({ plan }) => plan.map === null);
  if (failed.length === 0) throw new Refused("workflow.retry_step_not_failed");
  if (chosen.length === 0) throw new Refused("workflow.retry_map_step");
  return chosen;
}

function retryable(run: Run, key: string): Step {
  const step = run.steps.find((candidate) => candidate.key === key);
  if (step === undefined) throw new Refused("workflow.step_not_found");
  const status = statusesOf(run).get(key);
  const byRule = status === "CANCELED" && errorCodeOf(run, step) === UNSATISFIED;
  if (status === "SUCCEEDED" || byRule) throw new Refused("workflow.retry_step_not_failed");
  if (step.plan.map !== null) throw new Refused("workflow.retry_map_step");
  return step;
}

/** The chosen, and each that was cancelled only because of such: nothing else stands against it. */
function livingAgain(run: Run, chosen: readonly Step[]): Step[] {
  const statuses = statusesOf(run);
  const living = [...chosen];
  const held = (step: Step) =>
    needsOf(step).some(
      ({ key, kind }) =>
        kind === "ON_SUCCESS" && statuses.get(key) !== "SUCCEEDED" && !living.some((other) => other.key === key),
    );
  const next = () =>
    run.steps.find(
      (step) =>
        !living.includes(step) &&
        statuses.get(step.key) === "CANCELED" &&
        errorCodeOf(run, step) === UNSATISFIED &&
        !held(step),
    );
  for (let step = next(); step !== undefined; step = next()) living.push(step);
  return living;
}

/** What was derived from its prerequisites stays when these live again. */
function endAsItIs(run: Run, step: Step): StepEnd {
  const status = statusesOf(run).get(step.key);
  const released = wasReleased(run, step);
  if (step.end !== null) return { ...step.end, released };
  if (status === undefined || !isTerminal(status)) throw new Error(`${run.name}.${step.key} has not ended`);
  const { completedBy = null, reason = null } = step.kept ?? {};
  const [output, errorCode] = [outputOf(run, step), errorCodeOf(run, step)];
  return { ...endOf(status), output, errorCode, completedBy, reason, released };
}

function isTerminal(status: StepStatus): status is Ended {
  return isEnded(status);
}

function liveAgain(step: Step, chosen: boolean): void {
  const worked = step.job !== null && step.job.ended.length > 0;
  step.end = null;
  if (chosen) step.kept = null;
  if (step.job !== null && worked) Object.assign(step.job, { runNumber: step.job.runNumber + 1, attempt: 0 });
}

/** Of the prerequisites that succeeded. */
function outputsFor(run: Run, step: Step): Record<string, JsonValue | null> {
  const statuses = statusesOf(run);
  const succeeded = needsOf(step).filter(({ key }) => statuses.get(key) === "SUCCEEDED");
  return Object.fromEntries(succeeded.map(({ key }) => [key, outputOf(run, stepOf(run, key)) ?? null]));
}

function told({ outcome, output, reason, completedBy }: GateCompletion): Kept {
  const errorCode = outcome === "SUCCEEDED" ? null : `workflow.external_${outcome.toLowerCase()}`;
  return { status: outcome, output, errorCode, reason, completedBy };
}

/** The same completion again, or another one. */
function repeated(before: { status: StepStatus; output: Output }, again: GateCompletion, status: StepStatus) {
  if (before.status !== again.outcome) throw new Refused("workflow.external_step_conflicting_completion_retry");
  if (again.outcome === "SUCCEEDED" && !sameValue(before.output, again.output)) {
    throw new Refused("workflow.external_step_conflicting_output_retry");
  }
  return { status, completed: false, kept: false };
}

/** (priority desc, run-at, id) */
function inClaimOrder(a: Job, b: Job): number {
  const order = (x: Job) => `${x.runAt} ${x.id}`;
  return b.plan.priority - a.plan.priority || (order(a) < order(b) ? -1 : 1);
}

function inScope(organization: string | null, scope: Scope): boolean {
  if ("admin" in scope) return true;
  return "global" in scope ? organization === null : organization === scope.organization;
}

function sameKey(a: RunPlan, b: RunPlan): boolean {
  return a.idempotencyKey !== null && a.idempotencyKey === b.idempotencyKey && a.organization === b.organization;
}

function sameRequest(a: RunPlan, b: RunPlan): boolean {
  return a.result === b.result && sameValue(requestedSteps(a.steps), requestedSteps(b.steps));
}

/** The order in which steps and dependencies were given does not matter. */
function requestedSteps(steps: readonly StepPlan[]) {
  return Object.fromEntries(
    steps.map(({ key, needs, job, map }) => [
      key,
      // The items' payloads come from elsewhere.
      { job: job && { ...job, ...(map && { payload: null }) }, map, needs: needs.map(canonical).sort() },
    ]),
  );
}

/** Equal as JSON, whatever the order of keys; undefined is equal to itself only. */
function sameValue(a: unknown, b: unknown): boolean {
  return canonical(a) === canonical(b);
}

function canonical(value: unknown): string {
  if (value === undefined) return "undefined";
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  const entries = Object.entries(value).sort(([x], [y]) => (x < y ? -1 : 1));
  return `{${entries.map(([key, part]) => `${JSON.stringify(key)}:${canonical(part)}`).join(",")}}`;
}
