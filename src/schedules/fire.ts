/** Fires what is due by the database's clock: each tick once, wherever and however often this runs (FEATURES F-S1). */
import type { Executor } from "../database/executor.ts";
import { inHalves } from "../database/halves.ts";
import { inTransaction, requireReadCommitted } from "../database/transaction.ts";
import type { LedgerError } from "../errors.ts";
import { validInteger } from "../jobs/arguments.ts";
import { type HeldSchedule, holdDue, lookAtSchedules, MOST_DUE, type ScheduleName } from "./look.ts";
import { type Plan, plan } from "./plan.ts";
import { type FireRecord, putOff, recordFires, type SetAside } from "./record.ts";
import { type Started, type StartOptions, startAll } from "./start.ts";

export interface FireDueOptions extends StartOptions {
  /** At most this many schedules, 1 to 100. Default 100. */
  readonly limit?: number;
}

/** A tick that was fired, and the job or run that it started. */
export interface FiredTick {
  readonly name: string;
  readonly organizationId: string | null;
  readonly intendedAt: Date;
  readonly jobId: string | null;
  readonly runId: string | null;
}

/** A tick that was passed over, because the fire before it lives. */
export type SkippedTick = Pick<FiredTick, "name" | "organizationId" | "intendedAt">;

/** A schedule that could not be fired. */
export interface SetAsideSchedule {
  readonly name: string;
  readonly organizationId: string | null;
  readonly error: LedgerError;
}

export interface FiredSchedules {
  readonly fired: readonly FiredTick[];
  readonly skipped: readonly SkippedTick[];
  /** The error stands on the schedule, too, which is tried again later. */
  readonly setAside: readonly SetAsideSchedule[];
  /** When the next schedule is due that this process could fire, or null. */
  readonly nextAt: Date | null;
  /** How long that is after the beginning of the call, by the database's clock, in milliseconds; not above 0 when it is due. */
  readonly nextInMs: number | null;
}

/** Of one call. What a backfill has beyond it stays due. */
const MAX_FIRES = 10_000;

/**
 * Fires due schedules of jobs, and of the workflows whose definitions are given. One round trip when nothing is due, and
 * for any number of due schedules five more, or six where both jobs and runs start, begin and commit included; for each one that cannot be fired those of a
 * search by halves, and one for all of them. In a caller's transaction one more, for its level, and what cannot be fired ends the
 * call. Throws `db.*` when the database is gone, `input.invalid`, `schedule.fire_unsupported_isolation`.
 */
export async function fireDue(executor: Executor, options: FireDueOptions = {}): Promise<FiredSchedules> {
  const limit = validInteger(options.limit, "limit", 1, MOST_DUE) ?? MOST_DUE;
  await requireReadCommitted(executor, "schedule.fire_unsupported_isolation");
  const known = options.workflows?.map(({ type }) => type) ?? [];
  const { due, next } = await lookAtSchedules(executor, limit, known);
  const batches: Batch[] = [];
  const failed: { schedule: ScheduleName; error: LedgerError }[] = [];
  await inHalves(
    executor,
    due,
    async (schedules) => {
      batches.push(await inTransaction(executor, (trx) => fireBatch(trx, schedules, options)));
    },
    (schedule, error) => failed.push({ schedule, error }),
  );
  await putOff(executor, failed.map(asideOf));
  return reportOf(batches, failed, next);
}

/** What one transaction did. */
interface Batch {
  readonly now: Date;
  readonly started: readonly Started[];
  readonly planned: readonly Planned[];
}

interface Planned {
  readonly schedule: HeldSchedule;
  readonly plan: Plan;
}

/** The schedules that others hold, or have fired meanwhile, are not among what comes back. */
async function fireBatch(trx: Executor, schedules: readonly ScheduleName[], options: FireDueOptions): Promise<Batch> {
  const { schedules: held, now } = await holdDue(
    trx,
    schedules.map(({ id }) => id),
  );
  if (held.length === 0) return { now, started: [], planned: [] };
  const planned = planAll(held, now);
  const firings = planned.flatMap(({ schedule, plan: { fire } }) =>
    fire.map((intendedAt) => ({ schedule, intendedAt })),
  );
  const started = await startAll(trx, firings, now, options);
  await recordFires(trx, [...started.map(firedRecord), ...planned.flatMap(skippedRecords)], planned.map(timeOf));
  return { now, started, planned };
}

function planAll(held: readonly HeldSchedule[], now: Date): Planned[] {
  let room = MAX_FIRES;
  return held.map((schedule) => {
    const made = plan(schedule, now, room);
    room -= made.fire.length;
    return { schedule, plan: made };
  });
}

function firedRecord({ firing, jobId, runId }: Started): FireRecord {
  const { schedule, intendedAt } = firing;
  return { scheduleId: schedule.id, intendedAt, outcome: "FIRED", jobId, runId };
}

function skippedRecords({ schedule, plan: { skip } }: Planned): FireRecord[] {
  return skip.map((intendedAt) => ({
    scheduleId: schedule.id,
    intendedAt,
    outcome: "SKIPPED",
    jobId: null,
    runId: null,
  }));
}

function timeOf({ schedule, plan: { next, dueAt } }: Planned) {
  return { scheduleId: schedule.id, next, dueAt };
}

function asideOf({ schedule, error }: { schedule: ScheduleName; error: LedgerError }): SetAside {
  return { scheduleId: schedule.id, error };
}

type Next = { readonly at: Date; readonly inMs: number };

function reportOf(
  batches: readonly Batch[],
  failed: readonly { schedule: ScheduleName; error: LedgerError }[],
  later: Next | null,
): FiredSchedules {
  const nexts = [...batches.flatMap(nextsOf), ...(later === null ? [] : [later])];
  const [next] = nexts.sort((a, b) => a.inMs - b.inMs);
  return {
    fired: batches.flatMap(({ started }) =>
      started.map(({ firing: { schedule, intendedAt }, jobId, runId }) => ({
        ...namesOf(schedule),
        intendedAt,
        jobId,
        runId,
      })),
    ),
    skipped: batches.flatMap(({ planned }) =>
      planned.flatMap(({ schedule, plan: { skip } }) =>
        skip.map((intendedAt) => ({ ...namesOf(schedule), intendedAt })),
      ),
    ),
    setAside: failed.map(({ schedule, error }) => ({ ...namesOf(schedule), error })),
    nextAt: next?.at ?? null,
    nextInMs: next?.inMs ?? null,
  };
}

function namesOf({ name, organizationId }: ScheduleName) {
  return { name, organizationId };
}

/** Of what was fired: when it is due again. The batch's time is a little after the beginning of the call. */
function nextsOf({ now, planned }: Batch): Next[] {
  return planned.flatMap(({ plan: { dueAt } }) =>
    dueAt === null ? [] : [{ at: dueAt, inMs: dueAt.getTime() - now.getTime() }],
  );
}
