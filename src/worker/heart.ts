/** Keeps leases alive, and tells handlers whose lease is gone. */
import { performance } from "node:perf_hooks";
import type { Ledger } from "../index.ts";
import type { Attempt } from "./attempt.ts";
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
      for (const [place, attempt] of attempts.entries()) {
        const state = answers[place]?.state ?? "LOST";
        if (state === "EXTENDED") attempt.extend(leaseEndsAt);
        else attempt.lose(state === "CANCELED" ? "cancel" : "lease_lost");
      }
    } catch (error) {
      if (attempts.length === 1 || !isTransient(error) || isUnreachable(error)) throw error;
      await this.#extendHalves(attempts, depth + 1);
    }
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
