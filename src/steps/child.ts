/** The step of a run that stands for a child run (FEATURES F-W12): it runs, without a live job, while the child does. */
import { sql } from "kysely";
import type { Executor } from "../database/executor.ts";
import { writing } from "../database/statement.ts";
import type { StepStatus } from "../database/statuses.ts";
import { appendEnded, succeededOfQueue } from "../jobs/ending.ts";
import type { PreparedOutcome } from "../jobs/outcome.ts";
import { holdJobs } from "./cascade.ts";

/**
 * Ends the job's slice and leaves its step RUNNING for the child run, whose end puts the job back under its next
 * run number. Locks the job row, the run's release lock (shared) and the step row. False when the lease is not held.
 * Two round trips, where the lock has not to be waited for.
 */
export async function handOverToChild(trx: Executor, outcome: PreparedOutcome, childRunId: string): Promise<boolean> {
  const [held] = await holdJobs(trx, [outcome], "live");
  if (held === undefined) return false;
  await handOver.execute(trx, { jobId: held.job_id, runId: held.run_id, stepId: held.step_id ?? "", childRunId });
  return true;
}

const handOverParameters = { jobId: "uuid", runId: "uuid", stepId: "uuid", childRunId: "uuid" } as const;

// The job row is held by the transaction already.
const handOver = writing("hand_step_over_to_child_run", handOverParameters, (db, p, schema) =>
  db
    .with("ended", (qb) =>
      qb.deleteFrom("job_queue as q").where("q.id", "=", p.jobId).returning(succeededOfQueue(schema)),
    )
    .with("appended", (qb) => appendEnded(qb))
    .updateTable("workflow_steps as s")
    .from("ended as e")
    .where("s.run_id", "=", p.runId)
    .where("s.id", "=", p.stepId)
    .set((eb) => ({
      status: sql<StepStatus>`'RUNNING'::${sql.id(schema, "step_status")}`,
      child_run_id: p.childRunId,
      job_run_number: sql<number>`e.run_number + 1`,
      started_at: eb.ref("e.leased_at"),
    })),
);
