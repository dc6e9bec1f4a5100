/** When to ask for jobs again where nobody announces them: soon after there were some, and ever less often after that. */
import { performance } from "node:perf_hooks";

/** How soon at the earliest, in milliseconds. */
const SOON_MS = 50;

export class Polling {
  #foundAt = Number.NEGATIVE_INFINITY;

  /** There were jobs just now. */
  found(): void {
    this.#foundAt = performance.now();
  }

  /** Of a claim that is due in so many milliseconds; one that waits for room, in Infinity, goes on waiting for that. */
  sooner(dueInMs: number): number {
    return dueInMs === Number.POSITIVE_INFINITY ? dueInMs : pollDelayMs(performance.now() - this.#foundAt, dueInMs);
  }
}

/**
 * As long again as it is since jobs were found, so that the delays double: 50, 50, 100, 200 … up to the interval. A wake-up
 * in between, for whatever reason, changes nothing about that.
 */
export function pollDelayMs(sinceFoundMs: number, intervalMs: number): number {
  return Math.min(intervalMs, Math.max(SOON_MS, sinceFoundMs));
}
