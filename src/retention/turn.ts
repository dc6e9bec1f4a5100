/** Whose turn it is to delete: one process at a time, batch by batch. */
import { type RawBuilder, sql } from "kysely";

/** Always named with the schema: two ledgers of one database do not wait for each other. */
function turnKey(schema: string): RawBuilder<string> {
  return sql<string>`hashtextextended(${sql.lit(`${schema}.retention`)}, 0)`;
}

/** Takes the turn for this transaction, if nobody has it. */
export function takeTurn(schema: string): RawBuilder<boolean> {
  return sql<boolean>`pg_try_advisory_xact_lock(${turnKey(schema)})`;
}
