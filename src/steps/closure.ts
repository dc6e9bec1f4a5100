/** The steps that the end of some steps may reach, locked in one sorted pass, and the edges between them. */
import { sql } from "kysely";
import type { Executor } from "../database/executor.ts";
import { fromJson, type StoredJson } from "../database/json.ts";
import { rowsOf } from "../database/parameters.ts";
import { reading } from "../database/statement.ts";
import { decodeStepKind, decodeStepStatus } from "../database/statuses.ts";
import { rollbackToSavepoint, savepoint } from "../database/transaction.ts";
import { LedgerError } from "../errors.ts";
import {
  type Edge,
  type EndedStep,
  type NewStep,
  type Resolution,
  type ResolvableStep,
  resolve,
  terminalOutcomes,
} from "./resolve.ts";

/** A step that ends, in its run. */
export interface EndingStep extends EndedStep {
  readonly runId: string;
  /** What it puts out, where that is not stored yet. */
  readonly output: StoredJson | null;
}

/** What is to be resolved. */
export interface Resolving {
  readonly ending: readonly EndingStep[];
  readonly added: readonly NewStep[];
  /** Further steps whose rows are needed: of the ids, those that exist. */
  readonly alsoLock: readonly { readonly runId: string; readonly id: string }[];
}

/** How often the steps are locked anew because others have changed what follows from them. */
const MAX_ROUNDS = 8;

/**
 * Locks the ending steps, all that their end may change and the prerequisites of added ones, in id order,
 * and resolves it. Ids are given out in topological order, but levels are not: to find more steps below
 * while holding some would take rows out of order. So the reach is estimated first, and when it turns out too
 * small (an append, a failure elsewhere, or a map without items came in between) everything is given back
 * and locked anew, all the way down. Three round trips, one more where a MAP step may expand, and as many
 * for each further round. `ready` runs once the steps are locked, before anything is resolved. Throws
 * `workflow.release_conflict`.
 */
export async function lockAndResolve(
  executor: Executor,
  resolving: Resolving,
  ready: (steps: readonly ResolvableStep[]) => Promise<void>,
): Promise<Resolution> {
  const { ending, added } = resolving;
  await savepoint(executor);
  for (let round = 1; round <= MAX_ROUNDS; round += 1) {
    const steps = await lockClosure(executor, resolving, round > 1);
    await ready(steps);
    const edges = await outgoingEdges(executor, steps);
    const lengths = await sourceLengths(executor, [...steps, ...added], ending);
    const resolution = resolve({ steps, edges, ended: ending, added, lengths });
    if (resolution !== null) return resolution;
    await rollbackToSavepoint(executor);
  }
  throw new LedgerError("workflow.release_conflict");
}

interface LockedStep extends ResolvableStep {
  /** Whether this step may end too, so that its edges are needed. */
  readonly mayEnd: boolean;
}

async function lockClosure(executor: Executor, resolving: Resolving, whole: boolean): Promise<LockedStep[]> {
  const { ending, alsoLock } = resolving;
  const rows = await closure.execute(executor, {
    runIds: ending.map(({ runId }) => runId),
    stepIds: ending.map(({ id }) => id),
    failures: ending.map(({ status }) => status !== "SUCCEEDED"),
    otherRunIds: alsoLock.map(({ runId }) => runId),
    otherIds: alsoLock.map(({ id }) => id),
    whole,
  });
  return rows.map((row) => ({
    runId: row.run_id,
    id: row.id,
    kind: decodeStepKind(row.kind),
    status: decodeStepStatus(row.status),
    pendingCount: row.pending_count,
    unsatisfiedCount: row.unsatisfied_count,
    dependentCount: row.dependent_count,
    keptOutcome: terminalOutcomes.find((outcome) => outcome === row.kept_outcome) ?? null,
    mapSourceId: row.map_source_id,
    itemCount: row.item_count,
    mayEnd: row.may_end,
  }));
}

async function outgoingEdges(executor: Executor, steps: readonly LockedStep[]): Promise<Edge[]> {
  const sources = steps.filter(({ mayEnd, dependentCount }) => mayEnd && dependentCount > 0);
  if (sources.length === 0) return [];
  const rows = await edges.execute(executor, {
    runIds: sources.map(({ runId }) => runId),
    stepIds: sources.map(({ id }) => id),
  });
  return rows.map((row) => ({ prerequisiteId: row.prerequisite_id, stepId: row.step_id, kind: row.kind }));
}

type MapCandidate = Pick<ResolvableStep, "runId" | "mapSourceId"> & { readonly itemCount?: number | null };

/** How long the arrays are that unexpanded MAP steps fan out over: as stored, or as the ending steps put them out. */
async function sourceLengths(
  executor: Executor,
  steps: readonly MapCandidate[],
  ending: readonly EndingStep[],
): Promise<Map<string, number | null>> {
  const sources = steps.flatMap(({ runId, mapSourceId, itemCount = null }) =>
    mapSourceId === null || itemCount !== null ? [] : [{ runId, id: mapSourceId }],
  );
  if (sources.length === 0) return new Map();
  const stored = await lengths.execute(executor, {
    runIds: sources.map(({ runId }) => runId),
    stepIds: sources.map(({ id }) => id),
  });
  const wanted = new Set(sources.map(({ id }) => id));
  const fresh = ending.filter(({ id, output }) => output !== null && wanted.has(id));
  return new Map([
    ...stored.map(({ id, length }): [string, number | null] => [id, length]),
    ...fresh.map(({ id, output }): [string, number | null] => [id, lengthOf(output)]),
  ]);
}

/** An array is stored as one, encoded or not. */
function lengthOf(output: StoredJson | null): number | null {
  const value = fromJson(output);
  return Array.isArray(value) ? value.length : null;
}

const closureParameters = {
  runIds: "uuid[]",
  stepIds: "uuid[]",
  failures: "bool[]",
  otherRunIds: "uuid[]",
  otherIds: "uuid[]",
  whole: "bool",
} as const;

/**
 * `reached` stops at steps that will not end, unless `whole`: those without an unsatisfied prerequisite, MAP
 * steps that wait for more, gates that nobody has completed early. `wanted` is materialized: of a UNION ALL that the
 * planner makes part of the join, a row that had to be waited for is lost when it is looked at again.
 */
const closure = reading("lock_workflow_step_closure_for_update", closureParameters, (db, p) =>
  db
    .withRecursive("reached(run_id, id, may_end, failed)", (qb) =>
      qb
        .selectFrom(rowsOf("ending", { run_id: p.runIds, id: p.stepIds, failed: p.failures }))
        .select(["ending.run_id", "ending.id", sql<boolean>`true`.as("may_end"), "ending.failed"])
        .union((union) =>
          union
            .selectFrom("reached as c")
            .innerJoin("workflow_step_dependencies as d", (join) =>
              join.onRef("d.run_id", "=", "c.run_id").onRef("d.prerequisite_id", "=", "c.id"),
            )
            .innerJoin("workflow_steps as s", (join) =>
              join.onRef("s.run_id", "=", "d.run_id").onRef("s.id", "=", "d.step_id"),
            )
            .where("c.may_end", "=", true)
            .select([
              "d.run_id",
              "d.step_id as id",
              sql<boolean>`${p.whole} or s.unsatisfied_count > 0 or (c.failed and d.kind = 'ON_SUCCESS')
                or s.kept_outcome is not null
                or (s.map_source_id is not null and s.pending_count <= cardinality(${p.stepIds}))`.as("may_end"),
              sql<boolean>`${p.whole} or s.unsatisfied_count > 0 or (c.failed and d.kind = 'ON_SUCCESS')
                or s.kept_outcome in ('FAILED', 'CANCELED')`.as("failed"),
            ]),
        ),
    )
    .with(
      (cte) => cte("wanted").materialized(),
      (qb) =>
        qb
          .selectFrom("reached as c")
          .groupBy(["c.run_id", "c.id"])
          .select(["c.run_id", "c.id", sql<boolean>`bool_or(c.may_end)`.as("may_end")])
          .unionAll(
            qb
              .selectFrom(rowsOf("other", { run_id: p.otherRunIds, id: p.otherIds }))
              .where(sql<boolean>`(other.run_id, other.id) not in (select run_id, id from reached)`)
              .select(["other.run_id", "other.id", sql<boolean>`false`.as("may_end")])
              .distinct(),
          ),
    )
    .selectFrom("workflow_steps as s")
    .innerJoin("wanted as w", (join) => join.onRef("w.run_id", "=", "s.run_id").onRef("w.id", "=", "s.id"))
    .select([
      "s.run_id",
      "s.id",
      "s.kind",
      "s.status",
      "s.pending_count",
      "s.unsatisfied_count",
      "s.dependent_count",
      "s.kept_outcome",
      "s.map_source_id",
      "s.item_count",
      "w.may_end",
    ])
    .orderBy("s.id")
    .forUpdate("s"),
);

// A statement of its own, after the locks: it sees the edges that others added while the lock was waited for.
const edges = reading("workflow_step_edges", { runIds: "uuid[]", stepIds: "uuid[]" }, (db, p) =>
  db
    .selectFrom(rowsOf("source", { run_id: p.runIds, id: p.stepIds }))
    .innerJoin("workflow_step_dependencies as d", (join) =>
      join.onRef("d.run_id", "=", "source.run_id").onRef("d.prerequisite_id", "=", "source.id"),
    )
    .select(["d.prerequisite_id", "d.step_id", "d.kind"]),
);

// A statement of its own too: an output that was committed while the lock was waited for counts.
const lengths = reading("workflow_step_output_lengths", { runIds: "uuid[]", stepIds: "uuid[]" }, (db, p) =>
  db
    .selectFrom(rowsOf("source", { run_id: p.runIds, id: p.stepIds }))
    .innerJoin("workflow_steps as s", (join) =>
      join.onRef("s.run_id", "=", "source.run_id").onRef("s.id", "=", "source.id"),
    )
    .select([
      "s.id",
      sql<number | null>`case jsonb_typeof(s.output) when 'array' then jsonb_array_length(s.output) end`.as("length"),
    ])
    .distinct(),
);
