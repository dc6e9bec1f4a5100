import type { DB } from "./tables.generated.ts";

/** The ledger's tables and views by plain name, for queries on a handle with `withSchema`. */
export type LedgerTables = { [K in keyof DB]: DB[K] };

/** The same by qualified name, to join with a service's own tables: `Kysely<AppDb & RunledgerDatabase>`. */
export type RunledgerDatabase<Schema extends string = "runledger"> = {
  [K in keyof DB & string as `${Schema}.${K}`]: DB[K];
};
