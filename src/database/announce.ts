/** Announcements: one NOTIFY a statement, never one a row, and only when there is something to say. */
import { type RawBuilder, sql } from "kysely";
import type { Announcement } from "./announcer.ts";
import { jobsChannel, runsChannel } from "./channels.ts";
import type { Executor } from "./executor.ts";
import { reading } from "./statement.ts";

/** Whether the statement itself announces: in a transaction of its own that is left to `announceAfter`. */
export function announcesItself({ settings, transaction }: Executor): boolean {
  return settings.notify && transaction !== "none";
}

/** Announces what a statement that was a transaction of its own has committed. */
export function announceAfter(
  executor: Executor,
  { jobs, runs = [] }: Pick<Announcement, "jobs"> & Partial<Announcement>,
): void {
  if (!executor.settings.notify || executor.transaction !== "none") return;
  executor.announcer.announce({ jobs, runs }, (announcement) => announce.execute(executor, announcement));
}

const announce = reading("announce", { jobs: "bool", runs: "text[]" }, (_db, p, schema) => {
  const [ofJobs, ofRuns] = [jobsChannel(schema), runsChannel(schema)];
  return sql`
    select case when ${p.jobs} then pg_notify(${sql.lit(ofJobs)}, '') end,
      (select count(pg_notify(${sql.lit(ofRuns)}, id)) from unnest(${p.runs}) as id)`;
});

/** Wakes the workers when `runnable` has a row and notifying is on. An expression for the statement's own select. */
export function announceJobs(
  notify: RawBuilder<boolean>,
  schema: string,
  runnable: RawBuilder<unknown>,
): RawBuilder<unknown> {
  return sql`case when ${notify} and exists (${runnable}) then pg_notify(${sql.lit(jobsChannel(schema))}, '') end`;
}

/** For a statement that makes jobs: whether some of `due` are, for `announceAfter`, and their announcement by the statement itself. */
export function announceDue(notify: RawBuilder<boolean>, schema: string, due: RawBuilder<unknown>) {
  return [sql<boolean>`exists (${due})`.as("due"), announceJobs(notify, schema, due).as("announced")] as const;
}

/** Tells the waiters of each run in `ended` (rows with an `id`) that it has ended. */
export function announceRuns(
  notify: RawBuilder<boolean>,
  schema: string,
  ended: RawBuilder<unknown>,
): RawBuilder<unknown> {
  return sql`case when ${notify} then (select count(pg_notify(${sql.lit(runsChannel(schema))}, id::text)) from (${ended}) as ended) end`;
}
