/**
 * Announcing after the commit. A transaction that notifies holds a lock on the whole server while it commits: those that
 * notify commit one after the other, each with a flush of its own.
 */
import { setTimeout as pause } from "node:timers/promises";
import { sql } from "kysely";
import { jobsChannel, runsChannel } from "./channels.ts";
import type { Executor } from "./executor.ts";
import { reading } from "./statement.ts";

export interface Announcement {
  /** Jobs are due. */
  readonly jobs: boolean;
  /** Runs that have ended. */
  readonly runs?: readonly string[];
}

/** The least time between announcements, in milliseconds: what comes up meanwhile is told together. */
const APART_MS = 2;

/** One for all statements of a ledger that are transactions of their own. */
export class Announcer {
  #jobs = false;
  readonly #runs = new Set<string>();
  #sending = false;

  /** Tells what has been committed. Not waited for, by one statement at a time. */
  announce(executor: Executor, { jobs, runs = [] }: Announcement): void {
    this.#jobs ||= jobs;
    for (const id of runs) this.#runs.add(id);
    if (!this.#sending) void this.#send(executor);
  }

  async #send(executor: Executor): Promise<void> {
    this.#sending = true;
    while (this.#jobs || this.#runs.size > 0) {
      const told = { jobs: this.#jobs, runs: [...this.#runs] };
      this.#jobs = false;
      this.#runs.clear();
      await announce.execute(executor, told).catch(() => {
        // Whoever was not told looks for itself in the end: polling is what makes sure.
      });
      await pause(APART_MS);
    }
    this.#sending = false;
  }
}

const announce = reading("announce", { jobs: "bool", runs: "text[]" }, (_db, p, schema) => {
  const [jobs, runs] = [jobsChannel(schema), runsChannel(schema)];
  return sql`
    select case when ${p.jobs} then pg_notify(${sql.lit(jobs)}, '') end,
      (select count(pg_notify(${sql.lit(runs)}, id)) from unnest(${p.runs}) as id)`;
});
