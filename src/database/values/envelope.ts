/**
 * How an encoded value is stored: as an object with one reserved field, so that it can stand beside plain values. An
 * array is encoded element by element, because map steps unfold stored arrays and gather outputs into new ones.
 */
import type { JsonArray, JsonValue } from "../column-types.ts";
import type { JsonText } from "../json.ts";

const FIELD = "$runledger";
const START = `{"${FIELD}":`;

export function envelope(text: string): JsonText {
  return `${START}${JSON.stringify(text)}}`;
}

/** What is in the envelope, or undefined when the value is none. */
export function enveloped(value: JsonValue): JsonValue | undefined {
  if (typeof value !== "object" || value === null || isArray(value)) return undefined;
  const [entry, ...more] = Object.entries(value);
  return entry !== undefined && more.length === 0 && entry[0] === FIELD ? entry[1] : undefined;
}

/** False when the text surely holds no envelope: a look that costs next to nothing. */
export function mayHoldEnvelope(text: JsonText): boolean {
  return text.startsWith(START) || (text.startsWith("[") && text.includes(START));
}

/** Whether an envelope stands where one is looked for: as the value, or in arrays that are the value. */
export function holdsEnvelope(value: JsonValue): boolean {
  return isArray(value) ? value.some(holdsEnvelope) : enveloped(value) !== undefined;
}

/** Array.isArray does not tell a readonly array from the rest. */
export function isArray(value: JsonValue): value is JsonArray {
  return Array.isArray(value);
}
