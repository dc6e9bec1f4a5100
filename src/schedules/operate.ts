/** What an operator does with schedules: pause, resume, set the next time, trigger, remove (FEATURES F-S2). */
import { sql } from "kysely";
import { toDate, toDateOrNull } from "../database/decode.ts";
import type { Executor } from "../database/executor.ts";
import { rowsOf } from "../database/parameters.ts";
import type { Scope } from "../database/scope.ts";
import { writing } from "../database/statement.ts";
import { inTransaction } from "../database/transaction.ts";
import { LedgerError } from "../errors.ts";
import { validName } from "../jobs/arguments.ts";
import { limitColumns } from "../jobs/limits.ts";
import { validTime } from "../jobs/request.ts";
import { boundedHere, boundedInCaller, lockWaitFor } from "../locks/wait.ts";
import { type Timetable, tickAfter } from "./cron.ts";
import { type ScheduleName, type StoredTarget, targetOf } from "./look.ts";
import { type NextTime, recordFires } from "./record.ts";
import { ofTenants, tenantParameters, tenantsOf } from "./scope.ts";
import { type StartOptions, startAll } from "./start.ts";

export interface ScheduleScope {
  readonly scope: Scope;
}

export interface RetimeOptions extends ScheduleScope {
  /** The next tick, whether or not the expression means it; the ticks after it are the expression's. Default: its next from now on. */
  readonly at?: Date | string;
}

export interface TriggerOptions extends ScheduleScope, StartOptions {}

export interface TriggeredSchedule {
  /** The time of the trigger, which the job or run has as its intended time. */
  readonly intendedAt: Date;
  readonly jobId: string | null;
  readonly runId: string | null;
}

/**
 * Pauses schedules: nothing of them is fired until they are resumed, and a sync keeps that. Four round trips; in a caller's transaction
 * two, and two for the bound of the wait. Throws `schedule.not_found`, `schedule.ambiguous`, `scope.required`, `input.invalid`; then nothing has changed.
 */
export function pauseSchedules(executor: Executor, names: readonly string[], { scope }: ScheduleScope): Promise<void> {
  return withHeld(executor, names, scope, async (trx, { schedules }) => {
    await setPaused.execute(trx, {
      ids: schedules.map(({ id }) => id),
      firsts: schedules.map(() => null),
      paused: true,
    });
  });
}

/** Resumes schedules, from now on: ticks of the pause are passed over. Round trips and errors as of `pauseSchedules`. */
export function resumeSchedules(executor: Executor, names: readonly string[], { scope }: ScheduleScope): Promise<void> {
  return withHeld(executor, names, scope, async (trx, { schedules, now }) => {
    const paused = schedules.filter((schedule) => schedule.paused);
    const firsts = paused.map((schedule) => (schedule.enabled ? tickAfter(schedule, now) : null));
    await setPaused.execute(trx, { ids: paused.map(({ id }) => id), firsts, paused: false });
  });
}

/**
 * Sets the next tick of a schedule, and forgets what was due before. A time that is over is fired as soon as somebody
 * looks, unless that tick was fired before, or is as old as fires that retention has deleted. Round trips as of `pauseSchedules`. Throws `schedule.not_active`, and as that does.
 */
export function retimeSchedule(executor: Executor, name: string, options: RetimeOptions): Promise<Date | null> {
  const at = options.at === undefined ? null : new Date(validTime(options.at, "at"));
  return withHeld(executor, [name], options.scope, async (trx, { schedules: [schedule], now }) => {
    if (schedule === undefined || !schedule.enabled || schedule.paused) throw new LedgerError("schedule.not_active");
    const next = at ?? tickAfter(schedule, now);
    await recordFires(trx, [], [{ scheduleId: schedule.id, next, dueAt: next }]);
    return next;
  });
}

/** Removes a schedule with its history of fires; what it started stays. Round trips and errors as of `pauseSchedules`. */
export function removeSchedule(executor: Executor, name: string, { scope }: ScheduleScope): Promise<void> {
  return withHeld(executor, [name], scope, async (trx, { schedules }) => {
    await remove.execute(trx, { ids: schedules.map(({ id }) => id) });
  });
}

/**
 * Starts a schedule's job or run now, paused or not, whatever its overlap says; its ticks stay as they are. The next tick finds it as the fire
 * before. Five round trips; in a caller's transaction three, and two for the bound of the wait. Throws what enqueueing does, `schedule.workflow_unknown`, and as
 * `pauseSchedules`.
 */
export function triggerSchedule(executor: Executor, name: string, options: TriggerOptions): Promise<TriggeredSchedule> {
  return withHeld(executor, [name], options.scope, async (trx, { schedules: [schedule], now: intendedAt }) => {
    if (schedule === undefined) throw new LedgerError("schedule.not_found");
    const firing = { schedule: { ...schedule, jitterSeconds: 0 }, intendedAt };
    const [started] = await startAll(trx, [firing], intendedAt, options);
    const { jobId = null, runId = null } = started ?? {};
    await recordFires(
      trx,
      [{ scheduleId: schedule.id, intendedAt, outcome: "TRIGGERED", jobId, runId }],
      [schedule.time],
    );
    return { intendedAt, jobId, runId };
  });
}

interface OperatedSchedule extends Timetable, ScheduleName, StoredTarget {
  readonly enabled: boolean;
  readonly paused: boolean;
  /** When it goes on as it stands. */
  readonly time: NextTime;
}

interface Operated {
  /** By tenant and name. */
  readonly schedules: readonly OperatedSchedule[];
  /** The database's time when they were locked, to the millisecond. */
  readonly now: Date;
}

/** Runs `body` in a transaction that holds exactly the named schedules. */
function withHeld<T>(
  executor: Executor,
  names: readonly string[],
  scope: Scope,
  body: (trx: Executor, operated: Operated) => Promise<T>,
): Promise<T> {
  const wanted = new Set(names.map((name) => validName(name, "name")));
  const tenants = tenantsOf(scope);
  return inTransaction(executor, async (trx) => {
    const rows = await boundedInCaller(trx, () =>
      hold.execute(trx, { ...tenants, names: [...wanted], lockWait: lockWaitFor(trx) }),
    );
    const found = new Set(rows.map(({ name }) => name));
    if (found.size < wanted.size) throw new LedgerError("schedule.not_found");
    if (rows.length > wanted.size) throw new LedgerError("schedule.ambiguous");
    return body(trx, { schedules: rows.map(decode), now: toDate(rows[0]?.now ?? new Date(0)) });
  });
}

const hold = writing("hold_schedules", { ...tenantParameters, names: "text[]", lockWait: "int4?" }, (db, p) =>
  db
    .with(
      (cte) => cte("held").materialized(),
      (qb) =>
        qb
          .selectFrom("job_schedules as c")
          .where(boundedHere(p.lockWait))
          .where(ofTenants(p))
          .where(sql<boolean>`c.name = any(${p.names})`)
          .selectAll("c")
          .orderBy("c.tenant")
          .orderBy("c.name")
          .forUpdate("c"),
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
      "c.jitter_seconds",
      "c.enabled",
      "c.paused",
      "c.intended_at",
      "c.due_at",
      sql<string>`c.payload::text`.as("payload"),
      sql<Date>`date_trunc('milliseconds', clock_timestamp())`.as("now"),
    ])
    .orderBy("c.tenant")
    .orderBy("c.name"),
);

function decode(row: Awaited<ReturnType<typeof hold.execute>>[number]): OperatedSchedule {
  return {
    id: row.id,
    name: row.name,
    organizationId: row.organization_id,
    cron: row.cron,
    timeZone: row.time_zone,
    startsAt: toDateOrNull(row.starts_at),
    endsAt: toDateOrNull(row.ends_at),
    ...targetOf(row),
    enabled: row.enabled,
    paused: row.paused,
    time: { scheduleId: row.id, next: toDateOrNull(row.intended_at), dueAt: toDateOrNull(row.due_at) },
  };
}

const setPaused = writing("pause_schedules", { ids: "uuid[]", firsts: "timestamptz?[]", paused: "bool" }, (db, p) =>
  db
    .updateTable("job_schedules as c")
    .from(rowsOf("t", { id: p.ids, first: p.firsts }))
    .whereRef("c.id", "=", "t.id")
    .set({
      paused: p.paused,
      intended_at: sql<Date | null>`t.first`,
      due_at: sql<Date | null>`t.first`,
      updated_at: sql<Date>`now()`,
    }),
);

const remove = writing("remove_schedules", { ids: "uuid[]" }, (db, p) =>
  db.deleteFrom("job_schedules as c").where(sql<boolean>`c.id = any(${p.ids})`),
);
