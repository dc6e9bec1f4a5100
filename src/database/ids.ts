import { randomFillSync } from "node:crypto";
import { v7 } from "uuid";
import { LedgerError } from "../errors.ts";

/** A new UUIDv7: later calls of one process give greater ids, also within a millisecond. */
export function newId(): string {
  const random = nextRandom();
  last = placeAfter(last, random);
  return v7({ ...last, random });
}

/** `count` new ids in ascending order. */
export function newIds(count: number): string[] {
  return Array.from({ length: count }, newId);
}

/** The last id's place in order: its millisecond, and its number within that. */
let last = { msecs: 0, seq: 0 };
const MAX_SEQUENCE = 0xffff_ffff;

function placeAfter({ msecs, seq }: typeof last, random: Buffer): typeof last {
  const now = Date.now();
  if (now <= msecs && seq < MAX_SEQUENCE) return { msecs, seq: seq + 1 };
  // From the lower half on, so that a millisecond has room for more than anybody can ask for.
  return { msecs: Math.max(now, msecs + 1), seq: random.readUInt32BE(0) >>> 1 };
}

/** Random bytes in stock: asking for those of one id costs more than the rest of it. */
const stock = Buffer.alloc(16 * 256);
let used = stock.length;

function nextRandom(): Buffer {
  if (used === stock.length) {
    randomFillSync(stock);
    used = 0;
  }
  used += 16;
  return stock.subarray(used - 16, used);
}

export function isUuid(value: unknown): value is string {
  return typeof value === "string" && /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i.test(value);
}

/** Returns the id in lower case, or throws `input.invalid` naming the argument. */
export function validUuid(value: unknown, argument: string): string {
  if (!isUuid(value)) throw new LedgerError("input.invalid", { message: `${argument} must be a UUID.` });
  return value.toLowerCase();
}
