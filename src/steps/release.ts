/** Release: how a step that becomes runnable is written, and the job that it puts into the queue. */
import { type QueryCreator, type RawBuilder, sql } from "kysely";
import type { JsonColumn } from "../database/column-types.ts";
import type { LedgerTables } from "../database/tables.ts";
import { limitColumns } from "../jobs/limits.ts";

export interface ChangeRow {
  readonly run_id: string;
  readonly step_id: string;
  readonly status: string;
}

export interface CountedRow {
  readonly id: string;
  readonly ended_at: Date | string | null;
  readonly parent_run_id: string | null;
  readonly parent_step_id: string | null;
}

type WithCounted = LedgerTables & { counted: CountedRow };
type WithChanges = WithCounted & { change: ChangeRow };

/**
 * The jobs that the changes put into the queue: those of the steps in `change` that are ENQUEUED now, and
 * those of the steps that waited for a child run among `counted` to end.
 */
export function releasedJobs(qb: QueryCreator<WithChanges>) {
  return qb
    .selectFrom("change as c")
    .innerJoin("workflow_steps as s", (join) => join.onRef("s.run_id", "=", "c.run_id").onRef("s.id", "=", "c.step_id"))
    .where("c.status", "=", "ENQUEUED")
    .select([...jobColumns, "s.payload", "s.delay_seconds"])
    .unionAll(jobsOfEndedChildren(qb));
}

/** The jobs of the steps that waited for a child run among `counted` to end. */
export function jobsOfEndedChildren(qb: QueryCreator<WithCounted>) {
  return qb
    .selectFrom("counted as r")
    .innerJoin("workflow_steps as s", (join) =>
      join.onRef("s.run_id", "=", "r.parent_run_id").onRef("s.id", "=", "r.parent_step_id"),
    )
    .where("r.ended_at", "is not", null)
    .where("s.status", "=", "RUNNING")
    .whereRef("s.child_run_id", "=", "r.id")
    .select([
      ...jobColumns,
      sql<JsonColumn | null>`jsonb_build_object('childRunId', r.id)`.as("payload"),
      sql<number | null>`null::float8`.as("delay_seconds"),
    ]);
}

const jobColumns = [
  "s.job_id",
  "s.job_type",
  "s.priority",
  "s.max_attempts",
  "s.timeout_seconds",
  ...limitColumns.map((column) => `s.${column}` as const),
  "s.job_run_number as run_number",
  "s.organization_id",
  "s.run_id",
  "s.id as step_id",
] as const;

/** The values of an UPDATE of `workflow_steps as s` for a step that enters `status`: when it was released, and a gate's times. */
export function entered(status: RawBuilder<unknown>) {
  const opens = sql`${status} = 'WAITING_FOR_EXTERNAL'`;
  return {
    released_at: sql<Date | null>`case when ${status} in ('ENQUEUED', 'WAITING_FOR_EXTERNAL') then clock_timestamp() else s.released_at end`,
    open_since: sql<Date | null>`case when ${opens} then clock_timestamp() end`,
    expires_at: sql<Date | null>`case when ${opens} then clock_timestamp() + make_interval(secs => s.expires_after_seconds) else s.expires_at end`,
    ended_at: sql<Date | null>`case when ${status} in ('SUCCEEDED', 'FAILED', 'CANCELED') then coalesce(s.ended_at, clock_timestamp()) end`,
  };
}
