/** runledger: durable jobs and workflow runs in the PostgreSQL that a service already has. */
export type { JsonArray, JsonObject, JsonPrimitive, JsonValue } from "./database/column-types.ts";
export type { Counts, CountsByType } from "./database/counts.ts";
export { ledgerErrorOf } from "./database/failures.ts";
export type { ListenConnection, ListenSource, NotificationHandler } from "./database/listener.ts";
export { type ConnectingPool, type PreparingClient, prepared } from "./database/prepared.ts";
export { DEFAULT_SCHEMA } from "./database/schema.ts";
export type { Scope } from "./database/scope.ts";
export type {
  DependencyKind,
  FailureKind,
  JobStatus,
  RunStatus,
  StepKind,
  StepStatus,
} from "./database/statuses.ts";
export type { LedgerTables, RunledgerDatabase } from "./database/tables.ts";
export type { Tenant } from "./database/tenant.ts";
export { type AesGcmOptions, aesGcmCodec } from "./database/values/aes-gcm.ts";
export type { CodecContext, ValueCodec, ValueKind } from "./database/values/codec.ts";
export type { ReadOptions } from "./database/values/read.ts";
export type { ValueOptions } from "./database/values/rules.ts";
export {
  type ErrorCategory,
  type ErrorDetails,
  errorCodes,
  isLedgerError,
  LedgerError,
  type LedgerErrorCode,
} from "./errors.ts";
export type { CanceledJob, CancelJobOptions } from "./jobs/cancel.ts";
export type {
  CanceledJobs,
  CancelJobsProgress,
  CancelManyJobsOptions,
  LiveJobFilter,
} from "./jobs/cancel-many.ts";
export type { SyncedDefinitions, SyncOptions } from "./jobs/catalogue.ts";
export type { ClaimOptions } from "./jobs/claim.ts";
export type { ClaimedJob } from "./jobs/claimed.ts";
export type { JobCounts } from "./jobs/counts.ts";
export {
  type AnyJobDefinition,
  type BackoffPolicy,
  type BackoffTiming,
  type DefineJobOptions,
  defineJob,
  type InputOf,
  type JobDefaults,
  type JobDefinition,
  type JobOptions,
  type JobRequest,
  type OutputOf,
  type PayloadOf,
  type PrerequisitesOf,
  parsed,
  typed,
} from "./jobs/definition.ts";
export type { EagerClaimOptions } from "./jobs/eager.ts";
export type { BulkOptions, EndedJobFilter, JobFilter } from "./jobs/filter.ts";
export type { EnqueuedJob, EnqueueOptions } from "./jobs/insertion.ts";
export type { ActiveJobKey, Debounce, JobKeys, Throttle } from "./jobs/key-options.ts";
export type { Lease } from "./jobs/lease.ts";
export type { SweepLimitsOptions, SweptLimits } from "./jobs/limit-sweep.ts";
export type { DefinedLimit, JobLimit, LimitRate, RequestedLimit } from "./jobs/limits.ts";
export type { JobsPage, ListedJob, ListJobsOptions } from "./jobs/list.ts";
export type { JobLog, JobLogsPage, LogsOptions } from "./jobs/logs.ts";
export type {
  Continuation,
  Failure,
  SettledJob,
  Settlement,
  SettleResult,
  SnoozeRequest,
  Success,
} from "./jobs/outcome.ts";
export type { Job, JobSummary } from "./jobs/read.ts";
export type { ReplayOptions, ReplaySettings } from "./jobs/replay.ts";
export type { ReplayedJobs, ReplayManyOptions, ReplayProgress } from "./jobs/replay-many.ts";
export type { RequeueableStatus, RequeuedJob, RequeueOptions, RequeueSettings } from "./jobs/requeue.ts";
export type { RequeuedJobs, RequeueFilter, RequeueManyOptions, RequeueProgress } from "./jobs/requeue-many.ts";
export type { Heartbeat, LogLevel, LogLine, Progress } from "./jobs/running.ts";
export type { ScheduleTick } from "./jobs/tick.ts";
export type { JobEvent } from "./jobs/timeline.ts";
export {
  createLedger,
  type Jobs,
  type Ledger,
  type LedgerOptions,
  type Maintenance,
  type Runs,
  type Schedules,
  type Steps,
} from "./ledger.ts";
export { remedies } from "./remedies.ts";
export type { Compacted, CompactOptions } from "./retention/compact.ts";
export {
  type EndedJobStatus,
  type EndedRunStatus,
  type KeptDays,
  type Retention,
  type RetentionPolicies,
  requireRetention,
} from "./retention/policies.ts";
export type { Retained, RetainOptions, RetainProgress } from "./retention/retain.ts";
export type { AppendRequest } from "./runs/additions.ts";
export type { AppendedSteps, AppendOptions } from "./runs/append.ts";
export type { CanceledRun, CancelRunOptions } from "./runs/cancel.ts";
export type {
  CanceledRuns,
  CancelFilter,
  CancelManyOptions,
  CancelProgress,
  LiveRunStatus,
} from "./runs/cancel-many.ts";
export type { AdvancedChild } from "./runs/child.ts";
export type { RunCounts } from "./runs/counts.ts";
export { type DefineWorkflowOptions, defineWorkflow } from "./runs/definition.ts";
export type { RunRequest } from "./runs/enqueue.ts";
export {
  type ChildOptions,
  type GateOptions,
  type JobStepSettings,
  type MapOptions,
  type StepDependencies,
  type StepOptions,
  type StepRef,
  type StepSettings,
  WorkflowAddition,
  WorkflowBuilder,
} from "./runs/graph.ts";
export type { HandleOptions, ResultType, RunHandle } from "./runs/handle.ts";
export type { EnqueuedRun } from "./runs/insertion.ts";
export type { ListedRun, ListRunsOptions, RunsPage } from "./runs/list.ts";
export type { ActiveRunKey, RunOptions } from "./runs/prepare.ts";
export type { Run, RunStatusView, Step } from "./runs/read.ts";
export type { RecoverRunOptions, RerunOptions } from "./runs/recover.ts";
export type { ResultOptions } from "./runs/result.ts";
export type { RetriedRun, RetryRunOptions } from "./runs/retry.ts";
export type { StepSettlement, StepSuccess } from "./runs/settle.ts";
export {
  type AdditionSpec,
  type BuildContext,
  CHILD_RUN_JOB,
  type ChildSpec,
  type DependencySpec,
  type GateExpiry,
  type GraphSpec,
  type MapSpec,
  type StepJobSpec,
  type StepSpec,
  type WorkflowDefinition,
} from "./runs/spec.ts";
export type { RunEvent, RunTimelineOptions } from "./runs/timeline.ts";
export type { ExpiredGate, FiredTimers, FireTimersOptions, SetAsideTimer } from "./runs/timers.ts";
export type { SyncedSchedules, SyncSchedulesOptions } from "./schedules/catalogue.ts";
export {
  defineSchedule,
  type JobScheduleOptions,
  type ScheduleDefinition,
  type ScheduledJobSettings,
  type ScheduledRunSettings,
  type ScheduleTarget,
  type ScheduleTiming,
  type WorkflowScheduleOptions,
} from "./schedules/definition.ts";
export type {
  FireDueOptions,
  FiredSchedules,
  FiredTick,
  SetAsideSchedule,
  SkippedTick,
} from "./schedules/fire.ts";
export type { RetimeOptions, ScheduleScope, TriggeredSchedule, TriggerOptions } from "./schedules/operate.ts";
export type {
  FiresPage,
  ListSchedulesOptions,
  Schedule,
  ScheduleFailure,
  ScheduleFire,
  SchedulesPage,
} from "./schedules/read.ts";
export type { AnyWorkflowDefinition, StartOptions } from "./schedules/start.ts";
export type { CatchUp, FireOutcome, Overlap } from "./schedules/words.ts";
export type { AppendedStep } from "./steps/append.ts";
export type { CompletedStep, ExternalCompletion } from "./steps/external.ts";
export type { OpenGate, OpenGatesOptions, OpenGatesPage } from "./steps/gates.ts";
export type {
  PrerequisiteFailure,
  PrerequisiteFailures,
  PrerequisiteOutputs,
  Prerequisites,
} from "./steps/prerequisites.ts";
export type { Reaped, ReapOptions } from "./steps/reap.ts";
export type { TerminalStatus } from "./steps/resolve.ts";
export type { SettledAndClaimed } from "./steps/settle.ts";
