/** Announcements: one NOTIFY a statement, never one a row, and only when there is something to say. */
import { type RawBuilder, sql } from "kysely";
import type { Announcement } from "./announcer.ts";
import { jobsChannel, runsChannel } from "./channels.ts";
import type { Executor } from "./executor.ts";
import { reading } from "./statement.ts";

/** How what a statement makes due or ends is announced: decided before it is sent. */
export interface Announcing {
  /** By the statement itself. */
  readonly notify: boolean;
  /** Where it did not do so itself: what it has committed. */
  after(news: Pick<Announcement, "jobs"> & Partial<Announcement>): void;
}

export function announcing(executor: Executor): Announcing {
  const { settings, transaction, announcer } = executor;
  const notify = settings.notify && (transaction !== "none" || announcer.isQuiet());
  return {
    notify,
    after: ({ jobs, runs = [] }) => {
      if (notify || !settings.notify) return;
      announcer.announce({ jobs, runs }, (announcement) => announce.execute(executor, announcement));
    },
  };
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

/** For a statement that makes jobs: whether some of `due` are, for `Announcing.after`, and their announcement by the statement itself. */
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
