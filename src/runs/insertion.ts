/** How prepared runs become rows, with or without keys: all rows of all graphs in one statement. */
import { type QueryCreator, type RawBuilder, sql } from "kysely";
import { announceJobs } from "../database/announce.ts";
import { type Placeholders, type RowOf, rowsOf } from "../database/parameters.ts";
import type { RunStatus } from "../database/statuses.ts";
import type { LedgerTables } from "../database/tables.ts";
import { insertReleased } from "../jobs/insertion.ts";
import {
  edgeRows,
  insertEdges,
  insertSteps,
  releasedAtOnce,
  stepArrayParameters,
  stepArrays,
  stepRows,
} from "../steps/insertion.ts";
import { statusByCounters } from "../steps/run-status.ts";
import type { PreparedRun } from "./prepare.ts";

/** What became of one request. */
export interface EnqueuedRun {
  readonly id: string;
  readonly status: RunStatus;
  /** `existing`: the run that the idempotency key gave before. `existing_active`: the live run of the active key. */
  readonly disposition: "inserted" | "existing" | "existing_active";
}

export const runArrayParameters = {
  ids: "uuid[]",
  types: "text[]",
  organizations: "uuid?[]",
  results: "uuid?[]",
  deadlines: "float8?[]",
  parentRuns: "uuid?[]",
  parentSteps: "uuid?[]",
  stepCounts: "int4[]",
  opens: "int4[]",
  waitings: "int4[]",
  ...stepArrayParameters,
  notify: "bool",
} as const;

type RunPlaceholders = Placeholders<typeof runArrayParameters>;

export function runArrays(runs: readonly PreparedRun[]) {
  return {
    ids: runs.map(({ runId }) => runId),
    types: runs.map(({ type }) => type),
    organizations: runs.map(({ organizationId }) => organizationId),
    results: runs.map(({ resultStepId }) => resultStepId),
    deadlines: runs.map(({ deadlineSeconds }) => deadlineSeconds),
    parentRuns: runs.map(({ parent }) => parent?.runId ?? null),
    parentSteps: runs.map(({ parent }) => parent?.stepId ?? null),
    stepCounts: runs.map(({ steps }) => steps.length),
    opens: runs.map(({ open }) => open),
    waitings: runs.map(({ waiting }) => waiting),
    ...stepArrays(runs),
  };
}

/** The rows of the runs, for the CTE `input`. */
export function runRows(p: RunPlaceholders) {
  return rowsOf("given", runColumns(p));
}

export function runColumns(p: RunPlaceholders) {
  return {
    id: p.ids,
    type: p.types,
    organization_id: p.organizations,
    result_step_id: p.results,
    deadline_seconds: p.deadlines,
    parent_run_id: p.parentRuns,
    parent_step_id: p.parentSteps,
    step_count: p.stepCounts,
    open_count: p.opens,
    waiting_count: p.waitings,
  };
}

/** Inserts the runs of `input` that `admitted` lets through; with a key in the order of these, but for those whose key is taken. */
export function insertRunRows(
  qb: QueryCreator<LedgerTables & { input: RowOf<ReturnType<typeof runRows>> }>,
  schema: string,
  admitted: RawBuilder<boolean>,
  keys: readonly ["active_key"] | readonly [] = [],
) {
  return qb
    .insertInto("workflow_runs")
    .columns([
      "id",
      "type",
      "organization_id",
      "result_step_id",
      "parent_run_id",
      "parent_step_id",
      "step_count",
      "open_count",
      "waiting_count",
      "errored_count",
      "status",
      "deadline_at",
      ...keys,
    ])
    .expression((eb) =>
      eb
        .selectFrom("input as i")
        .where(admitted)
        .select([
          "i.id",
          "i.type",
          "i.organization_id",
          "i.result_step_id",
          "i.parent_run_id",
          "i.parent_step_id",
          "i.step_count",
          "i.open_count",
          "i.waiting_count",
          sql<number>`0`.as("errored_count"),
          statusByCounters(schema, sql<number>`i.open_count`, sql<number>`i.waiting_count`, sql<number>`0`).as(
            "status",
          ),
          sql<Date | null>`now() + make_interval(secs => i.deadline_seconds)`.as("deadline_at"),
          ...keys.map((key) => sql<string | null>`${sql.ref(`i.${key}`)}`.as(key)),
        ])
        .$if(keys.length > 0, (query) =>
          query.orderBy("i.type").orderBy("i.organization_id").orderBy(sql.ref("i.active_key")).orderBy("i.id"),
        ),
    )
    .$if(keys.length > 0, (query) => query.onConflict((conflict) => conflict.doNothing()))
    .returning(["id", "organization_id", "status"]);
}

type InsertedRun = { readonly id: string; readonly organization_id: string | null; readonly status: RunStatus };

/**
 * Steps, edges and first jobs of the runs that the CTE `runs` has inserted, and the answer for each. Foreign keys are
 * checked at the end of the statement, when the rows of all tables are there.
 */
export function withGraphs(db: QueryCreator<LedgerTables & { runs: InsertedRun }>, p: RunPlaceholders, schema: string) {
  return db
    .with("step", (qb) =>
      qb
        .selectFrom(stepRows(p))
        .innerJoin("runs as a", "a.id", "given.run_id")
        .selectAll("given")
        .select("a.organization_id"),
    )
    .with("steps", (qb) => insertSteps(qb, schema))
    .with("edge", (qb) => qb.selectFrom(edgeRows(p)).innerJoin("runs as a", "a.id", "e.run_id").selectAll("e"))
    .with("edges", (qb) => insertEdges(qb, schema))
    .with("released", (qb) => releasedAtOnce(qb))
    .with("inserted", (qb) => insertReleased(qb))
    .with(
      (cte) => cte("announced").materialized(),
      (qb) => qb.selectNoFrom(announceJobs(p.notify, schema, sql`select from inserted`).as("jobs")),
    )
    .selectFrom("runs")
    .innerJoin("announced", (join) => join.onTrue())
    .select(["runs.id", "runs.status", sql<boolean>`exists (select from inserted)`.as("due")]);
}
