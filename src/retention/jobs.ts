/** Deletes jobs without a run that are past their age, batch by batch along the ledger (FEATURES F-H2). */
import { type ExpressionBuilder, type RawBuilder, sql } from "kysely";
import type { Executor } from "../database/executor.ts";
import { FIRST_ID } from "../database/page.ts";
import type { Placeholders } from "../database/parameters.ts";
import { reading, writing } from "../database/statement.ts";
import type { LedgerTables } from "../database/tables.ts";
import { inTransaction } from "../database/transaction.ts";
import { idBefore, isLiveKey, isPast, type PreparedAges } from "./policies.ts";
import { takeTurn } from "./turn.ts";

/** Where in the ledger the next batch begins: after this run of this job. */
export interface JobPosition {
  readonly id: string;
  readonly runNumber: number;
}

export const FIRST_JOB: JobPosition = { id: FIRST_ID, runNumber: 0 };

export interface Batch<Position> {
  readonly deleted: number;
  /** Null: there is nothing after it. */
  readonly next: Position | null;
  /** Somebody else deletes just now: nothing was looked at. */
  readonly busy: boolean;
}

/**
 * Looks at the next rows of the ledger, and deletes the jobs among them that are past, with all that hangs on
 * them. It holds the row that a requeue would follow on, passing over those that others hold, and looks again
 * after that whether the job lives. Four round trips at most.
 */
export async function retireJobs(
  executor: Executor,
  { ages, youngest }: PreparedAges,
  keyAge: number | null,
  after: JobPosition,
  limit: number,
): Promise<Batch<JobPosition>> {
  return inTransaction(executor, async (trx) => {
    const given = { ages, youngest, keyAge, afterId: after.id, afterRun: after.runNumber, limit };
    const row = await hold.executeFirst(trx, given);
    if (row === undefined) return { deleted: 0, next: null, busy: true };
    const deleted = row.ids.length === 0 ? 0 : ((await forget.executeFirst(trx, { ids: row.ids }))?.deleted ?? 0);
    const isLast = row.last_id === null || row.last_run === null || row.looked_at < limit;
    return {
      deleted,
      next: isLast ? null : { id: row.last_id ?? after.id, runNumber: row.last_run ?? after.runNumber },
      busy: false,
    };
  });
}

const holdParameters = {
  ages: "jsonb",
  youngest: "float8",
  keyAge: "float8?",
  afterId: "uuid",
  afterRun: "int4",
  limit: "int4",
} as const;

// Partitions are told apart by the id alone, the place within one by both. Each row of the page is looked at by
// itself, and each that is due is locked by its key: no two lists are joined.
const hold = reading("hold_retired_jobs", holdParameters, (db, p, schema) =>
  db
    .with(
      (cte) => cte("turn").materialized(),
      (qb) => qb.selectNoFrom(takeTurn(schema).as("taken")),
    )
    .with(
      (cte) => cte("page").materialized(),
      (qb) =>
        qb
          .selectFrom("job_ledger as l")
          .where("l.id", ">=", p.afterId)
          .where(sql<boolean>`(l.id, l.run_number) > (${p.afterId}, ${p.afterRun})`)
          .where(sql<boolean>`l.id < ${idBefore(p.youngest)}`)
          .where(sql<boolean>`(select taken from turn)`)
          .select(["l.id", "l.run_number", "l.type", "l.status", "l.ended_at", "l.workflow_run_id"])
          .orderBy("l.id")
          .orderBy("l.run_number")
          .limit(p.limit),
    )
    .with(
      (cte) => cte("due").materialized(),
      (qb) =>
        qb
          .selectFrom("page as l")
          .where((eb) => sql<boolean>`case when ${isRemovable(eb, "l", p)} then true else false end`)
          .select(["l.id", "l.run_number"]),
    )
    .with(
      (cte) => cte("held").materialized(),
      (qb) =>
        qb
          .selectFrom("due as l")
          .innerJoinLateral(
            (eb) =>
              eb
                .selectFrom("job_ledger as row")
                .whereRef("row.id", "=", "l.id")
                .whereRef("row.run_number", "=", "l.run_number")
                .select("row.id")
                .forUpdate("row")
                .skipLocked()
                .as("row"),
            (join) => join.onTrue(),
          )
          .select("row.id"),
    )
    .selectFrom("turn")
    .where("turn.taken", "=", true)
    .select([
      sql<string[]>`array(select id from held)`.as("ids"),
      sql<number>`(select count(*)::integer from page)`.as("looked_at"),
      sql<string | null>`(select id from page order by id desc, run_number desc limit 1)`.as("last_id"),
      sql<number | null>`(select run_number from page order by id desc, run_number desc limit 1)`.as("last_run"),
    ]),
);

type Tables = Pick<ExpressionBuilder<LedgerTables, never>, "selectFrom">;
type AgePlaceholders = Pick<Placeholders<typeof holdParameters>, "ages" | "keyAge">;

/**
 * The row `l` of the ledger is the latest run of a job that does not live, has no run and no live key, and is past its age.
 * Look-ups are scalar, so that none becomes a join.
 */
export function isRemovable(eb: Tables, l: string, p: AgePlaceholders): RawBuilder<boolean> {
  return sql<boolean>`${isPast(l, p.ages)} and ${isLatest(eb, l)} and ${isDead(eb, l)} and ${isUnbound(eb, l, p)}`;
}

function isLatest(eb: Tables, l: string): RawBuilder<boolean> {
  const later = eb
    .selectFrom("job_ledger as later")
    .where("later.id", "=", sql<string>`${sql.ref(`${l}.id`)}`)
    .where("later.run_number", ">", sql<number>`${sql.ref(`${l}.run_number`)}`)
    .select("later.id")
    .limit(sql.lit(1));
  return sql<boolean>`(${later}) is null`;
}

function isDead(eb: Tables, l: string): RawBuilder<boolean> {
  const live = eb.selectFrom("job_queue as live").where("live.id", "=", sql<string>`${sql.ref(`${l}.id`)}`);
  return sql<boolean>`(${live.select("live.id")}) is null`;
}

/** Jobs of a run go with their run, and without it they are like any other. */
function isUnbound(eb: Tables, l: string, p: AgePlaceholders): RawBuilder<boolean> {
  const run = eb
    .selectFrom("workflow_runs as bound")
    .where("bound.id", "=", sql<string>`${sql.ref(`${l}.workflow_run_id`)}`)
    .select("bound.id");
  const key = eb
    .selectFrom("job_idempotency_keys as k")
    .where("k.job_id", "=", sql<string>`${sql.ref(`${l}.id`)}`)
    .where(isLiveKey("k", p.keyAge))
    .select("k.job_id")
    .limit(sql.lit(1));
  return sql<boolean>`(${run}) is null and (${key}) is null`;
}

// In a snapshot that is younger than the locks: a job that was put back meanwhile lives.
const forget = writing("forget_jobs", { ids: "uuid[]" }, (db, p) =>
  db
    .with("gone", (qb) =>
      qb
        .deleteFrom("job_ledger as l")
        .where(sql<boolean>`l.id = any(${p.ids})`)
        .where((eb) => isDead(eb, "l"))
        .returning("l.id"),
    )
    .with("attempts", (qb) => qb.deleteFrom("job_attempts as a").where(isGone("a.job_id")))
    .with("events", (qb) => qb.deleteFrom("job_events as e").where(isGone("e.job_id")))
    .with("logs", (qb) => qb.deleteFrom("job_logs as g").where(isGone("g.job_id")))
    .with("keys", (qb) => qb.deleteFrom("job_idempotency_keys as k").where(isGone("k.job_id")))
    // The guard of a replay goes with the job that was replayed, whatever became of the new one.
    .with("replays", (qb) => qb.deleteFrom("job_replays as r").where(isGone("r.source_job_id")))
    .selectNoFrom(sql<number>`(select count(distinct id)::integer from gone)`.as("deleted")),
);

function isGone(column: string): RawBuilder<boolean> {
  return sql<boolean>`${sql.ref(column)} = any(array(select id from gone))`;
}
