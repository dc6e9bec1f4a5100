/** How long what has ended is kept, by outcome and by type (FEATURES F-H2). */
import { type RawBuilder, sql } from "kysely";
import { ownJson, type StoredJson } from "../database/json.ts";
import type { JobStatus, RunStatus } from "../database/statuses.ts";
import { LedgerError } from "../errors.ts";
import { validName } from "../jobs/arguments.ts";

export type EndedJobStatus = Extract<JobStatus, "SUCCEEDED" | "DEAD_LETTERED" | "CANCELED">;
export type EndedRunStatus = Extract<RunStatus, "SUCCEEDED" | "COMPLETED_WITH_ERRORS" | "CANCELED">;

/** Days since the end, fractions included; null, or an outcome that is not named: for ever. */
export type KeptDays<Status extends string> = { readonly [S in Status]?: number | null };

export type Retention<Status extends string> = KeptDays<Status> & {
  /** For single types, outcome by outcome; what one does not name is as for all. */
  readonly types?: Readonly<Record<string, KeptDays<Status>>>;
};

/** What is not named is kept for ever. */
export interface RetentionPolicies {
  /** Jobs without a run. */
  readonly jobs?: Retention<EndedJobStatus>;
  /** Runs, with their steps and jobs. */
  readonly runs?: Retention<EndedRunStatus>;
  /**
   * How long an idempotency key without a time to live keeps its job or run, in days since it was made. After that both may
   * go, and the same request would start anew. Default: for ever.
   */
  readonly keys?: number | null;
  /**
   * The fires of schedules, in days since their tick; the last of each is kept. A tick as old as a fire that is gone is not fired any
   * more, also when a schedule is retimed to it. Default: for ever.
   */
  readonly fires?: number | null;
}

/** Ages in seconds as a statement takes them; null when nothing is to go. */
export interface PreparedAges {
  readonly ages: StoredJson;
  /** Of the shortest: what is younger need not be looked at. */
  readonly youngest: number;
}

export interface PreparedPolicies {
  readonly jobs: PreparedAges | null;
  readonly runs: PreparedAges | null;
  readonly keys: number | null;
  readonly fires: number | null;
}

const DAY_SECONDS = 86_400;
const MAX_DAYS = 36_600;
const jobStatuses: readonly EndedJobStatus[] = ["SUCCEEDED", "DEAD_LETTERED", "CANCELED"];
const runStatuses: readonly EndedRunStatus[] = ["SUCCEEDED", "COMPLETED_WITH_ERRORS", "CANCELED"];

/** Throws `input.invalid`: what is misspelt would delete, or keep, what it should not. */
export function preparedPolicies(policies: RetentionPolicies): PreparedPolicies {
  const { jobs, runs, keys, fires, ...unknown } = record(policies, "policies");
  refuseUnknown(unknown, "policies");
  return {
    jobs: jobs === undefined ? null : preparedAges(jobs, jobStatuses, "policies.jobs"),
    runs: runs === undefined ? null : preparedAges(runs, runStatuses, "policies.runs"),
    keys: seconds(keys, "policies.keys"),
    fires: seconds(fires, "policies.fires"),
  };
}

/** Throws `input.invalid` unless they can be obeyed. */
export function requireRetention(policies: RetentionPolicies): void {
  preparedPolicies(policies);
}

function preparedAges(given: unknown, statuses: readonly string[], at: string): PreparedAges | null {
  const { types = {}, ...all } = record(given, at);
  const general = agesOf(all, statuses, at);
  const byType = Object.entries(record(types, `${at}.types`)).map(
    ([type, own]) =>
      [validName(type, `${at}.types`), { ...general, ...agesOf(own, statuses, `${at}.types.${type}`) }] as const,
  );
  const named = [general, ...byType.map(([, ages]) => ages)].flatMap((ages) => Object.values(ages));
  const youngest = Math.min(...named.filter((age) => age !== null));
  if (youngest === Number.POSITIVE_INFINITY) return null;
  return { ages: ownJson({ all: general, types: Object.fromEntries(byType) }), youngest };
}

function agesOf(given: unknown, statuses: readonly string[], at: string): Record<string, number | null> {
  const days = Object.entries(record(given, at));
  refuseUnknown(Object.fromEntries(days.filter(([status]) => !statuses.includes(status))), at);
  return Object.fromEntries(days.map(([status, value]) => [status, seconds(value, `${at}.${status}`)]));
}

function seconds(days: unknown, at: string): number | null {
  if (days === undefined || days === null) return null;
  if (typeof days !== "number" || !(days >= 0) || days > MAX_DAYS) {
    throw new LedgerError("input.invalid", {
      message: `${at} must be a number of days from 0 to ${MAX_DAYS}, or null.`,
    });
  }
  return days * DAY_SECONDS;
}

function record(value: unknown, at: string): Partial<Record<string, unknown>> {
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new LedgerError("input.invalid", { message: `${at} must be an object.` });
  }
  return { ...value };
}

function refuseUnknown(unknown: object, at: string): void {
  const [name] = Object.keys(unknown);
  if (name !== undefined) throw new LedgerError("input.invalid", { message: `${at} has no ${name}.` });
}

/** Whether what the row says to have ended did so longer ago than it is kept. False where it is kept for ever. */
export function isPast(row: string, ages: RawBuilder<string>): RawBuilder<boolean> {
  const of = (column: string) => sql.ref(`${row}.${column}`);
  const age = sql`coalesce(${ages} -> 'types' -> ${of("type")}, ${ages} -> 'all') ->> ${of("status")}::text`;
  return sql<boolean>`coalesce(${of("ended_at")} <= now() - make_interval(secs => (${age})::float8), false)`;
}

/** The first id of the time so many seconds ago, by the database's clock: an id begins with its time. */
export function idBefore(seconds: RawBuilder<number>): RawBuilder<string> {
  return sql<string>`(
    lpad(to_hex((extract(epoch from now() - make_interval(secs => ${seconds})) * 1000)::bigint), 12, '0') || repeat('0', 20)
  )::uuid`;
}

/** Whether a key of `k` is honoured still: by its own time to live, else by how long keys without one are. */
export function isLiveKey(k: string, keyAge: RawBuilder<number | null>): RawBuilder<boolean> {
  const of = (column: string) => sql.ref(`${k}.${column}`);
  return sql<boolean>`case
    when ${of("expires_at")} is not null then ${of("expires_at")} > now()
    else ${keyAge} is null or ${of("created_at")} > now() - make_interval(secs => ${keyAge})
  end`;
}
