/** A worker without loops, for tests: it takes what there is, runs it to the end, and answers. */
import { performance } from "node:perf_hooks";
import { type ClaimedJob, LedgerError } from "../index.ts";
import type { AttemptHost } from "./attempt.ts";
import { Claims } from "./claims.ts";
import type { Activity, Emit } from "./events.ts";
import { Heart } from "./heart.ts";
import { Loop } from "./loop.ts";
import { type Settings, settingsOf, type WorkerOptions } from "./options.ts";
import { reapOnce } from "./reaper.ts";
import { fireSchedulesOnce } from "./schedules.ts";
import { Settler } from "./settler.ts";
import { Slots } from "./slots.ts";
import { fireTimersOnce } from "./timers.ts";

/**
 * The parts of a worker, driven by hand: claims, attempts, heartbeats and the storing of outcomes are those of
 * `createWorker`. Its functions throw what would have made a worker crash.
 */
export class InlineWorker {
  readonly #settings: Settings;
  readonly #slots: Slots;
  readonly #claims: Claims;
  readonly #settler: Settler;
  readonly #heart: Heart;
  readonly #emit: Emit;
  #crash: { readonly error: unknown } | undefined;

  /** Nothing is claimed ahead of free slots. Throws `config.invalid`. */
  constructor(options: WorkerOptions) {
    const settings = settingsOf({ ...options, prefetch: 0 });
    if (settings.handlers.size === 0) {
      throw new LedgerError("config.invalid", { message: "handlers must hold at least one handler." });
    }
    const { ledger, concurrency, leaseSeconds, onEvent: emit } = settings;
    const crash = (error: unknown) => {
      this.#crash ??= { error };
    };
    const release: AttemptHost["release"] = (attempt) => this.#slots.release(attempt);
    const onReleased = () => {};
    this.#settings = settings;
    this.#emit = emit;
    this.#slots = new Slots({ concurrency, prefetch: 0, onRoom: () => {}, onBug: crash });
    this.#settler = new Settler({ ledger, emit, release, onReleased, crash });
    const settle: AttemptHost["settle"] = (attempt, outcome) => this.#settler.add(attempt, outcome);
    this.#claims = new Claims(settings, this.#slots, { ledger, emit, release, onReleased, settle });
    this.#heart = new Heart({ ledger, slots: this.#slots, emit, leaseSeconds });
  }

  /** Claims once, as many jobs as may run at once, and runs them until their outcomes are stored. */
  async turn(): Promise<void> {
    await this.#toTheEnd(() => this.#claims.turn());
  }

  /** Runs one job that was claimed for this worker. */
  async run(job: ClaimedJob): Promise<void> {
    const leaseEndsAt = performance.now() + this.#settings.leaseSeconds * 1000;
    await this.#toTheEnd(() => this.#claims.take([job], leaseEndsAt));
  }

  /** What a worker does from time to time besides running jobs: settles expired leases, fires timers and schedules. One batch of each. */
  async sweep(): Promise<void> {
    const { ledger, workflows } = this.#settings;
    await reapOnce(ledger, this.#emit, Number.POSITIVE_INFINITY);
    await fireTimersOnce(ledger, this.#emit, Number.POSITIVE_INFINITY);
    await fireSchedulesOnce(ledger, workflows, this.#emit, Number.POSITIVE_INFINITY);
  }

  async #toTheEnd(begin: () => Promise<unknown>): Promise<void> {
    const crash = (error: unknown, during: Activity) => {
      this.#emit({ type: "error", during, error, fatal: true });
      this.#crash ??= { error };
    };
    const heartLoop = new Loop({ activity: "heartbeat", turn: () => this.#heart.beat(), emit: this.#emit, crash });
    const leaseWatch = setInterval(() => this.#heart.loseEnded(), this.#heart.intervalMs);
    heartLoop.wake(this.#heart.intervalMs);
    try {
      await begin();
      await this.#slots.idle();
      await this.#settler.drain();
    } finally {
      clearInterval(leaseWatch);
      await heartLoop.stop();
    }
    if (this.#crash !== undefined) throw this.#crash.error;
  }
}
