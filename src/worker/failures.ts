/** What a handler's throw makes of the attempt. */
import type { Failure } from "../index.ts";

/** Throw it to end the job now: trying again would not help. The job is dead-lettered. */
export class TerminalError extends Error {
  override readonly name = "TerminalError";
  /** A stable word for the cause, 1 to 512 bytes. */
  readonly code: string;

  constructor(code: string, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
    mark(this, { kind: "TERMINAL" });
  }
}

export interface RetryableErrorOptions extends ErrorOptions {
  /** Not tried again before this time; it can only make the backoff longer. */
  readonly notBefore?: Date;
}

/** Throw it to try again later, as any error does, and to say not before when. */
export class RetryableError extends Error {
  override readonly name = "RetryableError";
  /** A stable word for the cause, 1 to 512 bytes. */
  readonly code: string;
  readonly notBefore: Date | undefined;

  constructor(code: string, message: string, options: RetryableErrorOptions = {}) {
    const { notBefore, ...errorOptions } = options;
    super(message, errorOptions);
    this.code = code;
    this.notBefore = notBefore;
    mark(this, notBefore === undefined ? { kind: "RETRYABLE" } : { kind: "RETRYABLE", notBefore });
  }
}

type Verdict = Pick<Failure, "kind" | "notBefore">;

// By symbol, not by class: a handler may come with another copy of this package.
const verdict: unique symbol = Symbol.for("runledger.worker.verdict");

function mark(error: Error, value: Verdict): void {
  Object.defineProperty(error, verdict, { value });
}

/**
 * Errors are RETRYABLE, with their `code`, else their `name`, as the failure's code: a TypeError may be
 * `fetch` without a network as well as a bug, and a retry too many does less harm than a job that died
 * of a bad minute. What is thrown and is not an error says nothing that could be acted on: PANICKED.
 */
export function failureOf(thrown: unknown): Failure {
  if (!isErrorLike(thrown)) {
    return { kind: "PANICKED", code: "job.panicked", message: `The handler threw ${described(thrown)}.` };
  }
  const { kind = "RETRYABLE", notBefore } = thrown[verdict] ?? {};
  const failure = { kind, code: codeOf(thrown), message: thrown.message };
  return isTime(notBefore) ? { ...failure, notBefore } : failure;
}

interface ErrorLike {
  readonly message: string;
  readonly name?: unknown;
  readonly code?: unknown;
  readonly [verdict]?: Verdict;
}

/** Not instanceof: an error may come from another realm, as under jest. */
function isErrorLike(value: unknown): value is ErrorLike {
  return typeof value === "object" && value !== null && "message" in value && typeof value.message === "string";
}

const UNNAMED_CODE = "job.failed";
const MAX_CODE_BYTES = 512;

function codeOf({ code, name }: ErrorLike): string {
  const named = name === "Error" ? UNNAMED_CODE : name;
  return [code, named].find(isCode) ?? UNNAMED_CODE;
}

function isCode(value: unknown): value is string {
  return (
    typeof value === "string" &&
    value.trim() !== "" &&
    !value.includes("\0") &&
    value.isWellFormed() &&
    Buffer.byteLength(value) <= MAX_CODE_BYTES
  );
}

function isTime(value: Failure["notBefore"]): value is Date | string {
  return value !== undefined && !Number.isNaN(new Date(value).getTime());
}

/** The kind of the value only: what it holds may be anybody's data. */
function described(value: unknown): string {
  if (typeof value === "string") return `the string ${JSON.stringify(value)}`;
  return value === null ? "null" : typeof value === "object" ? "an object that is not an error" : String(value);
}
