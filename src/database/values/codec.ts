/** The codec: how values are encoded for storage, by functions that the service gives. */
import { LedgerError, type LedgerErrorCode } from "../../errors.ts";

/** What a value is stored as, or read as: an element of an output that a map step fans out over is read as a payload. */
export type ValueKind = "payload" | "output" | "checkpoint" | "log";

export interface CodecContext {
  readonly kind: ValueKind;
}

/**
 * Encodes and decodes values, and makes digests of requests. Any of it may answer a promise. An error with
 * `retryable: true` says that the same call may succeed later (a key service is away): it becomes
 * `payload.codec_unavailable`; any other `payload.unencodable` or `payload.undecodable`.
 */
export interface ValueCodec {
  /** The text that is stored of a JSON text. It must say by itself how it is decoded, under which key for one. */
  encode(text: string, context: CodecContext): string | Promise<string>;
  /** The JSON text again. Throws when the stored text is not one of this codec's. */
  decode(text: string, context: CodecContext): string | Promise<string>;
  /**
   * A text that is the same for the same text and tells nothing about it, such as an HMAC; with `like`, an earlier
   * digest, as that one was made: under its key. It is what idempotency keys remember of a request.
   */
  digest(text: string, like?: string): string | Promise<string>;
}

export async function encoded(codec: ValueCodec, kind: ValueKind, text: string): Promise<string> {
  return called("payload.unencodable", () => codec.encode(text, { kind }));
}

/** Without a codec nothing that is encoded can be read. */
export async function decoded(codec: ValueCodec | null, kind: ValueKind, text: string): Promise<string> {
  if (codec === null)
    throw new LedgerError("payload.undecodable", { message: "The value is encoded: a codec is needed." });
  return called("payload.undecodable", () => codec.decode(text, { kind }));
}

export async function digested(codec: ValueCodec, text: string, like?: string): Promise<string> {
  const digest = () => (like === undefined ? codec.digest(text) : codec.digest(text, like));
  return called(like === undefined ? "payload.unencodable" : "payload.undecodable", digest);
}

async function called(code: LedgerErrorCode, call: () => string | Promise<string>): Promise<string> {
  try {
    const text: unknown = await call();
    if (typeof text === "string" && !text.includes("\0") && text.isWellFormed()) return text;
  } catch (cause) {
    throw new LedgerError(isRetryable(cause) ? "payload.codec_unavailable" : code, { cause });
  }
  throw new LedgerError(code, {
    message: "The codec must answer text, without NUL characters and half surrogate pairs.",
  });
}

function isRetryable(cause: unknown): boolean {
  return typeof cause === "object" && cause !== null && "retryable" in cause && cause.retryable === true;
}
