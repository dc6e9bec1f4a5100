/** Something done again and again: when it is time, when it is woken, and after a pause when the database was away. */
import { performance } from "node:perf_hooks";
import type { Activity, Emit } from "./events.ts";
import { mayPass, retryDelayMs } from "./transient.ts";

export interface LoopOptions {
  readonly activity: Activity;
  /** One turn; answers in how many milliseconds the next is due unless the loop is woken: Infinity for never. */
  readonly turn: () => Promise<number>;
  readonly emit: Emit;
  /** A turn failed with an error that will not pass. */
  readonly crash: (error: unknown, activity: Activity) => void;
}

// What setTimeout can count to.
const MAX_TIMER_MS = 2 ** 31 - 1;

/** Turns never overlap; any number of wake-ups before a turn make one turn. */
export class Loop {
  readonly #options: LoopOptions;
  #dueAt = Number.POSITIVE_INFINITY;
  #running: Promise<void> | undefined;
  #timer: NodeJS.Timeout | undefined;
  #immediate: NodeJS.Immediate | undefined;
  #failures = 0;
  /** Until then only time counts, not wake-ups: the database is away. */
  #pausedUntil = 0;
  #stopped = false;

  constructor(options: LoopOptions) {
    this.#options = options;
  }

  /** A turn is due in so many milliseconds at the latest. The first call starts the loop. */
  wake(afterMs = 0): void {
    const at = Math.max(performance.now() + afterMs, this.#pausedUntil);
    if (this.#stopped || at >= this.#dueAt) return;
    this.#dueAt = at;
    if (this.#running === undefined) this.#schedule();
  }

  /** No further turn; resolves when the one under way has ended. */
  async stop(): Promise<void> {
    this.#stopped = true;
    this.#unschedule();
    await this.#running;
  }

  #schedule(): void {
    this.#unschedule();
    if (this.#stopped || this.#dueAt === Number.POSITIVE_INFINITY) return;
    const delay = Math.min(MAX_TIMER_MS, this.#dueAt - performance.now());
    const begin = () => {
      this.#running = this.#turns();
    };
    // A timer of no time takes a millisecond.
    if (delay <= 0) this.#immediate = setImmediate(begin);
    else this.#timer = setTimeout(begin, delay);
  }

  #unschedule(): void {
    clearTimeout(this.#timer);
    clearImmediate(this.#immediate);
  }

  async #turns(): Promise<void> {
    while (!this.#stopped && this.#dueAt <= performance.now()) {
      this.#dueAt = Number.POSITIVE_INFINITY;
      this.wake(await this.#turn());
    }
    this.#running = undefined;
    this.#schedule();
  }

  async #turn(): Promise<number> {
    const { turn, emit, crash, activity } = this.#options;
    try {
      const next = await turn();
      this.#failures = 0;
      return next;
    } catch (error) {
      if (!mayPass(error, this.#failures)) {
        this.#stopped = true;
        crash(error, activity);
        return Number.POSITIVE_INFINITY;
      }
      emit({ type: "error", during: activity, error, fatal: false });
      const pause = retryDelayMs(this.#failures);
      this.#failures += 1;
      this.#pausedUntil = performance.now() + pause;
      this.#dueAt = Number.POSITIVE_INFINITY;
      return pause;
    }
  }
}
