/** The job of a step that is a child run: it starts the child, and when the child has ended it ends the step (FEATURES F-W12). */
import { sql } from "kysely";
import type { Executor } from "../database/executor.ts";
import { isUuid } from "../database/ids.ts";
import type { StoredJson } from "../database/json.ts";
import { reading } from "../database/statement.ts";
import { decodeRunStatus, isTerminalRun } from "../database/statuses.ts";
import { inTransaction, requireReadCommitted } from "../database/transaction.ts";
import type { ValueRules } from "../database/values/rules.ts";
import { LedgerError } from "../errors.ts";
import type { ClaimedJob } from "../jobs/claimed.ts";
import { leaseLost } from "../jobs/lease.ts";
import { type PreparedOutcome, prepareOutcome } from "../jobs/outcome.ts";
import { handOverToChild } from "../steps/child.ts";
import { settled, settleOutcomes } from "../steps/settle.ts";
import { insertRuns } from "./enqueue.ts";
import { type ParentStep, type PreparedRun, prepareRun } from "./prepare.ts";
import { CHILD_RUN_JOB, type GraphSpec } from "./spec.ts";

export interface AdvancedChild {
  readonly childRunId: string;
  /** `started`: the step runs for as long as the child does. `ended`: the step has ended as the child has. */
  readonly state: "started" | "ended";
}

/**
 * Does what a claimed job of type `runledger.child_run` is for; a worker does it by itself. Five round trips to start
 * a child, those of a completion and one more to end its step. Throws `workflow.child_run_invalid`,
 * `job.lease_owner_mismatch`, `workflow.release_conflict`, `workflow.invalid_dag_*`,
 * `workflow.terminal_completion_unsupported_isolation`.
 */
export async function advanceChild(executor: Executor, job: ClaimedJob): Promise<AdvancedChild> {
  await requireReadCommitted(executor, "workflow.terminal_completion_unsupported_isolation");
  const { childRunId } = recordOf(job.payload);
  return typeof childRunId === "string" ? endStep(executor, job, childRunId) : startChild(executor, job);
}

async function startChild(executor: Executor, job: ClaimedJob): Promise<AdvancedChild> {
  const child = await preparedChild(executor.settings.values, job);
  const outcome = prepareOutcome({ lease: job.lease, success: {} });
  return inTransaction(executor, async (trx) => {
    if (!(await handOverToChild(trx, outcome, child.runId))) throw leaseLost();
    await insertRuns(trx, [child]);
    return { childRunId: child.runId, state: "started" };
  });
}

async function preparedChild(rules: ValueRules, job: ClaimedJob): Promise<PreparedRun> {
  const { graph, deadlineSeconds } = recordOf(job.payload);
  if (job.type !== CHILD_RUN_JOB || !isGraph(graph)) throw new LedgerError("workflow.child_run_invalid");
  const options = {
    organizationId: job.organizationId,
    ...(typeof deadlineSeconds === "number" ? { deadlineSeconds } : {}),
  };
  return prepareRun(rules, graph, options, { parent: parentOf(job) });
}

function parentOf({ lease, workflowStepId }: ClaimedJob): ParentStep {
  if (lease.workflowRunId === null || workflowStepId === null) throw new LedgerError("workflow.child_run_invalid");
  return { runId: lease.workflowRunId, stepId: workflowStepId };
}

function recordOf(value: unknown): Partial<Record<string, unknown>> {
  return typeof value === "object" && value !== null ? { ...value } : {};
}

/** It was validated when the parent's graph was, and has been stored since. */
function isGraph(value: unknown): value is GraphSpec {
  const { type, steps } = recordOf(value);
  return typeof type === "string" && Array.isArray(steps);
}

async function endStep(executor: Executor, job: ClaimedJob, childRunId: string): Promise<AdvancedChild> {
  const parent = parentOf(job);
  const child = isUuid(childRunId) ? await end.executeFirst(executor, { id: childRunId, ...parent }) : undefined;
  if (child === undefined) throw new LedgerError("workflow.child_run_invalid");
  settled(await settleOutcomes(executor, [outcomeOf(job, decodeRunStatus(child.status), child.output)]));
  return { childRunId, state: "ended" };
}

/** The child's result is the output as it is stored: no number loses a digit on the way. */
function outcomeOf(
  { lease }: ClaimedJob,
  status: ReturnType<typeof decodeRunStatus>,
  output: StoredJson | null,
): PreparedOutcome {
  if (!isTerminalRun(status)) throw new LedgerError("workflow.internal_state", { message: "The child run is live." });
  if (status === "SUCCEEDED") return prepareOutcome({ lease, success: {} }, { output, checkpoint: null });
  const [code, message] =
    status === "CANCELED"
      ? ["workflow.child_run_canceled", "The child run was cancelled."]
      : ["workflow.child_run_failed", "The child run completed with errors."];
  return prepareOutcome({ lease, failure: { kind: "TERMINAL", code, message } });
}

const end = reading("get_child_run_end", { id: "uuid", runId: "uuid", stepId: "uuid" }, (db, p) =>
  db
    .selectFrom("workflow_runs as r")
    .leftJoin("workflow_steps as s", (join) =>
      join.onRef("s.run_id", "=", "r.id").onRef("s.id", "=", "r.result_step_id"),
    )
    .where("r.id", "=", p.id)
    .where("r.parent_run_id", "=", p.runId)
    .where("r.parent_step_id", "=", p.stepId)
    .select(["r.status", sql<StoredJson | null>`s.output::text`.as("output")]),
);
