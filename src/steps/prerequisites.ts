/** Data between steps: what a step's prerequisites came to, read once for a whole claim batch (FEATURES F-W5). */
import { sql } from "kysely";
import type { JsonValue } from "../database/column-types.ts";
import type { Executor } from "../database/executor.ts";
import { rowsOf } from "../database/parameters.ts";
import { reading } from "../database/statement.ts";
import { readValues } from "../database/values/read.ts";
import type { LedgerError } from "../errors.ts";
import type { ClaimedJob } from "../jobs/claimed.ts";

/** The outputs of the prerequisites that succeeded, by step key. */
export type PrerequisiteOutputs = Readonly<Record<string, JsonValue | null>>;

/** Why a prerequisite did not succeed. */
export interface PrerequisiteFailure {
  readonly status: "FAILED" | "CANCELED";
  readonly errorCode: string | null;
  readonly errorMessage: string | null;
  /** What whoever completed the gate gave as the reason. */
  readonly reason: string | null;
}

/** The prerequisites that ended without success, by step key. A step runs after them only where it depends ON_TERMINAL. */
export type PrerequisiteFailures = Readonly<Partial<Record<string, PrerequisiteFailure>>>;

/** What the prerequisites of one step came to. */
export interface Prerequisites {
  readonly outputs: PrerequisiteOutputs;
  readonly failures: PrerequisiteFailures;
  /** Why an output could not be decoded, reading which throws it; a worker fails such a job. Else null. */
  readonly undecodable: LedgerError | null;
}

type Found = { -readonly [K in keyof Prerequisites]: Prerequisites[K] };

/**
 * What the prerequisites of each claimed job that is a step came to, by job id. One round trip for all of
 * them, none when no job is a step.
 */
export async function prerequisites(
  executor: Executor,
  jobs: readonly ClaimedJob[],
): Promise<Map<string, Prerequisites>> {
  const steps = jobs.flatMap(({ lease, workflowStepId }) =>
    lease.workflowRunId === null || workflowStepId === null ? [] : [{ jobId: lease.jobId, stepId: workflowStepId }],
  );
  if (steps.length === 0) return new Map();
  const rows = await ended.execute(executor, {
    jobIds: steps.map(({ jobId }) => jobId),
    stepIds: steps.map(({ stepId }) => stepId),
  });
  const outputs = await readValues(
    executor.settings.values,
    "output",
    rows.map(({ output }) => output),
  );
  const byJob = new Map<string, Found>(
    steps.map(({ jobId }) => [jobId, { outputs: {}, failures: {}, undecodable: null }]),
  );
  for (const [place, row] of rows.entries()) {
    const found = byJob.get(row.job_id);
    if (found === undefined) continue;
    const error = outputs.errors.get(place);
    if (error !== undefined) {
      found.undecodable = error;
      Object.defineProperty(found.outputs, row.step_key, { get: () => outputs.at(place), enumerable: true });
    } else if (row.status === "SUCCEEDED") define(found.outputs, row.step_key, outputs.at(place));
    else if (row.status === "FAILED" || row.status === "CANCELED") {
      const { status, error_code: errorCode, error_message: errorMessage, reason } = row;
      define(found.failures, row.step_key, { status, errorCode, errorMessage, reason });
    }
  }
  return byJob;
}

/** Not by assignment, because a step may be called __proto__. */
function define(object: object, key: string, value: unknown): void {
  Object.defineProperty(object, key, { value, enumerable: true });
}

// OFFSET 0 keeps the planner from starting at the other end, with every step that has ended.
const ended = reading("step_prerequisites", { jobIds: "uuid[]", stepIds: "uuid[]" }, (db, p) =>
  db
    .selectFrom(rowsOf("claimed", { job_id: p.jobIds, step_id: p.stepIds }))
    .innerJoinLateral(
      (eb) =>
        eb
          .selectFrom("workflow_step_dependencies as edge")
          .whereRef("edge.step_id", "=", "claimed.step_id")
          .select(["edge.run_id", "edge.prerequisite_id"])
          .offset(sql.lit(0))
          .as("d"),
      (join) => join.onTrue(),
    )
    .innerJoinLateral(
      (eb) =>
        eb
          .selectFrom("workflow_steps as step")
          .whereRef("step.run_id", "=", "d.run_id")
          .whereRef("step.id", "=", "d.prerequisite_id")
          .where("step.status", "in", ["SUCCEEDED", "FAILED", "CANCELED"])
          .select([
            "step.step_key",
            "step.status",
            "step.error_code",
            "step.error_message",
            "step.reason",
            "step.output",
          ])
          .offset(sql.lit(0))
          .as("s"),
      (join) => join.onTrue(),
    )
    .select([
      "claimed.job_id",
      "s.step_key",
      "s.status",
      "s.error_code",
      "s.error_message",
      "s.reason",
      sql<string | null>`case when s.status = 'SUCCEEDED' then s.output::text end`.as("output"),
    ]),
);
