/** What a ledger does with the values that travel through it: payloads, outputs, checkpoints and fields of logs. */
import { LedgerError } from "../../errors.ts";
import type { ValueCodec } from "./codec.ts";
import { Redaction } from "./redaction.ts";

export interface ValueOptions {
  /** The most bytes that one value may have as JSON, in UTF-8. Default 1 048 576; at most 200 MiB. */
  readonly maxBytes?: number;
  /**
   * Fields that are not shown: reads have "[redacted]" in their place. A name stands for the field at any depth,
   * `card.number` for a `number` in a `card`, lists in between or not. Handlers get the values as they are.
   */
  readonly redact?: readonly string[];
  /** Encodes values on their way into the database, and decodes them on their way out. */
  readonly codec?: ValueCodec;
}

/** The same, checked. */
export interface ValueRules {
  readonly maxBytes: number;
  readonly redaction: Redaction | null;
  readonly codec: ValueCodec | null;
}

export const DEFAULT_MAX_BYTES = 1_048_576;
/** jsonb itself ends at 255 MiB. */
const MAX_MAX_BYTES = 200 * 1_048_576;

export const defaultRules: ValueRules = { maxBytes: DEFAULT_MAX_BYTES, redaction: null, codec: null };

/** Throws `config.invalid`. */
export function valueRules({ maxBytes = DEFAULT_MAX_BYTES, redact = [], codec }: ValueOptions): ValueRules {
  if (!Number.isInteger(maxBytes) || maxBytes < 1 || maxBytes > MAX_MAX_BYTES) {
    throw invalid(`values.maxBytes must be a number of bytes from 1 to ${MAX_MAX_BYTES}.`);
  }
  if (!Array.isArray(redact) || !redact.every(isFieldPath)) {
    throw invalid("values.redact must be an array of field names, such as password or card.number.");
  }
  if (codec !== undefined && !isCodec(codec)) {
    throw invalid("values.codec must have the functions encode, decode and digest.");
  }
  return { maxBytes, redaction: redact.length === 0 ? null : new Redaction(redact), codec: codec ?? null };
}

/** Names between dots. A star would promise patterns that there are not. */
function isFieldPath(path: unknown): boolean {
  return typeof path === "string" && !path.includes("*") && path.split(".").every((name) => name.trim() !== "");
}

function isCodec(codec: Partial<Record<keyof ValueCodec, unknown>>): boolean {
  return [codec.encode, codec.decode, codec.digest].every((part) => typeof part === "function");
}

function invalid(message: string): LedgerError {
  return new LedgerError("config.invalid", { message });
}
