import { v7 } from "uuid";
import { LedgerError } from "../errors.ts";

/** A new UUIDv7: later calls of one process give greater ids, also within a millisecond. */
export function newId(): string {
  return v7();
}

/** `count` new ids in ascending order. */
export function newIds(count: number): string[] {
  return Array.from({ length: count }, newId);
}

export function isUuid(value: unknown): value is string {
  return typeof value === "string" && /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i.test(value);
}

/** Returns the id in lower case, or throws `input.invalid` naming the argument. */
export function validUuid(value: unknown, argument: string): string {
  if (!isUuid(value)) throw new LedgerError("input.invalid", { message: `${argument} must be a UUID.` });
  return value.toLowerCase();
}
