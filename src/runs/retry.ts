/** Retry in place: failed steps of a run that has ended live again, and with them the run (FEATURES F-W11). */
import { sql } from "kysely";
import { announceJobs } from "../database/announce.ts";
import type { JsonColumn } from "../database/column-types.ts";
import type { Executor } from "../database/executor.ts";
import { validUuid } from "../database/ids.ts";
import { type JsonText, ownJson } from "../database/json.ts";
import { rowsOf } from "../database/parameters.ts";
import { type Scope, scopeArguments } from "../database/scope.ts";
import { writing } from "../database/statement.ts";
import { isTerminalStep, type RunStatus, type StepStatus } from "../database/statuses.ts";
import { inTransaction, requireReadCommitted } from "../database/transaction.ts";
import { LedgerError } from "../errors.ts";
import { validName } from "../jobs/arguments.ts";
import { insertReleased } from "../jobs/insertion.ts";
import { limitColumns } from "../jobs/limits.ts";
import { storableText } from "../jobs/outcome.ts";
import { lockRunReleaseExclusiveAfterJobs } from "../locks/release.ts";
import { lockRunsForUpdate, lockStepRowsForUpdate } from "../locks/rows.ts";
import { withBoundedWait } from "../locks/wait.ts";
import { countersChanged } from "../steps/run-status.ts";
import { findMutation, type Mutation, validStepKeys } from "./mutation.ts";
import { type Reopening, reopen, wasUnsatisfied } from "./reopen.ts";
import { type PlacedStep, type RunStructure, readStructure } from "./structure.ts";

export interface RetryRunOptions {
  readonly scope: Scope;
  /** Keys of steps that FAILED, or were CANCELED by somebody. Default: every step that FAILED. */
  readonly steps?: readonly string[];
  /** The same key gives the same retry, whatever became of it. At most 512 bytes. */
  readonly key?: string;
  /** Kept with the events of the jobs. */
  readonly reason?: string;
  /** Who retries; kept with the events of the jobs. */
  readonly retriedBy?: string;
}

export interface RetriedRun {
  readonly runId: string;
  /** The status that the run has now. */
  readonly status: RunStatus;
  /** The keys of the steps that are tried again, without those that only wait for them again. */
  readonly retried: readonly string[];
  /** `already_applied`: the key named a retry that was made before. */
  readonly disposition: "applied" | "already_applied";
}

/**
 * Retries failed steps of a run that ended COMPLETED_WITH_ERRORS. Each goes back into the queue, or opens
 * again, with fresh attempts; steps that were cancelled only because of them wait for them again; all
 * others keep their ends and outputs. Its wait for each lock is bounded. Thirteen round trips in a
 * transaction of its own, three when the key was used before or the run cannot be retried. Throws
 * `workflow.run_not_found`, `workflow.step_not_found`, `workflow.retry_not_failed`, `workflow.retry_run_canceled`,
 * `workflow.retry_child_run`, `workflow.retry_step_not_failed`, `workflow.retry_step_unsatisfied`,
 * `workflow.retry_map_step`, `workflow.active_key_taken`, `workflow.retry_conflicting_key`, `workflow.retry_unsupported_isolation`,
 * `scope.required`, `input.invalid`, `db.lock_timeout`.
 */
export async function retryRun(executor: Executor, runId: string, options: RetryRunOptions): Promise<RetriedRun> {
  const request = prepared(runId, options);
  await requireReadCommitted(executor, "workflow.retry_unsupported_isolation");
  return inTransaction(executor, async (trx) => {
    const before = await alreadyApplied(trx, request);
    if (before !== null) return before;
    return withBoundedWait(trx, async () => {
      await lockInOrder(trx, request);
      return (await alreadyApplied(trx, request)) ?? applied(trx, request);
    });
  });
}

interface RetryRequest extends Mutation {
  readonly steps: readonly string[] | null;
  readonly reason: string | null;
  readonly retriedBy: string | null;
}

function prepared(runId: string, { scope, steps, key, reason, retriedBy }: RetryRunOptions): RetryRequest {
  scopeArguments(scope);
  const keys = steps === undefined ? null : validStepKeys(steps, "steps");
  return {
    runId: validUuid(runId, "runId"),
    scope,
    key: key === undefined ? null : validName(key, "key"),
    mutation: "retry",
    requested: ownJson({ steps: keys }),
    steps: keys,
    reason: reason === undefined ? null : storableText(reason),
    retriedBy: retriedBy === undefined ? null : validName(retriedBy, "retriedBy"),
  };
}

/** The retry that the key names, or null. Throws when there is none and the run cannot be retried. One round trip. */
async function alreadyApplied(executor: Executor, request: RetryRequest): Promise<RetriedRun | null> {
  const { run, result } = await findMutation(executor, request, "workflow.retry_conflicting_key");
  const { runId } = request;
  if (result !== null) return { runId, status: run.status, retried: keysIn(result), disposition: "already_applied" };
  if (run.parentRunId !== null) throw new LedgerError("workflow.retry_child_run");
  if (run.status === "CANCELED") throw new LedgerError("workflow.retry_run_canceled");
  if (run.status !== "COMPLETED_WITH_ERRORS") {
    throw new LedgerError("workflow.retry_not_failed", { details: { status: run.status } });
  }
  return null;
}

/**
 * A run that has ended has no live jobs to lock before the release lock. When another retry was faster there
 * are some, but then nothing more is locked than the steps and the run, and nothing is written.
 */
async function lockInOrder(trx: Executor, { runId, scope }: RetryRequest): Promise<void> {
  await lockRunReleaseExclusiveAfterJobs(trx, [runId]);
  await lockStepRowsForUpdate(trx, [runId], scope);
  await lockRunsForUpdate(trx, [runId], scope);
}

async function applied(trx: Executor, request: RetryRequest): Promise<RetriedRun> {
  const { runId, key, requested, reason, retriedBy } = request;
  const structure = await readStructure(trx, runId);
  const chosen = chosenSteps(structure, request.steps);
  const retried = chosen.map((step) => step.key);
  const reopening = reopen(structure, new Set(chosen.map(({ id }) => id)));
  refuseUnsatisfied(reopening);
  const row = await retry.executeFirst(trx, {
    runId,
    ...changesOf(reopening, new Set(retried)),
    key,
    requested,
    result: ownJson({ retried }),
    reason,
    retriedBy,
    notify: trx.settings.notify,
  });
  if (row === undefined) throw new LedgerError("workflow.internal_state");
  return { runId, status: row.status, retried, disposition: "applied" };
}

/** Throws `workflow.step_not_found` or a `workflow.retry_*` code. */
function chosenSteps({ steps }: RunStructure, keys: readonly string[] | null): PlacedStep[] {
  if (keys !== null) {
    const named = new Map(steps.map((step) => [step.key, step]));
    for (const key of keys) requireRetryable(key, named.get(key));
    const wanted = new Set(keys);
    return steps.filter(({ key }) => wanted.has(key));
  }
  const failed = steps.filter(({ status, kind }) => status === "FAILED" && kind !== "MAP");
  if (failed.length > 0) return failed;
  const map = steps.find(({ status }) => status === "FAILED");
  if (map !== undefined) throw new LedgerError("workflow.retry_map_step", { details: { stepKey: map.key } });
  throw new LedgerError("workflow.retry_step_not_failed", { message: "No step of the workflow run has failed." });
}

function requireRetryable(stepKey: string, step: PlacedStep | undefined): void {
  if (step === undefined) throw new LedgerError("workflow.step_not_found", { details: { stepKey } });
  const { status, kind } = step;
  if (!isTerminalStep(status) || status === "SUCCEEDED" || wasUnsatisfied(step)) {
    throw new LedgerError("workflow.retry_step_not_failed", { details: { stepKey, status } });
  }
  if (kind === "MAP") throw new LedgerError("workflow.retry_map_step", { details: { stepKey } });
}

function refuseUnsatisfied({ reopened }: Reopening): void {
  const found = reopened.find(({ unsatisfiedCount }) => unsatisfiedCount > 0);
  if (found === undefined) return;
  throw new LedgerError("workflow.retry_step_unsatisfied", { details: { stepKey: found.step.key } });
}

function changesOf({ reopened, recounted, deltas }: Reopening, retried: ReadonlySet<string>) {
  return {
    stepIds: reopened.map(({ step }) => step.id),
    statuses: reopened.map(({ status }) => status),
    pendings: reopened.map(({ pendingCount }) => pendingCount),
    chosen: reopened.map(({ step }) => retried.has(step.key)),
    recountedIds: recounted.map(({ step }) => step.id),
    recountedPendings: recounted.map(({ pendingCount }) => pendingCount),
    recountedUnsatisfieds: recounted.map(({ unsatisfiedCount }) => unsatisfiedCount),
    open: deltas.open,
    waiting: deltas.waiting,
    errored: deltas.errored,
  };
}

function keysIn(result: JsonText): string[] {
  const { retried }: { retried: string[] } = JSON.parse(result);
  return retried;
}

const retryParameters = {
  runId: "uuid",
  stepIds: "uuid[]",
  statuses: "text[]",
  pendings: "int4[]",
  chosen: "bool[]",
  recountedIds: "uuid[]",
  recountedPendings: "int4[]",
  recountedUnsatisfieds: "int4[]",
  open: "int4",
  waiting: "int4",
  errored: "int4",
  key: "text?",
  requested: "jsonb",
  result: "jsonb",
  reason: "text?",
  retriedBy: "text?",
  notify: "bool",
} as const;

// Every row that changes here is locked by the transaction already.
const retry = writing("retry_workflow_run", retryParameters, (db, p, schema) =>
  db
    .with("change", (qb) =>
      qb
        .selectFrom(
          rowsOf("given", { step_id: p.stepIds, status: p.statuses, pending_count: p.pendings, chosen: p.chosen }),
        )
        .selectAll(),
    )
    .with("reopened", (qb) =>
      qb
        .updateTable("workflow_steps as s")
        .from("change as c")
        .where("s.run_id", "=", p.runId)
        .whereRef("s.id", "=", "c.step_id")
        .set((eb) => ({
          status: sql<StepStatus>`c.status::${sql.id(schema, "step_status")}`,
          pending_count: eb.ref("c.pending_count"),
          unsatisfied_count: 0,
          // The next after every run that the job has had; a run of the same number may be in the ledger.
          job_run_number: sql<number>`case when s.job_id is null then s.job_run_number else greatest(
            s.job_run_number + (s.status = 'FAILED')::integer,
            (${eb
              .selectFrom("job_ledger as l")
              .whereRef("l.id", "=", "s.job_id")
              .select(({ fn }) => fn.max("l.run_number").as("last"))}) + 1
          ) end`,
          released_at: sql<Date | null>`case when c.status <> 'BLOCKED' then clock_timestamp() end`,
          open_since: sql<Date | null>`case when c.status = 'WAITING_FOR_EXTERNAL' then clock_timestamp() end`,
          expires_at: sql<Date | null>`case when c.status = 'WAITING_FOR_EXTERNAL' then clock_timestamp() + make_interval(secs => s.expires_after_seconds) end`,
          started_at: null,
          ended_at: null,
          error_message: null,
          // A gate that never opened keeps the completion that came early, as it was.
          error_code: sql<
            string | null
          >`case when not c.chosen and s.kept_outcome <> 'SUCCEEDED' then 'workflow.external_' || lower(s.kept_outcome::text) end`,
          output: sql<string | null>`case when not c.chosen then s.output end`,
          completed_by: sql<string | null>`case when not c.chosen then s.completed_by end`,
          reason: sql<string | null>`case when not c.chosen then s.reason end`,
          kept_outcome: sql<StepStatus | null>`case when not c.chosen then s.kept_outcome end`,
          child_run_id: null,
        }))
        .returning([
          "s.job_id",
          "s.job_type",
          "s.payload",
          "s.priority",
          "s.max_attempts",
          "s.timeout_seconds",
          ...limitColumns.map((column) => `s.${column}` as const),
          "s.job_run_number as run_number",
          "s.organization_id",
          "s.run_id",
          "s.id as step_id",
          "c.status",
          "c.chosen",
        ]),
    )
    .with("recounted", (qb) =>
      qb
        .updateTable("workflow_steps as s")
        .from(
          rowsOf("c", {
            step_id: p.recountedIds,
            pending_count: p.recountedPendings,
            unsatisfied_count: p.recountedUnsatisfieds,
          }),
        )
        .where("s.run_id", "=", p.runId)
        .whereRef("s.id", "=", "c.step_id")
        .set((eb) => ({
          pending_count: eb.ref("c.pending_count"),
          unsatisfied_count: eb.ref("c.unsatisfied_count"),
        })),
    )
    // Without the steps' delays: their prerequisites ended long ago.
    .with("released", (qb) =>
      qb
        .selectFrom("reopened as o")
        .where("o.status", "=", "ENQUEUED")
        .select([
          "o.job_id",
          "o.job_type",
          "o.payload",
          "o.priority",
          "o.max_attempts",
          "o.timeout_seconds",
          ...limitColumns.map((column) => `o.${column}` as const),
          "o.run_number",
          sql<null>`null::float8`.as("delay_seconds"),
          "o.organization_id",
          "o.run_id",
          "o.step_id",
        ]),
    )
    .with("inserted", (qb) => insertReleased(qb))
    .with("noted", (qb) =>
      qb
        .insertInto("job_events")
        .columns(["job_id", "run_number", "event", "actor", "details"])
        .expression((eb) =>
          eb
            .selectFrom("reopened as o")
            .where("o.chosen", "=", true)
            .where("o.job_id", "is not", null)
            .select([
              "o.job_id",
              "o.run_number",
              sql<string>`'retried'`.as("event"),
              sql<string | null>`${p.retriedBy}`.as("actor"),
              sql<JsonColumn | null>`case when ${p.reason} is not null then jsonb_build_object('reason', ${p.reason}) end`.as(
                "details",
              ),
            ]),
        ),
    )
    .with("kept", (qb) =>
      qb
        .insertInto("workflow_run_mutations")
        .columns(["run_id", "mutation_key", "mutation", "requested", "result"])
        .expression((eb) =>
          eb
            .selectFrom("workflow_runs as r")
            .where("r.id", "=", p.runId)
            .where(sql<boolean>`${p.key} is not null`)
            .select([
              "r.id",
              sql<string>`${p.key}`.as("mutation_key"),
              sql<string>`'retry'`.as("mutation"),
              sql<JsonColumn>`${p.requested}`.as("requested"),
              sql<JsonColumn>`${p.result}`.as("result"),
            ]),
        ),
    )
    .with("run", (qb) =>
      qb
        .updateTable("workflow_runs as r")
        .from(
          rowsOf("d", {
            step_delta: sql<number[]>`array[0]`,
            open_delta: sql<number[]>`array[${p.open}]`,
            waiting_delta: sql<number[]>`array[${p.waiting}]`,
            errored_delta: sql<number[]>`array[${p.errored}]`,
          }),
        )
        .where("r.id", "=", p.runId)
        .set({
          ...countersChanged(schema, "r", "d"),
          // A deadline that has passed has done its work: it would end the run at once.
          deadline_at: sql<Date | null>`case when r.deadline_at > clock_timestamp() then r.deadline_at end`,
        })
        .returning("r.status"),
    )
    .selectFrom("run")
    .select([
      sql<RunStatus>`run.status::text`.as("status"),
      announceJobs(p.notify, schema, sql`select from inserted`).as("announced"),
    ]),
);
