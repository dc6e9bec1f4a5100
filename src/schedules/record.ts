/** Writes down what became of due schedules: their fires, their next times, and why one could not be fired. */
import { sql } from "kysely";
import type { Executor } from "../database/executor.ts";
import { rowsOf } from "../database/parameters.ts";
import { writing } from "../database/statement.ts";
import type { ScheduleFireOutcome } from "../database/tables.generated.ts";
import type { LedgerError } from "../errors.ts";

/** One row of the history of fires; of one schedule the oldest first. */
export interface FireRecord {
  readonly scheduleId: string;
  readonly intendedAt: Date;
  readonly outcome: ScheduleFireOutcome;
  readonly jobId: string | null;
  readonly runId: string | null;
}

/** When a schedule goes on. */
export interface NextTime {
  readonly scheduleId: string;
  readonly next: Date | null;
  readonly dueAt: Date | null;
}

/**
 * Adds the fires and moves the schedules, which the transaction holds, to their next times. One round trip. A tick that was
 * fired before is refused by its key.
 */
export async function recordFires(
  executor: Executor,
  fires: readonly FireRecord[],
  times: readonly NextTime[],
): Promise<void> {
  const lasts = new Map(fires.filter(({ outcome }) => outcome !== "SKIPPED").map((fire) => [fire.scheduleId, fire]));
  const lastOf = ({ scheduleId }: NextTime) => lasts.get(scheduleId);
  await record.execute(executor, {
    fireSchedules: fires.map(({ scheduleId }) => scheduleId),
    fireTimes: fires.map(({ intendedAt }) => intendedAt),
    outcomes: fires.map(({ outcome }) => outcome),
    jobs: fires.map(({ jobId }) => jobId),
    runs: fires.map(({ runId }) => runId),
    schedules: times.map(({ scheduleId }) => scheduleId),
    nexts: times.map(({ next }) => next),
    dues: times.map(({ dueAt }) => dueAt),
    lastTimes: times.map((time) => lastOf(time)?.intendedAt ?? null),
    lastJobs: times.map((time) => lastOf(time)?.jobId ?? null),
    lastRuns: times.map((time) => lastOf(time)?.runId ?? null),
  });
}

const recordParameters = {
  fireSchedules: "uuid[]",
  fireTimes: "timestamptz[]",
  outcomes: "text[]",
  jobs: "uuid?[]",
  runs: "uuid?[]",
  schedules: "uuid[]",
  nexts: "timestamptz?[]",
  dues: "timestamptz?[]",
  lastTimes: "timestamptz?[]",
  lastJobs: "uuid?[]",
  lastRuns: "uuid?[]",
} as const;

const record = writing("record_schedule_fires", recordParameters, (db, p, schema) =>
  db
    .with("inserted", (qb) =>
      qb
        .insertInto("job_schedule_fires")
        .columns(["schedule_id", "intended_at", "outcome", "job_id", "run_id"])
        .expression((eb) =>
          eb
            .selectFrom(
              rowsOf("fire", {
                schedule_id: p.fireSchedules,
                intended_at: p.fireTimes,
                outcome: p.outcomes,
                job_id: p.jobs,
                run_id: p.runs,
              }),
            )
            .select([
              "fire.schedule_id",
              "fire.intended_at",
              sql<ScheduleFireOutcome>`fire.outcome::${sql.id(schema, "schedule_fire_outcome")}`.as("outcome"),
              "fire.job_id",
              "fire.run_id",
            ]),
        ),
    )
    .updateTable("job_schedules as c")
    .from(
      rowsOf("t", {
        id: p.schedules,
        next: p.nexts,
        due_at: p.dues,
        last_at: p.lastTimes,
        last_job_id: p.lastJobs,
        last_run_id: p.lastRuns,
      }),
    )
    .whereRef("c.id", "=", "t.id")
    .set({
      intended_at: sql<Date | null>`t.next`,
      due_at: sql<Date | null>`t.due_at`,
      last_intended_at: sql<Date | null>`coalesce(t.last_at, c.last_intended_at)`,
      last_job_id: sql<string | null>`case when t.last_at is null then c.last_job_id else t.last_job_id end`,
      last_run_id: sql<string | null>`case when t.last_at is null then c.last_run_id else t.last_run_id end`,
      failures: 0,
      failed_at: null,
      error_code: null,
      error_message: null,
    }),
);

/** A schedule that could not be fired, and why. */
export interface SetAside {
  readonly scheduleId: string;
  readonly error: LedgerError;
}

/**
 * Puts schedules that could not be fired off, 15 seconds at first and an hour in the end, and shows why on their rows. Those that
 * somebody else holds or has fired are his. One round trip.
 */
export async function putOff(executor: Executor, setAside: readonly SetAside[]): Promise<void> {
  if (setAside.length === 0) return;
  await off.execute(executor, {
    ids: setAside.map(({ scheduleId }) => scheduleId),
    codes: setAside.map(({ error }) => error.code),
    messages: setAside.map(({ error }) => error.message),
  });
}

const off = writing("put_schedules_off", { ids: "uuid[]", codes: "text[]", messages: "text[]" }, (db, p) =>
  db
    .with("given", (qb) =>
      qb.selectFrom(rowsOf("t", { id: p.ids, error_code: p.codes, error_message: p.messages })).selectAll(),
    )
    .with(
      (cte) => cte("held").materialized(),
      (qb) =>
        qb
          .selectFrom("job_schedules as c")
          .where(sql<boolean>`c.id = any(${p.ids})`)
          .where("c.due_at", "<=", sql<Date>`statement_timestamp()`)
          .select("c.id")
          .orderBy("c.tenant")
          .orderBy("c.name")
          .forUpdate("c")
          .skipLocked(),
    )
    .updateTable("job_schedules as c")
    .from("given as g")
    .whereRef("c.id", "=", "g.id")
    .where(sql<boolean>`c.id = any(array(select id from held))`)
    .set({
      due_at: sql<Date>`clock_timestamp() + make_interval(secs => least(3600, 15 * 2 ^ least(c.failures, 10)))`,
      failed_at: sql<Date>`clock_timestamp()`,
      failures: sql<number>`c.failures + 1`,
      error_code: sql<string>`g.error_code`,
      error_message: sql<string>`g.error_message`,
    }),
);
