/** Ended jobs that are to live again, by a requeue or a replay, as they were and with the active key that they had (FEATURES F-J9, F-J12). */
import { type QueryCreator, type RawBuilder, sql } from "kysely";
import { sameTenant } from "../database/live-keys.ts";
import type { LedgerTables } from "../database/tables.ts";

/**
 * Whether another live job has the active key of the row's, or one before it among the rows of the same `state`. By the
 * statement's snapshot: who takes the key at the same moment is found by the unique index, as an error of the database.
 */
export function activeKeyTaken(tables: QueryCreator<LedgerTables>, row: string): RawBuilder<boolean> {
  const of = (column: string) => sql.ref(`${row}.${column}`);
  const holder = tables
    .selectFrom("job_queue as q")
    .where(sql<boolean>`q.type = ${of("type")}`)
    .where(sameTenant("q", row))
    .where(sql<boolean>`q.active_key = ${of("active_key")}`)
    .where("q.active_key", "is not", null)
    .select("q.id")
    .limit(sql.lit(1));
  const place = sql<string>`row_number() over (
    partition by ${of("state")}, ${of("type")}, ${of("organization_id")}, ${of("active_key")} order by ${of("job_id")})`;
  return sql<boolean>`case
    when ${of("active_key")} is null then false
    when ${place} > 1 then true
    else (${holder}) is not null
  end`;
}

/** The run of the ledger that `is` names by id and run number: what the job that lives again keeps. */
export function endedRun(tables: QueryCreator<LedgerTables>, is: RawBuilder<boolean>) {
  return (
    tables
      .selectFrom("job_ledger")
      .where(is)
      .selectAll()
      // Says nothing new, but keeps the planner from reading all of the ledger for a batch.
      .limit(1)
  );
}
