/** Early completion: a gate that has not opened keeps how it is to end (FEATURES F-W6). */
import { sql } from "kysely";
import type { Executor } from "../database/executor.ts";
import { writing } from "../database/statement.ts";
import { decodeStepStatus, type StepStatus } from "../database/statuses.ts";
import { rollbackToSavepoint, savepoint } from "../database/transaction.ts";
import { LedgerError } from "../errors.ts";
import { runReleaseKey } from "../locks/key.ts";
import type { StepEnding } from "./apply.ts";
import type { TerminalStatus } from "./resolve.ts";

/** What the gate was under its row lock. */
export interface GateBefore {
  readonly status: StepStatus;
  readonly kept_outcome: TerminalStatus | null;
  readonly same_output: boolean;
  /** To be compared once it is decoded; null where there is no codec. */
  readonly stored_output: string | null;
}

/**
 * Stores the ending on the gate when it is BLOCKED and keeps none yet: null. Else nothing is written, and
 * the answer is what the gate was. Two round trips, three when nothing was written. Throws
 * `workflow.release_conflict`, `workflow.step_not_found`.
 */
export async function keepEnding(
  executor: Executor,
  gate: { readonly runId: string; readonly stepId: string },
  outcome: TerminalStatus,
  ending: StepEnding,
): Promise<GateBefore | null> {
  await savepoint(executor);
  const before = await keep.executeFirst(executor, {
    ...gate,
    releaseKey: String(runReleaseKey(gate.runId)),
    outcome,
    output: ending.output,
    readsBack: executor.settings.values.codec !== null,
    errorCode: ending.errorCode,
    completedBy: ending.completedBy,
    reason: ending.reason,
  });
  if (before?.granted === true) return null;
  // The row is given back even when the caller's transaction goes on: a cancel may be waiting for it.
  await rollbackToSavepoint(executor);
  if (before === undefined) throw new LedgerError("workflow.step_not_found");
  if (before.granted === false) throw new LedgerError("workflow.release_conflict");
  return { ...before, status: decodeStepStatus(before.status) };
}

const keepParameters = {
  runId: "uuid",
  stepId: "uuid",
  releaseKey: "int8",
  outcome: "text",
  output: "jsonb?",
  readsBack: "bool",
  errorCode: "text?",
  completedBy: "text?",
  reason: "text?",
} as const;

// The release lock is only tried, under the row's lock: who holds it and wants the row would stand in a circle with us.
const keep = writing("keep_gate_completion", keepParameters, (db, p, schema) =>
  db
    .with(
      (cte) => cte("held").materialized(),
      (qb) =>
        qb
          .selectFrom("workflow_steps as s")
          .where("s.run_id", "=", p.runId)
          .where("s.id", "=", p.stepId)
          .select([
            "s.run_id",
            "s.id",
            "s.status",
            "s.kept_outcome",
            sql<boolean>`s.output is not distinct from ${p.output}`.as("same_output"),
            sql<string | null>`case when ${p.readsBack} then s.output::text end`.as("stored_output"),
          ])
          .forUpdate("s"),
    )
    .with(
      (cte) => cte("tried").materialized(),
      (qb) =>
        qb
          .selectFrom("held as h")
          .where("h.status", "=", "BLOCKED")
          .where("h.kept_outcome", "is", null)
          .select(["h.run_id", "h.id", sql<boolean>`pg_try_advisory_xact_lock_shared(${p.releaseKey})`.as("granted")]),
    )
    .with("kept", (qb) =>
      qb
        .updateTable("workflow_steps as s")
        .from("tried as t")
        .whereRef("s.run_id", "=", "t.run_id")
        .whereRef("s.id", "=", "t.id")
        .where("t.granted", "=", true)
        .set({
          kept_outcome: sql<StepStatus>`${p.outcome}::${sql.id(schema, "step_status")}`,
          output: p.output,
          error_code: p.errorCode,
          completed_by: p.completedBy,
          reason: p.reason,
        }),
    )
    .selectFrom("held as h")
    .leftJoin("tried as t", "t.id", "h.id")
    .select([
      "h.status",
      sql<TerminalStatus | null>`h.kept_outcome`.as("kept_outcome"),
      "h.same_output",
      "h.stored_output",
      "t.granted",
    ]),
);
