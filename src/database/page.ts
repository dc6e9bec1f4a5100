/** Pages by keyset: what comes or goes meanwhile neither shifts the others nor makes one come twice. */
import { LedgerError } from "../errors.ts";
import { isUuid } from "./ids.ts";

export const [FIRST_ID, LAST_ID] = [
  "00000000-0000-0000-0000-000000000000",
  "ffffffff-ffff-ffff-ffff-ffffffffffff",
] as const;

/** One row more than a page has says that there is a next one. */
export function pageOf<Row>(rows: readonly Row[], limit: number, cursorOf: (row: Row) => string) {
  const shown = rows.slice(0, limit);
  const last = shown[limit - 1];
  return { shown, next: rows.length > limit && last !== undefined ? cursorOf(last) : null };
}

/** The ids of a cursor, of which there must be so many; null at the beginning. Throws `input.invalid`. */
export function cursorIds(after: unknown, count: number): readonly string[] | null {
  if (after === undefined) return null;
  const ids = typeof after === "string" ? after.split("/") : [];
  if (ids.length !== count || !ids.every(isUuid)) throw invalidCursor();
  return ids;
}

export function invalidCursor(): LedgerError {
  return new LedgerError("input.invalid", { message: "after must be the next of an earlier page." });
}

/** A stretch of time: from a time on, and before another one. */
export interface TimeRange {
  readonly from?: Date | string;
  readonly to?: Date | string;
}

/** The ids from `first` on and before `before`: of a time, and older than where the page before ended. */
export function idRange(times: TimeRange | undefined, after: unknown, timeOf: (value: unknown) => string) {
  const [cursor = LAST_ID] = cursorIds(after, 1) ?? [];
  const end = times?.to === undefined ? LAST_ID : firstIdAt(timeOf(times.to));
  return {
    first: times?.from === undefined ? FIRST_ID : firstIdAt(timeOf(times.from)),
    before: older(cursor.toLowerCase(), end),
  };
}

function older(id: string, other: string): string {
  if (id < other) return id;
  return other;
}

/** The first id of a millisecond: a UUIDv7 begins with its time. */
export function firstIdAt(time: string): string {
  const ms = Math.max(0, new Date(time).getTime());
  const digits = ms.toString(16).padStart(12, "0");
  return `${digits.slice(0, 8)}-${digits.slice(8)}-0000-0000-000000000000`;
}
