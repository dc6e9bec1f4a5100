/** Schedules in code: when, and which job or workflow with which payload (FEATURES F-S1, F-S2). */
import type { StandardSchemaV1 } from "@standard-schema/spec";
import type { AnyJobDefinition, InputOf, JobDefaults, JobRequest } from "../jobs/definition.ts";
import type { RequestedLimit } from "../jobs/limits.ts";
import type { WorkflowDefinition } from "../runs/spec.ts";
import type { CatchUp, Overlap } from "./words.ts";

/** When a schedule fires, and what it does about ticks that are late or overlap. */
export interface ScheduleTiming {
  /** 5 fields, or 6 with seconds in front; or `@hourly`, `@daily` and the like. */
  readonly cron: string;
  /** A name of the IANA database, such as `Europe/Berlin`. Default `UTC`. */
  readonly timeZone?: string;
  /**
   * What becomes of the ticks that nobody fired in time, because no process ran or the database was away.
   * `once`: the last of them is fired. `skip`: none, unless the last is less than `graceSeconds` late. `backfill`: all,
   * oldest first, at most the last `backfillLimit`. Default `once`.
   */
  readonly catchUp?: CatchUp;
  /** 1 to 1000. Default 100. */
  readonly backfillLimit?: number;
  /** With `skip`: how late a tick may be and still be fired, in seconds. Default 60. */
  readonly graceSeconds?: number;
  /**
   * What becomes of a tick while the job or run of the fire before it lives. `allow`: it is fired. `skip`: it is passed
   * over, and the history of fires says so. `queue`: the schedule waits, and then fires what `catchUp` makes of the ticks
   * since, one at a time. Default `allow`.
   */
  readonly overlap?: Overlap;
  /** The job, or the run's first steps, start up to so many seconds later at random. Moves no tick. Default 0. */
  readonly jitterSeconds?: number;
  /** No tick before. */
  readonly startAt?: Date | string;
  /** No tick at or after. */
  readonly endAt?: Date | string;
  /** Default true. */
  readonly enabled?: boolean;
  /** The tenant of the schedule, and of what it starts. Default: the global tenant. */
  readonly organizationId?: string | null;
}

/** The settings of the jobs that a schedule enqueues; what is left out comes from the job's definition. */
export interface ScheduledJobSettings extends JobDefaults {
  /** Free labels for lists and reports. */
  readonly tags?: readonly string[];
  /** How many jobs of a key run at once or start in a period. What is left out comes from the job's definition. */
  readonly limit?: RequestedLimit;
}

/** The settings of the runs that a schedule starts. */
export interface ScheduledRunSettings {
  /** Each run is cancelled when it has not ended so many seconds after its start. Default: it has no deadline. */
  readonly deadlineSeconds?: number;
}

export type JobScheduleOptions<D extends AnyJobDefinition | string> = ScheduleTiming &
  ScheduledJobSettings & {
    readonly job: D;
    readonly payload: D extends AnyJobDefinition ? InputOf<D> : unknown;
    readonly workflow?: never;
  };

export type WorkflowScheduleOptions<Input> = ScheduleTiming &
  ScheduledRunSettings & {
    readonly workflow: WorkflowDefinition<string, Input, unknown>;
    readonly input: NoInfer<Input>;
    readonly job?: never;
  };

/** A schedule: what `ledger.schedules.sync` takes. */
export interface ScheduleDefinition {
  readonly name: string;
  readonly timing: ScheduleTiming;
  readonly target: ScheduleTarget;
}

/** What a schedule starts. */
export type ScheduleTarget =
  | { readonly kind: "job"; readonly request: JobRequest }
  | {
      readonly kind: "workflow";
      readonly type: string;
      readonly input: unknown;
      /** Checks the input before anything is written. */
      readonly schema: StandardSchemaV1 | undefined;
      readonly deadlineSeconds: number | undefined;
    };

/**
 * Defines a schedule of a job or of a workflow.
 *
 * ```ts
 * const nightly = defineSchedule("nightly-report", {
 *   cron: "30 2 * * *",
 *   timeZone: "Europe/Berlin",
 *   job: makeReport,
 *   payload: { kind: "daily" },
 * });
 * await ledger.schedules.sync([nightly]);
 * ```
 */
export function defineSchedule<D extends AnyJobDefinition | string>(
  name: string,
  options: JobScheduleOptions<D>,
): ScheduleDefinition;
export function defineSchedule<Input>(name: string, options: WorkflowScheduleOptions<Input>): ScheduleDefinition;
export function defineSchedule(
  name: string,
  options: JobScheduleOptions<AnyJobDefinition | string> | WorkflowScheduleOptions<unknown>,
): ScheduleDefinition {
  return Object.freeze({
    name,
    timing: options,
    target: options.workflow === undefined ? jobTarget(options) : runTarget(options),
  });
}

function jobTarget(options: JobScheduleOptions<AnyJobDefinition | string>): ScheduleTarget {
  const { job, payload, organizationId = null, ...rest } = options;
  const settings = settingsIn(rest);
  const request = typeof job === "string" ? { ...settings, type: job, payload } : job.request(payload, settings);
  return { kind: "job", request: { ...request, organizationId } };
}

/** Those of the options that are the job's. */
function settingsIn({
  priority,
  maxAttempts,
  timeoutSeconds,
  tags,
  limit,
}: ScheduledJobSettings): ScheduledJobSettings {
  return {
    ...(priority === undefined ? {} : { priority }),
    ...(maxAttempts === undefined ? {} : { maxAttempts }),
    ...(timeoutSeconds === undefined ? {} : { timeoutSeconds }),
    ...(tags === undefined ? {} : { tags }),
    ...(limit === undefined ? {} : { limit }),
  };
}

function runTarget({ workflow, input, deadlineSeconds }: WorkflowScheduleOptions<unknown>): ScheduleTarget {
  return { kind: "workflow", type: workflow.type, input, schema: workflow.input, deadlineSeconds };
}
