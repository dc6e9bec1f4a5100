/**
 * Outcomes that a handler throws and that are no failures. Thrown like `TerminalError`, not returned: what a handler
 * returns stays its job's output and nothing else, and they can come from however deep within it.
 */
import type { Continuation, Failure, SnoozeRequest } from "../index.ts";
import { failureOf } from "./failures.ts";

/**
 * Throw it to have the job tried later without using the attempt; progress and checkpoint are kept.
 *
 * ```ts
 * if (answer.status === 429) throw new Snooze({ seconds: 30, reason: "too many requests" });
 * ```
 */
export class Snooze extends Error {
  override readonly name = "Snooze";

  constructor(snooze: SnoozeRequest) {
    super("The job is to be tried later.");
    mark(this, { snooze });
  }
}

/**
 * Throw it when a slice of a long job is done: this run of the job has succeeded, and the job goes on as its next run,
 * from `checkpoint`, with fresh attempts. A step must have been declared with `continues: true`.
 *
 * ```ts
 * if (page.next !== null) throw new Continue({ checkpoint: { cursor: page.next } });
 * ```
 */
export class Continue extends Error {
  override readonly name = "Continue";

  constructor(continuation: Continuation = {}) {
    super("The job goes on.");
    mark(this, { continuation });
  }
}

/** What a handler can throw. */
export type ThrownOutcome =
  | { readonly failure: Failure }
  | { readonly snooze: SnoozeRequest }
  | { readonly continuation: Continuation };

type GoesOn = Exclude<ThrownOutcome, { failure: unknown }>;

// By symbol, not by class: a handler may come with another copy of this package.
const goesOn: unique symbol = Symbol.for("runledger.worker.goesOn");

function mark(error: Error, outcome: GoesOn): void {
  Object.defineProperty(error, goesOn, { value: outcome });
}

function isMarked(value: unknown): value is { readonly [goesOn]: GoesOn } {
  return typeof value === "object" && value !== null && goesOn in value;
}

/** What a handler's throw makes of the attempt. */
export function outcomeOf(thrown: unknown): ThrownOutcome {
  return isMarked(thrown) ? thrown[goesOn] : { failure: failureOf(thrown) };
}

/** What the handler says in words, without what the ledger's rules take out of them. */
export function redacted(outcome: ThrownOutcome, redact: (text: string) => string): ThrownOutcome {
  if ("failure" in outcome) return { failure: { ...outcome.failure, message: redact(outcome.failure.message) } };
  if (!("snooze" in outcome) || outcome.snooze.reason === undefined) return outcome;
  return { snooze: { ...outcome.snooze, reason: redact(String(outcome.snooze.reason)) } };
}
