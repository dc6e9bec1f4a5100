/** Starts the jobs and runs of ticks, through the functions that everybody enqueues with. */
import type { JsonValue } from "../database/column-types.ts";
import type { Executor } from "../database/executor.ts";
import { readValues } from "../database/values/read.ts";
import { isLedgerError, LedgerError } from "../errors.ts";
import type { JobRequest } from "../jobs/definition.ts";
import { enqueueJobs } from "../jobs/enqueue.ts";
import { enqueueRuns, type RunRequest } from "../runs/enqueue.ts";
import { requestOf } from "../runs/request.ts";
import type { GraphSpec, WorkflowDefinition } from "../runs/spec.ts";
import type { ScheduleName, StoredTarget } from "./look.ts";

export type AnyWorkflowDefinition = WorkflowDefinition<string, unknown, unknown>;

export interface StartOptions {
  /** The definitions of the workflows that schedules may start: their graphs are built in code. */
  readonly workflows?: readonly AnyWorkflowDefinition[];
  /** Refuse job types that have no enabled definition, with `job.definition_not_found_or_disabled`. Default false. */
  readonly strict?: boolean;
}

/** One tick of one schedule. */
export interface Firing {
  readonly schedule: ScheduleName & StoredTarget;
  readonly intendedAt: Date;
}

/** What a firing started: a job or a run. */
export interface Started {
  readonly firing: Firing;
  readonly jobId: string | null;
  readonly runId: string | null;
}

/**
 * Enqueues the jobs and runs of all firings, which answers come in the order of. One round trip for jobs and one for
 * runs, where there are any. Throws what enqueueing does, `payload.undecodable`, `payload.codec_unavailable`, `schedule.workflow_unknown`, `schedule.build_failed`.
 */
export async function startAll(
  executor: Executor,
  firings: readonly Firing[],
  now: Date,
  options: StartOptions,
): Promise<Started[]> {
  const ofJobs = firings.filter(({ schedule }) => schedule.target === "JOB");
  const ofRuns = firings.filter(({ schedule }) => schedule.target === "WORKFLOW");
  const definitions = new Map(options.workflows?.map((workflow) => [workflow.type, workflow]));
  const requests: RunRequest[] = [];
  const payloadOf = await payloadsOf(executor, firings);
  for (const firing of ofRuns) requests.push(await runRequest(firing, payloadOf(firing), definitions));
  const jobs = await enqueueJobs(
    executor,
    ofJobs.map((firing) => jobRequest(firing, payloadOf(firing), now)),
    { strict: options.strict ?? false },
  );
  const runs = await enqueueRuns(executor, requests);
  const jobIds = new Map(ofJobs.map((firing, place) => [firing, jobs[place]?.id ?? null]));
  const runIds = new Map(ofRuns.map((firing, place) => [firing, runs[place]?.id ?? null]));
  return firings.map((firing) => ({
    firing,
    jobId: jobIds.get(firing) ?? null,
    runId: runIds.get(firing) ?? null,
  }));
}

/** The payload of each, or the error of one that does not decode. */
async function payloadsOf({ settings }: Executor, firings: readonly Firing[]): Promise<(firing: Firing) => JsonValue> {
  const texts = firings.map(({ schedule }) => schedule.payload);
  const { at } = await readValues(settings.values, "payload", texts);
  const places = new Map(firings.map((firing, place) => [firing, place]));
  return (firing) => at(places.get(firing) ?? -1);
}

function jobRequest({ schedule, intendedAt }: Firing, payload: JsonValue, now: Date): JobRequest {
  const { type, organizationId, priority, maxAttempts, timeoutSeconds, tags, limit, name } = schedule;
  const delay = jitterOf(schedule);
  return {
    type,
    payload,
    organizationId,
    ...(priority === null ? {} : { priority }),
    ...(maxAttempts === null ? {} : { maxAttempts }),
    ...(timeoutSeconds === null ? {} : { timeoutSeconds }),
    ...(tags.length === 0 ? {} : { tags }),
    ...(limit === null ? {} : { limit }),
    ...(delay === 0 ? {} : { runAt: new Date(now.getTime() + delay * 1000) }),
    schedule: { name, intendedAt },
  };
}

async function runRequest(
  { schedule, intendedAt }: Firing,
  payload: JsonValue,
  definitions: ReadonlyMap<string, AnyWorkflowDefinition>,
): Promise<RunRequest> {
  const { type, organizationId, deadlineSeconds, name } = schedule;
  const definition = definitions.get(type);
  if (definition === undefined) throw new LedgerError("schedule.workflow_unknown", { details: { type } });
  const options = { organizationId, ...(deadlineSeconds === null ? {} : { deadlineSeconds }) };
  try {
    const request = await requestOf(definition, payload, options, { schedule: { name, intendedAt } });
    return { ...request, graph: delayed(request.graph, jitterOf(schedule)) };
  } catch (cause) {
    // What the service's own code throws: it must not stop the other schedules.
    throw isLedgerError(cause) ? cause : new LedgerError("schedule.build_failed", { cause });
  }
}

/** In seconds. */
function jitterOf({ jitterSeconds }: StoredTarget): number {
  return Math.random() * jitterSeconds;
}

/** The steps that would start at once start so much later. */
function delayed(graph: GraphSpec, seconds: number): GraphSpec {
  if (seconds === 0) return graph;
  const steps = graph.steps.map((step) => {
    if (step.dependencies.length > 0) return step;
    if (step.job !== undefined) {
      return { ...step, job: { ...step.job, delaySeconds: (step.job.delaySeconds ?? 0) + seconds } };
    }
    if (step.child === undefined) return step;
    return { ...step, child: { ...step.child, delaySeconds: (step.child.delaySeconds ?? 0) + seconds } };
  });
  return { ...graph, steps };
}
