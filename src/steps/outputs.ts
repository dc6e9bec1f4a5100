/** Data between steps: the outputs of prerequisites, read once for a whole claim batch (FEATURES F-W5). */
import { sql } from "kysely";
import type { JsonValue } from "../database/column-types.ts";
import type { Executor } from "../database/executor.ts";
import { fromJson } from "../database/json.ts";
import { rowsOf } from "../database/parameters.ts";
import { reading } from "../database/statement.ts";
import type { ClaimedJob } from "../jobs/claim.ts";

/** The outputs of the prerequisites that succeeded, by step key. */
export type PrerequisiteOutputs = Readonly<Record<string, JsonValue | null>>;

/**
 * The prerequisites' outputs of each claimed job that is a step, by job id. One round trip for all of
 * them, none when no job is a step.
 */
export async function prerequisiteOutputs(
  executor: Executor,
  jobs: readonly ClaimedJob[],
): Promise<Map<string, PrerequisiteOutputs>> {
  const steps = jobs.flatMap(({ lease, workflowStepId }) =>
    lease.workflowRunId === null || workflowStepId === null
      ? []
      : [{ jobId: lease.jobId, runId: lease.workflowRunId, stepId: workflowStepId }],
  );
  if (steps.length === 0) return new Map();
  const rows = await outputs.execute(executor, {
    jobIds: steps.map(({ jobId }) => jobId),
    runIds: steps.map(({ runId }) => runId),
    stepIds: steps.map(({ stepId }) => stepId),
  });
  const byJob = new Map<string, Record<string, JsonValue | null>>(steps.map(({ jobId }) => [jobId, {}]));
  for (const { job_id, step_key, output } of rows) {
    const found = byJob.get(job_id);
    // Object.defineProperty, because a step may be called __proto__.
    if (found) Object.defineProperty(found, step_key, { value: fromJson(output), enumerable: true });
  }
  return byJob;
}

const outputs = reading("prerequisite_outputs", { jobIds: "uuid[]", runIds: "uuid[]", stepIds: "uuid[]" }, (db, p) =>
  db
    .selectFrom(rowsOf("claimed", { job_id: p.jobIds, run_id: p.runIds, step_id: p.stepIds }))
    .innerJoin("workflow_step_dependencies as d", "d.step_id", "claimed.step_id")
    .innerJoin("workflow_steps as s", (join) =>
      join.onRef("s.run_id", "=", "d.run_id").onRef("s.id", "=", "d.prerequisite_id"),
    )
    .where("s.status", "=", "SUCCEEDED")
    .select(["claimed.job_id", "s.step_key", sql<string | null>`s.output::text`.as("output")]),
);
