import type { Kysely } from "kysely";
import type { Ledger, LedgerTables } from "../../index.ts";

// biome-ignore lint/suspicious/noExplicitAny: Kysely is invariant in its database type, no other type takes every handle
export type AnyKysely = Kysely<any>;

/** What the functions of a kit work on. */
export interface KitParts {
  readonly db: AnyKysely;
  readonly ledger: Ledger;
}

/** The ledger's tables by plain name, whatever plugins and schema the handle's owner has. */
export function tablesOf(db: AnyKysely, schema: string): Kysely<LedgerTables> {
  return db.withoutPlugins().withSchema(schema);
}
