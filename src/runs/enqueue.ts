/** Enqueue runs: all rows of all graphs in one statement, whatever their size (FEATURES F-W2). */
import { sql } from "kysely";
import { announceJobs } from "../database/announce.ts";
import type { Executor } from "../database/executor.ts";
import { rowsOf } from "../database/parameters.ts";
import { reading, writing } from "../database/statement.ts";
import { decodeRunStatus, type RunStatus } from "../database/statuses.ts";
import { allOrNothing, inTransaction, requireReadCommitted } from "../database/transaction.ts";
import { type Remembered, sameRequest } from "../database/values/sameness.ts";
import { LedgerError } from "../errors.ts";
import { insertReleased } from "../jobs/insertion.ts";
import { boundedHere, boundedInCaller, lockWaitFor } from "../locks/wait.ts";
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
import { type PreparedRun, prepareRun, type RunOptions } from "./prepare.ts";
import type { GraphSpec } from "./spec.ts";

export interface RunRequest extends RunOptions {
  readonly graph: GraphSpec;
}

/** What became of one request. */
export interface EnqueuedRun {
  readonly id: string;
  readonly status: RunStatus;
  /** `existing`: the idempotency key named a run that is there already. */
  readonly disposition: "inserted" | "existing";
}

/**
 * Enqueues runs, all or none, and answers in the order of the requests; their root steps become
 * runnable at once. One round trip; one more when an idempotency key exists already, two more for a
 * transaction around several runs of which some have keys; in a caller's transaction, with keys, three for its level
 * and the bound of the wait for who takes the same key, and one for a savepoint around several. Throws `workflow.invalid_dag_*`, `workflow.enqueue_conflicting_retry`, `input.invalid`,
 * `payload.not_json`, `payload.too_large`, `payload.reserved`, `payload.invalid`, `payload.unencodable`,
 * `payload.undecodable`, `payload.codec_unavailable`, `workflow.enqueue_idempotency_unsupported_isolation`.
 */
export async function enqueueRuns(executor: Executor, requests: readonly RunRequest[]): Promise<EnqueuedRun[]> {
  if (requests.length === 0) return [];
  const runs: PreparedRun[] = [];
  for (const [place, { graph, ...options }] of requests.entries()) {
    const at = requests.length > 1 ? `runs[${place}].` : "";
    runs.push(await prepareRun(executor.settings.values, graph, options, { at }));
  }
  if (runs.every(({ idempotencyKey }) => idempotencyKey === null)) return insertRuns(executor, runs);
  await requireReadCommitted(executor, "workflow.enqueue_idempotency_unsupported_isolation");
  // A single run whose key exists has written nothing, so there is nothing to take back.
  if (runs.length === 1) return boundedInCaller(executor, () => insertRuns(executor, runs));
  return inTransaction(executor, (trx) => allOrNothing(trx, () => boundedInCaller(trx, () => insertRuns(trx, runs))));
}

/** Inserts prepared runs; those whose keys exist are found instead. One round trip, two where some exist. */
export async function insertRuns(executor: Executor, runs: readonly PreparedRun[]): Promise<EnqueuedRun[]> {
  const inserted = await insert.execute(executor, {
    ...runArrays(runs),
    ...stepArrays(runs),
    lockWait: lockWaitFor(executor),
    notify: executor.settings.notify,
  });
  const statuses = new Map(inserted.map(({ id, status }) => [id, decodeRunStatus(status)]));
  const kept = runs.filter(({ runId }) => !statuses.has(runId));
  const found = kept.length === 0 ? new Map<string, EnqueuedRun>() : await findExisting(executor, kept);
  return runs.map(({ runId: id }) => {
    const status = statuses.get(id);
    const run = status === undefined ? found.get(id) : ({ id, status, disposition: "inserted" } as const);
    if (run === undefined) throw new LedgerError("workflow.internal_state");
    return run;
  });
}

/** The runs that hold the keys, by the id that the request would have got. Throws `workflow.enqueue_conflicting_retry`. */
async function findExisting(executor: Executor, runs: readonly PreparedRun[]): Promise<Map<string, EnqueuedRun>> {
  const { ids, types, organizations, keys, requested } = runArrays(runs);
  const rows = await existing.execute(executor, { ids, types, organizations, keys, requested });
  const requests = new Map(runs.map((run) => [run.runId, run.requested]));
  for (const { id, same, stored } of rows) {
    const request = requests.get(id) ?? null;
    if (same || (await isSame(executor, stored, request))) continue;
    throw new LedgerError("workflow.enqueue_conflicting_retry");
  }
  if (rows.length < runs.length) {
    throw new LedgerError("workflow.run_not_found", { message: "The run of an idempotency key is gone." });
  }
  return new Map(
    rows.map((row) => [row.id, { id: row.run_id, status: decodeRunStatus(row.status), disposition: "existing" }]),
  );
}

function isSame({ settings }: Executor, stored: string | null, request: Remembered | null) {
  return stored !== null && request !== null && sameRequest(settings.values, stored, request);
}

function runArrays(runs: readonly PreparedRun[]) {
  return {
    ids: runs.map(({ runId }) => runId),
    types: runs.map(({ type }) => type),
    organizations: runs.map(({ organizationId }) => organizationId),
    keys: runs.map(({ idempotencyKey }) => idempotencyKey),
    requested: runs.map(({ requested }) => requested?.stored ?? null),
    results: runs.map(({ resultStepId }) => resultStepId),
    deadlines: runs.map(({ deadlineSeconds }) => deadlineSeconds),
    parentRuns: runs.map(({ parent }) => parent?.runId ?? null),
    parentSteps: runs.map(({ parent }) => parent?.stepId ?? null),
    stepCounts: runs.map(({ steps }) => steps.length),
    opens: runs.map(({ open }) => open),
    waitings: runs.map(({ waiting }) => waiting),
  };
}

const keyParameters = {
  ids: "uuid[]",
  types: "text[]",
  organizations: "uuid?[]",
  keys: "text?[]",
  requested: "jsonb?[]",
} as const;

const insertParameters = {
  ...keyParameters,
  ...stepArrayParameters,
  results: "uuid?[]",
  deadlines: "float8?[]",
  parentRuns: "uuid?[]",
  parentSteps: "uuid?[]",
  stepCounts: "int4[]",
  opens: "int4[]",
  waitings: "int4[]",
  lockWait: "int4?",
  notify: "bool",
} as const;

// Foreign keys are checked at the end of the statement, when the rows of all tables are there. Keys are
// taken in their own order, so that two batches which share keys cannot wait for each other.
const insert = writing("enqueue_workflow_runs", insertParameters, (db, p, schema) =>
  db
    .with("input", (qb) =>
      qb
        .selectFrom(
          rowsOf("given", {
            id: p.ids,
            type: p.types,
            organization_id: p.organizations,
            key: p.keys,
            requested: p.requested,
            result_step_id: p.results,
            deadline_seconds: p.deadlines,
            parent_run_id: p.parentRuns,
            parent_step_id: p.parentSteps,
            step_count: p.stepCounts,
            open_count: p.opens,
            waiting_count: p.waitings,
          }),
        )
        .selectAll(),
    )
    .with("taken", (qb) =>
      qb
        .insertInto("workflow_idempotency_keys")
        .columns(["run_id", "type", "organization_id", "key", "requested"])
        .expression((eb) =>
          eb
            .selectFrom("input")
            .where("input.key", "is not", null)
            .where(boundedHere(p.lockWait))
            .select(["input.id", "input.type", "input.organization_id", "input.key", "input.requested"])
            .orderBy("input.type")
            .orderBy("input.organization_id")
            .orderBy("input.key"),
        )
        .onConflict((conflict) => conflict.doNothing())
        .returning("run_id"),
    )
    .with("admitted", (qb) =>
      qb
        .selectFrom("input")
        .where(sql<boolean>`input.key is null or input.id in (select run_id from taken)`)
        .select(["input.id", "input.organization_id"]),
    )
    .with("runs", (qb) =>
      qb
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
        ])
        .expression((eb) =>
          eb
            .selectFrom("input as i")
            .innerJoin("admitted as a", "a.id", "i.id")
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
            ]),
        )
        .returning(["id", "status"]),
    )
    .with("step", (qb) =>
      qb
        .selectFrom(stepRows(p))
        .innerJoin("admitted as a", "a.id", "given.run_id")
        .selectAll("given")
        .select("a.organization_id"),
    )
    .with("steps", (qb) => insertSteps(qb, schema))
    .with("edge", (qb) => qb.selectFrom(edgeRows(p)).innerJoin("admitted as a", "a.id", "e.run_id").selectAll("e"))
    .with("edges", (qb) => insertEdges(qb, schema))
    .with("released", (qb) => releasedAtOnce(qb))
    .with("inserted", (qb) => insertReleased(qb))
    .with(
      (cte) => cte("announced").materialized(),
      (qb) => qb.selectNoFrom(announceJobs(p.notify, schema, sql`select from inserted`).as("jobs")),
    )
    .selectFrom("runs")
    .innerJoin("announced", (join) => join.onTrue())
    .select(["runs.id", "runs.status"]),
);

const existing = reading("find_keyed_workflow_runs", keyParameters, (db, p) =>
  db
    .selectFrom(
      rowsOf("keyed", {
        id: p.ids,
        type: p.types,
        organization_id: p.organizations,
        key: p.keys,
        requested: p.requested,
      }),
    )
    .innerJoin("workflow_idempotency_keys as k", (join) =>
      join
        .onRef("k.type", "=", "keyed.type")
        .on(sql<boolean>`k.tenant = coalesce(keyed.organization_id::text, 'global')`)
        .onRef("k.key", "=", "keyed.key"),
    )
    .innerJoin("workflow_runs as r", "r.id", "k.run_id")
    .select([
      "keyed.id",
      "k.run_id",
      "r.status",
      sql<boolean>`k.requested = keyed.requested`.as("same"),
      sql<string | null>`case when k.requested <> keyed.requested then k.requested::text end`.as("stored"),
    ]),
);
