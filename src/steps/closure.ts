/** The steps that the end of some steps may reach, locked in one sorted pass, and the edges between them. */
import { sql } from "kysely";
import type { Executor } from "../database/executor.ts";
import { rowsOf } from "../database/parameters.ts";
import { reading } from "../database/statement.ts";
import { decodeStepKind, decodeStepStatus } from "../database/statuses.ts";
import { rollbackToSavepoint, savepoint } from "../database/transaction.ts";
import { LedgerError } from "../errors.ts";
import { type Edge, type EndedStep, type Resolution, type ResolvableStep, resolve } from "./resolve.ts";

/** A step that ends, in its run. */
export interface EndingStep extends EndedStep {
  readonly runId: string;
}

/** How often the steps are locked anew because others have changed what follows from them. */
const MAX_ROUNDS = 8;

/**
 * Locks the ending steps and all that their end may change, in id order, and resolves it. Ids are given
 * out in topological order, but levels are not: to find more steps below while holding some would take
 * rows out of order. So the reach is estimated first, generously, and when it turns out too small (an
 * append, or a failure elsewhere, came in between) everything is given back and locked anew, all the
 * way down. Three round trips, and three more for each further round. `ready` runs once the steps are
 * locked, before anything is resolved. Throws `workflow.release_conflict`.
 */
export async function lockAndResolve(
  executor: Executor,
  ending: readonly EndingStep[],
  ready: (steps: readonly ResolvableStep[]) => Promise<void>,
): Promise<Resolution> {
  await savepoint(executor);
  for (let round = 1; round <= MAX_ROUNDS; round += 1) {
    const steps = await lockClosure(executor, ending, round > 1);
    await ready(steps);
    const edges = await outgoingEdges(executor, steps);
    const resolution = resolve(steps, edges, ending);
    if (resolution !== null) return resolution;
    await rollbackToSavepoint(executor);
  }
  throw new LedgerError("workflow.release_conflict");
}

interface LockedStep extends ResolvableStep {
  /** Whether this step may end too, so that its edges are needed. */
  readonly mayEnd: boolean;
}

async function lockClosure(executor: Executor, ending: readonly EndingStep[], whole: boolean): Promise<LockedStep[]> {
  const rows = await closure.execute(executor, {
    runIds: ending.map(({ runId }) => runId),
    stepIds: ending.map(({ id }) => id),
    failures: ending.map(({ status }) => status !== "SUCCEEDED"),
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

const closureParameters = { runIds: "uuid[]", stepIds: "uuid[]", failures: "bool[]", whole: "bool" } as const;

// `reached` stops at steps that will not end: those without an unsatisfied prerequisite, unless `whole`.
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
              sql<boolean>`${p.whole} or s.unsatisfied_count > 0 or (c.failed and d.kind = 'ON_SUCCESS')`.as("may_end"),
              sql<boolean>`${p.whole} or s.unsatisfied_count > 0 or (c.failed and d.kind = 'ON_SUCCESS')`.as("failed"),
            ]),
        ),
    )
    .with("wanted", (qb) =>
      qb
        .selectFrom("reached as c")
        .groupBy(["c.run_id", "c.id"])
        .select(["c.run_id", "c.id", sql<boolean>`bool_or(c.may_end)`.as("may_end")]),
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
