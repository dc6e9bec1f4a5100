/** Adding steps to live runs, resolved with whatever else ends in the same transaction and inserted under the lock of the run row (FEATURES F-W7). */
import { sql } from "kysely";
import { announceJobs } from "../database/announce.ts";
import type { Executor } from "../database/executor.ts";
import { ownJson } from "../database/json.ts";
import { rowsOf } from "../database/parameters.ts";
import { reading, writing } from "../database/statement.ts";
import type { StepStatus } from "../database/statuses.ts";
import { isLedgerError, LedgerError } from "../errors.ts";
import { insertReleased } from "../jobs/insertion.ts";
import { type Addition, type FoundAddition, mutationArrays, mutationParameters } from "./additions.ts";
import { errorCodeOf } from "./apply.ts";
import {
  edgeRows,
  insertEdges,
  insertSteps,
  type PreparedEdge,
  type PreparedStep,
  type PreparedSteps,
  releasedAtOnce,
  stepArrayParameters,
  stepArrays,
  stepRows,
} from "./insertion.ts";
import type { Resolution } from "./resolve.ts";

/** What was added, as a repetition is told too. */
export interface AppendedStep {
  readonly key: string;
  readonly id: string;
  readonly status: StepStatus;
}

/**
 * Locks the run rows and records the mutations; false when one of them was recorded meanwhile. The lock comes
 * first: the foreign key of what is inserted would take it in a weaker form. Two round trips, none for no additions.
 */
export async function recordAdditions(
  executor: Executor,
  found: readonly FoundAddition[],
  resolution: Resolution,
): Promise<boolean> {
  if (found.length === 0) return true;
  const additions = found.map(({ addition }) => addition);
  await lockRuns.execute(executor, { runIds: additions.map(({ runId }) => runId) });
  const rows = await record.execute(executor, {
    ...mutationArrays(additions),
    results: additions.map((addition) => ownJson(appendedSteps(addition, resolution))),
  });
  return rows.length === found.length;
}

/** What an addition has come to. */
export function appendedSteps({ steps }: Addition, { added }: Resolution): AppendedStep[] {
  return steps.map(({ key, id }) => ({ key, id, status: added.get(id)?.status ?? "BLOCKED" }));
}

/**
 * Inserts the new steps with their edges, and puts the jobs of those that are runnable into the queue. One round
 * trip, none for no additions. Throws `workflow.append_duplicate_step_key`.
 */
export async function insertAdditions(
  executor: Executor,
  found: readonly FoundAddition[],
  resolution: Resolution,
): Promise<void> {
  if (found.length === 0) return;
  const dependents = new Map<string, number>();
  for (const { prerequisiteId } of found.flatMap(edgesOf)) {
    dependents.set(prerequisiteId, (dependents.get(prerequisiteId) ?? 0) + 1);
  }
  const runs = found.map((addition) => preparedSteps(addition, resolution, dependents));
  try {
    await insert.execute(executor, { ...stepArrays(runs), notify: executor.settings.notify });
  } catch (error) {
    throw isLedgerError(error) ? takenMeanwhile(error) : error;
  }
}

/** Another addition has taken a key since the keys were looked for. */
function takenMeanwhile(error: LedgerError): LedgerError {
  const { constraint, sqlstate, cause } = error;
  if (constraint !== "workflow_steps_step_key_key") return error;
  return new LedgerError("workflow.append_duplicate_step_key", { constraint, sqlstate, cause });
}

function edgesOf({ steps }: FoundAddition): PreparedEdge[] {
  return steps.flatMap(({ prerequisites }) => prerequisites);
}

function preparedSteps(
  found: FoundAddition,
  resolution: Resolution,
  dependents: ReadonlyMap<string, number>,
): PreparedSteps {
  const { addition, mapSources } = found;
  const prepared = addition.steps.map(({ id, key, kind, job, expiry, map }): PreparedStep => {
    const change = resolution.added.get(id);
    if (change === undefined) throw new LedgerError("workflow.internal_state");
    const { status, pendingCount, unsatisfiedCount, itemCount } = change;
    return {
      id,
      key,
      kind,
      job,
      expiry,
      status,
      pendingCount,
      unsatisfiedCount,
      dependentCount: dependents.get(id) ?? 0,
      errorCode: errorCodeOf(change),
      map: map === null ? null : { sourceId: mapSources.get(id) ?? "", itemEdge: map.itemEdge, itemCount },
    };
  });
  return { runId: addition.runId, steps: prepared, edges: edgesOf(found) };
}

const lockRuns = reading("lock_workflow_runs_for_update", { runIds: "uuid[]" }, (db, p) =>
  db
    .selectFrom("workflow_runs as r")
    .select("r.id")
    .where(sql<boolean>`r.id = any(${p.runIds})`)
    .orderBy("r.id")
    .forUpdate("r"),
);

const record = writing("record_workflow_mutations", { ...mutationParameters, results: "jsonb[]" }, (db, p) =>
  db
    .insertInto("workflow_run_mutations")
    .columns(["run_id", "mutation_key", "mutation", "requested", "result"])
    .expression((eb) =>
      eb
        .selectFrom(rowsOf("asked", { run_id: p.runIds, key: p.keys, requested: p.requested, result: p.results }))
        .select(["asked.run_id", "asked.key", sql<string>`'append'`.as("mutation"), "asked.requested", "asked.result"])
        .orderBy("asked.run_id")
        .orderBy("asked.key"),
    )
    .onConflict((conflict) => conflict.doNothing())
    .returning("mutation_key"),
);

// The old prerequisites and the run rows are locked by the transaction; the rest is new.
const insert = writing("append_workflow_steps", { ...stepArrayParameters, notify: "bool" }, (db, p, schema) =>
  db
    .with("step", (qb) =>
      qb
        .selectFrom(stepRows(p))
        .innerJoin("workflow_runs as r", "r.id", "given.run_id")
        .selectAll("given")
        .select("r.organization_id"),
    )
    .with("steps", (qb) => insertSteps(qb, schema))
    .with("edge", (qb) => qb.selectFrom(edgeRows(p)).selectAll())
    .with("edges", (qb) => insertEdges(qb, schema))
    .with("depended", (qb) =>
      qb
        .updateTable("workflow_steps as s")
        .from(
          qb
            .selectFrom("edge as e")
            .groupBy(["e.run_id", "e.prerequisite_id"])
            .select(({ fn }) => ["e.run_id", "e.prerequisite_id", fn.countAll<number>().as("dependents")])
            .as("more"),
        )
        .whereRef("s.run_id", "=", "more.run_id")
        .whereRef("s.id", "=", "more.prerequisite_id")
        .set({ dependent_count: sql<number>`s.dependent_count + more.dependents` })
        .returning("s.id"),
    )
    .with("released", (qb) => releasedAtOnce(qb))
    .with("inserted", (qb) => insertReleased(qb))
    .selectNoFrom(announceJobs(p.notify, schema, sql`select from inserted`).as("announced")),
);
