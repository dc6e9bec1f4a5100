/** Values as drivers give them, which the service may have told to parse otherwise, to values as we give them. */

/** A timestamp column: Date from pg, text from others, or an object of a date library. */
export function toDate(value: unknown): Date {
  if (value instanceof Date) return value;
  const date = new Date(typeof value === "number" ? value : isoOf(String(value)));
  if (Number.isNaN(date.getTime())) throw new TypeError("a timestamp of the database could not be read");
  return date;
}

export function toDateOrNull(value: unknown): Date | null {
  return value === null || value === undefined ? null : toDate(value);
}

/** Microseconds since 1970, as an int8 column: nothing to parse where rows come by the thousand. */
export function dateOfMicroseconds(value: unknown): Date {
  return new Date(Math.floor(Number(value) / 1000));
}

/** PostgreSQL writes `2026-11-21 04:03:00.123456+00`, and JavaScript reads at most milliseconds of it for sure. */
function isoOf(text: string): string {
  const match = /^(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(\.\d{1,3})?\d*([+-]\d\d)?(?::?(\d\d))?/.exec(text);
  if (!match) return text;
  const [, day, time, fraction = "", hours = "+00", minutes = "00"] = match;
  return `${day}T${time}${fraction}${hours}:${minutes}`;
}

/** An int4 or int8 column within the safe range. */
export function toNumber(value: unknown): number {
  return typeof value === "number" ? value : Number(value);
}

export function toNumberOrNull(value: unknown): number | null {
  return value === null || value === undefined ? null : toNumber(value);
}
