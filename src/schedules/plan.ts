/** What becomes of a schedule's due ticks: a decision in memory, from what is stored and the database's time (FEATURES F-S2). */
import { latestTicks, type Timetable, tickAfter } from "./cron.ts";
import type { CatchUp, Overlap } from "./words.ts";

/** What a plan needs to know of a schedule that is due. */
export interface DueSchedule extends Timetable {
  readonly catchUp: CatchUp;
  readonly backfillLimit: number;
  readonly graceSeconds: number;
  readonly overlap: Overlap;
  /** The tick that is due. */
  readonly intendedAt: Date;
  /** Whether the job or run of the last fire lives. Not asked where overlap is allowed. */
  readonly busy: boolean;
  /** Ticks from `intendedAt` on that have been fired before: somebody set the time back. */
  readonly fired: readonly Date[];
  /** Fires of ticks up to this one have been deleted: nobody knows any more which there were. */
  readonly forgottenUntil: Date | null;
}

export interface Plan {
  /** The ticks to fire, oldest first. */
  readonly fire: readonly Date[];
  /** The ticks to pass over, because the fire before lives. */
  readonly skip: readonly Date[];
  /** The next tick, or null when there is none. */
  readonly next: Date | null;
  /** When to look again. */
  readonly dueAt: Date | null;
}

/** How often a queued schedule looks whether the fire before has ended. */
const LOOK_AGAIN_MS = 5_000;

/** At most `room` ticks are fired; the others stay due. */
export function plan(schedule: DueSchedule, now: Date, room: number): Plan {
  const { overlap, busy, intendedAt } = schedule;
  if (overlap === "queue" && busy) return { fire: [], skip: [], next: intendedAt, dueAt: laterThan(now) };
  const ticks = dueTicks(schedule, now);
  if (overlap === "skip" && busy) return settled(schedule, now, { fire: [], skip: ticks });
  if (overlap === "skip") return settled(schedule, now, { fire: ticks.slice(0, 1), skip: ticks.slice(1) });
  if (overlap === "queue") return cut(schedule, now, ticks, 1, laterThan(now));
  return cut(schedule, now, ticks, room, now);
}

/** The ticks that the catch-up policy leaves, oldest first. */
function dueTicks(schedule: DueSchedule, now: Date): Date[] {
  const { catchUp, backfillLimit, graceSeconds, intendedAt, fired, forgottenUntil } = schedule;
  const before = new Set(fired.map((tick) => tick.getTime()));
  const ticks = latestTicks(schedule, intendedAt, now, catchUp === "backfill" ? backfillLimit : 1).filter(
    (tick) => !before.has(tick.getTime()) && (forgottenUntil === null || tick > forgottenUntil),
  );
  return catchUp === "skip" ? ticks.filter((tick) => now.getTime() - tick.getTime() <= graceSeconds * 1000) : ticks;
}

function cut(schedule: DueSchedule, now: Date, ticks: readonly Date[], room: number, dueAt: Date): Plan {
  const rest = ticks[room];
  const fire = ticks.slice(0, room);
  return rest === undefined ? settled(schedule, now, { fire, skip: [] }) : { fire, skip: [], next: rest, dueAt };
}

/** Nothing up to now is left. */
function settled(schedule: DueSchedule, now: Date, done: Pick<Plan, "fire" | "skip">): Plan {
  const { intendedAt } = schedule;
  const next = tickAfter(schedule, intendedAt > now ? intendedAt : now);
  return { ...done, next, dueAt: next };
}

function laterThan(now: Date): Date {
  return new Date(now.getTime() + LOOK_AGAIN_MS);
}
