/** One attempt at one job: from the handler's call to an outcome, or to the loss of the lease. */
import { performance } from "node:perf_hooks";
import {
  type AppendRequest,
  type ClaimedJob,
  type Ledger,
  LedgerError,
  type Prerequisites,
  type StepSuccess,
} from "../index.ts";
import { type AbortKind, JobAborted } from "./abort.ts";
import { Context, type ContextHost } from "./context.ts";
import { type AttemptView, type Emit, viewOf } from "./events.ts";
import type { Handler, HandlerCall } from "./handlers.ts";
import { outcomeOf, redacted, type ThrownOutcome } from "./outcomes.ts";

/** How an attempt ended. */
export type Outcome = { readonly success: StepSuccess } | ThrownOutcome;

/** What an attempt needs of the worker. */
export interface AttemptHost {
  readonly ledger: Ledger;
  readonly emit: Emit;
  /** Takes the outcome, to store it. */
  readonly settle: (attempt: Attempt, outcome: Outcome) => void;
  /** The lease is gone and there is nothing to store. */
  readonly release: (attempt: Attempt) => void;
  /** The attempt may have made other jobs runnable. */
  readonly onReleased: () => void;
}

export interface AttemptParts {
  readonly job: ClaimedJob;
  readonly handler: Handler;
  readonly prerequisites: Prerequisites;
  /** By the process's own monotonic clock, and never later than the database's idea of it. */
  readonly leaseEndsAt: number;
}

export class Attempt {
  readonly job: ClaimedJob;
  readonly view: AttemptView;
  readonly claimedAt = performance.now();
  /** Its places in the bags of the slots. */
  runningAt = -1;
  leasedAt = -1;
  readonly #handler: Handler;
  readonly #prerequisites: Prerequisites;
  readonly #host: AttemptHost;
  /** Made when somebody asks for its signal: most handlers do not, and it costs more than the rest of an attempt. */
  #controller: AbortController | undefined;
  #aborted: JobAborted | undefined;
  readonly #additions: AppendRequest[] = [];
  #leaseEndsAt: number;
  #clearTimeout: () => void = () => {};
  /** Open until an outcome has been handed over, or the lease was lost: what comes later is ignored. */
  #open = true;

  constructor(parts: AttemptParts, host: AttemptHost) {
    this.job = parts.job;
    this.view = viewOf(parts.job);
    this.#handler = parts.handler;
    this.#prerequisites = parts.prerequisites;
    this.#leaseEndsAt = parts.leaseEndsAt;
    this.#host = host;
  }

  /**
   * Calls the handler and hands its outcome over; resolves when the handler has returned. At the timeout the
   * outcome is TIMEOUT at once, whether the handler reacts to its signal or not: who waits for the job must not
   * depend on the handler's manners. The slot stays taken until it returns, because it still runs.
   */
  async run(): Promise<void> {
    const undecodable = this.job.undecodable ?? this.#prerequisites.undecodable;
    if (undecodable !== null) return this.#refuse(undecodable);
    this.#clearTimeout = after(this.job.timeoutSeconds * 1000, () => this.#timeOut());
    this.#host.emit({ type: "started", job: this.view });
    const outcome = await this.#outcome();
    if (this.#handler.endsItself === true && "success" in outcome) this.completed();
    else this.#conclude(outcome);
  }

  /** The lease was given for so much longer. */
  extend(leaseEndsAt: number): void {
    this.#leaseEndsAt = Math.max(this.#leaseEndsAt, leaseEndsAt);
  }

  /** Whether its end may make other jobs runnable: steps that depend on it, or those that its key's limit held back. */
  get mayRelease(): boolean {
    return this.isStep || this.job.limitKey !== null;
  }

  get isStep(): boolean {
    return this.job.lease.workflowRunId !== null;
  }

  get open(): boolean {
    return this.#open;
  }

  leaseHasEnded(): boolean {
    return performance.now() >= this.#leaseEndsAt;
  }

  /** The lease is gone. Says nothing of an outcome that is being stored: that learns it from its own answer. */
  lose(kind: Extract<AbortKind, "cancel" | "lease_lost">): void {
    if (!this.#close()) return;
    const { emit, release } = this.#host;
    if (kind === "cancel") emit({ type: "canceled", job: this.view });
    else emit({ type: "lost", job: this.view, error: new LedgerError("job.lease_owner_mismatch") });
    release(this);
    this.#abort(new JobAborted(kind));
  }

  /** The handler has settled the job itself: if it still runs, what it does from here on is not the attempt's. */
  completed(as: "succeeded" | "snoozed" | "continued" = "succeeded"): void {
    if (!this.#close()) return;
    const { emit, release, onReleased } = this.#host;
    release(this);
    emit(as === "succeeded" ? { type: as, job: this.view } : { type: as, job: this.view, runAt: null });
    if (this.mayRelease) onReleased();
  }

  /** Asks the handler to stop. What it then returns or throws is stored as ever. */
  shutDown(): void {
    this.#abort(new JobAborted("shutdown"));
  }

  /** Gives the attempt up: the lease is left to run out. */
  abandon(): void {
    this.#close();
  }

  /** Fails the job without its handler: what it should work on is not to be had, for now or for ever. */
  #refuse(error: LedgerError): void {
    const { code, message, retryable } = error;
    this.#host.emit({ type: "error", during: "decode", error, fatal: false });
    this.#conclude({ failure: { kind: retryable ? "RETRYABLE" : "TERMINAL", code, message } });
  }

  #timeOut(): void {
    const reason = new JobAborted("timeout");
    this.#conclude({ failure: { kind: "TIMEOUT", code: reason.code, message: reason.message } });
    this.#abort(reason);
  }

  #abort(reason: JobAborted): void {
    this.#aborted ??= reason;
    this.#controller?.abort(reason);
  }

  #signal(): AbortSignal {
    this.#controller ??= new AbortController();
    if (this.#aborted !== undefined) this.#controller.abort(this.#aborted);
    return this.#controller.signal;
  }

  #conclude(outcome: Outcome): void {
    if (this.#close()) this.#host.settle(this, outcome);
  }

  #close(): boolean {
    const wasOpen = this.#open;
    this.#open = false;
    this.#clearTimeout();
    return wasOpen;
  }

  async #outcome(): Promise<Outcome> {
    const { job } = this;
    const { ledger } = this.#host;
    const { outputs: prerequisites, failures } = this.#prerequisites;
    // Before the handler can change the payload that it is given.
    const redact = ledger.redactor(job.payload, job.checkpoint, prerequisites);
    const signal = () => this.#signal();
    const add = (addition: AppendRequest) => this.#additions.push(addition);
    const host: ContextHost = { ledger, job, failures, signal, redact, add };
    try {
      const context: HandlerCall["context"] = (payload, outputs) => new Context(host, payload, outputs);
      const output = await this.#handler.run({ job, prerequisites, context });
      return { success: this.#additions.length === 0 ? { output } : { output, append: this.#additions } };
    } catch (error) {
      const outcome = redacted(outcomeOf(error), redact);
      return "continuation" in outcome && this.#additions.length > 0 ? addsToSlice : outcome;
    }
  }
}

/** Steps come with their step's success, which a slice is not: they would be lost without a word. */
const addsToSlice: Outcome = {
  failure: {
    kind: "PANICKED",
    code: "worker.append_in_slice",
    message: "The handler appended steps and continued: only the last slice can append.",
  },
};

// What setTimeout can count to; beyond it, it would fire at once.
const MAX_TIMER_MS = 2 ** 31 - 1;

/** Calls `action` after so many milliseconds, however many; returns what prevents it. */
function after(ms: number, action: () => void): () => void {
  let timer: NodeJS.Timeout;
  const wait = (left: number) => {
    const now = Math.min(left, MAX_TIMER_MS);
    timer = setTimeout(() => (left > now ? wait(left - now) : action()), now);
  };
  wait(ms);
  return () => clearTimeout(timer);
}
