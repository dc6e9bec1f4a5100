/** How an attempt ended, and what was made of it (FEATURES F-J7). */
import { validUuid } from "../database/ids.ts";
import type { StoredJson } from "../database/json.ts";
import type { FailureKind } from "../database/statuses.ts";
import { LedgerError } from "../errors.ts";
import type { Lease } from "./lease.ts";
import { validName, validTime } from "./request.ts";

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

/** One item of a batch: a lease and how its attempt ended. */
export type Settlement =
  | { readonly lease: Lease; readonly success: Success }
  | { readonly lease: Lease; readonly failure: Failure };

/** What became of the job. */
export interface SettledJob {
  /** PENDING: it will be tried again. */
  readonly status: "SUCCEEDED" | "PENDING" | "DEAD_LETTERED";
  /** When it is due again, else null. */
  readonly runAt: Date | null;
}

/** The answer for one item of a batch: one lost lease does not spoil the others. */
export type SettleResult = ({ readonly ok: true } & SettledJob) | { readonly ok: false; readonly error: LedgerError };

/** An outcome ready to be sent; `kind` null is a success. */
export interface PreparedOutcome {
  readonly lease: Lease;
  readonly kind: FailureKind | null;
  readonly output: StoredJson | null;
  readonly code: string | null;
  readonly message: string | null;
  readonly notBefore: string | null;
}

const MAX_MESSAGE_LENGTH = 10_000;
const callerKinds = ["RETRYABLE", "TERMINAL", "PANICKED", "TIMEOUT"] as const;

/** With the output of a success in the form that is stored. Throws `input.invalid` before anything is sent. */
export function prepareOutcome(settlement: Settlement, output: StoredJson | null = null): PreparedOutcome {
  const { jobId, workflowRunId } = settlement.lease;
  const lease = {
    ...settlement.lease,
    jobId: validUuid(jobId, "lease.jobId"),
    workflowRunId: (workflowRunId ?? null) === null ? null : validUuid(workflowRunId, "lease.workflowRunId"),
  };
  if ("success" in settlement) return { lease, kind: null, output, code: null, message: null, notBefore: null };
  const { kind = "RETRYABLE", code, message, notBefore } = settlement.failure;
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
