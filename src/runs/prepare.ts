/** From a graph to rows: ids in topological order, counters, and the request that an idempotency key remembers. */
import { newId } from "../database/ids.ts";
import type { JsonText } from "../database/json.ts";
import type { StepStatus } from "../database/statuses.ts";
import type { ValueRules } from "../database/values/rules.ts";
import { type Remembered, remembered } from "../database/values/sameness.ts";
import { validDuration } from "../jobs/arguments.ts";
import { type PreparedKey, preparedKey } from "../jobs/keys.ts";
import { validOrganization } from "../jobs/request.ts";
import type { PreparedEdge, PreparedStep } from "../steps/insertion.ts";
import { counterOf } from "../steps/run-status.ts";
import { preparePayloads, type StepDraft, type StoredDraft, stepDrafts, storedDrafts } from "./drafts.ts";
import type { GraphSpec, StepSpec } from "./spec.ts";
import { topologicallySorted } from "./validate.ts";

export interface RunOptions {
  /** The same key, workflow type and organization give the same run. At most 512 bytes. */
  readonly idempotencyKey?: string;
  /** How long the idempotency key is remembered, in seconds from its first use. Default: for ever. */
  readonly idempotencyTtlSeconds?: number;
  /** At most one live run of the key, workflow type and organization. Not together with an idempotency key. */
  readonly active?: ActiveRunKey;
  /** The tenant. Default: the global tenant. */
  readonly organizationId?: string | null;
  /** The run is cancelled when it has not ended this many seconds after its enqueue. Default: it has no deadline. */
  readonly deadlineSeconds?: number;
}

export interface ActiveRunKey {
  /** At most 512 bytes. */
  readonly key: string;
}

/** The step of another run that a run stands for. */
export interface ParentStep {
  readonly runId: string;
  readonly stepId: string;
}

export interface PreparedRun {
  readonly runId: string;
  readonly type: string;
  readonly organizationId: string | null;
  /** An idempotency key or an active key. */
  readonly key: PreparedKey | null;
  readonly requested: Remembered | null;
  readonly resultStepId: string | null;
  readonly deadlineSeconds: number | null;
  readonly parent: ParentStep | null;
  readonly open: number;
  readonly waiting: number;
  readonly steps: readonly PreparedStep[];
  readonly edges: readonly PreparedEdge[];
}

/** Throws a `workflow.invalid_dag_*` code, `input.invalid` or a `payload.*` code; `at` says which of several runs. */
export async function prepareRun(
  rules: ValueRules,
  graph: GraphSpec,
  options: RunOptions,
  { parent = null, at = "" }: { readonly parent?: ParentStep | null; readonly at?: string } = {},
): Promise<PreparedRun> {
  const sorted = topologicallySorted(graph);
  await preparePayloads(sorted);
  const { idempotencyKey, idempotencyTtlSeconds, active } = options;
  const key = preparedKey({ idempotencyKey, idempotencyTtlSeconds, active }, "");
  const deadlineSeconds = validDuration(options.deadlineSeconds, "deadlineSeconds");
  const runId = newId();
  const { drafts, idOf } = stepDrafts(rules, sorted, at);
  const edges = sorted.flatMap((step) =>
    step.dependencies.map(({ key, kind }) => ({ prerequisiteId: idOf(key), stepId: idOf(step.key), kind })),
  );
  const requested =
    key?.kind !== "idempotency" ? null : await remembered(rules, [requestOf(graph, drafts, deadlineSeconds)]);
  const steps = initialSteps(await storedDrafts(rules, drafts), edges);
  const count = (counter: "open" | "waiting") => steps.filter(({ status }) => counterOf(status) === counter).length;
  return {
    runId,
    type: graph.type,
    organizationId: validOrganization(options.organizationId, "organizationId"),
    key,
    requested: requested?.(0) ?? null,
    resultStepId: graph.resultStep === null ? null : idOf(graph.resultStep),
    deadlineSeconds,
    parent,
    open: count("open"),
    waiting: count("waiting"),
    steps,
    edges,
  };
}

function initialSteps(drafts: readonly StoredDraft[], edges: readonly PreparedEdge[]): PreparedStep[] {
  const dependents = new Map<string, number>();
  for (const { prerequisiteId } of edges) dependents.set(prerequisiteId, (dependents.get(prerequisiteId) ?? 0) + 1);
  return drafts.map(({ spec, ...step }) => ({
    ...step,
    status: initialStatus(spec),
    pendingCount: spec.dependencies.length,
    unsatisfiedCount: 0,
    dependentCount: dependents.get(step.id) ?? 0,
    errorCode: null,
  }));
}

function initialStatus({ job, child, dependencies }: StepSpec): StepStatus {
  if (dependencies.length > 0) return "BLOCKED";
  return job === undefined && child === undefined ? "WAITING_FOR_EXTERNAL" : "ENQUEUED";
}

/** The graph as an object by step key: the order in which steps and dependencies were added does not matter. */
function requestOf(graph: GraphSpec, drafts: readonly StepDraft[], deadlineSeconds: number | null): JsonText {
  const deadline = deadlineSeconds === null ? "" : `"deadlineSeconds":${deadlineSeconds},`;
  return `{"result":${JSON.stringify(graph.resultStep)},${deadline}"steps":${requestOfSteps(drafts)}}`;
}

/** What a request for these steps says, as JSON by step key. */
export function requestOfSteps(drafts: readonly StepDraft[]): JsonText {
  const entries = drafts.map(({ key, spec, job, expiry }) => {
    const needs = Object.fromEntries(spec.dependencies.map((dependency) => [dependency.key, dependency.kind]));
    const { priority, maxAttempts, timeoutSeconds, delaySeconds } = spec.job ?? spec.child ?? {};
    const { limit } = spec.job ?? {};
    // What is not asked for stays away: a stored request of before compares as it did.
    const continues = job?.continues || undefined;
    const requested = {
      type: job?.type,
      priority,
      maxAttempts,
      timeoutSeconds,
      delaySeconds,
      limit,
      continues,
      map: spec.map,
      needs,
    };
    const expires = expiry === null ? "" : `,"expires":${requestOfExpiry(expiry)}`;
    return `${JSON.stringify(key)}:{"settings":${JSON.stringify(requested)},"payload":${job?.payload ?? "null"}${expires}}`;
  });
  return `{${entries.join(",")}}`;
}

function requestOfExpiry({ afterSeconds, outcome, output }: NonNullable<StepDraft["expiry"]>): JsonText {
  return `{"afterSeconds":${afterSeconds},"outcome":"${outcome}","output":${output ?? "null"}}`;
}
