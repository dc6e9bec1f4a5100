/**
 * One text for all JSON texts that say the same, as PostgreSQL compares jsonb: object keys sorted, the last of equal
 * keys, no white space, numbers as JavaScript writes them, so that 1.0 is 1. Unlike jsonb, numbers beyond the precision
 * of a double are equal to their neighbours.
 */
import { LedgerError } from "../../errors.ts";
import type { JsonValue } from "../column-types.ts";
import type { JsonText } from "../json.ts";
import { isArray } from "./envelope.ts";

/** Throws `payload.not_json` where objects and lists are nested too deeply. */
export function canonical(text: JsonText): string {
  try {
    return canonicalOf(JSON.parse(text));
  } catch (cause) {
    throw new LedgerError("payload.not_json", { message: "The value is nested too deeply.", cause });
  }
}

function canonicalOf(value: JsonValue): string {
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  if (isArray(value)) return `[${value.map(canonicalOf).join(",")}]`;
  const entries = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1));
  return `{${entries.map(([key, entry]) => `${JSON.stringify(key)}:${canonicalOf(entry)}`).join(",")}}`;
}
