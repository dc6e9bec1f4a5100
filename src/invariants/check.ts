/** What must hold whatever happens (DESIGN §8), as SQL: for the tests, and for an operator who doubts. */
import { type RawBuilder, sql } from "kysely";
import { toNumber } from "../database/decode.ts";
import type { Executor } from "../database/executor.ts";
import { reading } from "../database/statement.ts";
import { forgottenJobs } from "../jobs/limit-sweep.ts";

/** Every invariant by name, with the sentence that it says. */
export const invariants = {
  job_live_and_ended: "No run of a job is both in the queue and in the ledger.",
  lease_without_owner: "A lease has an owner and an end.",
  live_job_of_terminal_run: "A run that has ended has no live job.",
  live_job_without_enqueued_step: "Every live job of a run is the job of a step that is ENQUEUED or RUNNING.",
  enqueued_step_without_live_job:
    "Every step that is ENQUEUED or RUNNING has a live job, unless it waits for its child run to end.",
  child_without_parent_step: "The step that a live child run stands for is RUNNING and names it.",
  live_descendant_of_canceled_run: "A cancelled run has no live descendant.",
  live_step_of_terminal_run: "A run that has ended has no live step.",
  run_step_count: "A run's step_count is its number of steps.",
  run_open_count: "A run's open_count is its number of BLOCKED, ENQUEUED and RUNNING steps.",
  run_waiting_count: "A run's waiting_count is its number of WAITING_FOR_EXTERNAL steps.",
  run_errored_count: "A run's errored_count is its number of FAILED and CANCELED steps.",
  step_dependent_count: "A step's dependent_count is its number of outgoing edges.",
  step_pending_count: "A step's pending_count is its number of prerequisites that have not ended.",
  step_unsatisfied_count:
    "A step's unsatisfied_count is its number of ON_SUCCESS prerequisites that ended without success.",
  blocked_step_without_pending: "A BLOCKED step has a prerequisite that has not ended.",
  released_step_too_early: "A step that was released, or runs, has no prerequisite pending or unsatisfied.",
  forgotten_limit_key: "Every limit key with a due job and a free slot has a wake that says so.",
  job_key_without_job: "Every idempotency key of jobs names a job that exists.",
  run_key_without_run: "Every idempotency key of runs names a run that exists.",
  job_count: "The kept count of jobs by type, organization and status is their number.",
  run_count: "The kept count of runs by type, organization and status is their number.",
} as const;

export type InvariantName = keyof typeof invariants;

/** An invariant that does not hold. */
export interface Violation {
  readonly name: InvariantName;
  /** How many rows break it. */
  readonly count: number;
  /** The ids of some of them: jobs, runs or steps, or the ids that keys name; of counts the types. */
  readonly examples: readonly string[];
}

/**
 * The invariants that do not hold, by one snapshot of the database; none when all is well. Reads all
 * live jobs, runs, steps and edges. One round trip.
 */
export async function checkInvariants(executor: Executor): Promise<Violation[]> {
  const rows = await check.execute(executor, {});
  return rows.map(({ name, count, examples }) => ({ name, count: toNumber(count), examples }));
}

interface ViolationRow {
  readonly name: InvariantName;
  readonly count: string;
  readonly examples: string[];
}

// A cancelled run keeps the counts of its unreleased steps as they were: what they wait for will not come.
const check = reading("check_invariants", {}, (_db, _p, schema) => {
  const table = (name: string) => sql.id(schema, name);
  const broken = Object.entries(brokenRows(table)).map(
    ([name, rows]) => sql`
      select ${sql.lit(name)} as name, count(*) as count, (array_agg(id::text order by id))[1:5] as examples
      from (${rows}) as broken
      having count(*) > 0`,
  );
  return sql<ViolationRow>`
    with recursive ${forgottenJobs(table)}, run_tally as (
      select r.id, r.status, r.step_count, r.open_count, r.waiting_count, r.errored_count,
        count(s.id) as steps,
        count(s.id) filter (where s.status in ('BLOCKED', 'ENQUEUED', 'RUNNING')) as open,
        count(s.id) filter (where s.status = 'WAITING_FOR_EXTERNAL') as waiting,
        count(s.id) filter (where s.status in ('FAILED', 'CANCELED')) as errored
      from ${table("workflow_runs")} as r
      left join ${table("workflow_steps")} as s on s.run_id = r.id
      group by r.id
    ), prerequisite_tally as (
      select s.id, s.status, s.pending_count, s.unsatisfied_count, r.status as run_status,
        count(p.id) filter (where p.status not in ('SUCCEEDED', 'FAILED', 'CANCELED')) as pending,
        count(p.id) filter (where p.status in ('FAILED', 'CANCELED') and d.kind = 'ON_SUCCESS') as unsatisfied
      from ${table("workflow_steps")} as s
      join ${table("workflow_runs")} as r on r.id = s.run_id
      left join ${table("workflow_step_dependencies")} as d on d.run_id = s.run_id and d.step_id = s.id
      left join ${table("workflow_steps")} as p on p.run_id = d.run_id and p.id = d.prerequisite_id
      group by s.run_id, s.id, r.id
    ), dependent_tally as (
      select s.id, s.dependent_count, count(d.step_id) as dependents
      from ${table("workflow_steps")} as s
      left join ${table("workflow_step_dependencies")} as d on d.run_id = s.run_id and d.prerequisite_id = s.id
      group by s.run_id, s.id
    )
    ${sql.join(broken, sql` union all `)}`;
});

/** For each invariant the rows that break it. */
function brokenRows(table: (name: string) => RawBuilder<unknown>): Record<InvariantName, RawBuilder<unknown>> {
  return {
    job_live_and_ended: sql`
      select q.id from ${table("job_queue")} as q
      where exists (select from ${table("job_ledger")} as l where l.id = q.id and l.run_number >= q.run_number)`,
    lease_without_owner: sql`
      select id from ${table("job_queue")}
      where status = 'LEASED' and (worker_id is null or leased_at is null or lease_expires_at is null)`,
    live_job_of_terminal_run: sql`
      select q.id from ${table("job_queue")} as q
      join ${table("workflow_runs")} as r on r.id = q.workflow_run_id
      where r.status in ('SUCCEEDED', 'COMPLETED_WITH_ERRORS', 'CANCELED')`,
    live_job_without_enqueued_step: sql`
      select q.id from ${table("job_queue")} as q
      where q.workflow_run_id is not null and not exists (
        select from ${table("workflow_steps")} as s
        where s.run_id = q.workflow_run_id and s.id = q.workflow_step_id and s.job_id = q.id
          and s.status in ('ENQUEUED', 'RUNNING')
      )`,
    enqueued_step_without_live_job: sql`
      select s.id from ${table("workflow_steps")} as s
      where s.status in ('ENQUEUED', 'RUNNING') and not exists (
        select from ${table("job_queue")} as q
        where q.id = s.job_id and q.workflow_run_id = s.run_id and q.workflow_step_id = s.id
      ) and not exists (
        select from ${table("workflow_runs")} as child
        where s.status = 'RUNNING' and child.id = s.child_run_id and child.ended_at is null
      )`,
    child_without_parent_step: sql`
      select child.id from ${table("workflow_runs")} as child
      where child.parent_run_id is not null and child.ended_at is null and not exists (
        select from ${table("workflow_steps")} as s
        where s.run_id = child.parent_run_id and s.id = child.parent_step_id
          and s.status = 'RUNNING' and s.child_run_id = child.id
      )`,
    live_descendant_of_canceled_run: sql`
      with recursive ancestor as (
        select id, parent_run_id from ${table("workflow_runs")}
        where ended_at is null and parent_run_id is not null
        union
        select a.id, r.parent_run_id from ancestor as a
        join ${table("workflow_runs")} as r on r.id = a.parent_run_id
        where r.parent_run_id is not null
      )
      select distinct a.id from ancestor as a
      join ${table("workflow_runs")} as r on r.id = a.parent_run_id
      where r.status = 'CANCELED'`,
    live_step_of_terminal_run: sql`
      select s.id from ${table("workflow_steps")} as s
      join ${table("workflow_runs")} as r on r.id = s.run_id
      where r.status in ('SUCCEEDED', 'COMPLETED_WITH_ERRORS', 'CANCELED')
        and s.status not in ('SUCCEEDED', 'FAILED', 'CANCELED')`,
    run_step_count: sql`select id from run_tally where step_count <> steps`,
    run_open_count: sql`select id from run_tally where open_count <> open`,
    run_waiting_count: sql`select id from run_tally where waiting_count <> waiting`,
    run_errored_count: sql`select id from run_tally where errored_count <> errored`,
    step_dependent_count: sql`select id from dependent_tally where dependent_count <> dependents`,
    step_pending_count: sql`
      select id from prerequisite_tally where run_status <> 'CANCELED' and pending_count <> pending`,
    step_unsatisfied_count: sql`
      select id from prerequisite_tally where run_status <> 'CANCELED' and unsatisfied_count <> unsatisfied`,
    blocked_step_without_pending: sql`select id from prerequisite_tally where status = 'BLOCKED' and pending = 0`,
    released_step_too_early: sql`
      select id from prerequisite_tally
      where status in ('ENQUEUED', 'RUNNING', 'WAITING_FOR_EXTERNAL') and (pending > 0 or unsatisfied > 0)`,
    forgotten_limit_key: sql`select id from forgotten`,
    job_key_without_job: sql`
      select k.job_id as id from ${table("job_idempotency_keys")} as k
      where not exists (select from ${table("job_queue")} as q where q.id = k.job_id)
        and not exists (select from ${table("job_ledger")} as l where l.id = k.job_id)`,
    run_key_without_run: sql`
      select k.run_id as id from ${table("workflow_idempotency_keys")} as k
      where not exists (select from ${table("workflow_runs")} as r where r.id = k.run_id)`,
    job_count: miscounted(
      table,
      "job",
      sql`
      select type, organization_id, case when status in ('PENDING', 'LEASED') then 'LIVE' else status::text end as status
      from ${table("jobs")}`,
    ),
    run_count: miscounted(
      table,
      "run",
      sql`select type, organization_id, status::text as status from ${table("workflow_runs")}`,
    ),
  };
}

/** What is kept is taken away from what is there: nothing is left. */
function miscounted(table: (name: string) => RawBuilder<unknown>, subject: "job" | "run", rows: RawBuilder<unknown>) {
  return sql`
      select type as id from (
        select type, organization_id, status, 1 as more from (${rows}) as found
        union all
        select type, organization_id, status, -count from ${table("status_counts")} where subject = ${sql.lit(subject)}
        union all
        select type, organization_id, status, -delta from ${table("status_count_deltas")} where subject = ${sql.lit(subject)}
      ) as every
      group by type, organization_id, status having sum(more) <> 0`;
}
