/** Deletes idempotency keys whose time to live is over, and fires of schedules that are past (FEATURES F-H2). */
import { sql } from "kysely";
import type { Executor } from "../database/executor.ts";
import { writing } from "../database/statement.ts";

/** One batch of expired keys of jobs and of runs. Rows that others hold are left. Two round trips. */
export async function forgetExpiredKeys(executor: Executor, limit: number): Promise<number> {
  const ofJobs = await jobKeys.executeFirst(executor, { limit });
  const ofRuns = await runKeys.executeFirst(executor, { limit });
  return (ofJobs?.deleted ?? 0) + (ofRuns?.deleted ?? 0);
}

const jobKeys = expiredKeys("job_idempotency_keys");
const runKeys = expiredKeys("workflow_idempotency_keys");

function expiredKeys(table: "job_idempotency_keys" | "workflow_idempotency_keys") {
  return writing(
    `forget_expired_${table}`,
    { limit: "int4" },
    (_db, p, schema) => sql<{ deleted: number }>`
      with gone as (
        delete from ${sql.id(schema, table)} where ctid = any(array(
          select ctid from ${sql.id(schema, table)} where expires_at <= now()
          order by expires_at limit ${p.limit} for update skip locked
        )) returning key
      )
      select count(*)::integer as deleted from gone`,
  );
}

/** At most so many of each schedule. One round trip. */
export async function forgetFires(executor: Executor, age: number, limit: number): Promise<number> {
  return (await fires.executeFirst(executor, { age, limit }))?.deleted ?? 0;
}

// Schedule by schedule, along the key of its fires.
const fires = writing("forget_schedule_fires", { age: "float8", limit: "int4" }, (db, p) =>
  db
    .with("gone", (qb) =>
      qb
        .deleteFrom("job_schedule_fires as f")
        .where((eb) => {
          const some = eb
            .selectFrom("job_schedules as s")
            .innerJoinLateral(
              (of) =>
                of
                  .selectFrom("job_schedule_fires as old")
                  .whereRef("old.schedule_id", "=", "s.id")
                  .where("old.intended_at", "<", sql<Date>`now() - make_interval(secs => ${p.age})`)
                  .select(sql`old.ctid`.as("place"))
                  .orderBy("old.intended_at")
                  .limit(p.limit)
                  .as("old"),
              (join) => join.onTrue(),
            )
            .select("old.place");
          return sql<boolean>`f.ctid = any(array(${some}))`;
        })
        .returning("f.schedule_id"),
    )
    .selectNoFrom(sql<number>`(select count(*)::integer from gone)`.as("deleted")),
);
