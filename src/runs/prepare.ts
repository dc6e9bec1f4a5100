/** From a graph to rows: ids in topological order, counters, and the request that an idempotency key remembers. */
import { newId, newIds } from "../database/ids.ts";
import { type JsonText, toJson } from "../database/json.ts";
import type { DependencyKind, StepKind, StepStatus } from "../database/statuses.ts";
import { parsed } from "../jobs/definition.ts";
import { type JobSettings, validName, validOrganization, validSettings } from "../jobs/request.ts";
import { counterOf } from "../steps/run-status.ts";
import type { GraphSpec, StepSpec } from "./graph.ts";
import { topologicallySorted } from "./validate.ts";

export interface RunOptions {
  /** The same key, workflow type and organization give the same run. At most 512 bytes. */
  readonly idempotencyKey?: string;
  /** The tenant. Default: the global tenant. */
  readonly organizationId?: string | null;
}

export interface PreparedRun {
  readonly id: string;
  readonly type: string;
  readonly organizationId: string | null;
  readonly idempotencyKey: string | null;
  readonly requested: JsonText | null;
  readonly resultStepId: string | null;
  readonly open: number;
  readonly waiting: number;
  readonly steps: readonly PreparedStep[];
  readonly edges: readonly PreparedEdge[];
}

export interface PreparedStep {
  readonly id: string;
  readonly key: string;
  readonly kind: StepKind;
  readonly status: StepStatus;
  readonly pendingCount: number;
  readonly dependentCount: number;
  readonly job: PreparedStepJob | null;
}

export interface PreparedStepJob {
  readonly id: string;
  readonly type: string;
  readonly payload: JsonText;
  readonly settings: JobSettings;
}

export interface PreparedEdge {
  readonly prerequisiteId: string;
  readonly stepId: string;
  readonly kind: DependencyKind;
}

/** Throws a `workflow.invalid_dag_*` code, `input.invalid`, `payload.not_json` or `payload.invalid`. */
export async function prepareRun(graph: GraphSpec, options: RunOptions): Promise<PreparedRun> {
  const sorted = topologicallySorted(graph);
  for (const { job } of sorted) if (job?.schema !== undefined) await parsed(job.schema, job.payload);
  const idempotencyKey =
    options.idempotencyKey === undefined ? null : validName(options.idempotencyKey, "idempotencyKey");
  const id = newId();
  const stepIds = new Map(sorted.map(({ key }) => [key, newId()]));
  const idOf = (key: string) => stepIds.get(key) ?? "";
  const edges = sorted.flatMap((step) =>
    step.dependencies.map(({ key, kind }) => ({ prerequisiteId: idOf(key), stepId: idOf(step.key), kind })),
  );
  const steps = preparedSteps(sorted, idOf, edges);
  const count = (counter: "open" | "waiting") => steps.filter(({ status }) => counterOf(status) === counter).length;
  return {
    id,
    type: graph.type,
    organizationId: validOrganization(options.organizationId, "organizationId"),
    idempotencyKey,
    requested: idempotencyKey === null ? null : requestOf(graph, steps),
    resultStepId: graph.resultStep === null ? null : idOf(graph.resultStep),
    open: count("open"),
    waiting: count("waiting"),
    steps,
    edges,
  };
}

function preparedSteps(
  sorted: readonly StepSpec[],
  idOf: (key: string) => string,
  edges: readonly PreparedEdge[],
): PreparedStep[] {
  const dependents = new Map<string, number>();
  for (const { prerequisiteId } of edges) dependents.set(prerequisiteId, (dependents.get(prerequisiteId) ?? 0) + 1);
  const jobIds = newIds(sorted.length);
  return sorted.map((step, place) => {
    const job = preparedJob(step, jobIds[place] ?? "");
    const id = idOf(step.key);
    return {
      id,
      key: step.key,
      kind: job === null ? "EXTERNAL" : "JOB",
      status: initialStatus(step),
      pendingCount: step.dependencies.length,
      dependentCount: dependents.get(id) ?? 0,
      job,
    };
  });
}

function initialStatus({ job, dependencies }: StepSpec): StepStatus {
  if (dependencies.length > 0) return "BLOCKED";
  return job === undefined ? "WAITING_FOR_EXTERNAL" : "ENQUEUED";
}

function preparedJob({ key, job }: StepSpec, id: string): PreparedStepJob | null {
  if (job === undefined) return null;
  const requested = validSettings(job, `${key}: `);
  const defaults = validSettings(job.defaults ?? {}, `${key}: `);
  return {
    id,
    type: job.type,
    payload: toJson(job.payload, `${key}: payload`),
    settings: {
      priority: requested.priority ?? defaults.priority,
      maxAttempts: requested.maxAttempts ?? defaults.maxAttempts,
      timeoutSeconds: requested.timeoutSeconds ?? defaults.timeoutSeconds,
    },
  };
}

/** The graph as an object by step key: the order in which steps and dependencies were added does not matter. */
function requestOf(graph: GraphSpec, steps: readonly PreparedStep[]): JsonText {
  const specs = new Map(graph.steps.map((step) => [step.key, step]));
  const entries = steps.map(({ key, job }) => {
    const spec = specs.get(key);
    const needs = Object.fromEntries((spec?.dependencies ?? []).map((dependency) => [dependency.key, dependency.kind]));
    const { priority, maxAttempts, timeoutSeconds } = spec?.job ?? {};
    const settings = JSON.stringify({ type: job?.type, priority, maxAttempts, timeoutSeconds, needs });
    return `${JSON.stringify(key)}:{"settings":${settings},"payload":${job?.payload ?? "null"}}`;
  });
  return `{"result":${JSON.stringify(graph.resultStep)},"steps":{${entries.join(",")}}}`;
}
