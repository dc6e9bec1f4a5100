/** Values on their way into the database: checked as plain JSON, then put into the form that is stored. */

import { LedgerError } from "../../errors.ts";
import type { JsonArray } from "../column-types.ts";
import { type JsonText, type StoredJson, storedForm, toJson } from "../json.ts";
import { encoded, type ValueCodec, type ValueKind } from "./codec.ts";
import { envelope, holdsEnvelope, mayHoldEnvelope } from "./envelope.ts";
import type { ValueRules } from "./rules.ts";

/** The JSON text of a caller's value. Throws `payload.not_json`, `payload.too_large`, `payload.reserved`. */
export function valueText({ maxBytes }: ValueRules, value: unknown, argument: string): JsonText {
  const text = toJson(value, argument);
  // A character has at most three bytes: most texts need not be counted.
  const bytes = text.length * 3 <= maxBytes ? 0 : Buffer.byteLength(text);
  if (bytes > maxBytes) {
    throw new LedgerError("payload.too_large", {
      message: `${argument} has ${bytes} bytes as JSON, and at most ${maxBytes} are allowed.`,
      details: { argument, bytes, maxBytes },
    });
  }
  if (mayHoldEnvelope(text) && holdsEnvelope(JSON.parse(text))) {
    throw new LedgerError("payload.reserved", { details: { argument } });
  }
  return text;
}

/** The text of an optional value, or null. */
export function optionalText(rules: ValueRules, value: unknown, argument: string): JsonText | null {
  return value === undefined ? null : valueText(rules, value, argument);
}

/**
 * The form in which texts are stored, by their place. Nothing is waited for without a codec. Throws
 * `payload.unencodable`, `payload.codec_unavailable`.
 */
export async function storedValues(
  rules: ValueRules,
  kind: ValueKind,
  texts: readonly JsonText[],
): Promise<(place: number) => StoredJson>;
export async function storedValues(
  rules: ValueRules,
  kind: ValueKind,
  texts: readonly (JsonText | null)[],
): Promise<(place: number) => StoredJson | null>;
export async function storedValues(
  { codec }: ValueRules,
  kind: ValueKind,
  texts: readonly (JsonText | null)[],
): Promise<(place: number) => StoredJson | null> {
  if (codec === null) return placed(texts.map((text) => (text === null ? null : storedForm(text))));
  return placed(await Promise.all(texts.map(async (text) => (text === null ? null : encodedValue(codec, kind, text)))));
}

/** One value. */
export async function storedValue(rules: ValueRules, kind: ValueKind, text: JsonText): Promise<StoredJson> {
  return (await storedValues(rules, kind, [text]))(0);
}

async function encodedValue(codec: ValueCodec, kind: ValueKind, text: JsonText): Promise<StoredJson> {
  if (!text.startsWith("[")) return storedForm(envelope(await encoded(codec, kind, text)));
  const elements: JsonArray = JSON.parse(text);
  const envelopes = await Promise.all(
    elements.map(async (element) => envelope(await encoded(codec, kind, JSON.stringify(element)))),
  );
  return storedForm(`[${envelopes.join(",")}]`);
}

/** What stands at a place; a place that was not asked for is a mistake. */
export function placed<T>(items: readonly T[]): (place: number) => T {
  return (place) => {
    const item = items[place];
    if (item === undefined) throw new RangeError(`there is no value at place ${place}`);
    return item;
  };
}
