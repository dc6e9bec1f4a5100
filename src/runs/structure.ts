/** The steps of a run and the edges between them, without what they carry: what is needed to decide where it goes on. */
import type { Executor } from "../database/executor.ts";
import { reading } from "../database/statement.ts";
import { decodeStepKind, decodeStepStatus, type StepKind, type StepStatus } from "../database/statuses.ts";
import type { Edge } from "../steps/resolve.ts";

/** A step in its place, without payload and output. */
export interface PlacedStep {
  readonly id: string;
  readonly key: string;
  readonly kind: StepKind;
  readonly status: StepStatus;
  readonly errorCode: string | null;
  readonly pendingCount: number;
  readonly unsatisfiedCount: number;
  /** Of a MAP step: how many items it has, null before it has any. */
  readonly itemCount: number | null;
  readonly mapSourceId: string | null;
  /** The MAP step that this is an item of. */
  readonly mapStepId: string | null;
}

export interface RunStructure {
  /** In id order. */
  readonly steps: readonly PlacedStep[];
  readonly edges: readonly Edge[];
}

/** Two round trips, whatever the size; nobody may change the run between them. */
export async function readStructure(executor: Executor, runId: string): Promise<RunStructure> {
  const rows = await steps.execute(executor, { runId });
  const edgeRows = await edges.execute(executor, { runId });
  return {
    steps: rows.map((row) => ({
      id: row.id,
      key: row.step_key,
      kind: decodeStepKind(row.kind),
      status: decodeStepStatus(row.status),
      errorCode: row.error_code,
      pendingCount: row.pending_count,
      unsatisfiedCount: row.unsatisfied_count,
      itemCount: row.item_count,
      mapSourceId: row.map_source_id,
      mapStepId: row.map_step_id,
    })),
    edges: edgeRows.map((row) => ({ prerequisiteId: row.prerequisite_id, stepId: row.step_id, kind: row.kind })),
  };
}

const steps = reading("workflow_run_steps", { runId: "uuid" }, (db, p) =>
  db
    .selectFrom("workflow_steps as s")
    .where("s.run_id", "=", p.runId)
    .select([
      "s.id",
      "s.step_key",
      "s.kind",
      "s.status",
      "s.error_code",
      "s.pending_count",
      "s.unsatisfied_count",
      "s.item_count",
      "s.map_source_id",
      "s.map_step_id",
    ])
    .orderBy("s.id"),
);

const edges = reading("workflow_run_edges", { runId: "uuid" }, (db, p) =>
  db
    .selectFrom("workflow_step_dependencies as d")
    .where("d.run_id", "=", p.runId)
    .select(["d.prerequisite_id", "d.step_id", "d.kind"]),
);
