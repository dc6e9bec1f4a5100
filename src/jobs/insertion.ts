/** How prepared jobs become rows of the queue, with or without idempotency keys. */
import { type QueryCreator, type RawBuilder, sql } from "kysely";
import type { Announcing } from "../database/announce.ts";
import type { JsonColumn } from "../database/column-types.ts";
import { type Placeholders, type RowOf, rowsOf, sparse } from "../database/parameters.ts";
import type { JobStatus } from "../database/statuses.ts";
import type { LedgerTables } from "../database/tables.ts";
import { LedgerError } from "../errors.ts";
import { resolved } from "./defaults.ts";
import { limitArrays, limitColumns, limitParameters } from "./limits.ts";
import type { PreparedJob } from "./request.ts";

/** What became of one request. */
export interface EnqueuedJob {
  readonly id: string;
  readonly status: JobStatus;
  readonly runNumber: number;
  /**
   * What the request's key came upon. `existing`: the job that the idempotency key gave before. `existing_active`: the
   * live job of the active key. `replaced`: the pending job of the key, with this payload now. `throttled`: the job
   * that the window has already.
   */
  readonly disposition: "inserted" | "existing" | "existing_active" | "replaced" | "throttled";
}

export interface EnqueueOptions {
  /** Refuse types that have no enabled definition, with `job.definition_not_found_or_disabled`. Default false. */
  readonly strict?: boolean;
}

export function insertedJob(id: string): EnqueuedJob {
  return { id, status: "PENDING", runNumber: 1, disposition: "inserted" };
}

export function enqueueFlags({ notify }: Announcing, options: EnqueueOptions) {
  return { strict: options.strict ?? false, notify };
}

export function refuseUnknownTypes(types: readonly string[]): void {
  if (types.length > 0) throw new LedgerError("job.definition_not_found_or_disabled", { details: { types } });
}

/** The parameters that carry prepared jobs as parallel arrays. */
export const jobArrayParameters = {
  ids: "uuid[]",
  types: "text[]",
  payloads: "jsonb[]",
  priorities: "int4?[]",
  maxAttempts: "int4?[]",
  timeouts: "int4?[]",
  runAts: "timestamptz?[]",
  organizations: "uuid?[]",
  tags: "text?[]",
  metadata: "jsonb?[]",
  ...limitParameters,
  strict: "bool",
  notify: "bool",
} as const;

export function jobArrays(jobs: readonly PreparedJob[]) {
  return {
    ids: jobs.map(({ id }) => id),
    types: jobs.map(({ type }) => type),
    payloads: jobs.map(({ payload }) => payload),
    priorities: sparse(jobs, ({ settings }) => settings.priority),
    maxAttempts: sparse(jobs, ({ settings }) => settings.maxAttempts),
    timeouts: sparse(jobs, ({ settings }) => settings.timeoutSeconds),
    runAts: sparse(jobs, ({ runAt }) => runAt),
    organizations: sparse(jobs, ({ organizationId }) => organizationId),
    tags: sparse(jobs, ({ tags }) => tags),
    metadata: sparse(jobs, ({ metadata }) => metadata),
    ...limitArrays(jobs.map(({ limit }) => limit)),
  };
}

/** The input rows of an enqueue, under the name `input`. */
export function inputRows(p: JobPlaceholders) {
  return rowsOf("input", inputColumns(p));
}

export function inputColumns(p: JobPlaceholders) {
  return {
    id: p.ids,
    type: p.types,
    payload: p.payloads,
    priority: p.priorities,
    max_attempts: p.maxAttempts,
    timeout_seconds: p.timeouts,
    run_at: p.runAts,
    organization_id: p.organizations,
    tags: p.tags,
    metadata: p.metadata,
    limit_key: p.limitKeys,
    limit_concurrency: p.limitConcurrencies,
    limit_starts: p.limitStarts,
    limit_period_seconds: p.limitPeriods,
  };
}

type JobPlaceholders = Placeholders<typeof jobArrayParameters>;
type WithInput = LedgerTables & { input: RowOf<ReturnType<typeof inputRows>> };

/** The types that a strict enqueue refuses; empty when it is not strict. */
export function refusedTypes(qb: QueryCreator<WithInput>, p: JobPlaceholders) {
  return qb
    .selectFrom("input")
    .leftJoin("job_definitions as d", (join) => join.onRef("d.type", "=", "input.type").on("d.enabled", "=", true))
    .where(p.strict)
    .where("d.type", "is", null)
    .select("input.type")
    .distinct();
}

/** The keys of live jobs. */
export const liveKeyColumns = ["active_key", "debounce_key"] as const;

/**
 * Inserts the input rows that `admitted` lets through, with all settings resolved. With keys they are inserted in the
 * order of these, so that two batches which share some cannot wait for each other.
 */
export function insertAdmitted(
  qb: QueryCreator<WithInput>,
  admitted: RawBuilder<boolean>,
  keys: typeof liveKeyColumns | readonly [] = [],
) {
  return qb
    .insertInto("job_queue")
    .columns([
      "id",
      "type",
      "payload",
      "priority",
      "max_attempts",
      "timeout_seconds",
      "run_at",
      "organization_id",
      "tags",
      "metadata",
      ...limitColumns,
      ...keys,
    ])
    .expression((eb) =>
      eb
        .selectFrom("input")
        .leftJoin("job_definitions as d", "d.type", "input.type")
        .where(admitted)
        .select([
          "input.id",
          "input.type",
          "input.payload",
          resolved("input", "d", "priority").as("priority"),
          resolved("input", "d", "max_attempts").as("max_attempts"),
          resolved("input", "d", "timeout_seconds").as("timeout_seconds"),
          sql<Date>`coalesce(input.run_at, now())`.as("run_at"),
          "input.organization_id",
          sql<string[]>`input.tags::text[]`.as("tags"),
          "input.metadata",
          ...limitColumns.map((column) => `input.${column}` as const),
          ...keys.map((key) => sql<string | null>`${sql.ref(`input.${key}`)}`.as(key)),
        ])
        .$if(keys.length > 0, (query) =>
          query
            .orderBy("input.type")
            .orderBy("input.organization_id")
            .orderBy(sql.ref("input.active_key"))
            .orderBy(sql.ref("input.debounce_key"))
            .orderBy("input.id"),
        )
        // As they were asked for, whatever the join makes of it: indexes grow at their end.
        .$if(keys.length === 0, (query) => query.orderBy("input.id")),
    )
    .returning(["id", "run_at"]);
}

/** A job of a step that becomes runnable, with the settings that its step requests. */
export interface ReleasedRow {
  readonly job_id: string | null;
  readonly job_type: string | null;
  readonly payload: JsonColumn | null;
  readonly priority: number | null;
  readonly max_attempts: number | null;
  readonly timeout_seconds: number | null;
  readonly run_number: number;
  readonly delay_seconds: number | null;
  readonly limit_key: string | null;
  readonly limit_concurrency: number | null;
  readonly limit_starts: number | null;
  readonly limit_period_seconds: number | null;
  readonly organization_id: string | null;
  readonly run_id: string;
  readonly step_id: string;
}

export const releasedColumns = [
  "id",
  "run_number",
  "type",
  "payload",
  "priority",
  "max_attempts",
  "timeout_seconds",
  "run_at",
  "organization_id",
  "workflow_run_id",
  "workflow_step_id",
  ...limitColumns,
] as const;

/** The jobs of the CTE `released` in these columns, due after their delays. */
export function releasedRows(qb: QueryCreator<LedgerTables & { released: ReleasedRow }>) {
  return qb
    .selectFrom("released")
    .leftJoin("job_definitions as d", "d.type", "released.job_type")
    .select([
      "released.job_id as id",
      "released.run_number",
      "released.job_type as type",
      "released.payload",
      resolved("released", "d", "priority").as("priority"),
      resolved("released", "d", "max_attempts").as("max_attempts"),
      resolved("released", "d", "timeout_seconds").as("timeout_seconds"),
      sql<Date>`now() + make_interval(secs => coalesce(released.delay_seconds, 0))`.as("run_at"),
      "released.organization_id",
      "released.run_id as workflow_run_id",
      "released.step_id as workflow_step_id",
      ...limitColumns.map((column) => `released.${column}` as const),
    ]);
}

export function insertReleased(qb: QueryCreator<LedgerTables & { released: ReleasedRow }>) {
  return qb.insertInto("job_queue").columns(releasedColumns).expression(releasedRows(qb)).returning("id");
}
