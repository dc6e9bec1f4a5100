/** Holding limit keys: who has the row of a key locked decides, alone, which of its jobs start. */
import { type QueryCreator, type RawBuilder, sql } from "kysely";
import { rowsOf } from "../database/parameters.ts";
import { writing } from "../database/statement.ts";
import { startable } from "./lanes.ts";
import { everyType, type WithLook, withWakeTypes } from "./limit-wakes.ts";

/** Keys in one hold at most: as many as jobs are wanted, and some more, because a key may turn out to be full. */
const MAX_HELD = 300;
const MORE_HELD = 5;
/** Wakes that are gone through for each key to hold: keys have several, and other sessions hold some. */
const WAKES_PER_KEY = 5;

export const holdOfTypes = writing("hold_job_limits", { limit: "int4", types: "text[]" }, (db, p, schema) =>
  hold(
    db.withRecursive("look(type)", (qb) =>
      qb
        .selectFrom(rowsOf("given", { type: p.types }))
        .select(sql<string | null>`given.type`.as("type"))
        .unionAll(qb.selectNoFrom(sql<string | null>`${everyType}`.as("type"))),
    ),
    p.limit,
    schema,
  ),
);

export const holdOfAll = writing("hold_job_limits_of_all_types", { limit: "int4" }, (db, p, schema) =>
  hold(withWakeTypes(db), p.limit, schema),
);

/**
 * `wake_lane` and `due_wake` find the first wakes in order, as a claim's lanes find jobs; `wanted_key` are their keys.
 * `locked` takes the rows of those that nobody holds, and no more than it needs. A key's first claim makes its
 * row when the key is among the first that are wanted, under an advisory lock that is only tried, so that two do not wait
 * for each other.
 */
function hold(db: QueryCreator<WithLook>, limit: RawBuilder<number>, schema: string) {
  const keys = sql<number>`least(${limit} + ${sql.lit(MORE_HELD)}, ${sql.lit(MAX_HELD)})`;
  const wakes = sql<number>`${keys} * ${sql.lit(WAKES_PER_KEY)}`;
  return db
    .withRecursive("wake_lane(type, priority)", (qb) =>
      qb
        .selectFrom("look as t")
        .leftJoin("job_definitions as d", "d.type", "t.type")
        .where(startable)
        .select((eb) => [
          "t.type",
          eb
            .selectFrom("job_limit_wakes as w")
            .whereRef("w.type", "=", "t.type")
            .select(({ fn }) => fn.max("w.priority").as("priority"))
            .as("priority"),
        ])
        .unionAll((union) =>
          union
            .selectFrom("wake_lane as l")
            .where("l.priority", "is not", null)
            .select((eb) => [
              "l.type",
              eb
                .selectFrom("job_limit_wakes as w")
                .whereRef("w.type", "=", "l.type")
                .whereRef("w.priority", "<", "l.priority")
                .select(({ fn }) => fn.max("w.priority").as("priority"))
                .as("priority"),
            ]),
        ),
    )
    .with(
      (cte) => cte("due_wake").materialized(),
      (qb) =>
        qb
          .selectFrom("wake_lane as l")
          .innerJoinLateral(
            (eb) =>
              eb
                .selectFrom("job_limit_wakes as w")
                .whereRef("w.type", "=", "l.type")
                .whereRef("w.priority", "=", "l.priority")
                .where("w.due_at", "<=", sql<Date>`now()`)
                .select(["w.tenant", "w.key", "w.due_at", "w.job_id"])
                .orderBy("w.due_at")
                .orderBy("w.job_id")
                .limit(wakes)
                .as("next"),
            (join) => join.onTrue(),
          )
          .select(["next.tenant", "next.key"])
          .select(sql<string>`row_number() over (order by l.priority desc, next.due_at, next.job_id)`.as("place")),
    )
    .with(
      (cte) => cte("wanted_key").materialized(),
      (qb) =>
        qb
          .selectFrom("due_wake as w")
          .groupBy(["w.tenant", "w.key"])
          .select(["w.tenant", "w.key"])
          .orderBy(sql`min(w.place)`),
    )
    .with(
      (cte) => cte("new_key").materialized(),
      (qb) =>
        qb
          .selectFrom((eb) => eb.selectFrom("wanted_key").selectAll().limit(keys).as("w"))
          .where((eb) =>
            eb.not(
              eb.exists(
                eb
                  .selectFrom("job_limits as k")
                  .whereRef("k.tenant", "=", "w.tenant")
                  .whereRef("k.key", "=", "w.key")
                  .select("k.key"),
              ),
            ),
          )
          .select(["w.tenant", "w.key"]),
    )
    .with("entered", (qb) =>
      qb
        .insertInto("job_limits")
        .columns(["tenant", "key"])
        .expression((eb) =>
          eb
            .selectFrom("new_key as n")
            .where(sql<boolean>`pg_try_advisory_xact_lock(hashtextextended(
              concat_ws(' ', ${sql.lit(`${schema}.job_limits`)}, n.tenant, n.key), 0))`)
            .select(["n.tenant", "n.key"]),
        )
        .onConflict((conflict) => conflict.doNothing())
        .returning(["tenant", "key"]),
    )
    .with(
      (cte) => cte("locked").materialized(),
      (qb) =>
        qb
          .selectFrom("wanted_key as w")
          .innerJoinLateral(
            (eb) =>
              eb
                .selectFrom("job_limits as k")
                .whereRef("k.tenant", "=", "w.tenant")
                .whereRef("k.key", "=", "w.key")
                .select(["k.tenant", "k.key"])
                .forUpdate("k")
                .skipLocked()
                .as("k"),
            (join) => join.onTrue(),
          )
          .select(["k.tenant", "k.key"])
          .limit(keys),
    )
    .with("held", (qb) =>
      qb
        .selectFrom("entered")
        .select(["entered.tenant", "entered.key"])
        .unionAll(qb.selectFrom("locked").select(["locked.tenant", "locked.key"])),
    )
    .selectFrom(
      sql<{ seen: string; capped: boolean }>`(
        select (select count(*) from wanted_key), (select count(*) from due_wake) >= ${wakes}
          or (select count(*) from locked) >= ${keys} or (select count(*) from new_key) >= ${keys}
      )`.as<"sight">(sql`sight(seen, capped)`),
    )
    .leftJoin("held as h", (join) => join.onTrue())
    .select(["h.tenant", "h.key", "sight.seen", "sight.capped"]);
}
