/** Claiming: fills free slots, with what the jobs need of their prerequisites. */
import { performance } from "node:perf_hooks";
import { setImmediate as nextTurn } from "node:timers/promises";
import { type ClaimedJob, LedgerError } from "../index.ts";
import { Attempt, type AttemptHost } from "./attempt.ts";
import { viewOf } from "./events.ts";
import type { Settings } from "./options.ts";
import type { Slots } from "./slots.ts";

/** A claim that was sent. */
interface Sent {
  readonly limit: number;
  readonly leaseEndsAt: number;
  readonly jobs: Promise<readonly ClaimedJob[]>;
}

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
  /** Sent while the jobs of the one before were still to be run. */
  #ahead: Sent | undefined;
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
    await this.#prepare();
    const claim = this.#ahead ?? this.#send(this.#slots.room());
    this.#ahead = undefined;
    this.#starved = claim === undefined;
    if (claim === undefined) return Number.POSITIVE_INFINITY;
    const jobs = await claim.jobs;
    const isFull = jobs.length === claim.limit;
    if (isFull) await this.#sendAhead(this.#slots.room() - jobs.length);
    if (jobs.length > 0) await this.take(jobs, claim.leaseEndsAt);
    return isFull ? 0 : this.#settings.pollIntervalMs;
  }

  #send(room: number): Sent | undefined {
    const { ledger, workerId, leaseSeconds, batchSize } = this.#settings;
    const limit = Math.min(room, batchSize);
    if (limit < 1) return undefined;
    const leaseEndsAt = performance.now() + leaseSeconds * 1000;
    return { limit, leaseEndsAt, jobs: ledger.jobs.claim({ workerId, limit, leaseSeconds, types: this.#types }) };
  }

  /** The server looks for the next jobs while this process runs these. */
  async #sendAhead(room: number): Promise<void> {
    if (this.#settings.prefetch === 0) return;
    const sent = this.#send(room);
    if (sent === undefined) return;
    this.#ahead = sent;
    // Whoever waits for it in the end is told of its failure.
    sent.jobs.catch(() => {});
    // It goes out before the handlers take the process.
    await nextTurn();
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

  /** Takes back what never got as far as a slot, that of a claim under way included. */
  async takeUnprepared(): Promise<readonly ClaimedJob[]> {
    const unprepared = this.#unprepared?.jobs ?? [];
    this.#unprepared = undefined;
    return [...unprepared, ...(await this.#takeAhead())];
  }

  async #takeAhead(): Promise<readonly ClaimedJob[]> {
    const sent = this.#ahead;
    this.#ahead = undefined;
    try {
      const jobs = (await sent?.jobs) ?? [];
      if (jobs.length > 0) this.#host.emit({ type: "claimed", jobs: jobs.map(viewOf) });
      return jobs;
    } catch (error) {
      this.#host.emit({ type: "error", during: "claim", error, fatal: false });
      return [];
    }
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
