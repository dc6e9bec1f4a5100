/** Cron expressions in time zones: which times they mean. The one place that knows the library. */
import { Cron } from "croner";
import { LedgerError } from "../errors.ts";

/** The times of a schedule. Its ticks are whole seconds. */
export interface Timetable {
  readonly cron: string;
  readonly timeZone: string;
  /** No tick before. */
  readonly startsAt: Date | null;
  /** No tick at or after. */
  readonly endsAt: Date | null;
}

// A leap day, so that 29 February has its turn soon; whether an expression ever means a time depends on no clock.
const SOME_TIME = new Date("2000-01-01T00:00:00Z");

/** Throws `schedule.cron_invalid` or `schedule.time_zone_invalid` with the reason. */
export function requireTimes(timetable: Timetable): void {
  requireTimeZone(timetable.timeZone);
  const pattern = patternOf(timetable);
  if (pattern.getOnce() !== null) throw cronInvalid("it is a date, not an expression");
  if (pattern.nextRun(SOME_TIME) === null) throw cronInvalid("no date ever fits it");
}

/** The first tick after a time, or null when there is none: it is over, or beyond what the library looks at, the year 2999. */
export function tickAfter(timetable: Timetable, after: Date): Date | null {
  const { startsAt, endsAt } = timetable;
  // The beginning itself may be a tick.
  const from = startsAt !== null && startsAt > after ? new Date(startsAt.getTime() - 1) : after;
  const next = patternOf(timetable).nextRun(from);
  return next === null || (endsAt !== null && next >= endsAt) ? null : next;
}

/**
 * Of the tick `from` and those after it up to and including `until` the last ones, oldest first. However long that
 * is, no more are looked at than wanted.
 */
export function latestTicks(timetable: Timetable, from: Date, until: Date, count: number): Date[] {
  const next = tickAfter(timetable, from);
  if (next === null || next > until) return [from];
  const { endsAt } = timetable;
  const last = endsAt !== null && endsAt <= until ? endsAt : secondAfter(until);
  const ticks = patternOf(timetable)
    .previousRuns(count, last)
    .filter((tick) => tick > from)
    .reverse();
  return ticks.length < count ? [from, ...ticks] : ticks;
}

/** The library takes the ticks before a whole second. */
function secondAfter(time: Date): Date {
  return new Date((Math.floor(time.getTime() / 1000) + 1) * 1000);
}

/**
 * Fixed times, without a wildcard or step in seconds, minutes and hours, happen once a day whatever the clocks do:
 * one that a change to summer time leaves out happens at the next time there is, and one that comes twice the first time.
 */
function patternOf({ cron, timeZone }: Pick<Timetable, "cron" | "timeZone">): Cron {
  try {
    return new Cron(cron, { timezone: timeZone, paused: true, mode: "5-or-6-parts", fixedTimeRule: "no-wildcard" });
  } catch (cause) {
    throw cronInvalid(reasonOf(cause), cause);
  }
}

function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message.replace(/^CronPattern: /, "").replace(/\.$/, "") : "it cannot be read";
}

function cronInvalid(reason: string, cause?: unknown): LedgerError {
  return new LedgerError("schedule.cron_invalid", { message: `The cron expression is invalid: ${reason}.`, cause });
}

function requireTimeZone(timeZone: string): void {
  // An offset has no summer time and no name: somebody who gives one means a zone.
  if (/^[+-]/.test(timeZone)) throw timeZoneInvalid(timeZone);
  try {
    new Intl.DateTimeFormat("en", { timeZone });
  } catch (cause) {
    throw timeZoneInvalid(timeZone, cause);
  }
}

function timeZoneInvalid(timeZone: string, cause?: unknown): LedgerError {
  return new LedgerError("schedule.time_zone_invalid", {
    message: `${timeZone} is not a name of the IANA time zone database that this system knows.`,
    cause,
  });
}
