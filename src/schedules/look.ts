/** Which schedules are due, by the database's clock, and which of these are ours to fire. */
import { type RawBuilder, sql } from "kysely";
import { toDate, toDateOrNull, toNumber, toNumberOrNull } from "../database/decode.ts";
import type { Executor } from "../database/executor.ts";
import { reading, writing } from "../database/statement.ts";
import { type JobLimit, limitColumns } from "../jobs/limits.ts";
import type { DueSchedule } from "./plan.ts";
import { decodeCatchUp, decodeOverlap } from "./words.ts";

/** Which schedule, for who reads a report. */
export interface ScheduleName {
  readonly id: string;
  readonly name: string;
  readonly organizationId: string | null;
}

export interface Look {
  /** The due schedules, the longest due first. */
  readonly due: readonly ScheduleName[];
  /** When the next is due that is not among these, and in how many milliseconds. */
  readonly next: { readonly at: Date; readonly inMs: number } | null;
}

/** What a schedule starts, as it is stored. */
export interface StoredTarget {
  readonly target: "JOB" | "WORKFLOW";
  readonly type: string;
  /** The text of the stored form. */
  readonly payload: string;
  readonly priority: number | null;
  readonly maxAttempts: number | null;
  readonly timeoutSeconds: number | null;
  readonly tags: readonly string[];
  readonly limit: JobLimit | null;
  readonly deadlineSeconds: number | null;
  readonly jitterSeconds: number;
}

/** A due schedule under a lock. */
export interface HeldSchedule extends DueSchedule, ScheduleName, StoredTarget {}

export interface Held {
  readonly schedules: readonly HeldSchedule[];
  /** The database's time when they were locked. */
  readonly now: Date;
}

/**
 * The schedules that are due, of jobs and of the named workflows: of those that this process does not know, others do. One round
 * trip, no locks.
 */
export async function lookAtSchedules(executor: Executor, limit: number, workflows: readonly string[]): Promise<Look> {
  const rows = await look.execute(executor, { workflows });
  const due = rows.filter(({ is_due }) => is_due);
  const next = due[limit] ?? rows.find(({ is_due }) => !is_due);
  const at = toDateOrNull(next?.due_at);
  return {
    due: due.slice(0, limit).map(({ id, name, organization_id }) => ({ id, name, organizationId: organization_id })),
    next: at === null ? null : { at, inMs: toNumber(next?.in_ms) },
  };
}

/** Locks those of the schedules that are still due and that nobody else holds, until the transaction ends. One round trip. */
export async function holdDue(executor: Executor, ids: readonly string[]): Promise<Held> {
  const rows = await hold.execute(executor, { ids });
  return { schedules: rows.map(decode), now: toDate(rows[0]?.now ?? new Date(0)) };
}

/** The most that one look shows. */
export const MOST_DUE = 100;

/** Stable within a statement, unlike clock_timestamp(), so that an index serves; and not as old as the caller's transaction. */
const asked = sql<Date>`statement_timestamp()`;

/** A case, because of a plain condition a planner without statistics thinks that hardly a row fits. */
function known(workflows: RawBuilder<readonly string[]>) {
  return sql<boolean>`case when c.target = 'JOB' then true else c.target_type = any(${workflows}) end`;
}

// Both branches walk along the index that holds nothing but schedules with a next tick. The limit is a constant: of one
// that it does not know, the planner thinks that it is a tenth of all. One row more says that more is due, and since when.
const look = reading("look_at_schedules", { workflows: "text[]" }, (db, p) => {
  const shown = (isDue: boolean) =>
    [
      "c.id",
      "c.name",
      "c.organization_id",
      "c.due_at",
      sql<boolean>`${sql.lit(isDue)}`.as("is_due"),
      sql<number>`extract(epoch from c.due_at - ${asked})::float8 * 1000`.as("in_ms"),
    ] as const;
  return db
    .with("due", (qb) =>
      qb
        .selectFrom("job_schedules as c")
        .where("c.due_at", "<=", asked)
        .where(known(p.workflows))
        .select(shown(true))
        .orderBy("c.due_at")
        .orderBy("c.id")
        .limit(sql.lit(MOST_DUE + 1)),
    )
    .with("later", (qb) =>
      qb
        .selectFrom("job_schedules as c")
        .where("c.due_at", ">", asked)
        .where(known(p.workflows))
        .select(shown(false))
        .orderBy("c.due_at")
        .orderBy("c.id")
        .limit(1),
    )
    .selectFrom("due")
    .selectAll()
    .unionAll((eb) => eb.selectFrom("later").selectAll())
    .orderBy("due_at")
    .orderBy("id");
});

// The row decides whether it is still due, after the lock: who fired it meanwhile has moved its time on. Whoever
// fires or changes a schedule holds its row, so nobody adds fires of it meanwhile. The rows are found by their ids, and so
// are what they started: EXISTS might be answered by reading all live jobs and runs at once.
const hold = writing("hold_due_schedules", { ids: "uuid[]" }, (db, p, schema) =>
  db
    .with(
      (cte) => cte("held").materialized(),
      (qb) =>
        qb
          .selectFrom("job_schedules as c")
          .where(sql<boolean>`c.id = any(${p.ids})`)
          .where(sql<boolean>`coalesce(c.due_at <= ${asked}, false)`)
          .selectAll("c")
          .orderBy("c.due_at")
          .orderBy("c.id")
          .forUpdate("c")
          .skipLocked(),
    )
    .selectFrom("held as c")
    .select([
      "c.id",
      "c.name",
      "c.organization_id",
      "c.cron",
      "c.time_zone",
      "c.starts_at",
      "c.ends_at",
      "c.target",
      "c.target_type",
      "c.priority",
      "c.max_attempts",
      "c.timeout_seconds",
      "c.tags",
      ...limitColumns.map((column) => `c.${column}` as const),
      "c.deadline_seconds",
      "c.catch_up",
      "c.backfill_limit",
      "c.grace_seconds",
      "c.overlap",
      "c.jitter_seconds",
      "c.intended_at",
      "c.forgotten_until",
      sql<string>`c.payload::text`.as("payload"),
      sql<Date>`clock_timestamp()`.as("now"),
      sql<boolean>`c.overlap <> 'ALLOW' and (
        coalesce((select true from ${sql.id(schema, "job_queue")} as live where live.id = c.last_job_id), false)
        or coalesce((select ended_at is null from ${sql.id(schema, "workflow_runs")} as r where r.id = c.last_run_id), false)
      )`.as("busy"),
      // As text: a driver that parses timestamps otherwise has a parser of arrays of them, too.
      sql<string[]>`array(
        select f.intended_at::text from ${sql.id(schema, "job_schedule_fires")} as f
        where f.schedule_id = c.id and f.intended_at >= c.intended_at
      )`.as("fired"),
    ])
    .orderBy("c.due_at")
    .orderBy("c.id"),
);

function decode(row: Awaited<ReturnType<typeof hold.execute>>[number]): HeldSchedule {
  return {
    id: row.id,
    name: row.name,
    organizationId: row.organization_id,
    cron: row.cron,
    timeZone: row.time_zone,
    startsAt: toDateOrNull(row.starts_at),
    endsAt: toDateOrNull(row.ends_at),
    ...targetOf(row),
    catchUp: decodeCatchUp(row.catch_up),
    backfillLimit: row.backfill_limit,
    graceSeconds: row.grace_seconds,
    overlap: decodeOverlap(row.overlap),
    intendedAt: toDate(row.intended_at),
    busy: row.busy,
    fired: row.fired.map(toDate),
    forgottenUntil: toDateOrNull(row.forgotten_until),
  };
}

/** The columns that say what a schedule starts. */
interface TargetRow {
  readonly target: "JOB" | "WORKFLOW";
  readonly target_type: string;
  readonly payload: string;
  readonly priority: number | null;
  readonly max_attempts: number | null;
  readonly timeout_seconds: number | null;
  readonly tags: string[] | null;
  readonly limit_key: string | null;
  readonly limit_concurrency: number | null;
  readonly limit_starts: number | null;
  readonly limit_period_seconds: number | null;
  readonly deadline_seconds: number | null;
  readonly jitter_seconds: number;
}

export function targetOf(row: TargetRow): StoredTarget {
  return {
    target: row.target,
    type: row.target_type,
    payload: row.payload,
    priority: row.priority,
    maxAttempts: row.max_attempts,
    timeoutSeconds: row.timeout_seconds,
    tags: row.tags ?? [],
    limit: limitOf(row),
    deadlineSeconds: toNumberOrNull(row.deadline_seconds),
    jitterSeconds: row.jitter_seconds,
  };
}

type LimitRow = Pick<TargetRow, "limit_key" | "limit_concurrency" | "limit_starts" | "limit_period_seconds">;

/** The limit in its columns, as a request has it. */
export function limitOf(row: LimitRow): JobLimit | null {
  const { limit_key: key, limit_concurrency: concurrency, limit_starts: starts } = row;
  const periodSeconds = toNumberOrNull(row.limit_period_seconds);
  if (key === null) return null;
  return {
    key,
    ...(concurrency === null ? {} : { concurrency }),
    ...(starts === null || periodSeconds === null ? {} : { rate: { starts, periodSeconds } }),
  };
}
