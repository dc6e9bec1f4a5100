/** A workflow graph as plain data: what a builder makes, and what is validated and stored (FEATURES F-W1). */
import type { StandardSchemaV1 } from "@standard-schema/spec";
import type { DependencyKind } from "../database/statuses.ts";
import type { JobDefaults } from "../jobs/definition.ts";
import type { RequestedLimit } from "../jobs/limits.ts";
import type { ScheduleTick } from "../jobs/tick.ts";
import type { TerminalStatus } from "../steps/resolve.ts";

/** The reserved job type of a step that is a child run. */
export const CHILD_RUN_JOB = "runledger.child_run";

/** A whole graph. */
export interface GraphSpec {
  readonly type: string;
  readonly steps: readonly StepSpec[];
  /** The step whose output is the run's result. */
  readonly resultStep: string | null;
}

/** Steps to add to a live run; their dependencies may name steps that the run has already. */
export interface AdditionSpec {
  readonly steps: readonly StepSpec[];
}

/** A step: with `job` or `child` a JOB step, with `job` and `map` a MAP step, else an EXTERNAL step. */
export interface StepSpec {
  readonly key: string;
  /** What a JOB step runs, or a MAP step for each of its items. */
  readonly job?: StepJobSpec;
  /** The run that a JOB step stands for. */
  readonly child?: ChildSpec;
  readonly map?: MapSpec;
  readonly expires?: GateExpiry | undefined;
  readonly dependencies: readonly DependencySpec[];
}

export interface StepJobSpec extends JobDefaults {
  readonly type: string;
  /** Absent in a MAP step: each item's payload is its element of the source's output. */
  readonly payload?: unknown;
  readonly schema?: StandardSchemaV1 | undefined;
  readonly defaults?: JobDefaults;
  /** How long after its release the job may start, in seconds. */
  readonly delaySeconds?: number;
  /** How many jobs of a key run at once or start in a period; a MAP step's is each item's. */
  readonly limit?: RequestedLimit;
  /** The limit that the definition in code has for this payload. */
  readonly definedLimit?: (() => RequestedLimit) | undefined;
  /** Whether the job may continue as its next run before the step ends. Default false. */
  readonly continues?: boolean;
}

/** How a step fans out over the array that one of its prerequisites puts out. */
export interface MapSpec {
  /** The key of that prerequisite. */
  readonly over: string;
  /** What an item that fails or is cancelled makes of the step. `cancel`: it is cancelled. `continue`: its place is null. Default `cancel`. */
  readonly onItemFailure?: "cancel" | "continue";
}

export interface ChildSpec extends JobDefaults {
  readonly graph: GraphSpec;
  /** The child run is cancelled this many seconds after its start. */
  readonly deadlineSeconds?: number | undefined;
  /** How long after the step's release the child run may start, in seconds. */
  readonly delaySeconds?: number;
}

/** What becomes of a gate that nobody completes. */
export interface GateExpiry {
  /** How long the gate stays open, in seconds. */
  readonly afterSeconds: number;
  readonly outcome: TerminalStatus;
  /** Only with SUCCEEDED. */
  readonly output?: unknown;
}

export interface DependencySpec {
  readonly key: string;
  readonly kind: DependencyKind;
}

/** What a graph is built for, besides its input. */
export interface BuildContext {
  /** The tick of a schedule that the run is for, or null. */
  readonly schedule: ScheduleTick | null;
}

/** A workflow type whose graph is made from an input. */
export interface WorkflowDefinition<Type extends string = string, Input = unknown, Result = unknown> {
  readonly type: Type;
  readonly input: StandardSchemaV1<Input, unknown> | undefined;
  /** The graph for one input. */
  graph(input: Input, context?: BuildContext): GraphSpec;
  /** Carries the result's type; never set. */
  readonly result?: Result;
}
