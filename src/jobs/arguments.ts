/** Arguments that many functions take: each is checked in one place, and refused with `input.invalid`. */
import { LedgerError } from "../errors.ts";

export const MAX_INT4 = 2_147_483_647;
export const MAX_KEY_BYTES = 512;

/** A type name, step key or idempotency key: 1 to 512 bytes, not blank, no NUL. */
export function validName(value: unknown, argument: string): string {
  if (typeof value !== "string" || value.trim() === "" || value.includes("\0") || !value.isWellFormed()) {
    throw new LedgerError("input.invalid", { message: `${argument} must be a string that is not blank.` });
  }
  if (Buffer.byteLength(value) > MAX_KEY_BYTES) {
    throw new LedgerError("input.invalid", { message: `${argument} is longer than ${MAX_KEY_BYTES} bytes.` });
  }
  return value;
}

/** An optional integer of the int4 range, or null. */
export function validInteger(
  value: unknown,
  argument: string,
  minimum: number,
  maximum: number = MAX_INT4,
): number | null {
  if (value === undefined || value === null) return null;
  if (typeof value !== "number" || !Number.isInteger(value) || value < minimum || value > maximum) {
    throw new LedgerError("input.invalid", {
      message: `${argument} must be an integer from ${minimum} to ${maximum}.`,
    });
  }
  return value;
}

/** Longer than any plan, and within what PostgreSQL can add to a time. */
export const MAX_DURATION_SECONDS = 100 * 366 * 86_400;

/** An optional number of seconds above 0, fractions included, or null. */
export function validDuration(value: unknown, argument: string): number | null {
  if (value === undefined || value === null) return null;
  if (typeof value !== "number" || !(value > 0) || value > MAX_DURATION_SECONDS) {
    throw new LedgerError("input.invalid", {
      message: `${argument} must be a number of seconds above 0 and at most ${MAX_DURATION_SECONDS}.`,
    });
  }
  return value;
}

/** An optional number of seconds from 0 on, fractions included, or null. */
export function validDelay(value: unknown, argument: string): number | null {
  return value === 0 ? 0 : validDuration(value, argument);
}
