/**
 * Typed placeholders of a prepared statement. Each carries an explicit cast, so that every driver
 * and pooler sends it the same way; JSON travels as text, because drivers differ in how they encode it.
 */
import { type AliasedRawBuilder, type RawBuilder, sql } from "kysely";
import type { StoredJson } from "./json.ts";

interface TypeMap {
  readonly uuid: string;
  readonly text: string;
  readonly int4: number;
  /** Decimal digits: a JavaScript number would lose precision on the way. */
  readonly int8: string;
  readonly float8: number;
  readonly bool: boolean;
  readonly timestamptz: Date | string;
  readonly jsonb: StoredJson;
}

type ScalarType = keyof TypeMap;
/** `text`, `text?` (nullable), `text[]`, `text?[]` (nullable elements), `text[]?` (nullable array). */
export type ParameterType = ScalarType | `${ScalarType}?` | `${ScalarType}[]` | `${ScalarType}?[]` | `${ScalarType}[]?`;

export type ParameterTypes = Readonly<Record<string, ParameterType>>;

type ValueOf<T extends ParameterType> = T extends ScalarType
  ? TypeMap[T]
  : T extends `${infer S extends ScalarType}?`
    ? TypeMap[S] | null
    : T extends `${infer S extends ScalarType}[]`
      ? readonly TypeMap[S][]
      : T extends `${infer S extends ScalarType}?[]`
        ? readonly (TypeMap[S] | null)[]
        : T extends `${infer S extends ScalarType}[]?`
          ? readonly TypeMap[S][] | null
          : never;

/** What a statement must be given at each call. */
export type Arguments<P extends ParameterTypes> = { readonly [K in keyof P]: ValueOf<P[K]> };

/** The placeholders as SQL expressions, for the body of a statement. */
export type Placeholders<P extends ParameterTypes> = { readonly [K in keyof P]: RawBuilder<ValueOf<P[K]>> };

/** Stands in a compiled query's parameter list until the values of a call replace it. */
export class Placeholder {
  readonly name: string;
  constructor(name: string) {
    this.name = name;
  }
}

export function placeholders<P extends ParameterTypes>(types: P): Placeholders<P> {
  const entries = Object.entries(types).map(([name, type]) => [name, placeholder(name, type)]);
  return Object.fromEntries(entries) as Placeholders<P>;
}

function placeholder(name: string, type: ParameterType): RawBuilder<unknown> {
  const scalar = type.replace(/[?[\]]/g, "");
  const array = type.includes("[]") ? "[]" : "";
  const value = sql.val(new Placeholder(name));
  if (scalar === "jsonb") return sql`${value}::${sql.raw(`text${array}::jsonb${array}`)}`;
  return sql`${value}::${sql.raw(scalar + array)}`;
}

/** The parameter list of one call, in the order of the compiled text. */
export function bind(compiled: readonly unknown[], values: Readonly<Record<string, unknown>>): unknown[] {
  return compiled.map((value) => (value instanceof Placeholder ? values[value.name] : value));
}

type ElementOf<A> = A extends readonly (infer E)[] ? E : never;
type ColumnsOf<C extends Record<string, RawBuilder<unknown>>> = {
  [K in keyof C]: C[K] extends RawBuilder<infer A> ? ElementOf<A> : never;
};
/** The row type of a FROM item that `rowsOf` made. */
export type RowOf<T> = T extends AliasedRawBuilder<infer Row, string> ? Row : never;

/** A FROM item that turns parallel arrays into rows: `unnest((select $1::uuid[]), (select $2::int4[])) as input(id, n)`. */
export function rowsOf<A extends string, C extends Record<string, RawBuilder<unknown>>>(alias: A, columns: C) {
  const names = sql.join(Object.keys(columns).map((name) => sql.id(name)));
  const values = sql.join(Object.values(columns).map(unseen));
  return sql<ColumnsOf<C>>`unnest(${values})`.as<A>(sql`${sql.id(alias)}(${names})`);
}

/** A column of `rowsOf` that is often null throughout: then it need not be sent, since shorter columns are filled up with nulls. */
export function sparse<T, V>(items: readonly T[], columnOf: (item: T) => V | null): (V | null)[] {
  const values = items.map(columnOf);
  return values.every((value) => value === null) ? [] : values;
}

/** The same with the `place` of each row, from 1 on. */
export function numberedRowsOf<A extends string, C extends Record<string, RawBuilder<unknown>>>(alias: A, columns: C) {
  const names = sql.join([...Object.keys(columns), "place"].map((name) => sql.id(name)));
  const values = sql.join(Object.values(columns).map(unseen));
  return sql<ColumnsOf<C> & { place: string }>`unnest(${values}) with ordinality`.as<A>(
    sql`${sql.id(alias)}(${names})`,
  );
}

/**
 * The value out of the planner's sight. It would take a plan for this very value to be cheaper than one for any, and
 * plan a prepared statement anew at each call, which costs more than most of them take to run.
 */
export function unseen<T>(value: RawBuilder<T>): RawBuilder<T> {
  return sql<T>`(select ${value})`;
}
