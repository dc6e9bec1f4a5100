/**
 * Announcing after the commit. A transaction that notifies holds a lock on the whole server while it commits: those that
 * notify commit one after the other, each with a flush of its own.
 */
import { performance } from "node:perf_hooks";
import { setTimeout as pause } from "node:timers/promises";

export interface Announcement {
  /** Jobs are due. */
  readonly jobs: boolean;
  /** Runs that have ended. */
  readonly runs: readonly string[];
}

/** The least time between announcements, in milliseconds: what comes up meanwhile is told together. */
const APART_MS = 2;
/**
 * After so many milliseconds without one a statement announces by itself: its jobs are heard of a round trip sooner. At
 * most fifty transactions a second of each process take that lock.
 */
const QUIET_MS = 20;

/** One for all statements of a ledger that are transactions of their own. */
export class Announcer {
  #jobs = false;
  readonly #runs = new Set<string>();
  #sending = false;
  #lastAt = Number.NEGATIVE_INFINITY;

  /** Whether the next statement is to announce by itself; then it is not asked of others for a while. */
  isQuiet(): boolean {
    const now = performance.now();
    if (this.#sending || now - this.#lastAt < QUIET_MS) return false;
    this.#lastAt = now;
    return true;
  }

  /** Has `send` tell what was committed, with what else there is to tell by then. Not waited for, one at a time. */
  announce({ jobs, runs }: Announcement, send: (announcement: Announcement) => Promise<unknown>): void {
    this.#jobs ||= jobs;
    for (const id of runs) this.#runs.add(id);
    if (!this.#sending) void this.#sendAll(send);
  }

  async #sendAll(send: (announcement: Announcement) => Promise<unknown>): Promise<void> {
    this.#sending = true;
    while (this.#jobs || this.#runs.size > 0) {
      const told = { jobs: this.#jobs, runs: [...this.#runs] };
      this.#jobs = false;
      this.#runs.clear();
      this.#lastAt = performance.now();
      await send(told).catch(() => {
        // Whoever was not told looks for itself in the end: polling is what makes sure.
      });
      await pause(APART_MS);
    }
    this.#sending = false;
  }
}
