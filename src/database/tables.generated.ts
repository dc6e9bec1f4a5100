/**
 * Generated from the migrations by `npm run codegen`; do not edit.
 */
import type { BigIntColumn, JsonColumn, TimestampColumn } from "./column-types.ts";
import type { ColumnType, GeneratedAlways } from "kysely";

export type ArrayType<T> = ArrayTypeImpl<T> extends (infer U)[]
  ? U[]
  : ArrayTypeImpl<T>;

export type ArrayTypeImpl<T> = T extends ColumnType<infer S, infer I, infer U>
  ? ColumnType<S[], I[], U[]>
  : T[];

export type DependencyKind = "ON_SUCCESS" | "ON_TERMINAL";

export type FailureKind = "LEASE_EXPIRED" | "PANICKED" | "RETRYABLE" | "TERMINAL" | "TIMEOUT";

export type Generated<T> = T extends ColumnType<infer S, infer I, infer U>
  ? ColumnType<S, I | undefined, U>
  : ColumnType<T, T | undefined, T>;

export type JobKeyKind = "IDEMPOTENCY" | "THROTTLE";

export type JobStatus = "CANCELED" | "DEAD_LETTERED" | "LEASED" | "PENDING" | "SUCCEEDED";

export type RunStatus = "CANCELED" | "COMPLETED_WITH_ERRORS" | "RUNNING" | "SUCCEEDED" | "WAITING_FOR_EXTERNAL";

export type ScheduleCatchUp = "BACKFILL" | "ONCE" | "SKIP";

export type ScheduleFireOutcome = "FIRED" | "SKIPPED" | "TRIGGERED";

export type ScheduleOverlap = "ALLOW" | "QUEUE" | "SKIP";

export type ScheduleTarget = "JOB" | "WORKFLOW";

export type StepKind = "EXTERNAL" | "JOB" | "MAP";

export type StepStatus = "BLOCKED" | "CANCELED" | "ENQUEUED" | "FAILED" | "RUNNING" | "SUCCEEDED" | "WAITING_FOR_EXTERNAL";

export interface JobAttempts {
  attempt: number;
  ended_at: TimestampColumn;
  error_code: string;
  error_message: string;
  failure_kind: FailureKind;
  job_id: string;
  run_number: number;
  started_at: TimestampColumn;
  worker_id: string | null;
}

export interface JobDeadLetters {
  attempt: number;
  checkpoint: JsonColumn | null;
  ended_at: TimestampColumn;
  enqueued_at: TimestampColumn;
  error_code: string | null;
  error_message: string | null;
  failure_kind: FailureKind;
  id: string;
  max_attempts: number;
  organization_id: string | null;
  payload: JsonColumn;
  priority: number;
  run_number: number;
  tags: string[] | null;
  type: string;
  workflow_run_id: string | null;
  workflow_step_id: string | null;
}

export interface JobDefinitions {
  backoff_by_code: JsonColumn | null;
  backoff_factor: Generated<number>;
  backoff_initial_seconds: Generated<number>;
  backoff_jitter: Generated<number>;
  backoff_max_seconds: Generated<number>;
  catalogue: string | null;
  created_at: Generated<TimestampColumn>;
  enabled: Generated<boolean>;
  max_attempts: Generated<number>;
  paused: Generated<boolean>;
  priority: Generated<number>;
  timeout_seconds: Generated<number>;
  type: string;
  updated_at: Generated<TimestampColumn>;
  version: Generated<number>;
}

export interface JobEvents {
  actor: string | null;
  at: Generated<TimestampColumn>;
  details: JsonColumn | null;
  event: string;
  id: GeneratedAlways<string>;
  job_id: string;
  run_number: number;
}

export interface JobIdempotencyKeys {
  created_at: Generated<TimestampColumn>;
  expires_at: TimestampColumn | null;
  job_id: string;
  key: string;
  kind: Generated<JobKeyKind>;
  organization_id: string | null;
  requested: JsonColumn;
  requested_run_at: TimestampColumn | null;
  tenant: GeneratedAlways<string>;
  type: string;
}

export interface JobLedger {
  active_key: string | null;
  attempt: number;
  canceled_reason: string | null;
  checkpoint: JsonColumn | null;
  continued: boolean | null;
  ended_at: TimestampColumn;
  enqueued_at: TimestampColumn;
  error_code: string | null;
  error_message: string | null;
  failure_kind: FailureKind | null;
  id: string;
  lease_expires_at: TimestampColumn | null;
  leased_at: TimestampColumn | null;
  limit_concurrency: number | null;
  limit_key: string | null;
  limit_period_seconds: number | null;
  limit_starts: number | null;
  max_attempts: number;
  metadata: JsonColumn | null;
  organization_id: string | null;
  output: JsonColumn | null;
  payload: JsonColumn;
  priority: number;
  progress_done: BigIntColumn | null;
  progress_total: BigIntColumn | null;
  run_at: TimestampColumn;
  run_number: number;
  source_job_id: string | null;
  source_run_number: number | null;
  status: JobStatus;
  tags: string[] | null;
  timeout_seconds: number;
  type: string;
  worker_id: string | null;
  workflow_run_id: string | null;
  workflow_step_id: string | null;
}

export interface JobLimits {
  bucket_ends: Generated<ArrayType<TimestampColumn>>;
  bucket_starts: Generated<number[]>;
  concurrency: number | null;
  key: string;
  period_seconds: number | null;
  settings_job_id: string | null;
  starts: number | null;
  tenant: string;
  wake_at: TimestampColumn | null;
}

export interface JobLimitWakes {
  concurrency: number | null;
  due_at: TimestampColumn;
  id: GeneratedAlways<string>;
  job_id: string;
  key: string;
  period_seconds: number | null;
  priority: number;
  starts: number | null;
  tenant: string;
  type: string;
}

export interface JobLogs {
  at: Generated<TimestampColumn>;
  attempt: number;
  fields: JsonColumn | null;
  id: GeneratedAlways<string>;
  job_id: string;
  level: string;
  message: string;
  run_number: number;
}

export interface JobQueue {
  active_key: string | null;
  attempt: Generated<number>;
  checkpoint: JsonColumn | null;
  debounce_key: string | null;
  enqueued_at: Generated<TimestampColumn>;
  id: string;
  lease_expires_at: TimestampColumn | null;
  leased_at: TimestampColumn | null;
  limit_concurrency: number | null;
  limit_key: string | null;
  limit_period_seconds: number | null;
  limit_starts: number | null;
  max_attempts: number;
  metadata: JsonColumn | null;
  organization_id: string | null;
  payload: JsonColumn;
  priority: number;
  progress_done: BigIntColumn | null;
  progress_total: BigIntColumn | null;
  run_at: TimestampColumn;
  run_number: Generated<number>;
  source_job_id: string | null;
  source_run_number: number | null;
  status: Generated<JobStatus>;
  tags: string[] | null;
  timeout_seconds: number;
  type: string;
  worker_id: string | null;
  workflow_run_id: string | null;
  workflow_step_id: string | null;
}

export interface JobReplays {
  created_at: Generated<TimestampColumn>;
  job_id: string;
  key: string;
  requested: JsonColumn;
  source_job_id: string;
  source_run_number: number;
}

export interface Jobs {
  attempt: number;
  canceled_reason: string | null;
  checkpoint: JsonColumn | null;
  ended_at: TimestampColumn | null;
  enqueued_at: TimestampColumn;
  error_code: string | null;
  error_message: string | null;
  failure_kind: FailureKind | null;
  id: string;
  lease_expires_at: TimestampColumn | null;
  leased_at: TimestampColumn | null;
  limit_key: string | null;
  max_attempts: number;
  metadata: JsonColumn | null;
  organization_id: string | null;
  output: JsonColumn | null;
  payload: JsonColumn;
  priority: number;
  progress_done: BigIntColumn | null;
  progress_total: BigIntColumn | null;
  run_at: TimestampColumn;
  run_number: number;
  status: JobStatus;
  tags: string[] | null;
  timeout_seconds: number;
  type: string;
  worker_id: string | null;
  workflow_run_id: string | null;
  workflow_step_id: string | null;
}

export interface JobScheduleFires {
  fired_at: Generated<TimestampColumn>;
  intended_at: TimestampColumn;
  job_id: string | null;
  outcome: Generated<ScheduleFireOutcome>;
  run_id: string | null;
  schedule_id: string;
}

export interface JobSchedules {
  backfill_limit: Generated<number>;
  catalogue: string | null;
  catch_up: Generated<ScheduleCatchUp>;
  created_at: Generated<TimestampColumn>;
  cron: string;
  deadline_seconds: number | null;
  due_at: TimestampColumn | null;
  enabled: Generated<boolean>;
  ends_at: TimestampColumn | null;
  error_code: string | null;
  error_message: string | null;
  failed_at: TimestampColumn | null;
  failures: Generated<number>;
  forgotten_until: TimestampColumn | null;
  grace_seconds: Generated<number>;
  id: string;
  intended_at: TimestampColumn | null;
  jitter_seconds: Generated<number>;
  last_intended_at: TimestampColumn | null;
  last_job_id: string | null;
  last_run_id: string | null;
  limit_concurrency: number | null;
  limit_key: string | null;
  limit_period_seconds: number | null;
  limit_starts: number | null;
  max_attempts: number | null;
  name: string;
  organization_id: string | null;
  overlap: Generated<ScheduleOverlap>;
  paused: Generated<boolean>;
  payload: JsonColumn;
  payload_digest: JsonColumn | null;
  priority: number | null;
  starts_at: TimestampColumn | null;
  tags: string[] | null;
  target: ScheduleTarget;
  target_type: string;
  tenant: GeneratedAlways<string>;
  time_zone: Generated<string>;
  timeout_seconds: number | null;
  updated_at: Generated<TimestampColumn>;
}

export interface JobTimeline {
  actor: string | null;
  at: TimestampColumn;
  attempt: number | null;
  code: string | null;
  details: JsonColumn | null;
  event: string;
  job_id: string;
  message: string | null;
  place: number;
  run_number: number;
}

export interface StatusCountDeltas {
  delta: BigIntColumn;
  organization_id: string | null;
  status: string;
  subject: string;
  type: string;
}

export interface StatusCounts {
  count: BigIntColumn;
  organization_id: string | null;
  status: string;
  subject: string;
  tenant: GeneratedAlways<string>;
  type: string;
}

export interface WorkflowIdempotencyKeys {
  created_at: Generated<TimestampColumn>;
  expires_at: TimestampColumn | null;
  key: string;
  organization_id: string | null;
  requested: JsonColumn;
  run_id: string;
  tenant: GeneratedAlways<string>;
  type: string;
}

export interface WorkflowRunMutations {
  created_at: Generated<TimestampColumn>;
  mutation: string;
  mutation_key: string;
  requested: JsonColumn;
  result: JsonColumn;
  run_id: string;
}

export interface WorkflowRuns {
  active_key: string | null;
  canceled_reason: string | null;
  created_at: Generated<TimestampColumn>;
  deadline_at: TimestampColumn | null;
  ended_at: TimestampColumn | null;
  errored_count: number;
  id: string;
  open_count: number;
  organization_id: string | null;
  parent_run_id: string | null;
  parent_step_id: string | null;
  result_step_id: string | null;
  source_kind: string | null;
  source_run_id: string | null;
  status: RunStatus;
  step_count: number;
  type: string;
  waiting_count: number;
}

export interface WorkflowStepDependencies {
  kind: DependencyKind;
  prerequisite_id: string;
  run_id: string;
  step_id: string;
}

export interface WorkflowSteps {
  child_run_id: string | null;
  completed_by: string | null;
  continues: Generated<boolean>;
  delay_seconds: number | null;
  dependent_count: number;
  ended_at: TimestampColumn | null;
  error_code: string | null;
  error_message: string | null;
  expires_after_seconds: number | null;
  expires_at: TimestampColumn | null;
  expiry_outcome: StepStatus | null;
  expiry_output: JsonColumn | null;
  id: string;
  item_count: number | null;
  item_edge: DependencyKind | null;
  job_id: string | null;
  job_run_number: Generated<number>;
  job_type: string | null;
  kept_outcome: StepStatus | null;
  kind: StepKind;
  limit_concurrency: number | null;
  limit_key: string | null;
  limit_period_seconds: number | null;
  limit_starts: number | null;
  map_index: number | null;
  map_source_id: string | null;
  map_step_id: string | null;
  max_attempts: number | null;
  open_since: TimestampColumn | null;
  organization_id: string | null;
  output: JsonColumn | null;
  payload: JsonColumn | null;
  pending_count: number;
  priority: number | null;
  reason: string | null;
  released_at: TimestampColumn | null;
  run_id: string;
  started_at: TimestampColumn | null;
  status: StepStatus;
  step_key: string;
  timeout_seconds: number | null;
  unsatisfied_count: number;
}

export interface WorkflowTimeline {
  actor: string | null;
  at: TimestampColumn;
  code: string | null;
  details: JsonColumn | null;
  event: string;
  message: string | null;
  place: number;
  run_id: string;
  step_key: string | null;
}

export interface DB {
  job_attempts: JobAttempts;
  job_dead_letters: JobDeadLetters;
  job_definitions: JobDefinitions;
  job_events: JobEvents;
  job_idempotency_keys: JobIdempotencyKeys;
  job_ledger: JobLedger;
  job_limit_wakes: JobLimitWakes;
  job_limits: JobLimits;
  job_logs: JobLogs;
  job_queue: JobQueue;
  job_replays: JobReplays;
  job_schedule_fires: JobScheduleFires;
  job_schedules: JobSchedules;
  job_timeline: JobTimeline;
  jobs: Jobs;
  status_count_deltas: StatusCountDeltas;
  status_counts: StatusCounts;
  workflow_idempotency_keys: WorkflowIdempotencyKeys;
  workflow_run_mutations: WorkflowRunMutations;
  workflow_runs: WorkflowRuns;
  workflow_step_dependencies: WorkflowStepDependencies;
  workflow_steps: WorkflowSteps;
  workflow_timeline: WorkflowTimeline;
}
