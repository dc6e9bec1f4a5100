/**
 * Steps to add to live runs (FEATURES F-W7): what is asked for, and what it depends on, found before anything is
 * locked. Writing it is `append.ts`.
 */
import { sql } from "kysely";
import type { Executor } from "../database/executor.ts";
import { rowsOf } from "../database/parameters.ts";
import { reading } from "../database/statement.ts";
import type { DependencyKind } from "../database/statuses.ts";
import { type Remembered, sameRequest } from "../database/values/sameness.ts";
import { LedgerError } from "../errors.ts";
import type { PreparedStep } from "./insertion.ts";
import { itemPrefix, mapKeyOf } from "./item-keys.ts";
import type { NewStep } from "./resolve.ts";

/** A step to add; what it depends on is named by key, among the new steps and the old ones. */
export interface AddedStep extends Pick<PreparedStep, "id" | "key" | "kind" | "job" | "expiry"> {
  readonly dependencies: readonly { readonly key: string; readonly kind: DependencyKind }[];
  readonly map: { readonly over: string; readonly itemEdge: DependencyKind } | null;
}

/** Steps to add to one run, under a key that makes it happen once. */
export interface Addition {
  readonly runId: string;
  readonly mutationKey: string;
  /** What a repetition of the same key is compared with. */
  readonly requested: Remembered;
  /** In topological order. */
  readonly steps: readonly AddedStep[];
}

/** An addition whose dependencies have been found. */
export interface FoundAddition {
  readonly addition: Addition;
  readonly steps: readonly NewStep[];
  readonly mapSources: ReadonlyMap<string, string>;
  /** Old steps that the new ones depend on. */
  readonly prerequisites: readonly { readonly runId: string; readonly id: string }[];
}

/**
 * Those that were not applied before, with the steps that they depend on. Two round trips, none for no additions.
 * Throws `workflow.append_conflicting_retry`, `workflow.append_unknown_dependency`, `workflow.append_duplicate_step_key`.
 */
export async function findAdditions(executor: Executor, additions: readonly Addition[]): Promise<FoundAddition[]> {
  if (additions.length === 0) return [];
  const asked = distinct(additions);
  // The steps first: whoever adds the same in between is then found by the key, and not by its steps alone.
  const { keys, prefixes } = lookedUp(asked.flatMap(({ steps }) => steps));
  const rows = await stepsByKey.execute(executor, { runIds: asked.map(({ runId }) => runId), keys, prefixes });
  const applied = await mutations.execute(executor, mutationArrays(asked));
  const requests = new Map(asked.map(({ runId, mutationKey, requested }) => [placeOf(runId, mutationKey), requested]));
  for (const { run_id, mutation_key, same, stored } of applied) {
    const request = requests.get(placeOf(run_id, mutation_key));
    if (!same && !(await isSame(executor, stored, request))) throw new LedgerError("workflow.append_conflicting_retry");
  }
  const done = new Set(applied.map(({ run_id, mutation_key }) => placeOf(run_id, mutation_key)));
  const left = asked.filter(({ runId, mutationKey }) => !done.has(placeOf(runId, mutationKey)));
  const known = new Map<string, KnownStep>(
    rows.map(({ run_id, step_key, id, is_map }) => [placeOf(run_id, step_key), { id, is_map, stored: true }]),
  );
  return left.map((addition) => {
    const found = foundAddition(addition, (key) => known.get(placeOf(addition.runId, key)));
    // What comes later may depend on these.
    for (const { id, key, map } of addition.steps) {
      known.set(placeOf(addition.runId, key), { id, is_map: map !== null, stored: false });
    }
    return found;
  });
}

function isSame({ settings }: Executor, stored: string | null, request: Remembered | undefined) {
  return stored !== null && request !== undefined && sameRequest(settings.values, stored, request);
}

/** Several steps of a run may add the same in one batch: the first of a key counts. */
function distinct(additions: readonly Addition[]): Addition[] {
  const byPlace = new Map<string, Addition>();
  for (const addition of additions) {
    const place = placeOf(addition.runId, addition.mutationKey);
    const known = byPlace.get(place);
    if (known === undefined) byPlace.set(place, addition);
    else if (known.requested.plain !== addition.requested.plain)
      throw new LedgerError("workflow.append_conflicting_retry");
  }
  return [...byPlace.values()];
}

function placeOf(runId: string, key: string): string {
  return `${runId} ${key}`;
}

/** The keys that are looked for: of dependencies, of the new steps, and those that items of map steps have or will have. */
function lookedUp(steps: readonly AddedStep[]): { keys: string[]; prefixes: string[] } {
  const own = steps.map(({ key }) => key);
  const dependencies = steps.flatMap((step) => step.dependencies.map(({ key }) => key));
  const maps = own.flatMap((key) => mapKeyOf(key) ?? []);
  const prefixes = steps.flatMap(({ key, map }) => (map === null ? [] : [itemPrefix(key)]));
  return { keys: [...new Set([...own, ...dependencies, ...maps])], prefixes };
}

interface KnownStep {
  readonly id: string;
  readonly is_map: boolean;
  /** False for a step of an earlier addition of the same batch. */
  readonly stored: boolean;
}

function foundAddition(addition: Addition, knownStep: (key: string) => KnownStep | undefined): FoundAddition {
  const { runId, steps } = addition;
  const ids = new Map(steps.map(({ key, id }) => [key, id]));
  for (const { key } of steps) refuseTakenKey(key, knownStep);
  const prerequisites = new Set<string>();
  const idOf = (key: string, dependent: string): string => {
    const own = ids.get(key);
    if (own !== undefined) return own;
    const known = knownStep(key);
    if (known === undefined) {
      throw new LedgerError("workflow.append_unknown_dependency", { details: { stepKey: dependent, dependency: key } });
    }
    if (known.stored) prerequisites.add(known.id);
    return known.id;
  };
  const mapSources = new Map(
    steps.flatMap(({ id, key, map }) => (map === null ? [] : [[id, idOf(map.over, key)] as const])),
  );
  const fresh = steps.map(({ id, key, kind, dependencies }) => ({
    runId,
    id,
    kind,
    mapSourceId: mapSources.get(id) ?? null,
    prerequisites: dependencies.map((edge) => ({
      prerequisiteId: idOf(edge.key, key),
      stepId: id,
      kind: edge.kind,
    })),
  }));
  return { addition, steps: fresh, mapSources, prerequisites: [...prerequisites].map((id) => ({ runId, id })) };
}

function refuseTakenKey(key: string, knownStep: (key: string) => KnownStep | undefined): void {
  const map = mapKeyOf(key);
  const takesItemKey = map !== undefined && knownStep(map)?.is_map === true;
  if (takesItemKey || knownStep(key) !== undefined || knownStep(itemPrefix(key)) !== undefined) {
    throw new LedgerError("workflow.append_duplicate_step_key", { details: { stepKey: key } });
  }
}

/** The parameters that carry mutations as parallel arrays. */
export const mutationParameters = { runIds: "uuid[]", keys: "text[]", requested: "jsonb[]" } as const;

export function mutationArrays(additions: readonly Addition[]) {
  return {
    runIds: additions.map(({ runId }) => runId),
    keys: additions.map(({ mutationKey }) => mutationKey),
    requested: additions.map(({ requested }) => requested.stored),
  };
}

const mutations = reading("find_workflow_mutations", mutationParameters, (db, p) =>
  db
    .selectFrom(rowsOf("asked", { run_id: p.runIds, key: p.keys, requested: p.requested }))
    .innerJoin("workflow_run_mutations as m", (join) =>
      join.onRef("m.run_id", "=", "asked.run_id").onRef("m.mutation_key", "=", "asked.key"),
    )
    .select([
      "m.run_id",
      "m.mutation_key",
      sql<boolean>`m.mutation = 'append' and m.requested = asked.requested`.as("same"),
      sql<
        string | null
      >`case when m.mutation = 'append' and m.requested <> asked.requested then m.requested::text end`.as("stored"),
    ]),
);

// Many keys are looked for among the steps of few runs. An item of a map step stands for the prefix of its key.
const stepsByKey = reading(
  "find_workflow_steps_by_key",
  { runIds: "uuid[]", keys: "text[]", prefixes: "text[]" },
  (db, p) =>
    db
      .selectFrom("workflow_steps as s")
      .where(sql<boolean>`s.run_id = any(${p.runIds})`)
      .where(sql<boolean>`s.step_key = any(${p.keys})`)
      .select(["s.run_id", "s.step_key", "s.id", sql<boolean>`s.map_source_id is not null`.as("is_map")])
      .unionAll(
        db
          .selectFrom("workflow_steps as s")
          .where(sql<boolean>`cardinality(${p.prefixes}) > 0 and s.run_id = any(${p.runIds})`)
          .where(sql<boolean>`regexp_replace(s.step_key, '\\d+\\]$', '') = any(${p.prefixes})`)
          .select([
            "s.run_id",
            sql<string>`regexp_replace(s.step_key, '\\d+\\]$', '')`.as("step_key"),
            "s.id",
            sql<boolean>`false`.as("is_map"),
          ]),
      ),
);
