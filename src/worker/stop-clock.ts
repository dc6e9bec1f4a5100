/** How long a stop may take: until signals are aborted, and until what is left is given up. */

import { performance } from "node:perf_hooks";

/** In milliseconds. */
export interface StopTimes {
  readonly timeoutMs: number;
  readonly graceMs: number;
}

/** Of several calls the earliest end counts. */
export class StopClock {
  /** Resolves when what is left is to be given up. */
  readonly over: Promise<void>;
  readonly #onTimeout: () => void;
  #giveUp: () => void = () => {};
  #endsAt = Number.POSITIVE_INFINITY;
  #timers: NodeJS.Timeout[] = [];
  #cleared = false;

  constructor(onTimeout: () => void) {
    this.#onTimeout = onTimeout;
    this.over = new Promise((resolve) => {
      this.#giveUp = resolve;
    });
  }

  endIn({ timeoutMs, graceMs }: StopTimes): void {
    const endsAt = performance.now() + timeoutMs;
    if (this.#cleared || endsAt >= this.#endsAt) return;
    this.#endsAt = endsAt;
    this.#clearTimers();
    this.#timers = [setTimeout(this.#onTimeout, timeoutMs), setTimeout(this.#giveUp, timeoutMs + graceMs)];
  }

  clear(): void {
    this.#cleared = true;
    this.#clearTimers();
  }

  #clearTimers(): void {
    for (const timer of this.#timers) clearTimeout(timer);
  }
}
