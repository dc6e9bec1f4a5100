/** Deletes idempotency keys whose time to live is over (FEATURES F-H2). */
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
