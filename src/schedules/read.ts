/** Reads of schedules and of what became of their ticks. */
import { type QueryCreator, sql } from "kysely";
import type { JsonValue } from "../database/column-types.ts";
import { toDate, toDateOrNull, toNumber, toNumberOrNull } from "../database/decode.ts";
import type { Executor } from "../database/executor.ts";
import type { Scope } from "../database/scope.ts";
import { reading } from "../database/statement.ts";
import type { LedgerTables } from "../database/tables.ts";
import { type ReadOptions, shownValues } from "../database/values/read.ts";
import { LedgerError } from "../errors.ts";
import { validInteger, validName } from "../jobs/arguments.ts";
import { type JobLimit, limitColumns } from "../jobs/limits.ts";
import { limitOf } from "./look.ts";
import { ofTenants, type TenantRange, tenantParameters, tenantsOf } from "./scope.ts";
import { type CatchUp, decodeCatchUp, decodeOutcome, decodeOverlap, type FireOutcome, type Overlap } from "./words.ts";

/** A schedule as it stands. */
export interface Schedule {
  readonly name: string;
  readonly organizationId: string | null;
  readonly cron: string;
  readonly timeZone: string;
  readonly target: "job" | "workflow";
  /** The type of the job or workflow. */
  readonly type: string;
  /** The job's payload, or the workflow's input. */
  readonly payload: JsonValue;
  readonly priority: number | null;
  readonly maxAttempts: number | null;
  readonly timeoutSeconds: number | null;
  readonly tags: readonly string[];
  readonly limit: JobLimit | null;
  readonly deadlineSeconds: number | null;
  readonly catchUp: CatchUp;
  readonly backfillLimit: number;
  readonly graceSeconds: number;
  readonly overlap: Overlap;
  readonly jitterSeconds: number;
  readonly startAt: Date | null;
  readonly endAt: Date | null;
  readonly enabled: boolean;
  readonly paused: boolean;
  /** Who declares it, or null. */
  readonly catalogue: string | null;
  /** The next tick; null when it is paused, disabled or over. */
  readonly nextAt: Date | null;
  /** When it is looked at next: `nextAt`, or later after a failure or while it waits for the fire before. */
  readonly dueAt: Date | null;
  /** For how long it has been due, in seconds. It grows when no process fires, or none that knows its workflow. */
  readonly overdueSeconds: number;
  /** The last tick that was fired, or the time of a trigger, and what it started. */
  readonly lastAt: Date | null;
  readonly lastJobId: string | null;
  readonly lastRunId: string | null;
  /** Why it could not be fired, until it is. */
  readonly failure: ScheduleFailure | null;
}

export interface ScheduleFailure {
  readonly code: string;
  readonly message: string;
  readonly at: Date;
  /** How often in a row. */
  readonly count: number;
}

/** What became of one tick. */
export interface ScheduleFire {
  readonly intendedAt: Date;
  readonly firedAt: Date;
  readonly outcome: FireOutcome;
  readonly jobId: string | null;
  readonly runId: string | null;
}

export interface ListSchedulesOptions extends ReadOptions {
  readonly scope: Scope;
  /** Where an earlier page ended: its `next`. Default: from the beginning. */
  readonly after?: string;
  /** At most so many, 1 to 10 000. Default 100. */
  readonly limit?: number;
}

export interface SchedulesPage {
  /** By tenant and name. */
  readonly schedules: readonly Schedule[];
  /** What `after` takes to go on; null when this was all. */
  readonly next: string | null;
}

export interface FiresPage {
  /** The latest first. */
  readonly fires: readonly ScheduleFire[];
  /** What `after` takes to go on; null when this was all. */
  readonly next: string | null;
}

const DEFAULT_LIMIT = 100;
const MAX_LIMIT = 10_000;

/**
 * One round trip. Throws `schedule.not_found`, `schedule.ambiguous`, `scope.required`, `input.invalid`, `payload.undecodable`,
 * `payload.codec_unavailable`.
 */
export async function getSchedule(
  executor: Executor,
  name: string,
  scope: Scope,
  options: ReadOptions = {},
): Promise<Schedule> {
  const row = await found(executor, name, scope);
  const payload = await shownValues(executor.settings.values, "payload", [row.payload], options);
  return decoded(row, payload(0));
}

/**
 * The schedules in pages: one that is added or removed meanwhile neither shifts the others nor makes one come twice.
 * One round trip. Throws `scope.required`, `input.invalid`, `payload.undecodable`, `payload.codec_unavailable`.
 */
export async function listSchedules(executor: Executor, options: ListSchedulesOptions): Promise<SchedulesPage> {
  const tenants = tenantsOf(options.scope);
  const limit = validInteger(options.limit, "limit", 1, MAX_LIMIT) ?? DEFAULT_LIMIT;
  const { tenant, name } = positionOf(options.after, tenants);
  const rows = await list.execute(executor, { tenant, name, lastTenant: tenants.lastTenant, limit: limit + 1 });
  const shown = rows.slice(0, limit);
  const last = shown[limit - 1];
  const texts = shown.map(({ payload }) => payload);
  const payloads = await shownValues(executor.settings.values, "payload", texts, options);
  return {
    schedules: shown.map((row, place) => decoded(row, payloads(place))),
    next: rows.length > limit && last !== undefined ? `${last.tenant}/${last.name}` : null,
  };
}

/** What became of a schedule's ticks, in pages. Two round trips. Throws as `getSchedule`. */
export async function listFires(
  executor: Executor,
  name: string,
  options: Omit<ListSchedulesOptions, "values">,
): Promise<FiresPage> {
  const limit = validInteger(options.limit, "limit", 1, MAX_LIMIT) ?? DEFAULT_LIMIT;
  const before = options.after === undefined ? "infinity" : validCursor(options.after);
  const { id } = await found(executor, name, options.scope);
  const rows = await fires.execute(executor, { id, before, limit: limit + 1 });
  const shown = rows.slice(0, limit).map(fireOf);
  const last = shown[limit - 1];
  return { fires: shown, next: rows.length > limit && last !== undefined ? last.intendedAt.toISOString() : null };
}

async function found(executor: Executor, name: string, scope: Scope) {
  const tenants = tenantsOf(scope);
  const [row, another] = await get.execute(executor, { ...tenants, name: validName(name, "name") });
  if (row === undefined) throw new LedgerError("schedule.not_found");
  if (another !== undefined) throw new LedgerError("schedule.ambiguous");
  return row;
}

/** A tenant has no slash in it, a name may. The cursor of one tenant leads nowhere in another. */
function positionOf(after: unknown, { firstTenant, lastTenant }: TenantRange): { tenant: string; name: string } {
  if (after === undefined) return { tenant: firstTenant, name: "" };
  const [, tenant, name] = (typeof after === "string" ? /^([^/]+)\/(.+)$/s.exec(after) : null) ?? [];
  const isOurs = firstTenant !== lastTenant || tenant === firstTenant;
  if (tenant === undefined || name === undefined || !isOurs) throw cursorInvalid();
  return { tenant, name };
}

function validCursor(after: unknown): string {
  if (typeof after !== "string" || Number.isNaN(new Date(after).getTime())) throw cursorInvalid();
  return new Date(after).toISOString();
}

function cursorInvalid(): LedgerError {
  return new LedgerError("input.invalid", { message: "after must be the next of an earlier page." });
}

function schedulesIn(db: QueryCreator<LedgerTables>) {
  return db
    .selectFrom("job_schedules as c")
    .select([
      "c.id",
      "c.tenant",
      "c.name",
      "c.organization_id",
      "c.cron",
      "c.time_zone",
      "c.target",
      "c.target_type",
      "c.priority",
      "c.max_attempts",
      "c.timeout_seconds",
      "c.tags",
      ...limitColumns.map((column) => `c.${column}` as const),
      "c.deadline_seconds",
      "c.catch_up",
      "c.backfill_limit",
      "c.grace_seconds",
      "c.overlap",
      "c.jitter_seconds",
      "c.starts_at",
      "c.ends_at",
      "c.enabled",
      "c.paused",
      "c.catalogue",
      "c.intended_at",
      "c.due_at",
      "c.last_intended_at",
      "c.last_job_id",
      "c.last_run_id",
      "c.failed_at",
      "c.failures",
      "c.error_code",
      "c.error_message",
      sql<string>`c.payload::text`.as("payload"),
      sql<number>`coalesce(greatest(0, extract(epoch from statement_timestamp() - c.due_at)), 0)::float8`.as("overdue"),
    ]);
}

const get = reading("get_schedule", { ...tenantParameters, name: "text" }, (db, p) =>
  schedulesIn(db).where(ofTenants(p)).where("c.name", "=", p.name).limit(2),
);

const listParameters = { tenant: "text", name: "text", lastTenant: "text", limit: "int4" } as const;

// A second bound for the first tenant would say nothing new, but to a planner without statistics that so few rows are
// in between that it might as well read and sort them all.
const list = reading("list_schedules", listParameters, (db, p) =>
  schedulesIn(db)
    .where(sql<boolean>`(c.tenant, c.name) > (${p.tenant}, ${p.name})`)
    .where("c.tenant", "<=", sql<string>`${p.lastTenant}`)
    .orderBy("c.tenant")
    .orderBy("c.name")
    .limit(p.limit),
);

const fires = reading("list_schedule_fires", { id: "uuid", before: "timestamptz", limit: "int4" }, (db, p) =>
  db
    .selectFrom("job_schedule_fires as f")
    .where("f.schedule_id", "=", p.id)
    .where("f.intended_at", "<", sql<Date>`${p.before}`)
    .select(["f.intended_at", "f.fired_at", "f.outcome", "f.job_id", "f.run_id"])
    .orderBy("f.intended_at", "desc")
    .limit(p.limit),
);

function decoded(row: Awaited<ReturnType<typeof get.execute>>[number], payload: JsonValue): Schedule {
  return {
    name: row.name,
    organizationId: row.organization_id,
    cron: row.cron,
    timeZone: row.time_zone,
    target: row.target === "JOB" ? "job" : "workflow",
    type: row.target_type,
    payload,
    priority: row.priority,
    maxAttempts: row.max_attempts,
    timeoutSeconds: row.timeout_seconds,
    tags: row.tags ?? [],
    limit: limitOf(row),
    deadlineSeconds: toNumberOrNull(row.deadline_seconds),
    catchUp: decodeCatchUp(row.catch_up),
    backfillLimit: row.backfill_limit,
    graceSeconds: row.grace_seconds,
    overlap: decodeOverlap(row.overlap),
    jitterSeconds: row.jitter_seconds,
    startAt: toDateOrNull(row.starts_at),
    endAt: toDateOrNull(row.ends_at),
    enabled: row.enabled,
    paused: row.paused,
    catalogue: row.catalogue,
    nextAt: toDateOrNull(row.intended_at),
    dueAt: toDateOrNull(row.due_at),
    overdueSeconds: toNumber(row.overdue),
    lastAt: toDateOrNull(row.last_intended_at),
    lastJobId: row.last_job_id,
    lastRunId: row.last_run_id,
    failure: failureOf(row),
  };
}

function failureOf(row: Awaited<ReturnType<typeof get.execute>>[number]): ScheduleFailure | null {
  const at = toDateOrNull(row.failed_at);
  if (at === null || row.error_code === null || row.error_message === null) return null;
  return { code: row.error_code, message: row.error_message, at, count: row.failures };
}

function fireOf(row: Awaited<ReturnType<typeof fires.execute>>[number]): ScheduleFire {
  return {
    intendedAt: toDate(row.intended_at),
    firedAt: toDate(row.fired_at),
    outcome: decodeOutcome(row.outcome),
    jobId: row.job_id,
    runId: row.run_id,
  };
}
