/** Announcements: one NOTIFY a statement, never one a row, and only when there is something to say. */
import { type RawBuilder, sql } from "kysely";
import { jobsChannel, runsChannel } from "./executor.ts";

/** Wakes the workers when `runnable` has a row and notifying is on. An expression for the statement's own select. */
export function announceJobs(
  notify: RawBuilder<boolean>,
  schema: string,
  runnable: RawBuilder<unknown>,
): RawBuilder<unknown> {
  return sql`case when ${notify} and exists (${runnable}) then pg_notify(${sql.lit(jobsChannel(schema))}, '') end`;
}

/** Tells the waiters of each run in `ended` (rows with an `id`) that it has ended. */
export function announceRuns(
  notify: RawBuilder<boolean>,
  schema: string,
  ended: RawBuilder<unknown>,
): RawBuilder<unknown> {
  return sql`case when ${notify} then (select count(pg_notify(${sql.lit(runsChannel(schema))}, id::text)) from (${ended}) as ended) end`;
}
