/** Schedules declared in code, kept in step with the database at start-up; and one written at run time (FEATURES F-S2). */
import { type QueryCreator, sql } from "kysely";
import { toDate } from "../database/decode.ts";
import type { Executor } from "../database/executor.ts";
import { type Placeholders, type RowOf, rowsOf } from "../database/parameters.ts";
import { reading, writing } from "../database/statement.ts";
import type { ScheduleCatchUp, ScheduleOverlap, ScheduleTarget } from "../database/tables.generated.ts";
import type { LedgerTables } from "../database/tables.ts";
import { LedgerError } from "../errors.ts";
import { validName } from "../jobs/arguments.ts";
import { limitArrays, limitColumns, limitParameters } from "../jobs/limits.ts";
import { boundedHere, boundedInCaller, lockWaitFor } from "../locks/wait.ts";
import { tickAfter } from "./cron.ts";
import type { ScheduleDefinition } from "./definition.ts";
import { type PreparedSchedule, prepareSchedules } from "./prepare.ts";
import { getSchedule, type Schedule } from "./read.ts";

export interface SyncSchedulesOptions {
  /**
   * `additive` (the default) only writes what differs. `exact` also disables what this catalogue wrote
   * before and no longer holds. An operator's pause is kept by both.
   */
  readonly mode?: "additive" | "exact";
  /** Whose schedules these are: the owned scope of `exact`. Default `default`. */
  readonly catalogue?: string;
}

export interface SyncedSchedules {
  /** Names of the schedules that were written because they were new or differed. */
  readonly written: readonly string[];
  /** Names of the schedules that were disabled because the catalogue no longer holds them. */
  readonly disabled: readonly string[];
}

/**
 * Writes the schedules that differ. One whose times changed, or that was disabled, is timed from the database's now; any
 * other keeps its next time. Two round trips; two more in a caller's transaction. Throws `input.invalid`, `payload.not_json`, `payload.invalid`,
 * `schedule.cron_invalid`, `schedule.time_zone_invalid`.
 */
export async function syncSchedules(
  executor: Executor,
  definitions: readonly ScheduleDefinition[],
  options: SyncSchedulesOptions = {},
): Promise<SyncedSchedules> {
  const { mode = "additive", catalogue = "default" } = options;
  if (mode !== "additive" && mode !== "exact") {
    throw new LedgerError("input.invalid", { message: "mode must be additive or exact." });
  }
  const schedules = await prepareSchedules(executor.settings.values, definitions);
  return write(executor, schedules, { catalogue: validName(catalogue, "catalogue"), exact: mode === "exact" });
}

/**
 * Creates a schedule, or makes the one of this name and tenant what the definition says; no catalogue owns it from then on.
 * Three round trips; two more in a caller's transaction. Throws as `syncSchedules`.
 */
export async function upsertSchedule(executor: Executor, definition: ScheduleDefinition): Promise<Schedule> {
  const schedules = await prepareSchedules(executor.settings.values, [definition]);
  await write(executor, schedules, { catalogue: null, exact: false });
  const organization = schedules[0]?.organizationId ?? null;
  return getSchedule(executor, definition.name, organization === null ? { global: true } : { organization });
}

interface Ownership {
  readonly catalogue: string | null;
  readonly exact: boolean;
}

async function write(
  executor: Executor,
  schedules: readonly PreparedSchedule[],
  ownership: Ownership,
): Promise<SyncedSchedules> {
  const now = await databaseNow(executor);
  const row = await boundedInCaller(executor, () =>
    sync.executeFirst(executor, { ...arraysOf(schedules, now), ...ownership, lockWait: lockWaitFor(executor) }),
  );
  return { written: row?.written ?? [], disabled: row?.disabled ?? [] };
}

async function databaseNow(executor: Executor): Promise<Date> {
  const row = await clock.executeFirst(executor, {});
  return toDate(row?.now);
}

const clock = reading("schedule_clock", {}, () => sql<{ now: Date }>`select clock_timestamp() as now`);

function arraysOf(schedules: readonly PreparedSchedule[], now: Date) {
  return {
    ids: schedules.map(({ id }) => id),
    names: schedules.map(({ name }) => name),
    organizations: schedules.map(({ organizationId }) => organizationId),
    crons: schedules.map(({ cron }) => cron),
    timeZones: schedules.map(({ timeZone }) => timeZone),
    startsAts: schedules.map(({ startsAt }) => startsAt),
    endsAts: schedules.map(({ endsAt }) => endsAt),
    targets: schedules.map(({ target }) => target.kind),
    types: schedules.map(({ target }) => target.type),
    payloads: schedules.map(({ target }) => target.payload),
    digests: schedules.map(({ target }) => target.digest),
    priorities: schedules.map(({ target }) => target.settings.priority),
    maxAttempts: schedules.map(({ target }) => target.settings.maxAttempts),
    timeouts: schedules.map(({ target }) => target.settings.timeoutSeconds),
    tags: schedules.map(({ target }) => target.tags),
    ...limitArrays(schedules.map(({ target }) => target.limit)),
    deadlines: schedules.map(({ target }) => target.deadlineSeconds),
    catchUps: schedules.map(({ catchUp }) => catchUp),
    backfillLimits: schedules.map(({ backfillLimit }) => backfillLimit),
    graces: schedules.map(({ graceSeconds }) => graceSeconds),
    overlaps: schedules.map(({ overlap }) => overlap),
    jitters: schedules.map(({ jitterSeconds }) => jitterSeconds),
    enableds: schedules.map(({ enabled }) => enabled),
    firsts: schedules.map((schedule) => (schedule.enabled ? tickAfter(schedule, now) : null)),
  };
}

const syncParameters = {
  ids: "uuid[]",
  names: "text[]",
  organizations: "uuid?[]",
  crons: "text[]",
  timeZones: "text[]",
  startsAts: "timestamptz?[]",
  endsAts: "timestamptz?[]",
  targets: "text[]",
  types: "text[]",
  payloads: "jsonb[]",
  digests: "jsonb?[]",
  priorities: "int4?[]",
  maxAttempts: "int4?[]",
  timeouts: "int4?[]",
  tags: "text?[]",
  ...limitParameters,
  deadlines: "float8?[]",
  catchUps: "text[]",
  backfillLimits: "int4[]",
  graces: "int4[]",
  overlaps: "text[]",
  jitters: "int4[]",
  enableds: "bool[]",
  firsts: "timestamptz?[]",
  catalogue: "text?",
  exact: "bool",
  lockWait: "int4?",
} as const;

type SyncPlaceholders = Placeholders<typeof syncParameters>;

function inputRows(p: SyncPlaceholders) {
  return rowsOf("given", {
    id: p.ids,
    name: p.names,
    organization_id: p.organizations,
    cron: p.crons,
    time_zone: p.timeZones,
    starts_at: p.startsAts,
    ends_at: p.endsAts,
    target: p.targets,
    target_type: p.types,
    payload: p.payloads,
    payload_digest: p.digests,
    priority: p.priorities,
    max_attempts: p.maxAttempts,
    timeout_seconds: p.timeouts,
    tags: p.tags,
    limit_key: p.limitKeys,
    limit_concurrency: p.limitConcurrencies,
    limit_starts: p.limitStarts,
    limit_period_seconds: p.limitPeriods,
    deadline_seconds: p.deadlines,
    catch_up: p.catchUps,
    backfill_limit: p.backfillLimits,
    grace_seconds: p.graces,
    overlap: p.overlaps,
    jitter_seconds: p.jitters,
    enabled: p.enableds,
    first: p.firsts,
  });
}

type WithInput = LedgerTables & { input: RowOf<ReturnType<typeof inputRows>> };

/** The columns whose change times a schedule anew. */
const timingColumns = ["cron", "time_zone", "starts_at", "ends_at", "enabled"] as const;
const plainColumns = [
  "target_type",
  "priority",
  "max_attempts",
  "timeout_seconds",
  ...limitColumns,
  "deadline_seconds",
  "backfill_limit",
  "grace_seconds",
  "jitter_seconds",
] as const;
const comparedColumns = [...timingColumns, ...plainColumns, "target", "catch_up", "overlap", "tags", "catalogue"];
/** Compared as one: by the digest where there is one. */
const payloadColumns = ["payload", "payload_digest"] as const;

// Whoever locks several schedules does so by tenant and name, as an insert must: so two calls cannot wait for each
// other. An insert waits for another session's insert of the same name, and then compares with that.
const sync = writing("sync_schedules", syncParameters, (db, p, schema) =>
  db
    .with("input", (qb) => qb.selectFrom(inputRows(p)).selectAll())
    .with(
      (cte) => cte("held").materialized(),
      (qb) =>
        qb
          .selectFrom("job_schedules as c")
          .where(boundedHere(p.lockWait))
          .where(
            sql<boolean>`c.id = any(array(
              select known.id from input
              join ${sql.id(schema, "job_schedules")} as known
                on known.tenant = coalesce(input.organization_id::text, 'global') and known.name = input.name
              union all
              select owned.id from ${sql.id(schema, "job_schedules")} as owned
              where ${p.exact} and owned.catalogue = ${p.catalogue}
            ))`,
          )
          .select("c.id")
          .orderBy("c.tenant")
          .orderBy("c.name")
          .forUpdate("c"),
    )
    .with("written", (qb) => upserted(qb, p, schema))
    .with("disabled", (qb) =>
      qb
        .updateTable("job_schedules as c")
        .where(p.exact)
        .where(sql<boolean>`c.id = any(array(select id from held))`)
        .where("c.catalogue", "=", p.catalogue)
        .where("c.enabled", "=", true)
        .where(
          sql<boolean>`not exists (
            select from input
            where input.name = c.name and coalesce(input.organization_id::text, 'global') = c.tenant
          )`,
        )
        .set({ enabled: false, due_at: null, intended_at: null, updated_at: sql<Date>`now()` })
        .returning("c.name"),
    )
    .selectNoFrom([
      sql<string[]>`array(select name from written order by name)`.as("written"),
      sql<string[]>`array(select name from disabled order by name)`.as("disabled"),
    ]),
);

function upserted(qb: QueryCreator<WithInput>, p: SyncPlaceholders, schema: string) {
  const excluded = (column: string) => sql.ref(`excluded.${column}`);
  const payloadOf = (row: string) => sql`coalesce(${sql.ref(`${row}.payload_digest`)}, ${sql.ref(`${row}.payload`)})`;
  const otherPayload = sql<boolean>`${payloadOf("job_schedules")} is distinct from ${payloadOf("excluded")}`;
  const changed = (columns: readonly string[]) =>
    sql<boolean>`(${sql.join(columns.map((column) => sql.ref(`job_schedules.${column}`)))})
      is distinct from (${sql.join(columns.map(excluded))})`;
  // A pause stays: without a time nothing is fired, whatever the definition says. What was put off after a failure is due again.
  const next = sql<Date | null>`case
    when job_schedules.paused then null
    when ${changed(timingColumns)} then excluded.intended_at
    else job_schedules.intended_at
  end`;
  return qb
    .insertInto("job_schedules")
    .columns([
      ...timingColumns,
      ...plainColumns,
      ...payloadColumns,
      "id",
      "name",
      "organization_id",
      "target",
      "catch_up",
      "overlap",
      "tags",
      "catalogue",
      "intended_at",
      "due_at",
    ])
    .expression((eb) =>
      eb
        .selectFrom("input as i")
        .where(sql<boolean>`(select count(*) from held) >= 0`)
        .select([
          ...timingColumns.map((column) => `i.${column}` as const),
          ...plainColumns.map((column) => `i.${column}` as const),
          ...payloadColumns.map((column) => `i.${column}` as const),
          "i.id",
          "i.name",
          "i.organization_id",
          sql<ScheduleTarget>`i.target::${sql.id(schema, "schedule_target")}`.as("target"),
          sql<ScheduleCatchUp>`i.catch_up::${sql.id(schema, "schedule_catch_up")}`.as("catch_up"),
          sql<ScheduleOverlap>`i.overlap::${sql.id(schema, "schedule_overlap")}`.as("overlap"),
          sql<string[] | null>`i.tags::text[]`.as("tags"),
          p.catalogue.as("catalogue"),
          "i.first as intended_at",
          "i.first as due_at",
        ])
        .orderBy(sql`coalesce(i.organization_id::text, 'global')`)
        .orderBy("i.name"),
    )
    .onConflict((conflict) =>
      conflict
        .columns(["tenant", "name"])
        .doUpdateSet(() => ({
          ...Object.fromEntries([...comparedColumns, ...payloadColumns].map((column) => [column, excluded(column)])),
          intended_at: next,
          due_at: next,
          failed_at: null,
          failures: 0,
          error_code: null,
          error_message: null,
          updated_at: sql<Date>`now()`,
        }))
        .where(sql<boolean>`(${changed(comparedColumns)} or ${otherPayload})`),
    )
    .returning("name");
}
