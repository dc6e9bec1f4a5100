/** JSON as text. The values of callers go in and out through `values/`; here is what both sides stand on. */
import { LedgerError } from "../errors.ts";
import type { JsonValue } from "./column-types.ts";

/** The JSON text of a value as its caller gave it. */
export type JsonText = string;

declare const stored: unique symbol;

/**
 * JSON text in the form in which it is stored, encoded where the ledger has a codec. Statements take no other, so that
 * no value gets past the codec by oversight: it comes from `values/write.ts`, from `ownJson`, or out of the database.
 */
export type StoredJson = JsonText & { readonly [stored]: true };

/** Says that a text has its stored form. */
export function storedForm(text: JsonText): StoredJson {
  return text as StoredJson;
}

/** What the ledger itself remembers, with nothing of a payload or an output in it. */
export function ownJson(value: unknown): StoredJson {
  return storedForm(JSON.stringify(value));
}

/**
 * The JSON text of a value, or `payload.not_json`: undefined, functions, bigints and cycles have no
 * JSON form; NUL and lone surrogates have one that jsonb refuses.
 */
export function toJson(value: unknown, argument: string): JsonText {
  const text = stringified(value, argument);
  if (/\\u(0000|d[89a-f])/i.test(text) && hasRefusedEscape(text)) {
    throw notJson(argument, "it contains a NUL character or half of a surrogate pair");
  }
  return text;
}

function stringified(value: unknown, argument: string): string {
  let text: string | undefined;
  try {
    text = JSON.stringify(value);
  } catch (cause) {
    throw notJson(argument, "it is circular or holds a bigint", cause);
  }
  if (text === undefined) throw notJson(argument, "it is undefined, a function or a symbol");
  return text;
}

/** JSON.stringify escapes NUL and lone surrogates, and nothing else of that form; an escaped backslash before `u` is text. */
function hasRefusedEscape(text: string): boolean {
  return /(?<!\\)(?:\\\\)*\\u(0000|d[89a-f])/i.test(text);
}

function notJson(argument: string, reason: string, cause?: unknown): LedgerError {
  return new LedgerError("payload.not_json", { message: `${argument} cannot be stored as JSON: ${reason}.`, cause });
}

/**
 * Reads JSON of the ledger's own that was selected as text: whatever parsers the service gave its driver do not matter.
 * Values of callers are read by `values/read.ts`.
 */
export function fromJson(text: string): JsonValue;
export function fromJson(text: string | null): JsonValue | null;
export function fromJson(text: string | null): JsonValue | null {
  return text === null ? null : JSON.parse(text);
}
