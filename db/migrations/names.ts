import { type Kysely, type RawBuilder, sql } from "kysely";

/** What a migration file gives: Kysely's own shape, with both directions present. */
export interface SchemaMigration {
  up(db: Kysely<unknown>): Promise<void>;
  down(db: Kysely<unknown>): Promise<void>;
}

/** The quoted, schema-qualified name of a table, type, view or function. */
export type QualifiedName = (name: string) => RawBuilder<unknown>;

export function qualifiedNames(schema: string): QualifiedName {
  return (name) => sql.id(schema, name);
}

/** Runs DDL statements one by one: some dialects take a single statement a query. */
export async function runAll(db: Kysely<unknown>, statements: readonly RawBuilder<unknown>[]): Promise<void> {
  for (const statement of statements) await statement.execute(db);
}
