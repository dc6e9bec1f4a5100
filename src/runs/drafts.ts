/** From the steps of a spec to what is stored of each: ids, job, map and expiry, but for its place in the graph. */
import { newId, newIds } from "../database/ids.ts";
import { type JsonText, toJson } from "../database/json.ts";
import type { StepKind } from "../database/statuses.ts";
import type { ValueRules } from "../database/values/rules.ts";
import { optionalText, storedValues, valueText } from "../database/values/write.ts";
import { validDuration } from "../jobs/arguments.ts";
import { type JobDefaults, parsed } from "../jobs/definition.ts";
import { mergedLimit, type PreparedLimit, preparedLimit } from "../jobs/limits.ts";
import { type JobSettings, validSettings } from "../jobs/request.ts";
import type { PreparedExpiry, PreparedMap, PreparedStep, PreparedStepJob } from "../steps/insertion.ts";
import { CHILD_RUN_JOB, type GraphSpec, type StepJobSpec, type StepSpec } from "./spec.ts";
import { topologicallySorted } from "./validate.ts";

/** A step as it will be stored, without what follows from the steps around it. */
export interface StoredDraft extends Pick<PreparedStep, "id" | "key" | "kind" | "job" | "map" | "expiry"> {
  readonly spec: StepSpec;
}

/** The same with its values as they were given: so a request is remembered. */
export interface StepDraft extends Omit<StoredDraft, "job" | "expiry"> {
  readonly job: DraftStepJob | null;
  readonly expiry: DraftExpiry | null;
}

interface DraftStepJob extends Omit<PreparedStepJob, "payload"> {
  readonly payload: JsonText | null;
}

interface DraftExpiry extends Omit<PreparedExpiry, "output"> {
  readonly output: JsonText | null;
}

/** Lets the schemas of jobs, those of child runs included, check their payloads. Throws `payload.invalid` or a `workflow.invalid_dag_*` code. */
export async function preparePayloads(steps: readonly StepSpec[]): Promise<void> {
  for (const { job, child, map } of steps) {
    if (job?.schema !== undefined && map === undefined) await parsed(job.schema, job.payload);
    if (child !== undefined) await preparePayloads(topologicallySorted(child.graph));
  }
}

/**
 * Drafts of steps in topological order, with ids in that order, and the id of each key; `at` says which of several
 * runs they are of. Throws `input.invalid`, `payload.not_json`, `payload.too_large`, `payload.reserved`.
 */
export function stepDrafts(
  rules: ValueRules,
  sorted: readonly StepSpec[],
  at = "",
): { drafts: StepDraft[]; idOf: (key: string) => string } {
  const ids = new Map(sorted.map(({ key }) => [key, newId()]));
  const idOf = (key: string) => ids.get(key) ?? "";
  const jobIds = newIds(sorted.length);
  const drafts = sorted.map((spec, place) => ({
    id: idOf(spec.key),
    key: spec.key,
    kind: kindOf(spec),
    job: jobOf(rules, spec, jobIds[place] ?? "", `${at}${spec.key}`),
    map: mapOf(spec, idOf),
    expiry: expiryOf(rules, spec, `${at}${spec.key}`),
    spec,
  }));
  return { drafts, idOf };
}

/** The drafts with their values in the form that is stored. Throws `payload.unencodable`, `payload.codec_unavailable`. */
export async function storedDrafts(rules: ValueRules, drafts: readonly StepDraft[]): Promise<StoredDraft[]> {
  const payload = await storedValues(
    rules,
    "payload",
    drafts.map(({ job }) => job?.payload ?? null),
  );
  const output = await storedValues(
    rules,
    "output",
    drafts.map(({ expiry }) => expiry?.output ?? null),
  );
  return drafts.map((draft, place) => ({
    ...draft,
    job: draft.job && { ...draft.job, payload: payload(place) },
    expiry: draft.expiry && { ...draft.expiry, output: output(place) },
  }));
}

function kindOf({ job, child, map }: StepSpec): StepKind {
  if (map !== undefined) return "MAP";
  return job === undefined && child === undefined ? "EXTERNAL" : "JOB";
}

function jobOf(rules: ValueRules, { job, child, map }: StepSpec, id: string, at: string): DraftStepJob | null {
  if (child !== undefined) {
    const { graph, deadlineSeconds, delaySeconds, ...settings } = child;
    validDuration(deadlineSeconds, `${at}: deadlineSeconds`);
    checkValues(rules, graph, at);
    const payload = toJson({ graph: plainGraph(graph), deadlineSeconds }, `${at}: child`);
    const rest = { limit: null, continues: false, ...timing(at, settings, {}, delaySeconds) };
    return { id, type: CHILD_RUN_JOB, payload, ...rest };
  }
  if (job === undefined) return null;
  const { type, payload, defaults = {}, delaySeconds, continues = false } = job;
  const rest = { continues, ...timing(at, job, defaults, delaySeconds), limit: limitOfStep(at, job) };
  if (map !== undefined) return { id: null, type, payload: null, ...rest };
  return { id, type, payload: valueText(rules, payload, `${at}: payload`), ...rest };
}

/** The values of a child run's steps, one by one: the graph that holds them is no value of a caller's. */
function checkValues(rules: ValueRules, { steps }: GraphSpec, at: string): void {
  for (const { key, job, child, map, expires } of steps) {
    const step = `${at}: child: ${key}`;
    if (job !== undefined && map === undefined) valueText(rules, job.payload, `${step}: payload`);
    optionalText(rules, expires?.output, `${step}: expires.output`);
    if (child !== undefined) checkValues(rules, child.graph, step);
  }
}

function limitOfStep(at: string, { limit, definedLimit }: StepJobSpec): PreparedLimit | null {
  return preparedLimit(limit, definedLimit?.(), `${at}: `);
}

function timing(
  at: string,
  settings: JobDefaults,
  defaults: JobDefaults,
  delaySeconds: number | undefined,
): { settings: JobSettings; delaySeconds: number | null } {
  const requested = validSettings(settings, `${at}: `);
  const standing = validSettings(defaults, `${at}: `);
  return {
    settings: {
      priority: requested.priority ?? standing.priority,
      maxAttempts: requested.maxAttempts ?? standing.maxAttempts,
      timeoutSeconds: requested.timeoutSeconds ?? standing.timeoutSeconds,
    },
    delaySeconds: validDuration(delaySeconds, `${at}: delaySeconds`),
  };
}

function mapOf({ map }: StepSpec, idOf: (key: string) => string): PreparedMap | null {
  if (map === undefined) return null;
  const itemEdge = map.onItemFailure === "continue" ? "ON_TERMINAL" : "ON_SUCCESS";
  return { sourceId: idOf(map.over), itemEdge, itemCount: null };
}

function expiryOf(rules: ValueRules, { expires }: StepSpec, at: string): DraftExpiry | null {
  if (expires === undefined) return null;
  const afterSeconds = validDuration(expires.afterSeconds, `${at}: expires.afterSeconds`) ?? 0;
  const { outcome, output } = expires;
  return { afterSeconds, outcome, output: optionalText(rules, output, `${at}: expires.output`) };
}

/** A graph that survives being stored as JSON: schemas have checked their payloads, and defaults are settings. */
function plainGraph(graph: GraphSpec): GraphSpec {
  const steps = graph.steps.map(({ job, child, ...step }): StepSpec => {
    if (child !== undefined) return { ...step, child: { ...child, graph: plainGraph(child.graph) } };
    if (job === undefined) return step;
    const { schema: _schema, defaults, definedLimit, ...plain } = job;
    const limit = mergedLimit(plain.limit, definedLimit?.());
    return { ...step, job: { ...defaults, ...withoutUndefined(plain), ...(limit === undefined ? {} : { limit }) } };
  });
  return { ...graph, steps };
}

function withoutUndefined<T extends object>(value: T): T {
  const kept = { ...value };
  for (const [key, entry] of Object.entries(kept)) if (entry === undefined) Reflect.deleteProperty(kept, key);
  return kept;
}
