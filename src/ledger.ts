/** createLedger(): binds the aggregates to the service's Kysely instance, or to one of its transactions. */

import type { Kysely, Transaction } from "kysely";
import { jobsChannel } from "./database/channels.ts";
import type { JsonValue } from "./database/column-types.ts";
import {
  type AnyDatabase,
  type AnyKysely,
  createExecutor,
  DEFAULT_LOCK_WAIT_MS,
  type Executor,
  type LedgerSettings,
  transactionOf,
} from "./database/executor.ts";
import { Listener, type ListenSource, type NotificationHandler } from "./database/listener.ts";
import { DEFAULT_SCHEMA, validSchemaName } from "./database/schema.ts";
import type { Scope } from "./database/scope.ts";
import { asTenant, type Tenant } from "./database/tenant.ts";
import type { ReadOptions } from "./database/values/read.ts";
import { type ValueOptions, valueRules } from "./database/values/rules.ts";
import { LedgerError } from "./errors.ts";
import { type CanceledJob, type CancelJobOptions, cancelJob } from "./jobs/cancel.ts";
import { type CanceledJobs, type CancelManyJobsOptions, cancelManyJobs } from "./jobs/cancel-many.ts";
import { type SyncedDefinitions, type SyncOptions, setPaused, syncDefinitions } from "./jobs/catalogue.ts";
import { type ClaimOptions, claimJobs } from "./jobs/claim.ts";
import type { ClaimedJob } from "./jobs/claimed.ts";
import { countJobs, type JobCounts } from "./jobs/counts.ts";
import type { AnyJobDefinition, InputOf, JobOptions, JobRequest } from "./jobs/definition.ts";
import type { EagerClaimOptions } from "./jobs/eager.ts";
import { enqueueJobs } from "./jobs/enqueue.ts";
import type { EnqueuedJob, EnqueueOptions } from "./jobs/insertion.ts";
import type { Lease } from "./jobs/lease.ts";
import { type SweepLimitsOptions, type SweptLimits, sweepLimits } from "./jobs/limit-sweep.ts";
import { type JobsPage, type ListJobsOptions, listJobs } from "./jobs/list.ts";
import { type JobLogsPage, jobLogs, type LogsOptions } from "./jobs/logs.ts";
import type { Continuation, Failure, SettledJob, SettleResult, SnoozeRequest } from "./jobs/outcome.ts";
import { getJob, type Job } from "./jobs/read.ts";
import { type ReplayOptions, replayJob } from "./jobs/replay.ts";
import { type ReplayedJobs, type ReplayManyOptions, replayManyJobs } from "./jobs/replay-many.ts";
import { type RequeuedJob, type RequeueOptions, requeueJob } from "./jobs/requeue.ts";
import { type RequeuedJobs, type RequeueManyOptions, requeueManyJobs } from "./jobs/requeue-many.ts";
import {
  appendLogs,
  type Heartbeat,
  handBack,
  heartbeat,
  type LogLine,
  type Progress,
  reportProgress,
  saveCheckpoint,
} from "./jobs/running.ts";
import { type JobEvent, jobTimeline } from "./jobs/timeline.ts";
import { type Compacted, type CompactOptions, compactCounts } from "./retention/compact.ts";
import { ensurePartitions } from "./retention/partitions.ts";
import { type Retained, type RetainOptions, retain } from "./retention/retain.ts";
import { type AppendedSteps, type AppendOptions, appendSteps } from "./runs/append.ts";
import { type CanceledRun, type CancelRunOptions, cancelRun } from "./runs/cancel.ts";
import { type CanceledRuns, type CancelManyOptions, cancelManyRuns } from "./runs/cancel-many.ts";
import { type AdvancedChild, advanceChild } from "./runs/child.ts";
import { countRuns, type RunCounts } from "./runs/counts.ts";
import { enqueueRuns, type RunRequest } from "./runs/enqueue.ts";
import { type HandleOptions, type ResultType, RunHandle } from "./runs/handle.ts";
import type { EnqueuedRun } from "./runs/insertion.ts";
import { type ListRunsOptions, listRuns, type RunsPage } from "./runs/list.ts";
import type { RunOptions } from "./runs/prepare.ts";
import { getRun, getRunStatus, type Run, type RunStatusView } from "./runs/read.ts";
import { type RecoverRunOptions, type RerunOptions, recoverRun, rerunRun } from "./runs/recover.ts";
import { requestOf } from "./runs/request.ts";
import { getResult, type ResultOptions } from "./runs/result.ts";
import { type RetriedRun, type RetryRunOptions, retryRun } from "./runs/retry.ts";
import {
  completeJob,
  completeJobWith,
  continueJob,
  failJob,
  type StepSettlement,
  type StepSuccess,
  settle,
  settleAndClaim,
  snoozeJob,
} from "./runs/settle.ts";
import type { GraphSpec, WorkflowDefinition } from "./runs/spec.ts";
import { type RunEvent, type RunTimelineOptions, runTimeline } from "./runs/timeline.ts";
import { type FiredTimers, type FireTimersOptions, fireTimers } from "./runs/timers.ts";
import {
  type SyncedSchedules,
  type SyncSchedulesOptions,
  syncSchedules,
  upsertSchedule,
} from "./schedules/catalogue.ts";
import type { ScheduleDefinition } from "./schedules/definition.ts";
import { type FireDueOptions, type FiredSchedules, fireDue } from "./schedules/fire.ts";
import {
  pauseSchedules,
  type RetimeOptions,
  removeSchedule,
  resumeSchedules,
  retimeSchedule,
  type ScheduleScope,
  type TriggeredSchedule,
  type TriggerOptions,
  triggerSchedule,
} from "./schedules/operate.ts";
import {
  type FiresPage,
  getSchedule,
  type ListSchedulesOptions,
  listFires,
  listSchedules,
  type Schedule,
  type SchedulesPage,
} from "./schedules/read.ts";
import { type CompletedStep, completeExternalStep, type ExternalCompletion } from "./steps/external.ts";
import { listOpenGates, type OpenGatesOptions, type OpenGatesPage } from "./steps/gates.ts";
import { type Prerequisites, prerequisites } from "./steps/prerequisites.ts";
import { type Reaped, type ReapOptions, reap } from "./steps/reap.ts";
import type { SettledAndClaimed } from "./steps/settle.ts";

export interface LedgerOptions<DB = AnyDatabase> {
  /**
   * The service's own Kysely instance, with whatever database type, plugins and PostgreSQL dialect it has. One made by
   * `db.connection()` needs `notify: false`: announcements are sent on it after the work, when it may have been given back.
   */
  readonly db: Kysely<DB>;
  /** The schema that holds the ledger's tables. Default `runledger`. */
  readonly schema?: string;
  /** Makes a connection for LISTEN, such as `() => new pg.Client(url)`. Without it waiters and workers poll. */
  readonly listen?: ListenSource;
  /** Whether new jobs and ended runs are announced by NOTIFY. Default true. */
  readonly notify?: boolean;
  /** The longest that a function waits for one lock, in milliseconds. Default 5000. */
  readonly lockWaitMs?: number;
  /** Rules for payloads, outputs, checkpoints and fields of logs: how large they may be, what is not shown, how they are encoded. */
  readonly values?: ValueOptions;
  /** Told of errors of the LISTEN connection, which is made anew. Default: a warning of the process. */
  readonly onListenError?: (error: unknown) => void;
}

/** PostgreSQL's own bound for lock_timeout. */
const MAX_LOCK_WAIT_MS = 2_147_483_647;

function warn(error: unknown): void {
  process.emitWarning(`The LISTEN connection of runledger was lost: ${String(error)}`);
}

/** Binds a ledger. Nothing is sent until a function is called. Throws `config.invalid`. */
export function createLedger<DB>(options: LedgerOptions<DB>): Ledger<DB> {
  const { db, notify = true, lockWaitMs = DEFAULT_LOCK_WAIT_MS, listen, onListenError = warn } = options;
  if (!Number.isInteger(lockWaitMs) || lockWaitMs < 1 || lockWaitMs > MAX_LOCK_WAIT_MS) {
    throw new LedgerError("config.invalid", {
      message: `lockWaitMs must be a number of milliseconds from 1 to ${MAX_LOCK_WAIT_MS}.`,
    });
  }
  const settings: LedgerSettings = { notify, lockWaitMs, values: valueRules(options.values ?? {}) };
  const executor = createExecutor(db, validSchemaName(options.schema ?? DEFAULT_SCHEMA), settings);
  return new Ledger(executor, listen === undefined ? null : new Listener(listen, onListenError));
}

/**
 * The ledger's functions by aggregate. `DB` is the service's own database type, which what it writes in
 * the transaction of a completion is checked against; `Ledger` alone takes a ledger on any database.
 */
export class Ledger<DB = AnyDatabase> {
  readonly jobs: Jobs<DB>;
  readonly runs: Runs;
  readonly steps: Steps;
  readonly schedules: Schedules;
  readonly maintenance: Maintenance;
  readonly #executor: Executor;
  readonly #listener: Listener | null;

  /** @internal Use `createLedger`. */
  constructor(executor: Executor, listener: Listener | null) {
    this.#executor = executor;
    this.#listener = listener;
    this.jobs = new Jobs<DB>(executor);
    this.runs = new Runs(executor, listener);
    this.steps = new Steps(executor);
    this.schedules = new Schedules(executor);
    this.maintenance = new Maintenance(executor);
  }

  /** The schema that holds the ledger's tables. */
  get schema(): string {
    return this.#executor.schema;
  }

  /** The same functions inside the caller's transaction, which they never commit or roll back. */
  in(trx: AnyKysely): Ledger<DB> {
    if (!trx.isTransaction) {
      throw new LedgerError("input.invalid", { message: "ledger.in() takes a transaction of the service's Kysely." });
    }
    const { schema, settings } = this.#executor;
    return new Ledger(createExecutor(trx, schema, settings), this.#listener);
  }

  /**
   * Returns what takes out of a text all that redacted fields of the values hold now: for a message that is logged or
   * stored. A worker does so with the messages of failures and logs. Nothing is sent.
   */
  redactor(...values: readonly (JsonValue | null)[]): (text: string) => string {
    return this.#executor.settings.values.redaction?.redactorOf(values) ?? ((text) => text);
  }

  /**
   * Runs `body` in a transaction in which row-level security shows and takes the tenant's rows only, READ COMMITTED and
   * not tried again; inside of `ledger.in(trx)` in that transaction, for the time of the body. Scopes and
   * `organizationId` are given as ever. Three round trips of its own, two in a caller's transaction. Throws
   * `scope.required`, `db.commit_unconfirmed`, `db.transaction_aborted`.
   *
   * ```ts
   * const tenant = { organization: session.organizationId };
   * const jobs = await ledger.inTenant(tenant, (own) => own.jobs.get(jobId, tenant));
   * ```
   */
  inTenant<T>(tenant: Tenant, body: (ledger: Ledger<DB>, trx: Transaction<DB>) => Promise<T>): Promise<T> {
    return asTenant(this.#executor, tenant, (executor) =>
      body(new Ledger<DB>(executor, this.#listener), transactionOf(executor)),
    );
  }

  /**
   * Calls `handler` when runnable jobs are announced, and with null once it listens for that, at first and after
   * a loss of the connection: what was announced before has not been heard.
   * Returns what ends it; null when the ledger was made without `listen`.
   */
  onJobs(handler: NotificationHandler): (() => void) | null {
    return this.#listener?.subscribe(jobsChannel(this.schema), handler) ?? null;
  }

  /**
   * Whether those who called `onJobs` hear of runnable jobs now: not without `listen`, not while its connection is away,
   * and not where this ledger announces nothing itself (`notify: false`). Who does not hear has to look more often.
   */
  get hearsJobs(): boolean {
    return this.#executor.settings.notify && (this.#listener?.hears(jobsChannel(this.schema)) ?? false);
  }
}

/** Jobs: see each function for its round trips and errors. */
class Jobs<DB = AnyDatabase> {
  readonly #executor: Executor;

  constructor(executor: Executor) {
    this.#executor = executor;
  }

  /** Enqueues one job: of a definition with its typed input, or of a plain type with any JSON payload. */
  async enqueue<D extends AnyJobDefinition>(
    job: D,
    input: InputOf<D>,
    options?: JobOptions & EnqueueOptions,
  ): Promise<EnqueuedJob>;
  async enqueue(type: string, payload: unknown, options?: JobOptions & EnqueueOptions): Promise<EnqueuedJob>;
  async enqueue(
    job: AnyJobDefinition | string,
    input: unknown,
    { strict, ...options }: JobOptions & EnqueueOptions = {},
  ): Promise<EnqueuedJob> {
    const request: JobRequest =
      typeof job === "string" ? { ...options, type: job, payload: input } : job.request(input, options);
    const [enqueued] = await enqueueJobs(this.#executor, [request], strict === undefined ? {} : { strict });
    if (enqueued === undefined) throw new LedgerError("input.invalid");
    return enqueued;
  }

  /** Enqueues any number of jobs, all or none. */
  enqueueMany(requests: readonly JobRequest[], options?: EnqueueOptions): Promise<EnqueuedJob[]> {
    return enqueueJobs(this.#executor, requests, options);
  }

  /** Claims due jobs under leases. */
  claim(options: ClaimOptions): Promise<ClaimedJob[]> {
    return claimJobs(this.#executor, options);
  }

  /** Extends leases and tells which jobs were cancelled or lost. */
  heartbeat(leases: readonly Lease[], leaseSeconds?: number): Promise<Heartbeat[]> {
    return heartbeat(this.#executor, leases, leaseSeconds);
  }

  /** Gives back claims that were never started: the attempt does not count. */
  handBack(leases: readonly Lease[]): Promise<string[]> {
    return handBack(this.#executor, leases);
  }

  progress(lease: Lease, progress: Progress): Promise<void> {
    return reportProgress(this.#executor, lease, progress);
  }

  checkpoint(lease: Lease, checkpoint: unknown): Promise<void> {
    return saveCheckpoint(this.#executor, lease, checkpoint);
  }

  log(lease: Lease, lines: readonly LogLine[]): Promise<void> {
    return appendLogs(this.#executor, lease, lines);
  }

  /**
   * Completes a job, with what its step adds to the run; with `body`, in one commit with what `body` writes through the transaction that it
   * gets, so that this happens exactly once.
   *
   * ```ts
   * await ledger.jobs.complete(lease, { output: { credited: 500 } }, async (trx) => {
   *   await trx.insertInto("credits").values({ account, cents: 500 }).execute();
   * });
   * ```
   */
  complete(
    lease: Lease,
    success: StepSuccess = {},
    body?: (trx: Transaction<DB>) => Promise<unknown>,
  ): Promise<SettledJob> {
    if (body !== undefined) return completeJobWith(this.#executor, lease, success, body);
    return completeJob(this.#executor, lease, success);
  }

  fail(lease: Lease, failure: Failure): Promise<SettledJob> {
    return failJob(this.#executor, lease, failure);
  }

  /** Puts the job back for later without using the attempt; progress and checkpoint are kept. */
  snooze(lease: Lease, snooze: SnoozeRequest): Promise<SettledJob> {
    return snoozeJob(this.#executor, lease, snooze);
  }

  /**
   * Ends a slice of a long job: this run of it has succeeded, and the job goes on as its next run, with fresh attempts.
   *
   * ```ts
   * await ledger.jobs.continue(lease, { checkpoint: { page: page + 1 }, delaySeconds: 60 });
   * ```
   */
  continue(lease: Lease, continuation: Continuation = {}): Promise<SettledJob> {
    return continueJob(this.#executor, lease, continuation);
  }

  /** Settles many attempts, each with its own outcome. */
  settle(settlements: readonly StepSettlement[]): Promise<SettleResult[]> {
    return settle(this.#executor, settlements);
  }

  /** Settles many attempts, and claims jobs of steps that this releases where nothing else is due before them. */
  settleAndClaim(settlements: readonly StepSettlement[], claim: EagerClaimOptions): Promise<SettledAndClaimed> {
    return settleAndClaim(this.#executor, settlements, claim);
  }

  /** Settles leases that have expired. */
  reap(options?: ReapOptions): Promise<Reaped> {
    return reap(this.#executor, options);
  }

  cancel(jobId: string, options: CancelJobOptions): Promise<CanceledJob> {
    return cancelJob(this.#executor, jobId, options);
  }

  /** Cancels all live jobs that a filter finds, in bounded batches. */
  cancelMany(options: CancelManyJobsOptions): Promise<CanceledJobs> {
    return cancelManyJobs(this.#executor, options);
  }

  /** Puts a dead-lettered or cancelled job back into the queue, if it is still as it was seen. */
  requeue(jobId: string, options: RequeueOptions): Promise<RequeuedJob> {
    return requeueJob(this.#executor, jobId, options);
  }

  /** Requeues all dead-lettered, or all cancelled, jobs that a filter finds, in bounded batches. */
  requeueMany(options: RequeueManyOptions): Promise<RequeuedJobs> {
    return requeueManyJobs(this.#executor, options);
  }

  /** Enqueues a new job that does again what a succeeded one did, once for a key. */
  replay(jobId: string, options: ReplayOptions): Promise<EnqueuedJob> {
    return replayJob(this.#executor, jobId, options);
  }

  /** Replays all succeeded jobs that a filter finds, in bounded batches, each once for the key. */
  replayMany(options: ReplayManyOptions): Promise<ReplayedJobs> {
    return replayManyJobs(this.#executor, options);
  }

  get(jobId: string, scope: Scope, options?: ReadOptions): Promise<Job> {
    return getJob(this.#executor, jobId, scope, options);
  }

  /** In pages, the newest first. */
  list(options: ListJobsOptions): Promise<JobsPage> {
    return listJobs(this.#executor, options);
  }

  /** Those whose attempts are used up and that nobody has put back, in pages, the newest first. */
  deadLetters(options: Omit<ListJobsOptions, "status">): Promise<JobsPage> {
    return listJobs(this.#executor, { ...options, status: "DEAD_LETTERED" });
  }

  /** What has happened to a job. */
  timeline(jobId: string, scope: Scope): Promise<JobEvent[]> {
    return jobTimeline(this.#executor, jobId, scope);
  }

  /** What handlers logged, in pages, the oldest first. */
  logs(jobId: string, scope: Scope, options?: LogsOptions): Promise<JobLogsPage> {
    return jobLogs(this.#executor, jobId, scope, options);
  }

  /** How many there are, by type and status. */
  counts(scope: Scope): Promise<JobCounts> {
    return countJobs(this.#executor, scope);
  }

  /** Brings the definitions in the database in step with those in code. */
  sync(definitions: readonly AnyJobDefinition[], options?: SyncOptions): Promise<SyncedDefinitions> {
    return syncDefinitions(this.#executor, definitions, options);
  }

  /** Jobs of these types are accepted and kept, and not started. */
  pause(types: readonly string[]): Promise<void> {
    return setPaused(this.#executor, types, true);
  }

  resume(types: readonly string[]): Promise<void> {
    return setPaused(this.#executor, types, false);
  }
}

/** Workflow runs: see each function for its round trips and errors. */
class Runs {
  readonly #executor: Executor;
  readonly #listener: Listener | null;

  constructor(executor: Executor, listener: Listener | null) {
    this.#executor = executor;
    this.#listener = listener;
  }

  /** Enqueues one run: of a definition with its typed input, or of a graph. */
  async enqueue<Input, Result>(
    workflow: WorkflowDefinition<string, Input, Result>,
    input: Input,
    options?: RunOptions,
  ): Promise<EnqueuedRun>;
  async enqueue(graph: GraphSpec, options?: RunOptions): Promise<EnqueuedRun>;
  async enqueue(
    workflow: WorkflowDefinition<string, unknown, unknown> | GraphSpec,
    input?: unknown,
    options?: RunOptions,
  ): Promise<EnqueuedRun> {
    const request =
      "steps" in workflow
        ? { ...(input as RunOptions | undefined), graph: workflow }
        : await requestOf(workflow, input, options);
    const [enqueued] = await enqueueRuns(this.#executor, [request]);
    if (enqueued === undefined) throw new LedgerError("input.invalid");
    return enqueued;
  }

  /** Enqueues any number of runs, all or none. */
  enqueueMany(requests: readonly RunRequest[]): Promise<EnqueuedRun[]> {
    return enqueueRuns(this.#executor, requests);
  }

  /** Adds steps to a live run while an external gate of it is open. */
  append(runId: string, options: AppendOptions): Promise<AppendedSteps> {
    return appendSteps(this.#executor, runId, options);
  }

  /** Does what a claimed job of the type `runledger.child_run` is for: starts the child run, or ends its step. */
  advanceChild(job: ClaimedJob): Promise<AdvancedChild> {
    return advanceChild(this.#executor, job);
  }

  cancel(runId: string, options: CancelRunOptions): Promise<CanceledRun> {
    return cancelRun(this.#executor, runId, options);
  }

  /** Cancels all live runs that a filter finds, in bounded batches. */
  cancelMany(options: CancelManyOptions): Promise<CanceledRuns> {
    return cancelManyRuns(this.#executor, options);
  }

  /** A handle on one run; its result is typed when the workflow's definition is given. */
  handle<Result = JsonValue>(runId: string, options: HandleOptions<Result>): RunHandle<Result> {
    return new RunHandle(this.#executor, this.#listener, runId, options);
  }

  /** Expires gates and cancels runs that are past their deadline. A worker that reaps does so by itself. */
  fireTimers(options?: FireTimersOptions): Promise<FiredTimers> {
    return fireTimers(this.#executor, options);
  }

  /** Tries failed steps of a run again, in place. */
  retry(runId: string, options: RetryRunOptions): Promise<RetriedRun> {
    return retryRun(this.#executor, runId, options);
  }

  /** Starts a new run that does again what did not succeed in this one. */
  recover(runId: string, options: RecoverRunOptions): Promise<EnqueuedRun> {
    return recoverRun(this.#executor, runId, options);
  }

  /** Starts a new run that does again the named steps of this one and all that comes after them. */
  rerun(runId: string, options: RerunOptions): Promise<EnqueuedRun> {
    return rerunRun(this.#executor, runId, options);
  }

  /** In pages, the newest first. */
  list(options: ListRunsOptions): Promise<RunsPage> {
    return listRuns(this.#executor, options);
  }

  /** What has happened to a run and its steps. */
  timeline(runId: string, scope: Scope, options?: RunTimelineOptions): Promise<RunEvent[]> {
    return runTimeline(this.#executor, runId, scope, options);
  }

  /** How many there are, by type and status. */
  counts(scope: Scope): Promise<RunCounts> {
    return countRuns(this.#executor, scope);
  }

  /** Status and counters. */
  getStatus(runId: string, scope: Scope): Promise<RunStatusView> {
    return getRunStatus(this.#executor, runId, scope);
  }

  /** The run with all its steps. */
  get(runId: string, scope: Scope, options?: ReadOptions): Promise<Run> {
    return getRun(this.#executor, runId, scope, options);
  }

  /** The result step's output, once the run has succeeded; typed when the workflow's definition is given. */
  getResult<Result>(runId: string, options: ResultOptions & { readonly workflow: ResultType<Result> }): Promise<Result>;
  getResult(runId: string, options: ResultOptions): Promise<JsonValue>;
  getResult(runId: string, options: ResultOptions): Promise<unknown> {
    return getResult(this.#executor, this.#listener, runId, options);
  }
}

/** Steps: see each function for its round trips and errors. */
class Steps {
  readonly #executor: Executor;

  constructor(executor: Executor) {
    this.#executor = executor;
  }

  /** Completes an external gate. */
  complete(runId: string, stepKey: string, completion: ExternalCompletion): Promise<CompletedStep> {
    return completeExternalStep(this.#executor, runId, stepKey, completion);
  }

  /** The gates that wait for somebody, in pages. */
  openGates(options: OpenGatesOptions): Promise<OpenGatesPage> {
    return listOpenGates(this.#executor, options);
  }

  /** What the prerequisites of each claimed job that is a step came to, by job id. */
  prerequisites(jobs: readonly ClaimedJob[]): Promise<Map<string, Prerequisites>> {
    return prerequisites(this.#executor, jobs);
  }
}

/** Schedules: see each function for its round trips and errors. */
class Schedules {
  readonly #executor: Executor;

  constructor(executor: Executor) {
    this.#executor = executor;
  }

  /** Brings the schedules in the database in step with those in code. */
  sync(definitions: readonly ScheduleDefinition[], options?: SyncSchedulesOptions): Promise<SyncedSchedules> {
    return syncSchedules(this.#executor, definitions, options);
  }

  /** Creates one schedule, or changes the one that is there. */
  upsert(definition: ScheduleDefinition): Promise<Schedule> {
    return upsertSchedule(this.#executor, definition);
  }

  /** Fires what is due. A worker does so by itself. */
  fireDue(options?: FireDueOptions): Promise<FiredSchedules> {
    return fireDue(this.#executor, options);
  }

  /** Nothing of these schedules is fired until they are resumed. */
  pause(names: readonly string[], options: ScheduleScope): Promise<void> {
    return pauseSchedules(this.#executor, names, options);
  }

  /** They go on from now: ticks of the pause are passed over. */
  resume(names: readonly string[], options: ScheduleScope): Promise<void> {
    return resumeSchedules(this.#executor, names, options);
  }

  /** Starts the schedule's job or run now, besides its ticks. */
  triggerNow(name: string, options: TriggerOptions): Promise<TriggeredSchedule> {
    return triggerSchedule(this.#executor, name, options);
  }

  /** Sets the next tick. */
  retime(name: string, options: RetimeOptions): Promise<Date | null> {
    return retimeSchedule(this.#executor, name, options);
  }

  /** Removes the schedule with its history; what it started stays. */
  remove(name: string, options: ScheduleScope): Promise<void> {
    return removeSchedule(this.#executor, name, options);
  }

  get(name: string, scope: Scope, options?: ReadOptions): Promise<Schedule> {
    return getSchedule(this.#executor, name, scope, options);
  }

  /** The schedules, in pages. */
  list(options: ListSchedulesOptions): Promise<SchedulesPage> {
    return listSchedules(this.#executor, options);
  }

  /** What became of a schedule's ticks, in pages. */
  fires(name: string, options: Omit<ListSchedulesOptions, "values">): Promise<FiresPage> {
    return listFires(this.#executor, name, options);
  }
}

/** Keeping: what a worker that maintains does by itself. See each function for its round trips and errors. */
class Maintenance {
  readonly #executor: Executor;

  constructor(executor: Executor) {
    this.#executor = executor;
  }

  /** Folds the changes of the kept counts. */
  compactCounts(options?: CompactOptions): Promise<Compacted> {
    return compactCounts(this.#executor, options);
  }

  /** Makes partitions of the ledger ahead of time, and answers with the names of new ones. */
  ensurePartitions(weeksAhead?: number): Promise<string[]> {
    return ensurePartitions(this.#executor, weeksAhead);
  }

  /** Deletes limit keys that nobody uses. A worker that maintains does so by itself. */
  sweepLimits(options?: SweepLimitsOptions): Promise<SweptLimits> {
    return sweepLimits(this.#executor, options);
  }

  /** Deletes what is past by its policy, in bounded batches. */
  retain(options: RetainOptions): Promise<Retained> {
    return retain(this.#executor, options);
  }
}

export type { Jobs, Maintenance, Runs, Schedules, Steps };
