/** Stores outcomes, gathered into few statements, for as long as it takes and the leases live. */
import { setTimeout as sleep } from "node:timers/promises";
import { isLedgerError, type Ledger, type LedgerError, type SettleResult } from "../index.ts";
import type { Attempt, Outcome } from "./attempt.ts";
import type { ReservedClaim } from "./claims.ts";
import { fateOf } from "./confirm.ts";
import type { Emit } from "./events.ts";
import { isTransient, isUnreachable, mayPass, retryDelayMs } from "./transient.ts";

export interface SettlerOptions {
  readonly ledger: Ledger;
  readonly emit: Emit;
  /** The attempt is settled or given up. */
  readonly release: (attempt: Attempt) => void;
  /** A success may have made other jobs runnable, or the job itself. */
  readonly onReleased: () => void;
  /** A claim of at most so many jobs, to go with settlements that may release some. Default: none does. */
  readonly claim?: (jobs: number) => ReservedClaim | undefined;
  readonly crash: (error: unknown) => void;
}

interface Item {
  readonly attempt: Attempt;
  readonly outcome: Outcome;
}

/** What came of settlements, and of the claim that went with them. */
interface Answer {
  readonly results: readonly SettleResult[];
  /** They may have made jobs runnable that were not claimed. */
  readonly more: boolean;
  /** Takes on what was claimed. */
  take(): Promise<void>;
}

/** While a statement is under way the next ones wait for its end or this long, in milliseconds: it may be waiting for a lock. */
const GATHER_MS = 20;
/** Statements at the same time at most: each takes a connection. */
const MAX_STATEMENTS = 4;
const MAX_BATCH = 500;

export class Settler {
  readonly #options: SettlerOptions;
  readonly #queue: Item[] = [];
  readonly #flushes = new Set<Promise<void>>();
  readonly #abandon = new AbortController();
  #statements = 0;
  #timer: NodeJS.Timeout | undefined;
  #immediate: NodeJS.Immediate | undefined;

  constructor(options: SettlerOptions) {
    this.#options = options;
  }

  /** Stores the outcome in the background. */
  add(attempt: Attempt, outcome: Outcome): void {
    if (this.#abandon.signal.aborted) return;
    this.#queue.push({ attempt, outcome });
    this.#schedule();
  }

  /** Resolves when nothing is left to store. */
  async drain(): Promise<void> {
    while (this.#queue.length > 0 || this.#flushes.size > 0) {
      this.#flush();
      await Promise.all(this.#flushes);
    }
  }

  /** Gives up what is not stored. */
  abandon(): void {
    this.#abandon.abort();
    this.#unschedule();
    this.#queue.length = 0;
  }

  #schedule(): void {
    if (this.#queue.length === 0 || this.#statements >= MAX_STATEMENTS) return;
    const isFull = this.#queue.length >= MAX_BATCH;
    // What else ends in the same moment goes with it, and nothing waits for more while nothing is under way.
    if (isFull || this.#statements === 0) this.#immediate ??= setImmediate(() => this.#flush());
    else this.#timer ??= setTimeout(() => this.#flush(), GATHER_MS);
  }

  #unschedule(): void {
    clearTimeout(this.#timer);
    clearImmediate(this.#immediate);
    this.#timer = undefined;
    this.#immediate = undefined;
  }

  #flush(): void {
    this.#unschedule();
    const batch = this.#queue.splice(0, MAX_BATCH);
    if (batch.length === 0) return;
    const flush = this.#settle(batch, 0)
      .catch(this.#options.crash)
      .finally(() => this.#flushes.delete(flush));
    this.#flushes.add(flush);
    this.#schedule();
  }

  async #settle(items: readonly Item[], failures: number): Promise<void> {
    const answer = await this.#send(items);
    if ("error" in answer) return this.#failed(items, answer.error, failures);
    const again: Item[] = [];
    const followUps: Promise<void>[] = [];
    for (const [place, item] of items.entries()) {
      const result = answer.results[place];
      if (result === undefined) continue;
      if (result.ok) this.#stored(item, result, answer.more);
      else if (result.error.code === "job.lease_owner_mismatch") followUps.push(this.#refused(item, result.error));
      else if (isTransient(result.error)) again.push(item);
      else followUps.push(this.#replaced(item, result.error, failures));
    }
    followUps.push(answer.take());
    await Promise.all(followUps);
    const error = answer.results.find((result) => !result.ok && isTransient(result.error));
    if (again.length > 0 && error !== undefined && !error.ok) await this.#later(again, error.error, failures);
  }

  async #send(items: readonly Item[]): Promise<Answer | { error: unknown }> {
    this.#statements += 1;
    const settlements = items.map(({ attempt, outcome }) => ({ lease: attempt.job.lease, ...outcome }));
    const claim = this.#options.claim?.(items.filter(mayClaim).length);
    try {
      if (claim === undefined) {
        return { results: await this.#options.ledger.jobs.settle(settlements), more: true, take: async () => {} };
      }
      const answer = await this.#options.ledger.jobs.settleAndClaim(settlements, claim.options);
      return { ...answer, take: () => claim.take(answer.claimed) };
    } catch (error) {
      await claim?.take([]);
      return { error };
    } finally {
      this.#statements -= 1;
      // What gathered meanwhile need not wait any longer.
      this.#schedule();
    }
  }

  /** Anything but a database out of reach may be the fault of one item: a row that is locked, an output that is not JSON. */
  async #failed(items: readonly Item[], error: unknown, failures: number): Promise<void> {
    const [only, ...more] = items;
    if (only === undefined) return;
    if (isUnreachable(error)) return this.#later(items, error, failures);
    if (more.length > 0) {
      await this.#settleHalves(items, failures);
      return;
    }
    if (mayPass(error, failures)) return this.#later(items, error, failures);
    const refusal = refusalOf(error, only.outcome);
    if (refusal !== null) return this.#settle([{ ...only, outcome: refusal }], failures);
    this.#lost(only, error);
    this.#options.crash(error);
  }

  /** Together where there are connections for it, so that a locked row does not keep the other half waiting. */
  async #settleHalves(items: readonly Item[], failures: number): Promise<void> {
    const middle = Math.ceil(items.length / 2);
    const first = this.#settle(items.slice(0, middle), failures);
    if (this.#statements >= MAX_STATEMENTS) await first;
    await Promise.all([first, this.#settle(items.slice(middle), failures)]);
  }

  /** Tries again after a pause, those whose leases live then; heartbeats go on meanwhile. */
  async #later(items: readonly Item[], error: unknown, failures: number): Promise<void> {
    this.#options.emit({ type: "error", during: "settle", error, fatal: false });
    const { signal } = this.#abandon;
    await sleep(retryDelayMs(failures), undefined, { signal }).catch(() => {
      // Given up: there is nothing to wait for.
    });
    if (signal.aborted) return;
    const live = items.filter(({ attempt }) => !attempt.leaseHasEnded());
    for (const item of items) if (!live.includes(item)) this.#lost(item, error);
    if (live.length > 0) await this.#settle(live, failures + 1);
  }

  /** Stores in place of an outcome that is refused that it was. */
  async #replaced(item: Item, error: LedgerError, failures: number): Promise<void> {
    const refusal = refusalOf(error, item.outcome);
    if (refusal === null) this.#lost(item, error);
    else await this.#settle([{ ...item, outcome: refusal }], failures);
  }

  #stored(item: Item, { status, runAt }: Extract<SettleResult, { ok: true }>, more: boolean): void {
    const { attempt, outcome } = item;
    const { emit, release, onReleased } = this.#options;
    const job = attempt.view;
    release(attempt);
    if ("snooze" in outcome) emit({ type: "snoozed", job, runAt });
    else if ("continuation" in outcome) emit({ type: "continued", job, runAt });
    else if ("success" in outcome) emit({ type: "succeeded", job });
    else if (status === "PENDING") emit({ type: "retried", job, failure: outcome.failure, runAt });
    else emit({ type: "failed", job, failure: outcome.failure });
    const goesOn = "continuation" in outcome;
    const releases = status !== "PENDING" && more && attempt.isStep;
    if (goesOn || releases || attempt.job.limitKey !== null) onReleased();
  }

  async #refused(item: Item, error: LedgerError): Promise<void> {
    const { ledger, emit, release, onReleased } = this.#options;
    const { attempt, outcome } = item;
    const fate = await fateOf(ledger, attempt.job.lease, outcome);
    const job = attempt.view;
    if (fate === "lost") return this.#lost(item, error);
    release(attempt);
    if (fate === "succeeded" && attempt.mayRelease) onReleased();
    if (fate === "succeeded" || fate === "canceled") emit({ type: fate, job });
    else if (fate === "snoozed" || fate === "continued") emit({ type: fate, job, runAt: null });
    else if ("failure" in outcome) {
      const { failure } = outcome;
      emit(fate === "retried" ? { type: fate, job, failure, runAt: null } : { type: fate, job, failure });
    }
  }

  #lost({ attempt }: Item, error: unknown): void {
    this.#options.release(attempt);
    this.#options.emit({ type: "lost", job: attempt.view, error });
  }
}

/** Whether the step's end goes the short way, on which jobs can be claimed. */
function mayClaim({ attempt, outcome }: Item): boolean {
  return attempt.isStep && "success" in outcome;
}

/**
 * What is stored in place of an outcome that cannot be: a value that will never fit or be encoded ends the job, an error
 * of the database's own is tried again. Null when it is not the outcome's fault, or is a refusal already.
 */
function refusalOf(error: unknown, outcome: Outcome): Outcome | null {
  if (!isLedgerError(error) || "failure" in outcome) return null;
  const { code, message, category, retryable } = error;
  if (category === "validation" || code === "payload.unencodable" || (category === "conflict" && !retryable))
    return { failure: { kind: "PANICKED", code, message } };
  return code === "db.error" ? { failure: { kind: "RETRYABLE", code, message } } : null;
}
