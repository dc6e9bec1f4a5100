/** Applies a resolution: ended jobs to the ledger, steps, released jobs and run counters, in one statement. */
import { sql } from "kysely";
import { announceJobs, announceRuns } from "../database/announce.ts";
import type { Executor } from "../database/executor.ts";
import type { StoredJson } from "../database/json.ts";
import { rowsOf } from "../database/parameters.ts";
import { writing } from "../database/statement.ts";
import type { FailureKind, JobStatus, StepStatus } from "../database/statuses.ts";
import { appendEnded, keptOfQueue } from "../jobs/ending.ts";
import { insertReleased } from "../jobs/insertion.ts";
import { leaseColumns, sameLease } from "../jobs/lease.ts";
import type { PreparedOutcome } from "../jobs/outcome.ts";
import { outcomeArguments, outcomeParameters } from "../jobs/settle.ts";
import { entered, releasedJobs } from "./release.ts";
import type { Resolution, StepChange } from "./resolve.ts";
import { countersChanged } from "./run-status.ts";

/** What a step keeps of how it ended. */
export interface StepEnding {
  readonly output: StoredJson | null;
  readonly errorCode: string | null;
  readonly errorMessage: string | null;
  readonly completedBy: string | null;
  readonly reason: string | null;
}

/** Why a step that was never started is cancelled. */
export const DEPENDENCY_UNSATISFIED = "workflow.dependency_unsatisfied";
/** Why a map step fails that has nothing to fan out over. */
const SOURCE_NOT_ARRAY = "workflow.map_source_not_array";

const noEnding: StepEnding = { output: null, errorCode: null, errorMessage: null, completedBy: null, reason: null };

/** The code of an error that the resolution itself found. */
export function errorCodeOf({ cause }: StepChange): string | null {
  if (cause === "unsatisfied") return DEPENDENCY_UNSATISFIED;
  return cause === "not_an_array" ? SOURCE_NOT_ARRAY : null;
}

/**
 * Writes the resolution and the ends of the jobs that caused it, whose rows and steps the transaction
 * has locked. Takes the run rows in id order. One round trip, and at most two more for map steps. Steps that
 * the resolution adds are the caller's to insert, before map steps are written.
 */
export async function applyResolution(
  executor: Executor,
  resolution: Resolution,
  endings: ReadonlyMap<string, StepEnding>,
  outcomes: readonly PreparedOutcome[],
): Promise<void> {
  const { changes } = resolution;
  const deltas = [...resolution.deltas];
  const ended = changes.map((change) => endings.get(change.id) ?? { ...noEnding, errorCode: errorCodeOf(change) });
  await apply.execute(executor, {
    ...outcomeArguments(executor, outcomes),
    stepRunIds: changes.map(({ runId }) => runId),
    stepIds: changes.map(({ id }) => id),
    statuses: changes.map(({ status }) => status),
    pendings: changes.map(({ pendingCount }) => pendingCount),
    unsatisfieds: changes.map(({ unsatisfiedCount }) => unsatisfiedCount),
    itemCounts: changes.map(({ itemCount }) => itemCount),
    stepOutputs: ended.map(({ output }) => output),
    errorCodes: ended.map(({ errorCode }) => errorCode),
    errorMessages: ended.map(({ errorMessage }) => errorMessage),
    completers: ended.map(({ completedBy }) => completedBy),
    reasons: ended.map(({ reason }) => reason),
    runIds: deltas.map(([runId]) => runId),
    stepDeltas: deltas.map(([, { steps }]) => steps),
    opens: deltas.map(([, { open }]) => open),
    waitings: deltas.map(([, { waiting }]) => waiting),
    erroreds: deltas.map(([, { errored }]) => errored),
    notify: executor.settings.notify,
  });
}

const applyParameters = {
  ...outcomeParameters,
  stepRunIds: "uuid[]",
  stepIds: "uuid[]",
  statuses: "text[]",
  pendings: "int4[]",
  unsatisfieds: "int4[]",
  itemCounts: "int4?[]",
  stepOutputs: "jsonb?[]",
  errorCodes: "text?[]",
  errorMessages: "text?[]",
  completers: "text?[]",
  reasons: "text?[]",
  runIds: "uuid[]",
  stepDeltas: "int4[]",
  opens: "int4[]",
  waitings: "int4[]",
  erroreds: "int4[]",
  notify: "bool",
} as const;

// Every step row of `change` is locked by the transaction already; `run` locks its rows in id order.
const apply = writing("apply_step_resolution", applyParameters, (db, p, schema) =>
  db
    .with("outcome", (qb) =>
      qb
        .selectFrom(
          rowsOf("given", {
            ...leaseColumns(p),
            kind: p.kinds,
            error_code: p.codes,
            error_message: p.messages,
          }),
        )
        .selectAll(),
    )
    .with("ended", (qb) =>
      qb
        .deleteFrom("job_queue as q")
        .using("outcome as o")
        .whereRef("q.id", "=", "o.job_id")
        .where(sameLease("q", "o"))
        .returning([
          ...keptOfQueue,
          sql<JobStatus>`(case when o.kind is null then 'SUCCEEDED' else 'DEAD_LETTERED' end)::${sql.id(schema, "job_status")}`.as(
            "status",
          ),
          sql<Date>`clock_timestamp()`.as("ended_at"),
          sql<FailureKind | null>`o.kind::${sql.id(schema, "failure_kind")}`.as("failure_kind"),
          "o.error_code",
          "o.error_message",
          sql<null>`null::text`.as("canceled_reason"),
          sql<null>`null::jsonb`.as("output"),
        ]),
    )
    .with("appended", (qb) => appendEnded(qb))
    .with("failed", (qb) =>
      qb
        .insertInto("job_attempts")
        .columns([
          "job_id",
          "run_number",
          "attempt",
          "worker_id",
          "started_at",
          "ended_at",
          "failure_kind",
          "error_code",
          "error_message",
        ])
        .expression((eb) =>
          eb
            .selectFrom("ended")
            .where("ended.failure_kind", "is not", null)
            .select([
              "ended.id",
              "ended.run_number",
              "ended.attempt",
              "ended.worker_id",
              "ended.leased_at",
              "ended.ended_at",
              "ended.failure_kind",
              "ended.error_code",
              "ended.error_message",
            ]),
        ),
    )
    .with("change", (qb) =>
      qb
        .selectFrom(
          rowsOf("given", {
            run_id: p.stepRunIds,
            step_id: p.stepIds,
            status: p.statuses,
            pending_count: p.pendings,
            unsatisfied_count: p.unsatisfieds,
            item_count: p.itemCounts,
            output: p.stepOutputs,
            error_code: p.errorCodes,
            error_message: p.errorMessages,
            completed_by: p.completers,
            reason: p.reasons,
          }),
        )
        .selectAll(),
    )
    .with("changed", (qb) =>
      qb
        .updateTable("workflow_steps as s")
        .from("change as c")
        .leftJoin("ended", "ended.workflow_step_id", "c.step_id")
        .whereRef("s.run_id", "=", "c.run_id")
        .whereRef("s.id", "=", "c.step_id")
        .set((eb) => ({
          status: sql<StepStatus>`c.status::${sql.id(schema, "step_status")}`,
          pending_count: eb.ref("c.pending_count"),
          unsatisfied_count: eb.ref("c.unsatisfied_count"),
          item_count: eb.ref("c.item_count"),
          // A gate that was completed early has all this already.
          output: sql<string | null>`coalesce(c.output, s.output)`,
          error_code: eb.fn.coalesce("c.error_code", "s.error_code"),
          error_message: eb.fn.coalesce("c.error_message", "s.error_message"),
          completed_by: eb.fn.coalesce("c.completed_by", "s.completed_by"),
          reason: eb.fn.coalesce("c.reason", "s.reason"),
          // A step that has ended before keeps its times: a prerequisite of it was retried.
          started_at: eb.fn.coalesce("ended.leased_at", "s.started_at"),
          // Its job may have continued: a retry of the step comes after all of its runs.
          job_run_number: eb.fn.coalesce("ended.run_number", "s.job_run_number"),
          ...entered(sql.ref("c.status")),
        }))
        .returning("s.id"),
    )
    .with(
      (cte) => cte("run").materialized(),
      (qb) =>
        qb
          .selectFrom("workflow_runs as r")
          .innerJoin(
            rowsOf("delta", {
              run_id: p.runIds,
              step_delta: p.stepDeltas,
              open_delta: p.opens,
              waiting_delta: p.waitings,
              errored_delta: p.erroreds,
            }),
            "delta.run_id",
            "r.id",
          )
          .select(["r.id", "delta.open_delta", "delta.waiting_delta", "delta.errored_delta", "delta.step_delta"])
          .orderBy("r.id")
          .forUpdate("r"),
    )
    .with("counted", (qb) =>
      qb
        .updateTable("workflow_runs as r")
        .from("run as d")
        .whereRef("r.id", "=", "d.id")
        .set(countersChanged(schema, "r", "d"))
        .returning(["r.id", "r.ended_at", "r.parent_run_id", "r.parent_step_id"]),
    )
    .with("released", (qb) => releasedJobs(qb))
    .with("inserted", (qb) => insertReleased(qb))
    .selectNoFrom([
      announceJobs(p.notify, schema, sql`select from inserted`).as("jobs_announced"),
      announceRuns(p.notify, schema, sql`select id from counted where ended_at is not null`).as("runs_announced"),
    ]),
);
