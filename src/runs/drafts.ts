/** From the steps of a spec to what is stored of each: ids, job, map and expiry, but for its place in the graph. */
import { newId, newIds } from "../database/ids.ts";
import { type JsonText, toJson } from "../database/json.ts";
import type { StepKind } from "../database/statuses.ts";
import { type JobDefaults, parsed } from "../jobs/definition.ts";
import { type JobSettings, validDuration, validSettings } from "../jobs/request.ts";
import type { PreparedExpiry, PreparedMap, PreparedStep, PreparedStepJob } from "../steps/insertion.ts";
import { CHILD_RUN_JOB, type GraphSpec, type StepSpec } from "./spec.ts";
import { topologicallySorted } from "./validate.ts";

/** A step as it will be stored, without what follows from the steps around it. */
export interface StepDraft extends Pick<PreparedStep, "id" | "key" | "kind" | "job" | "map" | "expiry"> {
  readonly spec: StepSpec;
}

/** Lets the schemas of jobs, those of child runs included, check their payloads. Throws `payload.invalid` or a `workflow.invalid_dag_*` code. */
export async function preparePayloads(steps: readonly StepSpec[]): Promise<void> {
  for (const { job, child, map } of steps) {
    if (job?.schema !== undefined && map === undefined) await parsed(job.schema, job.payload);
    if (child !== undefined) await preparePayloads(topologicallySorted(child.graph));
  }
}

/**
 * Drafts of steps in topological order, with ids in that order, and the id of each key; `known` are
 * steps that exist already. Throws `input.invalid` or `payload.not_json`.
 */
export function stepDrafts(
  sorted: readonly StepSpec[],
  known: ReadonlyMap<string, string> = new Map(),
): { drafts: StepDraft[]; idOf: (key: string) => string } {
  const ids = new Map(sorted.map(({ key }) => [key, newId()]));
  const idOf = (key: string) => ids.get(key) ?? known.get(key) ?? "";
  const jobIds = newIds(sorted.length);
  const drafts = sorted.map((spec, place) => ({
    id: idOf(spec.key),
    key: spec.key,
    kind: kindOf(spec),
    job: jobOf(spec, jobIds[place] ?? ""),
    map: mapOf(spec, idOf),
    expiry: expiryOf(spec),
    spec,
  }));
  return { drafts, idOf };
}

function kindOf({ job, child, map }: StepSpec): StepKind {
  if (map !== undefined) return "MAP";
  return job === undefined && child === undefined ? "EXTERNAL" : "JOB";
}

function jobOf({ key, job, child, map }: StepSpec, id: string): PreparedStepJob | null {
  if (child !== undefined) {
    const { graph, deadlineSeconds, delaySeconds, ...settings } = child;
    validDuration(deadlineSeconds, `${key}: deadlineSeconds`);
    const payload = toJson({ graph: plainGraph(graph), deadlineSeconds }, `${key}: child`);
    return { id, type: CHILD_RUN_JOB, payload, ...timing(key, settings, {}, delaySeconds) };
  }
  if (job === undefined) return null;
  const { type, payload, defaults = {}, delaySeconds } = job;
  const rest = timing(key, job, defaults, delaySeconds);
  if (map !== undefined) return { id: null, type, payload: null, ...rest };
  return { id, type, payload: toJson(payload, `${key}: payload`), ...rest };
}

function timing(
  key: string,
  settings: JobDefaults,
  defaults: JobDefaults,
  delaySeconds: number | undefined,
): { settings: JobSettings; delaySeconds: number | null } {
  const requested = validSettings(settings, `${key}: `);
  const standing = validSettings(defaults, `${key}: `);
  return {
    settings: {
      priority: requested.priority ?? standing.priority,
      maxAttempts: requested.maxAttempts ?? standing.maxAttempts,
      timeoutSeconds: requested.timeoutSeconds ?? standing.timeoutSeconds,
    },
    delaySeconds: validDuration(delaySeconds, `${key}: delaySeconds`),
  };
}

function mapOf({ map }: StepSpec, idOf: (key: string) => string): PreparedMap | null {
  if (map === undefined) return null;
  const itemEdge = map.onItemFailure === "continue" ? "ON_TERMINAL" : "ON_SUCCESS";
  return { sourceId: idOf(map.over), itemEdge, itemCount: null };
}

function expiryOf({ key, expires }: StepSpec): PreparedExpiry | null {
  if (expires === undefined) return null;
  const afterSeconds = validDuration(expires.afterSeconds, `${key}: expires.afterSeconds`) ?? 0;
  const { outcome, output } = expires;
  const text: JsonText | null = output === undefined ? null : toJson(output, `${key}: expires.output`);
  return { afterSeconds, outcome, output: text };
}

/** A graph that survives being stored as JSON: schemas have checked their payloads, and defaults are settings. */
function plainGraph(graph: GraphSpec): GraphSpec {
  const steps = graph.steps.map(({ job, child, ...step }): StepSpec => {
    if (child !== undefined) return { ...step, child: { ...child, graph: plainGraph(child.graph) } };
    if (job === undefined) return step;
    const { schema: _schema, defaults, ...plain } = job;
    return { ...step, job: { ...defaults, ...withoutUndefined(plain) } };
  });
  return { ...graph, steps };
}

function withoutUndefined<T extends object>(value: T): T {
  const kept = { ...value };
  for (const [key, entry] of Object.entries(kept)) if (entry === undefined) Reflect.deleteProperty(kept, key);
  return kept;
}
