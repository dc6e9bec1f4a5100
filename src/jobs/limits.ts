/** What a job says of its limit, and what of it is stored (FEATURES F-J11). */
import { type RawBuilder, sql } from "kysely";
import { sparse } from "../database/parameters.ts";
import { LedgerError } from "../errors.ts";
import { validDuration, validInteger, validName } from "./arguments.ts";

/** At most so many jobs of one key at once, or started in a period, or both. */
export interface JobLimit {
  /** Jobs of the same key and organization count together, whatever their types. At most 512 bytes. */
  readonly key: string;
  /** How many run at once at most. */
  readonly concurrency?: number;
  /** How many are started at most in any stretch of time of this length. A start is a claim. */
  readonly rate?: LimitRate;
}

export interface LimitRate {
  readonly starts: number;
  readonly periodSeconds: number;
}

/** The same in a definition, where the key may be made from the payload. */
export interface DefinedLimit<Input = never> extends Omit<JobLimit, "key"> {
  readonly key: string | ((input: Input) => string);
}

/** What a request may leave to the definition. */
export type RequestedLimit = Partial<JobLimit>;

/** A limit as it is stored. */
export interface PreparedLimit {
  readonly key: string;
  readonly concurrency: number | null;
  readonly starts: number | null;
  readonly periodSeconds: number | null;
}

/** The key is the request's, else the definition's; so are the settings, all of them together. */
export function mergedLimit(
  requested: RequestedLimit | undefined,
  defined: RequestedLimit | undefined,
): RequestedLimit | undefined {
  if (requested === undefined || defined === undefined) return requested ?? defined;
  const settings = requested.concurrency === undefined && requested.rate === undefined ? defined : requested;
  const key = requested.key ?? defined.key;
  return key === undefined ? settings : { ...settings, key };
}

/** Null without a limit. Throws `input.invalid`. */
export function preparedLimit(
  requested: RequestedLimit | undefined,
  defined: RequestedLimit | undefined,
  at: string,
): PreparedLimit | null {
  const merged = mergedLimit(requested, defined);
  if (merged === undefined) return null;
  const { key, concurrency, rate } = merged;
  const limit = {
    key: validName(key, `${at}limit.key`),
    concurrency: validInteger(concurrency, `${at}limit.concurrency`, 1),
    starts: rate === undefined ? null : required(validInteger(rate.starts, `${at}limit.rate.starts`, 1), at),
    periodSeconds:
      rate === undefined ? null : required(validDuration(rate.periodSeconds, `${at}limit.rate.periodSeconds`), at),
  };
  if (limit.concurrency === null && limit.starts === null) {
    throw new LedgerError("input.invalid", { message: `${at}limit needs concurrency, rate or both.` });
  }
  return limit;
}

function required(value: number | null, at: string): number {
  if (value === null)
    throw new LedgerError("input.invalid", { message: `${at}limit.rate needs starts and periodSeconds.` });
  return value;
}

/** The parameters that carry limits as parallel arrays. */
export const limitParameters = {
  limitKeys: "text?[]",
  limitConcurrencies: "int4?[]",
  limitStarts: "int4?[]",
  limitPeriods: "float8?[]",
} as const;

export function limitArrays(limits: readonly (PreparedLimit | null)[]) {
  return {
    limitKeys: sparse(limits, (limit) => limit?.key ?? null),
    limitConcurrencies: sparse(limits, (limit) => limit?.concurrency ?? null),
    limitStarts: sparse(limits, (limit) => limit?.starts ?? null),
    limitPeriods: sparse(limits, (limit) => limit?.periodSeconds ?? null),
  };
}

/** The columns of a job, or of a step for its job, that carry a limit. */
export const limitColumns = ["limit_key", "limit_concurrency", "limit_starts", "limit_period_seconds"] as const;

/** Whose a key of row `q` is: an organization's, or the global tenant's. As the indexes have it. */
export function tenantOf(q: string): RawBuilder<string> {
  return sql<string>`coalesce(${sql.ref(`${q}.organization_id`)}::text, 'global')`;
}
