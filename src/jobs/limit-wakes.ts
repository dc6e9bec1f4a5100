/** Wakes of limit keys: which are due for whom. */
import { type QueryCreator, type RawBuilder, sql } from "kysely";
import type { LedgerTables } from "../database/tables.ts";
import { startable } from "./lanes.ts";

/** `look` has the types of jobs with a limit that a claim asks about. */
export type WithLook = LedgerTables & { look: { type: string | null } };

/** Adds the CTE `look` with the types of all wakes, each found by one descent of the index from the one before. */
export function withWakeTypes<DB extends LedgerTables>(db: QueryCreator<DB>): QueryCreator<DB & WithLook>;
export function withWakeTypes(db: QueryCreator<LedgerTables>) {
  return db.withRecursive("look(type)", (qb) =>
    qb
      .selectFrom("job_limit_wakes as w")
      .where("w.type", "is not", null)
      .select((eb) => eb.fn.min("w.type").$castTo<string | null>().as("type"))
      .unionAll((union) =>
        union
          .selectFrom("look as known")
          .where("known.type", "is not", null)
          .select((eb) =>
            eb
              .selectFrom("job_limit_wakes as w")
              .whereRef("w.type", ">", "known.type")
              .select(({ fn }) => fn.min("w.type").as("type"))
              .as("type"),
          ),
      ),
  );
}

/** Whether a wake is due that says nothing of types, or is of one that is worth a look and may start. */
export function anyWakeDue(qb: QueryCreator<WithLook>): RawBuilder<boolean> {
  const untyped = qb
    .selectFrom("job_limit_wakes as w")
    .where("w.type", "is", null)
    .where("w.due_at", "<=", sql<Date>`now()`)
    .select("w.due_at");
  const typed = qb
    .selectFrom("look as l")
    .leftJoin("job_definitions as d", "d.type", "l.type")
    .where(startable)
    .where((eb) =>
      eb.exists(
        eb
          .selectFrom("job_limit_wakes as w")
          .whereRef("w.type", "=", "l.type")
          .where("w.due_at", "<=", sql<Date>`now()`)
          .select("w.due_at")
          .offset(0),
      ),
    )
    .select("l.type");
  // Without any wake at all, which is the rule, types are not asked one by one.
  const any = qb
    .selectFrom("job_limit_wakes as w")
    .where("w.type", "is not", null)
    .select(({ fn }) => fn.min("w.type").as("type"));
  return sql<boolean>`(exists (${untyped}) or ((${any}) is not null and exists (${typed})))`;
}
