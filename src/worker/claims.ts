/** Claiming: fills free slots, with what the jobs need of their prerequisites. */
import { performance } from "node:perf_hooks";
import { setImmediate as nextTurn } from "node:timers/promises";
import { type ClaimedJob, type EagerClaimOptions, LedgerError, type Prerequisites } from "../index.ts";
import { Attempt, type AttemptHost } from "./attempt.ts";
import { viewOf } from "./events.ts";
import type { Settings } from "./options.ts";
import type { Reserved, Slots } from "./slots.ts";

/** A claim that was sent. */
interface Sent {
  readonly limit: number;
  readonly leaseEndsAt: number;
  readonly room: Reserved;
  readonly jobs: Promise<readonly ClaimedJob[]>;
}

/** Jobs of one claim. */
interface Claim {
  readonly jobs: readonly ClaimedJob[];
  readonly leaseEndsAt: number;
}

/** A claim that goes with settlements, of jobs that they release. */
export interface ReservedClaim {
  readonly options: EagerClaimOptions;
  /** Takes on what came of it. Never rejects. */
  take(jobs: readonly ClaimedJob[]): Promise<void>;
}

export class Claims {
  readonly #settings: Settings;
  readonly #slots: Slots;
  readonly #host: AttemptHost;
  readonly #types: readonly string[];
  /** Their prerequisites could not be loaded. */
  #unprepared: Claim[] = [];
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
    await this.#prepareAgain();
    const sent = this.#ahead ?? this.#send();
    this.#ahead = undefined;
    this.#starved = sent === undefined;
    if (sent === undefined) return Number.POSITIVE_INFINITY;
    try {
      const jobs = await sent.jobs;
      const isFull = jobs.length === sent.limit;
      if (isFull) await this.#sendAhead();
      if (jobs.length > 0) await this.take(jobs, sent.leaseEndsAt);
      return isFull ? 0 : this.#settings.pollIntervalMs;
    } finally {
      sent.room.free();
    }
  }

  #send(): Sent | undefined {
    const { ledger, batchSize } = this.#settings;
    const limit = Math.min(this.#slots.room(), batchSize);
    if (limit < 1) return undefined;
    const leaseEndsAt = this.#leaseEnd();
    return { limit, leaseEndsAt, room: this.#slots.reserve(limit), jobs: ledger.jobs.claim(this.#options(limit)) };
  }

  #options(limit: number): EagerClaimOptions {
    const { workerId, leaseSeconds } = this.#settings;
    return { workerId, limit, leaseSeconds, types: this.#types };
  }

  #leaseEnd(): number {
    return performance.now() + this.#settings.leaseSeconds * 1000;
  }

  /** The server looks for the next jobs while this process runs these. */
  async #sendAhead(): Promise<void> {
    if (this.#settings.prefetch === 0) return;
    const sent = this.#send();
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
    await this.#prepare({ jobs, leaseEndsAt });
  }

  /** A claim of at most so many jobs, if there is room for any. Its room is kept until `take`. */
  eager(jobs: number): ReservedClaim | undefined {
    const limit = Math.min(jobs, this.#slots.room(), this.#settings.batchSize);
    if (limit < 1) return undefined;
    const leaseEndsAt = this.#leaseEnd();
    const room = this.#slots.reserve(limit);
    const take = async (claimed: readonly ClaimedJob[]) => {
      try {
        if (claimed.length > 0) await this.take(claimed, leaseEndsAt);
      } catch (error) {
        this.#host.emit({ type: "error", during: "claim", error, fatal: false });
        // They are kept for the next turn of the claims.
        this.#host.onReleased();
      } finally {
        room.free();
      }
    };
    return { options: this.#options(limit), take };
  }

  /** Whether the last turn found no room: only then does room that comes free call for a claim. */
  get starved(): boolean {
    return this.#starved;
  }

  /** Takes back what never got as far as a slot, that of a claim under way included. */
  async takeUnprepared(): Promise<readonly ClaimedJob[]> {
    const unprepared = this.#unprepared.splice(0).flatMap(({ jobs }) => jobs);
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

  async #prepareAgain(): Promise<void> {
    for (let left = this.#unprepared.length; left > 0; left -= 1) {
      const claim = this.#unprepared.shift();
      if (claim !== undefined) await this.#prepare(claim);
    }
  }

  // Claims whose prerequisites cannot be loaded are kept for the next turn: giving them back would need the same database.
  async #prepare(claim: Claim): Promise<void> {
    const found = await this.#settings.ledger.steps.prerequisites(claim.jobs).catch((error: unknown) => {
      this.#unprepared.push(claim);
      throw error;
    });
    this.#slots.add(claim.jobs.map((job) => this.#attempt(job, found, claim.leaseEndsAt)));
  }

  #attempt(job: ClaimedJob, found: ReadonlyMap<string, Prerequisites>, leaseEndsAt: number): Attempt {
    const handler = this.#settings.handlers.get(job.type);
    if (handler === undefined) throw new LedgerError("worker.no_handler", { details: { type: job.type } });
    const prerequisites = found.get(job.lease.jobId) ?? { outputs: {}, failures: {}, undecodable: null };
    return new Attempt({ job, handler, prerequisites, leaseEndsAt }, this.#host);
  }
}
