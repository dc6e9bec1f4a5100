/** Keeps leases alive, and tells handlers whose lease is gone. */
import { performance } from "node:perf_hooks";
import type { Ledger } from "../index.ts";
import type { Attempt } from "./attempt.ts";
import { fateOf } from "./confirm.ts";
import type { Emit } from "./events.ts";
import { handBack } from "./hand-back.ts";
import type { Slots } from "./slots.ts";
import { isTransient, isUnreachable } from "./transient.ts";

export interface HeartOptions {
  readonly ledger: Ledger;
  readonly slots: Slots;
  readonly emit: Emit;
  readonly leaseSeconds: number;
}

/** Halves of halves wait for locks side by side, on four connections; smaller parts one after the other. */
const PARALLEL_DEPTH = 2;

export class Heart {
  readonly #options: HeartOptions;
  readonly intervalMs: number;

  constructor(options: HeartOptions) {
    this.#options = options;
    this.intervalMs = (options.leaseSeconds * 1000) / 3;
  }

  /**
   * One round trip for all started attempts, none when there are none. Claims that have waited for a slot
   * all this time are given back instead: another worker may be free.
   */
  async beat(): Promise<number> {
    const { slots } = this.#options;
    this.loseEnded();
    await this.#extend(slots.leased());
    const stale = slots.takeWaitingSince(this.intervalMs);
    await handBack(
      this.#options,
      stale.map(({ job }) => job),
      1,
    );
    return this.intervalMs;
  }

  /** Attempts whose lease has certainly ended, as far as this process knows: no answer may come for a long time. */
  loseEnded(): void {
    for (const attempt of this.#options.slots.leased()) if (attempt.leaseHasEnded()) attempt.lose("lease_lost");
  }

  async #extend(attempts: readonly Attempt[], depth = 0): Promise<void> {
    const { ledger, leaseSeconds } = this.#options;
    if (attempts.length === 0) return;
    const leaseEndsAt = performance.now() + leaseSeconds * 1000;
    try {
      const leases = attempts.map(({ job }) => job.lease);
      const answers = await ledger.jobs.heartbeat(leases, leaseSeconds);
      const extended = attempts.filter((_, place) => answers[place]?.state === "EXTENDED");
      for (const attempt of extended) attempt.extend(leaseEndsAt);
      await Promise.all(attempts.filter((attempt) => !extended.includes(attempt)).map((gone) => this.#gone(gone)));
    } catch (error) {
      if (attempts.length === 1 || !isTransient(error) || isUnreachable(error)) throw error;
      await this.#extendHalves(attempts, depth + 1);
    }
  }

  /**
   * Asks again what became of the job: the heartbeat may have waited for the very transaction that ended it, and
   * does not see what that wrote. One round trip, none for an attempt whose outcome is being stored.
   */
  async #gone(attempt: Attempt): Promise<void> {
    if (!attempt.open) return;
    const fate = await fateOf(this.#options.ledger, attempt.job.lease, { success: {} });
    if (fate === "succeeded" || fate === "snoozed" || fate === "continued") attempt.completed(fate);
    else attempt.lose(fate === "canceled" ? "cancel" : "lease_lost");
  }

  /** One row that somebody else has locked must not cost the others their leases. */
  async #extendHalves(attempts: readonly Attempt[], depth: number): Promise<void> {
    const middle = Math.ceil(attempts.length / 2);
    const first = this.#extend(attempts.slice(0, middle), depth);
    if (depth > PARALLEL_DEPTH) await Promise.allSettled([first]);
    for (const half of await Promise.allSettled([first, this.#extend(attempts.slice(middle), depth)])) {
      if (half.status === "rejected") throw half.reason;
    }
  }
}
