/** The TypeScript side of PostgreSQL's types, as the generated table types use it. */
import type { ColumnType } from "kysely";

/** `bigint`: drivers answer a string, because a JavaScript number would lose digits. */
export type BigIntColumn = ColumnType<string, string | number | bigint, string | number | bigint>;

/** `timestamptz`. A string may carry the microseconds that a `Date` has no room for. */
export type TimestampColumn = ColumnType<Date, Date | string, Date | string>;

/**
 * `jsonb`. It is written as JSON text only: the `pg` driver would send an array as a PostgreSQL array
 * and a string as it is, and both fail or, worse, mean something else.
 */
export type JsonColumn = ColumnType<JsonValue, string, string>;

/** What JSON can hold. */
export type JsonValue = JsonPrimitive | JsonObject | JsonArray;

/** A JSON value without parts. */
export type JsonPrimitive = string | number | boolean | null;

/** A JSON object. */
export type JsonObject = { readonly [key: string]: JsonValue };

/** A JSON array. */
export type JsonArray = readonly JsonValue[];
