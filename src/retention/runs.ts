/** Deletes runs that are past their age, with all that hangs on them, batch by batch (FEATURES F-H2). */
import { sql } from "kysely";
import type { Executor } from "../database/executor.ts";
import { FIRST_ID } from "../database/page.ts";
import { reading, writing } from "../database/statement.ts";
import { inTransaction } from "../database/transaction.ts";
import type { Batch } from "./jobs.ts";
import { idBefore, isLiveKey, isPast, type PreparedAges } from "./policies.ts";
import { takeTurn } from "./turn.ts";

/** No run has it. */
export const FIRST_RUN: string = FIRST_ID;

/**
 * Looks at the next runs, and deletes those that are past, at least one and at most so many that they have `limit`
 * steps together. It locks their steps and then the runs, in id order, and waits for nobody: a run of which somebody holds
 * a row is left for another time. Four round trips at most.
 */
export async function retireRuns(
  executor: Executor,
  { ages, youngest }: PreparedAges,
  keyAge: number | null,
  after: string,
  limit: number,
): Promise<Batch<string>> {
  return inTransaction(executor, async (trx) => {
    const row = await hold.executeFirst(trx, { ages, youngest, keyAge, after, limit });
    if (row === undefined) return { deleted: 0, next: null, busy: true };
    if (row.ids.length > 0) await forget.execute(trx, { ids: row.ids });
    return { deleted: row.ids.length, next: row.last_id, busy: false };
  });
}

const holdParameters = {
  ages: "jsonb",
  youngest: "float8",
  keyAge: "float8?",
  after: "uuid",
  limit: "int4",
} as const;

// What was read of a run before its lock is asked again of the row that was locked: it may have been retried.
const hold = reading("hold_retired_workflow_runs", holdParameters, (db, p, schema) =>
  db
    .with(
      (cte) => cte("turn").materialized(),
      (qb) => qb.selectNoFrom(takeTurn(schema).as("taken")),
    )
    .with(
      (cte) => cte("page").materialized(),
      (qb) =>
        qb
          .selectFrom("workflow_runs as r")
          .where("r.id", ">", p.after)
          .where(sql<boolean>`r.id < ${idBefore(p.youngest)}`)
          .where(sql<boolean>`(select taken from turn)`)
          .select((eb) => {
            const parent = eb
              .selectFrom("workflow_runs as parent")
              .whereRef("parent.id", "=", "r.parent_run_id")
              .where("parent.ended_at", "is", null)
              .select("parent.id");
            const key = eb
              .selectFrom("workflow_idempotency_keys as k")
              .whereRef("k.run_id", "=", "r.id")
              .where(isLiveKey("k", p.keyAge))
              .select("k.run_id")
              .limit(sql.lit(1));
            return [
              "r.id",
              "r.step_count",
              sql<boolean>`case when ${isPast("r", p.ages)} then (${parent}) is null and (${key}) is null else false end`.as(
                "due",
              ),
            ];
          })
          .orderBy("r.id")
          .limit(p.limit),
    )
    .with(
      (cte) => cte("due").materialized(),
      (qb) =>
        qb
          .selectFrom(
            sql<{ id: string; step_count: number; before: string }>`(
              select id, step_count, sum(step_count) over (order by id) - step_count as before from page where due
            )`.as("tally"),
          )
          .where(sql<boolean>`tally.before < ${p.limit}`)
          .select(["tally.id", "tally.step_count"]),
    )
    .with(
      (cte) => cte("step").materialized(),
      (qb) =>
        qb
          .selectFrom("workflow_steps as s")
          .where(sql<boolean>`s.run_id = any(array(select id from due))`)
          .select(["s.run_id", "s.id"])
          .orderBy("s.id")
          .forUpdate("s")
          .skipLocked(),
    )
    .with("whole", (qb) =>
      qb
        .selectFrom("step")
        .groupBy("step.run_id")
        .select(["step.run_id", sql<number>`count(*)`.as("steps")]),
    )
    .with(
      (cte) => cte("held").materialized(),
      (qb) =>
        qb
          .selectFrom("workflow_runs as r")
          .where(sql<boolean>`r.id = any(array(select run_id from whole))`)
          .where(sql<boolean>`r.step_count = (select steps from whole where run_id = r.id)`)
          .where("r.ended_at", "is not", null)
          .where(isPast("r", p.ages))
          .select("r.id")
          .orderBy("r.id")
          .forUpdate("r")
          .skipLocked(),
    )
    .selectFrom("turn")
    .where("turn.taken", "=", true)
    .select([
      sql<string[]>`array(select id from held)`.as("ids"),
      // To the end of the page, or to the last run that was within the limit.
      sql<string | null>`case
        when (select count(*) from due) < (select count(*) from page where due)
          then (select id from due order by id desc limit 1)
        when (select count(*) from page) = ${p.limit} then (select id from page order by id desc limit 1)
      end`.as("last_id"),
    ]),
);

// Steps, edges and mutations go with their run.
const forget = writing("forget_workflow_runs", { ids: "uuid[]" }, (db, p) => {
  const ofJobs = (column: string) => sql<boolean>`${sql.ref(column)} = any(array(select job_id from job))`;
  return db
    .with(
      (cte) => cte("job").materialized(),
      (qb) =>
        qb
          .selectFrom("workflow_steps as s")
          .where(sql<boolean>`s.run_id = any(${p.ids})`)
          .where("s.job_id", "is not", null)
          .select("s.job_id"),
    )
    .with("ended", (qb) => qb.deleteFrom("job_ledger as l").where(ofJobs("l.id")))
    .with("attempts", (qb) => qb.deleteFrom("job_attempts as a").where(ofJobs("a.job_id")))
    .with("events", (qb) => qb.deleteFrom("job_events as e").where(ofJobs("e.job_id")))
    .with("logs", (qb) => qb.deleteFrom("job_logs as g").where(ofJobs("g.job_id")))
    .with("keys", (qb) => qb.deleteFrom("workflow_idempotency_keys as k").where(sql<boolean>`k.run_id = any(${p.ids})`))
    .deleteFrom("workflow_runs as r")
    .where(sql<boolean>`r.id = any(${p.ids})`);
});
