/**
 * What the reference model remembers: only what came from outside. Which step is blocked, released or
 * cancelled for its prerequisites is not remembered; it is derived anew each time (`derive.ts`).
 */
import type { DependencyKind, FailureKind, JobStatus, JsonValue, Lease, StepStatus } from "../../src/index.ts";

export interface Need {
  readonly key: string;
  readonly kind: DependencyKind;
}

export interface JobPlan {
  readonly type: string;
  readonly priority: number;
  readonly maxAttempts: number;
  readonly payload: JsonValue;
}

export interface MapPlan {
  /** One of the step's prerequisites. */
  readonly over: string;
  readonly onItemFailure: "cancel" | "continue";
}

/** A step to come: without a job it is an external gate, with a map the job is that of its items. */
export interface StepPlan {
  readonly key: string;
  readonly needs: readonly Need[];
  readonly job: JobPlan | null;
  readonly map: MapPlan | null;
}

/** Steps to add to a run. */
export interface Addition {
  readonly key: string;
  readonly steps: readonly StepPlan[];
}

/** A run to come. */
export interface RunPlan {
  readonly organization: string | null;
  readonly idempotencyKey: string | null;
  readonly result: string | null;
  readonly steps: readonly StepPlan[];
}

/** A job to come that belongs to no run. */
export interface LoneJobPlan extends JobPlan {
  readonly organization: string | null;
  readonly idempotencyKey: string | null;
}

/** Undefined: none was given, which is not the same as null. */
export type Output = JsonValue | undefined;
export type Ended = "SUCCEEDED" | "FAILED" | "CANCELED";

/** How a step was ended from outside. */
export interface StepEnd {
  readonly status: Ended;
  readonly output: Output;
  readonly errorCode: string | null;
  readonly errorMessage: string | null;
  readonly completedBy: string | null;
  readonly reason: string | null;
  /** Whether a worker had started it. */
  readonly started: boolean;
  /** It ended because its run was cancelled, perhaps before it was released. */
  readonly withRun: boolean;
  /** Whether it was ever runnable, where that cannot be told any more because prerequisites live again. */
  readonly released: boolean | null;
}

/** How a gate is to end as soon as it opens. */
export type Kept = Pick<StepEnd, "status" | "output" | "errorCode" | "completedBy" | "reason">;

export interface Step {
  id: string;
  readonly key: string;
  readonly plan: StepPlan;
  /** Of a JOB step. */
  readonly job: Job | null;
  end: StepEnd | null;
  /** Of a gate that was completed before it opened. */
  kept: Kept | null;
  /** The keys of a map step's items, once it has fanned out. */
  items: readonly string[] | null;
}

export interface Run {
  readonly name: string;
  id: string;
  readonly plan: RunPlan;
  readonly steps: Step[];
  /** What was added, and what was answered to it. */
  readonly additions: (Addition & { readonly statuses: Readonly<Record<string, StepStatus>> })[];
  readonly retries: { readonly key: string | null; readonly steps: readonly string[] | null; retried: string[] }[];
  canceled: { readonly reason: string | null } | null;
}

/** A row that the ledger keeps of one run of a job. */
export interface EndedJob {
  readonly runNumber: number;
  readonly status: Exclude<JobStatus, "PENDING" | "LEASED">;
  readonly attempt: number;
  readonly workerId: string | null;
  readonly failureKind: FailureKind | null;
  readonly errorCode: string | null;
  readonly errorMessage: string | null;
  readonly canceledReason: string | null;
  /** Of a job that belongs to no run; a step's output is the step's. */
  readonly output: Output;
}

export interface FailedAttempt {
  readonly runNumber: number;
  readonly attempt: number;
  readonly workerId: string;
  readonly failureKind: FailureKind;
  readonly errorCode: string;
  readonly errorMessage: string;
}

export interface Job {
  readonly name: string;
  id: string;
  readonly plan: JobPlan;
  readonly organization: string | null;
  readonly idempotencyKey: string | null;
  /** The name of its run, if it is a step's. */
  readonly run: string | null;
  runNumber: number;
  attempt: number;
  lease: { readonly workerId: string; expired: boolean } | null;
  readonly ended: EndedJob[];
  readonly failed: FailedAttempt[];
  /** The time at which it is due, as the database chose it: the order of claims follows from it. */
  runAt: string;
  /** False only in the transaction in which it was given back with a backoff of nothing. */
  due: boolean;
}

export interface State {
  readonly runs: Run[];
  /** Of steps and of none, in the order of their names. */
  readonly jobs: Job[];
  readonly paused: Set<string>;
}

/** How a worker says that an attempt ended. */
export type Outcome =
  | { readonly kind: "SUCCESS"; readonly output: Output; readonly append: Addition | null }
  | { readonly kind: FailureKind; readonly code: string; readonly message: string };

export interface Settling {
  readonly lease: Lease;
  readonly outcome: Outcome;
}
