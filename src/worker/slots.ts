/** The attempts that this worker holds: those that run, those that wait for a slot, those whose outcome is being stored. */
import { performance } from "node:perf_hooks";
import type { Attempt } from "./attempt.ts";
import { Bag } from "./bag.ts";

export interface SlotsOptions {
  readonly concurrency: number;
  readonly prefetch: number;
  /** There may be room for more. */
  readonly onRoom: () => void;
  /** An attempt's own machinery failed; a handler's error never gets here. */
  readonly onBug: (error: unknown) => void;
}

/** Room that is kept. */
export interface Reserved {
  /** To be called once. */
  free(): void;
}

/** Handlers that take longer than this on average, in milliseconds, get no jobs ahead of free slots. */
const SHORT_MS = 250;
/** As many jobs are taken ahead as start within this time at the handlers' pace, in milliseconds: another worker may be free. */
const AHEAD_MS = 100;
/** The weight of the newest handler in the average. */
const NEWEST = 0.2;

export class Slots {
  readonly #options: SlotsOptions;
  #waiting: Attempt[] = [];
  readonly #running = new Bag<Attempt, "runningAt">("runningAt");
  /** Started, and the lease is not known to be gone. */
  readonly #leased = new Bag<Attempt, "leasedAt">("leasedAt");
  readonly #idle: (() => void)[] = [];
  /** Slots for jobs that are asked for. */
  #reserved = 0;
  #averageMs = Number.POSITIVE_INFINITY;
  #open = true;

  constructor(options: SlotsOptions) {
    this.#options = options;
  }

  /**
   * For how many more claims there is room: the free slots, and some ahead of them while handlers are
   * short, refilled when half are used. Outcomes that cannot be stored count too, so that they do not pile up.
   */
  room(): number {
    const { concurrency } = this.#options;
    const ahead = this.#ahead();
    if (!this.#open || this.#waiting.length > ahead / 2) return 0;
    const slots = concurrency + ahead - this.#running.size - this.#waiting.length;
    const unsettled = 2 * concurrency + ahead - this.#leased.size;
    return Math.max(0, Math.min(slots, unsettled) - this.#reserved);
  }

  /** Keeps room for jobs that are asked for, until the answer is there and `free` is called. */
  reserve(jobs: number): Reserved {
    this.#reserved += jobs;
    const free = () => {
      this.#reserved -= jobs;
      this.#options.onRoom();
    };
    return { free };
  }

  add(attempts: readonly Attempt[]): void {
    this.#waiting.push(...attempts);
    this.#fill();
  }

  /** Started attempts under a lease: those to keep alive. */
  leased(): Attempt[] {
    return this.#leased.toArray();
  }

  running(): Attempt[] {
    return this.#running.toArray();
  }

  /** The attempt's lease has ended in one way or another. */
  release(attempt: Attempt): void {
    if (this.#leased.delete(attempt)) this.#options.onRoom();
  }

  /** Takes back what has waited for a slot for so long; handlers are evidently not short. */
  takeWaitingSince(ms: number): Attempt[] {
    const before = performance.now() - ms;
    const stale = this.#waiting.filter(({ claimedAt }) => claimedAt <= before);
    if (stale.length > 0) this.#averageMs = Number.POSITIVE_INFINITY;
    this.#waiting = this.#waiting.filter(({ claimedAt }) => claimedAt > before);
    return stale;
  }

  /** Starts nothing more, and takes back what waits. */
  close(): Attempt[] {
    this.#open = false;
    return this.#waiting.splice(0);
  }

  /** Resolves when no handler runs. */
  async idle(): Promise<void> {
    if (this.#running.size > 0) await new Promise<void>((resolve) => this.#idle.push(resolve));
  }

  #ahead(): number {
    const { concurrency, prefetch } = this.#options;
    if (this.#averageMs >= SHORT_MS) return 0;
    return Math.min(prefetch, Math.ceil((concurrency * AHEAD_MS) / this.#averageMs));
  }

  #fill(): void {
    while (this.#open && this.#running.size < this.#options.concurrency) {
      const attempt = this.#waiting.shift();
      if (attempt === undefined) return;
      if (attempt.leaseHasEnded()) attempt.lose("lease_lost");
      else this.#start(attempt);
    }
  }

  #start(attempt: Attempt): void {
    const startedAt = performance.now();
    this.#running.add(attempt);
    this.#leased.add(attempt);
    const ended = () => this.#ended(attempt, performance.now() - startedAt);
    attempt.run().then(ended, (error: unknown) => {
      this.#options.onBug(error);
      ended();
    });
  }

  #ended(attempt: Attempt, ms: number): void {
    this.#running.delete(attempt);
    const known = Number.isFinite(this.#averageMs);
    this.#averageMs = known ? this.#averageMs + NEWEST * (ms - this.#averageMs) : ms;
    this.#fill();
    this.#options.onRoom();
    if (this.#running.size === 0) for (const resolve of this.#idle.splice(0)) resolve();
  }
}
