/** Values on their way out of the database: parsed, decoded where they are encoded, and redacted for who only looks. */
import { isLedgerError, LedgerError } from "../../errors.ts";
import type { JsonValue } from "../column-types.ts";
import { decoded, type ValueCodec, type ValueKind } from "./codec.ts";
import { enveloped, isArray, mayHoldEnvelope } from "./envelope.ts";
import type { ValueRules } from "./rules.ts";
import { placed } from "./write.ts";

/** What a read shows of values. */
export interface ReadOptions {
  /**
   * `redacted`: without the values of the fields that the ledger's `values.redact` names. `revealed`: as they are.
   * `omitted`: nothing is decoded and all values are null, for a look at what does not decode. Default `redacted`.
   */
  readonly values?: "redacted" | "revealed" | "omitted";
}

/** Values by their place. */
export interface ReadValues {
  /** Throws the error of the place. */
  readonly at: (place: number) => JsonValue | null;
  /** Why values could not be decoded, by place. */
  readonly errors: ReadonlyMap<number, LedgerError>;
}

/** Values that were selected as text, as they were given. Nothing is waited for where nothing is encoded. */
export async function readValues(
  { codec }: ValueRules,
  kind: ValueKind,
  texts: readonly (string | null)[],
): Promise<ReadValues> {
  const values = texts.map((text): JsonValue | null => (text === null ? null : JSON.parse(text)));
  const valueAt = placed(values);
  // A claim of a thousand jobs comes through here: where nothing is encoded, there is nothing more to it.
  if (!texts.some(isEncoded)) return { at: valueAt, errors: noErrors };
  const errors = new Map<number, LedgerError>();
  await Promise.all(
    values.map(async (value, place) => {
      try {
        values[place] = await opened(codec, kind, value);
      } catch (error) {
        errors.set(place, undecodable(error));
      }
    }),
  );
  const at = (place: number) => {
    const error = errors.get(place);
    if (error !== undefined) throw error;
    return valueAt(place);
  };
  return { at, errors };
}

const noErrors: ReadonlyMap<number, LedgerError> = new Map();

function isEncoded(text: string | null): boolean {
  return text !== null && mayHoldEnvelope(text);
}

/** One value. Throws `payload.undecodable`, `payload.codec_unavailable`. */
export async function readValue(rules: ValueRules, kind: ValueKind, text: string): Promise<JsonValue> {
  return (await readValues(rules, kind, [text])).at(0);
}

/** Values for who looks at them, by place: see `ReadOptions`. Throws `payload.undecodable`, `payload.codec_unavailable`, `input.invalid`. */
export async function shownValues(
  rules: ValueRules,
  kind: ValueKind,
  texts: readonly (string | null)[],
  { values = "redacted" }: ReadOptions = {},
): Promise<(place: number) => JsonValue | null> {
  if (!["redacted", "revealed", "omitted"].includes(values)) {
    throw new LedgerError("input.invalid", { message: "values must be one of redacted, revealed, omitted." });
  }
  if (values === "omitted") return () => null;
  const { at } = await readValues(rules, kind, texts);
  const { redaction } = rules;
  return values === "revealed" || redaction === null ? at : (place) => redaction.redacted(at(place));
}

async function opened(codec: ValueCodec | null, kind: ValueKind, value: JsonValue): Promise<JsonValue> {
  if (isArray(value)) return Promise.all(value.map((element) => opened(codec, kind, element)));
  const text = enveloped(value);
  if (text === undefined) return value;
  if (typeof text !== "string") throw new LedgerError("payload.undecodable");
  return JSON.parse(await decoded(codec, kind, text));
}

function undecodable(error: unknown): LedgerError {
  return isLedgerError(error) ? error : new LedgerError("payload.undecodable", { cause: error });
}
