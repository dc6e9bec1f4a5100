import { sql } from "kysely";
import { type QualifiedName, qualifiedNames, runAll, type SchemaMigration } from "./names.ts";

/** The triggers that count jobs do less for each job and each statement; what they count stays the same. */
export function leanCounts(schema: string): SchemaMigration {
  const name = qualifiedNames(schema);
  return {
    async up(db) {
      await runAll(db, [
        countEndedJobs(name, sql`c.continued is not true`),
        countInsertedJobs(name),
        takeEndBack(name),
        sql`
        create trigger job_queue_end_taken_back after insert on ${name("job_queue")}
        for each row when (new.run_number > 1) execute function ${name("take_job_end_back")}()`,
      ]);
    },
    async down(db) {
      const isGone = sql`(select true from ${name("job_queue")} as q where q.id = c.id) is null`;
      await runAll(db, [
        sql`drop trigger job_queue_end_taken_back on ${name("job_queue")}`,
        sql`drop function ${name("take_job_end_back")}()`,
        countEndedJobs(name, isGone),
        countInsertedJobsBefore(name),
      ]);
    },
  };
}

type Fragment = ReturnType<typeof sql>;

const append = (name: QualifiedName) =>
  sql`insert into ${name("status_count_deltas")} (subject, type, organization_id, status, delta)`;

const live = (name: QualifiedName) =>
  sql`${append(name)} select 'job', type, organization_id, 'LIVE', count(*) from changed group by type, organization_id`;

function triggerFunction(name: QualifiedName, called: string, body: Fragment) {
  return sql`create or replace function ${name(called)}() returns trigger language plpgsql as $function$ begin
        ${body}
        return null;
      end $function$`;
}

/** Only a slice that is continued leaves its job live: whether a job still is need not be looked up for each. */
function countEndedJobs(name: QualifiedName, ends: Fragment) {
  return triggerFunction(
    name,
    "count_ended_jobs",
    sql`${append(name)}
        select 'job', e.type, e.organization_id, part.status, part.sign * e.jobs
        from (
          select c.type, c.organization_id, c.status, count(*) as jobs from changed as c
          where ${ends}
          group by c.type, c.organization_id, c.status
        ) as e
        cross join lateral (values (e.status::text, 1), ('LIVE', -1)) as part(status, sign);`,
  );
}

function countInsertedJobs(name: QualifiedName) {
  return triggerFunction(name, "count_inserted_jobs", sql`${live(name)};`);
}

/** A job that is put back takes the count of its end away again, holding the run that it follows on, so that this is not being deleted. */
function takeEndBack(name: QualifiedName) {
  return triggerFunction(
    name,
    "take_job_end_back",
    sql`${append(name)}
        select 'job', ended.type, ended.organization_id, ended.status::text, -1 from (
          select l.type, l.organization_id, l.status from ${name("job_ledger")} as l
          where l.id = new.id and l.run_number < new.run_number
          order by l.run_number desc limit 1 for key share
        ) as ended;`,
  );
}

/** As 0008 has it: both in one, with a look at the rows of each statement. */
function countInsertedJobsBefore(name: QualifiedName) {
  return triggerFunction(
    name,
    "count_inserted_jobs",
    sql`${live(name)};
        if exists (select from changed where run_number > 1) then
          ${append(name)}
          select 'job', ended.type, ended.organization_id, ended.status::text, -1 from changed as c
          cross join lateral (
            select l.type, l.organization_id, l.status from ${name("job_ledger")} as l
            where l.id = c.id and l.run_number < c.run_number
            order by l.run_number desc limit 1 for key share
          ) as ended
          where c.run_number > 1;
        end if;`,
  );
}
