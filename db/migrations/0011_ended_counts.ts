import { sql } from "kysely";
import { type QualifiedName, qualifiedNames, runAll, type SchemaMigration } from "./names.ts";

/** Ended jobs are counted by what their rows say, without a look at the queue for each of them. */
export function endedCounts(schema: string): SchemaMigration {
  const name = qualifiedNames(schema);
  return {
    async up(db) {
      await runAll(db, [countEndedJobs(name, sql`c.continued is not true`)]);
    },
    async down(db) {
      const isGone = sql`(select true from ${name("job_queue")} as q where q.id = c.id) is null`;
      await runAll(db, [countEndedJobs(name, isGone)]);
    },
  };
}

/** Only a slice that is continued leaves its job live. */
function countEndedJobs(name: QualifiedName, ends: ReturnType<typeof sql>) {
  return sql`create or replace function ${name("count_ended_jobs")}() returns trigger language plpgsql as $function$ begin
        insert into ${name("status_count_deltas")} (subject, type, organization_id, status, delta)
        select 'job', e.type, e.organization_id, part.status, part.sign * e.jobs
        from (
          select c.type, c.organization_id, c.status, count(*) as jobs from changed as c
          where ${ends}
          group by c.type, c.organization_id, c.status
        ) as e
        cross join lateral (values (e.status::text, 1), ('LIVE', -1)) as part(status, sign);
        return null;
      end $function$`;
}
