/** What the database says about a run that was cancelled: that nothing was started afterwards. */
import { type Kysely, sql } from "kysely";
import type { RunledgerDatabase } from "../../src/index.ts";

export interface Evidence {
  readonly endedAt: Date | null;
  /** From the last start of a step to the end of the run, in milliseconds. */
  readonly lastStartMsBefore: number | null;
  readonly startedAfterwards: number;
  readonly liveJobs: number;
}

export async function evidenceOf(db: Kysely<RunledgerDatabase>, runId: string): Promise<Evidence> {
  const run = await db
    .selectFrom("runledger.workflow_runs as r")
    .innerJoin("runledger.workflow_steps as s", "s.run_id", "r.id")
    .where("r.id", "=", runId)
    .select([
      "r.ended_at",
      sql<number | null>`(extract(epoch from r.ended_at - max(s.started_at)) * 1000)::float8`.as("last_start"),
      sql<number>`(count(*) filter (where s.started_at > r.ended_at))::int`.as("afterwards"),
    ])
    .groupBy("r.id")
    .executeTakeFirstOrThrow();
  const jobs = await db
    .selectFrom("runledger.job_queue")
    .where("workflow_run_id", "=", runId)
    .select(sql<number>`count(*)::int`.as("live"))
    .executeTakeFirstOrThrow();
  return {
    endedAt: run.ended_at === null ? null : new Date(run.ended_at),
    lastStartMsBefore: run.last_start,
    startedAfterwards: run.afterwards,
    liveJobs: jobs.live,
  };
}
