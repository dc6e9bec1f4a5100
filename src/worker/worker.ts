/** createWorker(): takes jobs from a ledger and runs their handlers, until it is stopped. */
import { LedgerError } from "../index.ts";
import type { Attempt, AttemptHost } from "./attempt.ts";
import { Claims } from "./claims.ts";
import type { Activity, Emit, WorkerEvent } from "./events.ts";
import { handBack } from "./hand-back.ts";
import { Heart } from "./heart.ts";
import { Loop } from "./loop.ts";
import { Maintainer } from "./maintain.ts";
import { type Settings, settingsOf, type WorkerOptions } from "./options.ts";
import { Polling } from "./polling.ts";
import { reapOnce } from "./reaper.ts";
import { fireSchedulesOnce } from "./schedules.ts";
import { Settler } from "./settler.ts";
import { Slots } from "./slots.ts";
import { StopClock } from "./stop-clock.ts";
import { syncCatalogue, type WorkerSyncOptions } from "./sync.ts";
import { fireTimersOnce } from "./timers.ts";

export interface StopOptions {
  /**
   * How long running handlers may go on, in milliseconds; then their signals are aborted with `shutdown`. 0
   * aborts at once. A second call can make it shorter. Default 30 000.
   */
  readonly timeoutMs?: number;
  /** How long they have to end after that, and their outcomes to be stored, in milliseconds. Default 2000. */
  readonly graceMs?: number;
}

const DEFAULT_TIMEOUT_MS = 30_000;
const DEFAULT_GRACE_MS = 2_000;
const HAND_BACK_TRIES = 4;
/** The first look for timers costs little, and says when the next is due. */
const FIRST_TIMERS_MS = 1_000;
const MAX_STOP_MS = 2 ** 31 - 1;

/** Makes a worker. Nothing is sent before `start()`. Throws `config.invalid`. */
export function createWorker(options: WorkerOptions): Worker {
  return new Worker(settingsOf(options));
}

/**
 * Runs handlers, at most `concurrency` at once. Execution is at least once: an attempt whose worker died is made again.
 *
 * It uses up to fourteen connections of the ledger's pool besides those of the handlers: one to claim, one to announce,
 * one to reap, one to fire timers, one to fire schedules, one to maintain, four to store outcomes, and one for
 * heartbeats, or four where locked rows are in their way. A client of `pg` whose connection breaks while it is in use
 * ends the process unless somebody listens: `pool.on("connect", (client) => client.on("error", () => {}))`.
 *
 * ```ts
 * const worker = createWorker({ ledger, handlers: [handle(sendReceipt, send)] });
 * await worker.start();
 * process.once("SIGTERM", () => worker.stop({ timeoutMs: 20_000 }));
 * process.once("SIGINT", () => worker.stop({ timeoutMs: 0 }));
 * await worker.done;
 * ```
 */
export class Worker {
  /**
   * Resolves when the worker has stopped; rejects, after the same winding down, when it stopped because of an
   * error that will not pass (`schema.missing`, `db.forbidden`, a bug). Nobody else is told, so leave it
   * unhandled only where that should end the process.
   */
  readonly done: Promise<void>;
  readonly #settings: Settings;
  readonly #slots: Slots;
  readonly #claims: Claims;
  readonly #polling = new Polling();
  readonly #settler: Settler;
  readonly #heart: Heart;
  readonly #claimLoop: Loop;
  readonly #heartLoop: Loop;
  readonly #reapLoop: Loop;
  readonly #timerLoop: Loop;
  readonly #scheduleLoop: Loop;
  readonly #maintainLoop: Loop;
  readonly #maintainer: Maintainer | null;
  #state: "new" | "starting" | "running" | "stopping" | "stopped" = "new";
  #crash: { readonly error: unknown } | undefined;
  #unsubscribe: (() => void) | null = null;
  #leaseWatch: NodeJS.Timeout | undefined;
  #stopping: Promise<void> | undefined;
  #finish: () => void = () => {};
  readonly #clock = new StopClock(() => {
    for (const attempt of this.#slots.running()) attempt.shutDown();
  });

  /** @internal Use `createWorker`. */
  constructor(settings: Settings) {
    const { ledger, concurrency, prefetch, leaseSeconds, reapIntervalMs } = settings;
    const emit = this.#emit;
    const release = (attempt: Attempt) => this.#slots.release(attempt);
    const host: AttemptHost = {
      ledger,
      emit,
      release,
      onReleased: () => this.#claimLoop.wake(),
      settle: (attempt, outcome) => this.#settler.add(attempt, outcome),
    };
    this.#settings = settings;
    this.done = new Promise((resolve, reject) => {
      this.#finish = () => (this.#crash === undefined ? resolve() : reject(this.#crash.error));
    });
    this.#slots = new Slots({
      concurrency,
      prefetch,
      onRoom: () => {
        if (this.#claims.starved) this.#claimLoop.wake();
      },
      onBug: (error) => this.#crashed(error, "settle"),
    });
    this.#claims = new Claims(settings, this.#slots, host);
    this.#settler = new Settler({
      ledger,
      emit,
      release,
      onReleased: () => this.#claimLoop.wake(),
      claim: (jobs) => this.#claims.eager(jobs),
      crash: (error) => this.#crashed(error, "settle"),
    });
    this.#heart = new Heart({ ledger, slots: this.#slots, emit, leaseSeconds });
    const crash = (error: unknown, activity: Activity) => this.#crashed(error, activity);
    this.#claimLoop = new Loop({ activity: "claim", turn: () => this.#claim(), emit, crash });
    this.#heartLoop = new Loop({ activity: "heartbeat", turn: () => this.#heart.beat(), emit, crash });
    const intervalMs = reapIntervalMs ?? Number.POSITIVE_INFINITY;
    this.#reapLoop = new Loop({ activity: "reap", turn: () => reapOnce(ledger, emit, intervalMs), emit, crash });
    const fireTimers = () => fireTimersOnce(ledger, emit, intervalMs);
    this.#timerLoop = new Loop({ activity: "timers", turn: fireTimers, emit, crash });
    this.#scheduleLoop = new Loop({ activity: "schedule", turn: () => this.#fireSchedules(), emit, crash });
    this.#maintainer = settings.maintain === null ? null : new Maintainer(ledger, emit, settings.maintain);
    const maintain = async () => this.#maintainer?.turn() ?? Number.POSITIVE_INFINITY;
    this.#maintainLoop = new Loop({ activity: "maintain", turn: maintain, emit, crash });
  }

  /** The name in this worker's leases. */
  get id(): string {
    return this.#settings.workerId;
  }

  /**
   * Syncs what it is asked to, and begins to claim. A worker starts once: throws `worker.invalid_state` when it was started
   * or stopped before. What the sync throws, it throws as well, and may be started again then.
   */
  async start(): Promise<void> {
    this.#requireState("new");
    if (this.#settings.sync !== null) await this.#sync(this.#settings.sync);
    this.#state = "running";
    this.#begin();
  }

  async #sync(options: WorkerSyncOptions): Promise<void> {
    this.#state = "starting";
    try {
      await syncCatalogue(this.#settings.ledger, this.#settings.handlers.values(), options);
    } catch (error) {
      if (this.#state === "starting") this.#state = "new";
      throw error;
    }
    this.#requireState("starting");
  }

  #requireState(state: "new" | "starting"): void {
    if (this.#state === state) return;
    throw new LedgerError("worker.invalid_state", { message: `The worker cannot be started: it is ${this.#state}.` });
  }

  #begin(): void {
    const { ledger, handlers, reapIntervalMs, scheduleIntervalMs, maintain } = this.#settings;
    if (handlers.size > 0) {
      this.#unsubscribe = ledger.onJobs(() => this.#claimLoop.wake());
      this.#claimLoop.wake();
      this.#heartLoop.wake(this.#heart.intervalMs);
      this.#leaseWatch = setInterval(() => this.#heart.loseEnded(), this.#heart.intervalMs);
    }
    if (scheduleIntervalMs !== null) {
      this.#scheduleLoop.wake(Math.min(scheduleIntervalMs, FIRST_TIMERS_MS) * Math.random());
    }
    if (maintain !== null) this.#maintainLoop.wake(maintain.intervalMs * Math.random());
    if (reapIntervalMs === null) return;
    // Anywhere in the first interval, so that a fleet that starts together does not reap together.
    this.#reapLoop.wake(reapIntervalMs * Math.random());
    this.#timerLoop.wake(Math.min(reapIntervalMs, FIRST_TIMERS_MS) * Math.random());
  }

  /**
   * Stops: no more claims; claims that were not started go back without using an attempt; running handlers
   * finish and their outcomes are stored. After `timeoutMs` the signals of those still running are aborted
   * with `shutdown`: what a handler then throws is a retryable failure, what it returns is a success. Handlers that have not
   * ended after `graceMs` more are left behind: their leases run out and a reaper returns the jobs.
   *
   * Resolves when all that is over; nothing of the worker keeps the process alive then. It may be called
   * again. Throws `config.invalid`.
   */
  stop(options: StopOptions = {}): Promise<void> {
    const timeoutMs = milliseconds(options.timeoutMs ?? DEFAULT_TIMEOUT_MS, "timeoutMs");
    const graceMs = milliseconds(options.graceMs ?? DEFAULT_GRACE_MS, "graceMs");
    this.#stopping ??= this.#wind();
    this.#clock.endIn({ timeoutMs, graceMs });
    return this.#stopping;
  }

  async #wind(): Promise<void> {
    const wasRunning = this.#state === "running";
    this.#state = "stopping";
    this.#unsubscribe?.();
    if (wasRunning) await Promise.race([this.#windDown(), this.#clock.over]);
    this.#tearDown();
    this.#state = "stopped";
    this.#finish();
  }

  async #windDown(): Promise<void> {
    try {
      this.#maintainer?.stop();
      const swept = this.#sweepers.map((loop) => loop.stop());
      const waiting = this.#slots.close();
      await this.#claimLoop.stop();
      // A claim that was under way may have brought more.
      const late = this.#slots.close();
      const unprepared = await this.#claims.takeUnprepared();
      const unstarted = [...[...waiting, ...late].map(({ job }) => job), ...unprepared];
      await Promise.all([
        ...swept,
        handBack({ ledger: this.#settings.ledger, emit: this.#emit }, unstarted, HAND_BACK_TRIES),
        this.#slots.idle(),
      ]);
      await this.#settler.drain();
      // What settlements that were under way have claimed.
      const eager = [...this.#slots.close().map(({ job }) => job), ...(await this.#claims.takeUnprepared())];
      await handBack({ ledger: this.#settings.ledger, emit: this.#emit }, eager, HAND_BACK_TRIES);
      await this.#heartLoop.stop();
    } catch (error) {
      this.#crashed(error, "hand_back");
    }
  }

  /** Whatever is left by now: no timer, no subscription and no late outcome survives it. */
  #tearDown(): void {
    const abandoned = this.#slots.running();
    this.#clock.clear();
    clearInterval(this.#leaseWatch);
    for (const loop of [this.#claimLoop, this.#heartLoop, ...this.#sweepers]) void loop.stop();
    for (const attempt of abandoned) attempt.abandon();
    this.#settler.abandon();
    this.#emit({ type: "stopped", abandoned: abandoned.map(({ view }) => view) });
  }

  /** What is not about the jobs of this worker. */
  get #sweepers(): readonly Loop[] {
    return [this.#reapLoop, this.#timerLoop, this.#scheduleLoop, this.#maintainLoop];
  }

  /** Where nobody announces jobs, they are looked for sooner while there are some. */
  async #claim(): Promise<number> {
    const nextMs = await this.#claims.turn();
    return this.#settings.ledger.hearsJobs ? nextMs : this.#polling.sooner(nextMs);
  }

  #fireSchedules(): Promise<number> {
    const { ledger, workflows, scheduleIntervalMs } = this.#settings;
    return fireSchedulesOnce(ledger, workflows, this.#emit, scheduleIntervalMs ?? Number.POSITIVE_INFINITY);
  }

  #crashed(error: unknown, during: Activity): void {
    if (this.#crash !== undefined || this.#state === "stopped") return;
    this.#crash = { error };
    this.#emit({ type: "error", during, error, fatal: true });
    void this.stop();
  }

  readonly #emit: Emit = (event: WorkerEvent) => {
    // A statement that was given up may still answer.
    if (this.#state === "stopped") return;
    if (event.type === "claimed") this.#polling.found();
    try {
      this.#settings.onEvent(event);
    } catch (error) {
      this.#crashed(error, "event_handler");
    }
  };
}

function milliseconds(value: number, name: string): number {
  if (typeof value === "number" && value >= 0 && value <= MAX_STOP_MS / 2) return Math.ceil(value);
  throw new LedgerError("config.invalid", { message: `${name} must be a number of milliseconds from 0 on.` });
}
