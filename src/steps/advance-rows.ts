/** The rows of a completion that goes the short way: what is locked, what follows from it, and what is written. */
import { type QueryCreator, type RawBuilder, sql } from "kysely";
import { announceJobs, announceRuns } from "../database/announce.ts";
import { type Placeholders, rowsOf } from "../database/parameters.ts";
import type { StepStatus } from "../database/statuses.ts";
import type { LedgerTables } from "../database/tables.ts";
import { appendEnded, succeededOfQueue } from "../jobs/ending.ts";
import { leaseColumns, leaseKeyOf, leaseParameters, sameLease, unexpired } from "../jobs/lease.ts";
import { boundedHere } from "../locks/wait.ts";
import { entered, releasedJobs } from "./release.ts";
import { countersChanged } from "./run-status.ts";

export const advanceParameters = {
  ...leaseParameters,
  runIds: "uuid[]",
  releaseKeys: "int8[]",
  outputs: "jsonb?[]",
  notify: "bool",
} as const;
type AdvancePlaceholders = Placeholders<typeof advanceParameters>;

/**
 * Locks in the order of LOCKS.md §3, each kind because it reads from the one before: `held` the job
 * rows, `granted` the release locks, `locked` own and dependent steps together in id order, `run` the
 * run rows. What a lock waited for is seen: a locked row comes back in its latest version. Edges are
 * read before that, so an own step whose number of dependents has changed meanwhile holds its run back.
 *
 * `touched` is materialized for the reason that `closure.ts` gives. No step of it joins two lists of the batch: the planner takes them for short, and would compare each with each.
 */
export function advanced(db: QueryCreator<LedgerTables>, p: AdvancePlaceholders, schema: string) {
  return db
    .withRecursive("input", (qb) =>
      qb
        .selectFrom(
          rowsOf("given", { ...leaseColumns(p), run_id: p.runIds, release_key: p.releaseKeys, output: p.outputs }),
        )
        .selectAll(),
    )
    .with(
      (cte) => cte("held").materialized(),
      (qb) =>
        qb
          .selectFrom("job_queue as q")
          .innerJoin("input", "input.job_id", "q.id")
          .whereRef("q.workflow_run_id", "=", "input.run_id")
          .where(sameLease("q", "input"))
          .where(boundedHere(p.lockWait))
          .select([
            "q.id",
            "q.leased_at",
            "q.lease_expires_at",
            "q.workflow_step_id as step_id",
            leaseKeyOf("input").as("lease_key"),
            "input.run_id",
            "input.release_key",
            "input.output",
          ])
          .orderBy("q.id")
          .forUpdate("q"),
    )
    .with(
      (cte) => cte("fenced").materialized(),
      (qb) => qb.selectFrom("held").where(unexpired("held")).selectAll(),
    )
    .with(
      (cte) => cte("granted").materialized(),
      (qb) =>
        qb
          .selectFrom(qb.selectFrom("fenced").select(["fenced.run_id", "fenced.release_key"]).distinct().as("f"))
          .select(["f.run_id", sql<boolean>`pg_try_advisory_xact_lock_shared(f.release_key)`.as("ok")]),
    )
    .with("reach", (qb) =>
      qb
        .selectFrom("fenced as f")
        .innerJoinLateral(
          (eb) =>
            eb
              .selectFrom("workflow_step_dependencies as d")
              .whereRef("d.run_id", "=", "f.run_id")
              .whereRef("d.prerequisite_id", "=", "f.step_id")
              .select(({ fn }) => [
                fn.countAll<number>().as("dependents"),
                sql<string[]>`array_agg(d.step_id)`.as("dependent_ids"),
              ])
              .as("edges"),
          (join) => join.onTrue(),
        )
        .where(sql<boolean>`coalesce(f.run_id in (select run_id from granted where ok), false)`)
        .select([
          "f.id as job_id",
          "f.run_id",
          sql<string>`f.step_id`.as("step_id"),
          "f.output",
          "f.leased_at",
          "edges.dependents",
          "edges.dependent_ids",
        ]),
    )
    .with(
      (cte) => cte("touched").materialized(),
      (qb) =>
        qb
          .selectFrom("reach as r")
          .innerJoin(sql<{ id: string }>`unnest(r.dependent_ids)`.as<"dependent">(sql`dependent(id)`), (join) =>
            join.onTrue(),
          )
          .groupBy(["r.run_id", "dependent.id"])
          .select(({ fn }) => [
            "r.run_id",
            "dependent.id as step_id",
            fn.countAll<number>().as("prerequisites"),
            sql<number | null>`null::bigint`.as("dependents"),
            sql<string | null>`null::uuid`.as("job_id"),
            sql<string | null>`null::jsonb`.as("output"),
            sql<Date | null>`null::timestamptz`.as("leased_at"),
          ])
          .unionAll(
            qb
              .selectFrom("reach as r")
              .select([
                "r.run_id",
                "r.step_id",
                sql<number>`0`.as("prerequisites"),
                "r.dependents",
                "r.job_id",
                "r.output",
                "r.leased_at",
              ]),
          ),
    )
    .with(
      (cte) => cte("locked").materialized(),
      (qb) =>
        qb
          .selectFrom("workflow_steps as s")
          .innerJoin("touched as t", (join) => join.onRef("t.run_id", "=", "s.run_id").onRef("t.step_id", "=", "s.id"))
          .select([
            "s.run_id",
            "s.id",
            "s.kind",
            "t.job_id",
            "t.output",
            "t.leased_at",
            sql<number>`s.pending_count - t.prerequisites`.as("pending_count"),
            sql<boolean>`case
              when t.job_id is not null then s.status in ('ENQUEUED', 'RUNNING') and s.dependent_count = t.dependents
              else s.status = 'BLOCKED' and (
                s.pending_count > t.prerequisites
                or (s.unsatisfied_count = 0 and s.kind in ('JOB', 'EXTERNAL') and s.kept_outcome is null)
              )
            end`.as("fits"),
          ])
          .orderBy("s.id")
          .forUpdate("s"),
    )
    .with(
      (cte) => cte("judged").materialized(),
      (qb) =>
        qb
          .selectFrom("locked as l")
          .selectAll("l")
          .select(sql<boolean>`bool_and(l.fits) over (partition by l.run_id)`.as("admitted")),
    )
    .with("change", (qb) =>
      qb
        .selectFrom("judged as l")
        .where("l.admitted", "=", true)
        .select([
          "l.run_id",
          "l.id as step_id",
          "l.job_id",
          "l.pending_count",
          "l.output",
          "l.leased_at",
          sql<StepStatus>`(case
            when l.job_id is not null then 'SUCCEEDED'
            when l.pending_count > 0 then 'BLOCKED'
            when l.kind = 'JOB' then 'ENQUEUED'
            else 'WAITING_FOR_EXTERNAL'
          end)::${sql.id(schema, "step_status")}`.as("status"),
        ]),
    )
    .with(
      (cte) => cte("run").materialized(),
      (qb) =>
        qb
          .selectFrom("workflow_runs as r")
          .innerJoin(
            qb
              .selectFrom("change as c")
              .groupBy("c.run_id")
              .select([
                "c.run_id",
                sql<number>`-(count(*) filter (where c.status in ('SUCCEEDED', 'WAITING_FOR_EXTERNAL')))`.as(
                  "open_delta",
                ),
                sql<number>`count(*) filter (where c.status = 'WAITING_FOR_EXTERNAL')`.as("waiting_delta"),
                sql<number>`0`.as("errored_delta"),
                sql<number>`0`.as("step_delta"),
              ])
              .as("delta"),
            "delta.run_id",
            "r.id",
          )
          .select(["r.id", "delta.open_delta", "delta.waiting_delta", "delta.errored_delta", "delta.step_delta"])
          .orderBy("r.id")
          .forUpdate("r"),
    )
    .with("ended", (qb) =>
      qb
        .deleteFrom("job_queue as q")
        .using("change as c")
        .whereRef("q.id", "=", "c.job_id")
        .returning(succeededOfQueue(schema)),
    )
    .with("appended", (qb) => appendEnded(qb))
    .with("changed", (qb) =>
      qb
        .updateTable("workflow_steps as s")
        .from("change as c")
        .whereRef("s.run_id", "=", "c.run_id")
        .whereRef("s.id", "=", "c.step_id")
        .set((eb) => ({
          status: eb.ref("c.status"),
          pending_count: eb.ref("c.pending_count"),
          // A dependent may be a gate that keeps an early completion.
          output: sql<string | null>`case when c.status = 'SUCCEEDED' then c.output else s.output end`,
          started_at: eb.ref("c.leased_at"),
          ...entered(sql.ref("c.status")),
        }))
        .returning("s.id"),
    )
    .with("counted", (qb) =>
      qb
        .updateTable("workflow_runs as r")
        .from("run as d")
        .whereRef("r.id", "=", "d.id")
        .set(countersChanged(schema, "r", "d"))
        .returning(["r.id", "r.ended_at", "r.parent_run_id", "r.parent_step_id"]),
    )
    .with("released", (qb) => releasedJobs(qb));
}

/** Announces that there are `runnable` jobs, and which runs have ended. */
export function announced(
  qb: QueryCreator<LedgerTables>,
  { notify }: Pick<AdvancePlaceholders, "notify">,
  schema: string,
  runnable: RawBuilder<unknown>,
) {
  return qb.selectNoFrom([
    announceJobs(notify, schema, runnable).as("jobs"),
    announceRuns(notify, schema, sql`select id from counted where ended_at is not null`).as("runs"),
  ]);
}

/** What the statement answers: the leases that were held, the jobs that have ended, and the runs. */
export const advancedColumns = {
  held: sql<string[]>`array(select lease_key from fenced)`,
  done: sql<string[]>`array(select job_id from change where job_id is not null)`,
  endedRuns: sql<string[]>`array(select id::text from counted where ended_at is not null)`,
} as const;
