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

/** The type of a wake that is for all types: a slot came free. */
export const everyType = sql.lit("");

/**
 * Whether a wake is due of a type that `look` has and that may start, or of every type. The first one by time tells:
 * EXISTS would be answered by a scan where the type is common among all wakes.
 */
export function anyWakeDue(qb: QueryCreator<WithLook>): RawBuilder<boolean> {
  const due = (type: RawBuilder<string | null>) =>
    sql<boolean>`(${qb
      .selectFrom("job_limit_wakes as w")
      .where("w.type", "=", type)
      .select(({ fn }) => fn.min("w.due_at").as("due_at"))}) <= now()`;
  const ofTypes = qb
    .selectFrom("look as l")
    .leftJoin("job_definitions as d", "d.type", "l.type")
    .where(startable)
    .where(due(sql.ref("l.type")))
    .select("l.type");
  // Without any wake at all, which is the rule, types are not asked one by one.
  const any = qb.selectFrom("job_limit_wakes as w").select(({ fn }) => fn.min("w.type").as("type"));
  return sql<boolean>`((${any}) is not null and (coalesce(${due(everyType)}, false) or exists (${ofTypes})))`;
}
