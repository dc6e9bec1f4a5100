/** How an attempt ended, and what was made of it (FEATURES F-J7). */
import { validUuid } from "../database/ids.ts";
import type { StoredJson } from "../database/json.ts";
import type { FailureKind } from "../database/statuses.ts";
import { LedgerError } from "../errors.ts";
import { validDelay, validName } from "./arguments.ts";
import type { Lease } from "./lease.ts";
import { validTime } from "./request.ts";

/** The attempt succeeded. */
export interface Success {
  readonly output?: unknown;
}

/** The attempt failed. */
export interface Failure {
  /**
   * RETRYABLE and TIMEOUT go back to the queue while attempts are left; TERMINAL and PANICKED end the job.
   * Default RETRYABLE.
   */
  readonly kind?: Exclude<FailureKind, "LEASE_EXPIRED">;
  /** A stable word for the cause, 1 to 512 bytes. */
  readonly code: string;
  readonly message: string;
  /** Not retried before this time; it can only make the backoff longer. */
  readonly notBefore?: Date | string;
}

/** The job is to be tried later, and the attempt does not count. Progress and checkpoint are kept. */
export type SnoozeRequest = {
  /** Kept with the job's event. */
  readonly reason?: string;
} & (
  | { /** From now on by the database's clock, 0 or more. */ readonly seconds: number; readonly until?: never }
  | { readonly until: Date | string; readonly seconds?: never }
);

/** The attempt finished a slice of the job, which goes on as its next run, with fresh attempts. */
export interface Continuation {
  /** Where the next run goes on. Default: the checkpoint that is stored. */
  readonly checkpoint?: unknown;
  /** How long the next run waits, in seconds by the database's clock, 0 or more. Default 0. */
  readonly delaySeconds?: number;
  /** What the slice came to; kept with its run in the ledger, also of a job that is a step. */
  readonly output?: unknown;
}

/** One item of a batch: a lease and how its attempt ended. */
export type Settlement =
  | { readonly lease: Lease; readonly success: Success }
  | { readonly lease: Lease; readonly failure: Failure }
  | { readonly lease: Lease; readonly snooze: SnoozeRequest }
  | { readonly lease: Lease; readonly continuation: Continuation };

/** What became of the job. */
export interface SettledJob {
  /** PENDING: it will be tried again, or goes on. */
  readonly status: "SUCCEEDED" | "PENDING" | "DEAD_LETTERED";
  /** When it is due again, else null. */
  readonly runAt: Date | null;
}

/** The answer for one item of a batch: one lost lease does not spoil the others. */
export type SettleResult = ({ readonly ok: true } & SettledJob) | { readonly ok: false; readonly error: LedgerError };

/** An outcome ready to be sent; `kind` null is a success, or with `again` neither success nor failure. */
export interface PreparedOutcome {
  readonly lease: Lease;
  readonly kind: FailureKind | null;
  readonly output: StoredJson | null;
  readonly code: string | null;
  readonly message: string | null;
  readonly notBefore: string | null;
  /** The job stays in the queue, whatever its attempts. */
  readonly again?: PreparedAgain;
}

export interface PreparedAgain {
  readonly as: "SNOOZED" | "CONTINUED";
  readonly delaySeconds: number | null;
  /** Null: the one that is stored. */
  readonly checkpoint: StoredJson | null;
  readonly reason: string | null;
}

const MAX_MESSAGE_LENGTH = 10_000;
const callerKinds = ["RETRYABLE", "TERMINAL", "PANICKED", "TIMEOUT"] as const;

/** What of a settlement its caller gave as values, in the form that is stored; null what it did not give. */
export interface StoredOutcome {
  readonly output: StoredJson | null;
  readonly checkpoint: StoredJson | null;
}

const noValues: StoredOutcome = { output: null, checkpoint: null };

/** With the values of a success or a continuation. Throws `input.invalid` before anything is sent. */
export function prepareOutcome(settlement: Settlement, values = noValues): PreparedOutcome {
  const { output } = values;
  const lease = validLease(settlement.lease);
  if ("success" in settlement) return { ...noFailure, lease, output };
  if ("snooze" in settlement) return { ...noFailure, lease, ...snoozed(settlement.snooze) };
  if ("continuation" in settlement) {
    return { ...noFailure, lease, output, again: continued(settlement.continuation, values) };
  }
  return failed(lease, settlement.failure);
}

const noFailure = { kind: null, output: null, code: null, message: null, notBefore: null } as const;

/** As a claim gives it, it stays the same object: batches of them come through here. */
function validLease(lease: Lease): Lease {
  const jobId = validUuid(lease.jobId, "lease.jobId");
  const runId = (lease.workflowRunId ?? null) === null ? null : validUuid(lease.workflowRunId, "lease.workflowRunId");
  return jobId === lease.jobId && runId === lease.workflowRunId ? lease : { ...lease, jobId, workflowRunId: runId };
}

function snoozed({ seconds, until, reason }: SnoozeRequest): Pick<PreparedOutcome, "notBefore" | "again"> {
  const [delay, time] = [seconds ?? null, until ?? null];
  if ((delay === null) === (time === null)) {
    throw new LedgerError("input.invalid", { message: "snooze takes either seconds or until." });
  }
  return {
    notBefore: time === null ? null : validTime(time, "snooze.until"),
    again: {
      as: "SNOOZED",
      delaySeconds: validDelay(delay, "snooze.seconds"),
      checkpoint: null,
      reason: reason === undefined ? null : storableText(reason),
    },
  };
}

function continued({ delaySeconds }: Continuation, { checkpoint }: StoredOutcome): PreparedAgain {
  return {
    as: "CONTINUED",
    delaySeconds: validDelay(delaySeconds, "continuation.delaySeconds"),
    checkpoint,
    reason: null,
  };
}

function failed(lease: Lease, { kind = "RETRYABLE", code, message, notBefore }: Failure): PreparedOutcome {
  if (!callerKinds.includes(kind)) {
    throw new LedgerError("input.invalid", { message: `failure.kind must be one of ${callerKinds.join(", ")}.` });
  }
  return {
    lease,
    kind,
    output: null,
    code: validName(code, "failure.code"),
    message: storableText(message),
    notBefore: notBefore === undefined ? null : validTime(notBefore, "failure.notBefore"),
  };
}

/** An error's message is stored whatever is in it: NUL and lone surrogates, which text cannot hold, become U+FFFD. */
export function storableText(value: unknown): string {
  return String(value).replaceAll("\0", "\u{FFFD}").toWellFormed().slice(0, MAX_MESSAGE_LENGTH).toWellFormed();
}
