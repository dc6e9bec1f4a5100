/** Claiming: fills free slots, with what the jobs need of their prerequisites. */
import { performance } from "node:perf_hooks";
import { type ClaimedJob, LedgerError } from "../index.ts";
import { Attempt, type AttemptHost } from "./attempt.ts";
import { viewOf } from "./events.ts";
import type { Settings } from "./options.ts";
import type { Slots } from "./slots.ts";

/** Jobs of one claim whose prerequisites are not loaded yet. */
interface Unprepared {
  readonly jobs: readonly ClaimedJob[];
  readonly leaseEndsAt: number;
}

export class Claims {
  readonly #settings: Settings;
  readonly #slots: Slots;
  readonly #host: AttemptHost;
  readonly #types: readonly string[];
  #unprepared: Unprepared | undefined;
  #starved = false;

  constructor(settings: Settings, slots: Slots, host: AttemptHost) {
    this.#settings = settings;
    this.#slots = slots;
    this.#host = host;
    this.#types = [...settings.handlers.keys()];
  }

  /**
   * One claim; nothing is sent when there is no room. One round trip, and one more for the prerequisites
   * of all claimed jobs when any is a step. Answers when to claim again: at once while claims come
   * back full.
   */
  async turn(): Promise<number> {
    const { ledger, workerId, leaseSeconds, batchSize, pollIntervalMs } = this.#settings;
    await this.#prepare();
    const limit = Math.min(this.#slots.room(), batchSize);
    this.#starved = limit < 1;
    if (this.#starved) return Number.POSITIVE_INFINITY;
    const leaseEndsAt = performance.now() + leaseSeconds * 1000;
    const jobs = await ledger.jobs.claim({ workerId, limit, leaseSeconds, types: this.#types });
    if (jobs.length > 0) await this.take(jobs, leaseEndsAt);
    return jobs.length === limit ? 0 : pollIntervalMs;
  }

  /** Takes claimed jobs on. One round trip for the prerequisites, when any is a step. */
  async take(jobs: readonly ClaimedJob[], leaseEndsAt: number): Promise<void> {
    this.#host.emit({ type: "claimed", jobs: jobs.map(viewOf) });
    this.#unprepared = { jobs, leaseEndsAt };
    await this.#prepare();
  }

  /** Whether the last turn found no room: only then does room that comes free call for a claim. */
  get starved(): boolean {
    return this.#starved;
  }

  /** Takes back what never got as far as a slot. */
  takeUnprepared(): readonly ClaimedJob[] {
    const jobs = this.#unprepared?.jobs ?? [];
    this.#unprepared = undefined;
    return jobs;
  }

  // Claims whose prerequisites cannot be loaded are kept for the next turn: giving them back would need the same database.
  async #prepare(): Promise<void> {
    const { ledger, handlers } = this.#settings;
    const claim = this.#unprepared;
    if (claim === undefined) return;
    const found = await ledger.steps.prerequisites(claim.jobs);
    this.#unprepared = undefined;
    const attempts = claim.jobs.map((job) => {
      const handler = handlers.get(job.type);
      if (handler === undefined) throw new LedgerError("worker.no_handler", { details: { type: job.type } });
      const prerequisites = found.get(job.lease.jobId) ?? { outputs: {}, failures: {}, undecodable: null };
      return new Attempt({ job, handler, prerequisites, leaseEndsAt: claim.leaseEndsAt }, this.#host);
    });
    this.#slots.add(attempts);
  }
}
