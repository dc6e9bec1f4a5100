/** From the key options of a request to what is stored of them, checked before anything is sent (FEATURES F-J3, F-J12). */
import { LedgerError } from "../errors.ts";
import { validDuration, validName } from "./arguments.ts";
import type { JobOptions } from "./definition.ts";
import type { ActiveJobKey, Debounce, JobKeys, Throttle } from "./key-options.ts";
import type { PreparedJob } from "./request.ts";

export type PreparedKey =
  | { readonly kind: "idempotency" | "throttle"; readonly key: string; readonly ttlSeconds: number | null }
  | { readonly kind: "active"; readonly key: string; readonly replaces: boolean }
  | {
      readonly kind: "debounce";
      readonly key: string;
      readonly seconds: number;
      readonly maxSeconds: number | null;
    };

/** A request ready to be sent, with its key. */
export interface KeyedJob extends PreparedJob {
  readonly key: PreparedKey | null;
}

/** The key of each request, or null. Throws `input.invalid`, naming the request by its place in the batch. */
export function prepareKeys(requests: readonly JobOptions[]): (PreparedKey | null)[] {
  return requests.map((request, place) => preparedKey(request, requests.length > 1 ? `jobs[${place}].` : ""));
}

type KeyOptions = { readonly [K in keyof JobKeys]?: JobKeys[K] | undefined } & { readonly runAt?: unknown };

/** The one key among the options, or null. Throws `input.invalid`. */
export function preparedKey(request: KeyOptions, at: string): PreparedKey | null {
  const { idempotencyKey, idempotencyTtlSeconds, active, debounce, throttle } = request;
  const given = Object.entries({ idempotencyKey, active, debounce, throttle }).filter(
    ([, value]) => value !== undefined,
  );
  if (given.length > 1) throw invalid(`${at}${given.map(([name]) => name).join(" and ")} cannot go together.`);
  if (idempotencyTtlSeconds !== undefined && idempotencyKey === undefined) {
    throw invalid(`${at}idempotencyTtlSeconds needs an idempotencyKey.`);
  }
  if (idempotencyKey !== undefined) return idempotency(idempotencyKey, idempotencyTtlSeconds, at);
  if (active !== undefined) return activeKey(active, `${at}active`);
  if (debounce !== undefined) return debounceKey(debounce, request.runAt, `${at}debounce`);
  return throttle === undefined ? null : throttleKey(throttle, `${at}throttle`);
}

function idempotency(key: unknown, ttlSeconds: unknown, at: string): PreparedKey {
  return {
    kind: "idempotency",
    key: validName(key, `${at}idempotencyKey`),
    ttlSeconds: validDuration(ttlSeconds, `${at}idempotencyTtlSeconds`),
  };
}

function activeKey(active: ActiveJobKey, at: string): PreparedKey {
  const { key, replace = false } = objectOf(active, at);
  if (typeof replace !== "boolean") throw invalid(`${at}.replace must be true or false.`);
  return { kind: "active", key: validName(key, `${at}.key`), replaces: replace };
}

function debounceKey(debounce: Debounce, runAt: unknown, at: string): PreparedKey {
  const { key, seconds, maxSeconds } = objectOf(debounce, at);
  if (runAt !== undefined) throw invalid(`${at} and runAt cannot go together: the requests say when the job starts.`);
  const wait = requiredDuration(seconds, `${at}.seconds`);
  const longest = validDuration(maxSeconds, `${at}.maxSeconds`);
  if (longest !== null && longest < wait) throw invalid(`${at}.maxSeconds is less than ${at}.seconds.`);
  return { kind: "debounce", key: validName(key, `${at}.key`), seconds: wait, maxSeconds: longest };
}

function throttleKey(throttle: Throttle, at: string): PreparedKey {
  const { key, seconds } = objectOf(throttle, at);
  return {
    kind: "throttle",
    key: validName(key, `${at}.key`),
    ttlSeconds: requiredDuration(seconds, `${at}.seconds`),
  };
}

function requiredDuration(value: unknown, argument: string): number {
  const seconds = validDuration(value, argument);
  if (seconds === null) throw invalid(`${argument} must be a number of seconds.`);
  return seconds;
}

/** An object from outside, whatever its type says. Throws `input.invalid`. */
export function objectOf<T extends object>(value: T, argument: string): T {
  if (typeof value !== "object" || value === null) throw invalid(`${argument} must be an object with a key.`);
  return value;
}

function invalid(message: string): LedgerError {
  return new LedgerError("input.invalid", { message });
}
