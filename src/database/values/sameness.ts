/**
 * Whether a caller said before what it says now. PostgreSQL compares jsonb with jsonb; where a codec encodes the same
 * value differently each time, a request is remembered as a keyed digest of its canonical text, and the rest is decoded.
 */
import type { JsonValue } from "../column-types.ts";
import { type JsonText, ownJson, type StoredJson, storedForm } from "../json.ts";
import { canonical } from "./canonical.ts";
import { digested } from "./codec.ts";
import { envelope, enveloped } from "./envelope.ts";
import { readValue } from "./read.ts";
import type { ValueRules } from "./rules.ts";
import { placed } from "./write.ts";

/** A request with values in it, as a key remembers it. */
export interface Remembered {
  /** To compare within the process. */
  readonly plain: JsonText;
  readonly stored: StoredJson;
}

/** Requests by their place; nothing is remembered of null. Throws `payload.unencodable`, `payload.codec_unavailable`. */
export async function remembered(
  { codec }: ValueRules,
  requests: readonly (JsonText | null)[],
): Promise<(place: number) => Remembered> {
  if (codec === null) {
    return placed(requests.map((plain) => (plain === null ? nothing : { plain, stored: storedForm(plain) })));
  }
  const stored = async (plain: JsonText): Promise<Remembered> => {
    return { plain, stored: storedForm(envelope(await digested(codec, canonical(plain)))) };
  };
  return placed(await Promise.all(requests.map((plain) => (plain === null ? nothing : stored(plain)))));
}

const nothing: Remembered = { plain: "null", stored: ownJson(null) };

/**
 * Whether a request that PostgreSQL found to differ from the stored one is the same: made before there was a codec, or
 * digested under an earlier key. Throws `payload.undecodable` when that key is not there any more.
 */
export async function sameRequest({ codec }: ValueRules, stored: string, { plain }: Remembered): Promise<boolean> {
  if (codec === null) return false;
  const before: JsonValue = JSON.parse(stored);
  const digest = enveloped(before);
  if (typeof digest !== "string") return canonical(stored) === canonical(plain);
  return (await digested(codec, canonical(plain), digest)) === digest;
}

/** Whether a stored output that PostgreSQL found to differ is the same once it is decoded. */
export async function sameOutput(rules: ValueRules, stored: string | null, plain: JsonText | null): Promise<boolean> {
  if (rules.codec === null || stored === null || plain === null) return false;
  const before = await readValue(rules, "output", stored);
  return canonical(JSON.stringify(before)) === canonical(plain);
}
