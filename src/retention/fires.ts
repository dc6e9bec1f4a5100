/** Deletes fires of schedules that are past their age, batch by batch, so that no tick is fired again for it (FEATURES F-H2). */
import { sql } from "kysely";
import type { Executor } from "../database/executor.ts";
import { FIRST_ID } from "../database/page.ts";
import { writing } from "../database/statement.ts";
import type { Batch } from "./jobs.ts";

/** No schedule has it. */
export const FIRST_SCHEDULE: string = FIRST_ID;

/**
 * Looks at the next `limit` schedules and deletes at most as many of their fires, the oldest of each first. Schedules that others hold
 * are left for another time. One round trip.
 */
export async function forgetFires(
  executor: Executor,
  age: number,
  after: string,
  limit: number,
): Promise<Batch<string>> {
  const row = await forget.executeFirst(executor, { age, after, limit });
  if (row === undefined || row.last_id === null) return { deleted: 0, next: null, busy: false };
  // A full batch may have left fires of the same schedules.
  const full = row.deleted >= limit;
  return { deleted: row.deleted, next: full ? after : row.looked_at < limit ? null : row.last_id, busy: false };
}

const parameters = { age: "float8", after: "uuid", limit: "int4" } as const;

// A schedule's row is held as by who fires, so its times stand still. Kept are its last fire and those of ticks that may be due
// again; of the others it remembers the latest, and no tick up to that is fired any more: a retime could go back to it.
const forget = writing("forget_schedule_fires", parameters, (db, p) =>
  db
    .with(
      (cte) => cte("page").materialized(),
      (qb) =>
        qb.selectFrom("job_schedules as s").where("s.id", ">", p.after).select("s.id").orderBy("s.id").limit(p.limit),
    )
    .with(
      (cte) => cte("due").materialized(),
      (qb) =>
        qb
          .selectFrom("page")
          .where((eb) => {
            const old = eb
              .selectFrom("job_schedule_fires as f")
              .whereRef("f.schedule_id", "=", "page.id")
              .where("f.intended_at", "<", sql<Date>`now() - make_interval(secs => ${p.age})`)
              .select("f.schedule_id")
              .limit(sql.lit(1));
            return sql<boolean>`(${old}) is not null`;
          })
          .select("page.id"),
    )
    .with(
      (cte) => cte("held").materialized(),
      (qb) =>
        qb
          .selectFrom("due")
          .innerJoinLateral(
            (eb) =>
              eb
                .selectFrom("job_schedules as c")
                .whereRef("c.id", "=", "due.id")
                .select(["c.id as schedule_id", "c.intended_at", "c.last_intended_at"])
                .forUpdate("c")
                .skipLocked()
                .as("row"),
            (join) => join.onTrue(),
          )
          .select([
            "row.schedule_id",
            sql<Date>`least(now() - make_interval(secs => ${p.age}), row.intended_at, row.last_intended_at)`.as(
              "until",
            ),
          ]),
    )
    .with(
      (cte) => cte("old").materialized(),
      (qb) =>
        qb
          .selectFrom("held as h")
          .innerJoinLateral(
            (eb) =>
              eb
                .selectFrom("job_schedule_fires as f")
                .whereRef("f.schedule_id", "=", "h.schedule_id")
                .whereRef("f.intended_at", "<", "h.until")
                .select([sql<string>`f.ctid`.as("place"), "f.intended_at"])
                .orderBy("f.intended_at")
                .limit(p.limit)
                .as("f"),
            (join) => join.onTrue(),
          )
          .select(["h.schedule_id", "f.place", "f.intended_at"])
          .limit(p.limit),
    )
    .with("gone", (qb) =>
      qb.deleteFrom("job_schedule_fires as f").where(sql<boolean>`f.ctid = any(array(select place from old))`),
    )
    .with("marked", (qb) =>
      qb
        .updateTable("job_schedules as c")
        .from((eb) =>
          eb
            .selectFrom("old")
            .groupBy("old.schedule_id")
            .select(["old.schedule_id", ({ fn }) => fn.max("old.intended_at").as("forgotten_until")])
            .as("latest"),
        )
        .whereRef("c.id", "=", "latest.schedule_id")
        .where(sql<boolean>`c.id = any(array(select schedule_id from old))`)
        .set({ forgotten_until: sql<Date>`greatest(c.forgotten_until, latest.forgotten_until)` }),
    )
    .selectNoFrom([
      sql<number>`(select count(*)::integer from old)`.as("deleted"),
      sql<number>`(select count(*)::integer from page)`.as("looked_at"),
      sql<string | null>`(select id from page order by id desc limit 1)`.as("last_id"),
    ]),
);
