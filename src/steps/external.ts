/** External gates: a step that waits for somebody outside to say how it ended (FEATURES F-W6). */
import { sql } from "kysely";
import type { Executor } from "../database/executor.ts";
import { validUuid } from "../database/ids.ts";
import type { JsonText } from "../database/json.ts";
import { inScope, type Scope, scopeArguments, scopeParameters } from "../database/scope.ts";
import { reading } from "../database/statement.ts";
import { decodeStepKind, decodeStepStatus, isTerminalStep, type StepStatus } from "../database/statuses.ts";
import { inTransaction, requireReadCommitted, rollbackToSavepoint } from "../database/transaction.ts";
import type { ValueRules } from "../database/values/rules.ts";
import { sameOutput } from "../database/values/sameness.ts";
import { optionalText, storedValues } from "../database/values/write.ts";
import { LedgerError } from "../errors.ts";
import { validName } from "../jobs/arguments.ts";
import { storableText } from "../jobs/outcome.ts";
import { tryLockRunReleaseShared } from "../locks/release.ts";
import { withBoundedWait } from "../locks/wait.ts";
import type { StepEnding } from "./apply.ts";
import { changeRuns } from "./changes.ts";
import { type GateBefore, keepEnding } from "./kept.ts";
import { isTerminalOutcome, type TerminalStatus, terminalOutcomes } from "./resolve.ts";

export interface ExternalCompletion {
  readonly scope: Scope;
  /** Default SUCCEEDED. */
  readonly outcome?: TerminalStatus;
  /** What the step hands to its dependents. Only with SUCCEEDED. */
  readonly output?: unknown;
  readonly reason?: string;
  /** Who completed it. */
  readonly completedBy?: string;
  /** Whether a gate that has not opened yet keeps the completion, to end with it when it would open. Default false. */
  readonly keep?: boolean;
}

export interface CompletedStep {
  readonly runId: string;
  readonly stepKey: string;
  readonly status: StepStatus;
  /** Whether this call completed it; false when the same completion was there before. */
  readonly completed: boolean;
  /** Whether the gate has not opened yet, and the completion waits with it. */
  readonly kept: boolean;
}

/**
 * Completes an external step that waits, and releases or cancels its dependents; with `keep`, also one
 * that does not wait yet. The same completion again changes nothing. Never waits for the run's release
 * lock. Ten round trips in a transaction of its own, nine when nothing depends on the step, seven when
 * the completion is kept, five for a repeat. Throws `workflow.step_not_found`,
 * `workflow.external_step_not_external`, `workflow.external_step_not_waiting`,
 * `workflow.external_step_conflicting_completion_retry`, `workflow.external_step_conflicting_output_retry`,
 * `workflow.release_conflict`, `workflow.external_completion_unsupported_isolation`, `payload.not_json`,
 * `payload.too_large`, `payload.reserved`, `payload.unencodable`, `payload.undecodable`, `payload.codec_unavailable`,
 * `input.invalid`, `scope.required`.
 */
export async function completeExternalStep(
  executor: Executor,
  runId: string,
  stepKey: string,
  completion: ExternalCompletion,
): Promise<CompletedStep> {
  const key = { runId: validUuid(runId, "runId"), stepKey: validName(stepKey, "stepKey") };
  const scope = scopeArguments(completion.scope);
  const { values } = executor.settings;
  const prepared = await preparedCompletion(values, completion);
  const { output } = prepared.ending;
  const args = { ...key, ...scope, output, readsBack: values.codec !== null };
  await requireReadCommitted(executor, "workflow.external_completion_unsupported_isolation");
  return inTransaction(executor, (trx) =>
    withBoundedWait(trx, async () => {
      const gate = await find.executeFirst(trx, args);
      if (gate === undefined) throw new LedgerError("workflow.step_not_found");
      if (decodeStepKind(gate.kind) !== "EXTERNAL") throw new LedgerError("workflow.external_step_not_external");
      const status = decodeStepStatus(gate.status);
      if (isTerminalStep(status)) return repeated(trx, gate, prepared, key);
      const keeps = prepared.keep && status === "BLOCKED";
      const kept = keeps ? await keptCompletion(trx, gate, key, prepared) : null;
      return kept ?? openGateCompleted(trx, gate.id, args, prepared);
    }),
  );
}

type GateArguments = Parameters<typeof find.execute>[1];
type Gate = Awaited<ReturnType<typeof find.execute>>[number];

interface GateKey {
  readonly runId: string;
  readonly stepKey: string;
}

/** Null when the gate has opened before its row was locked. */
async function keptCompletion(
  trx: Executor,
  gate: Gate,
  key: GateKey,
  completion: PreparedCompletion,
): Promise<CompletedStep | null> {
  if (gate.kept_outcome !== null) return repeated(trx, gate, completion, key);
  const before = await keepEnding(trx, { runId: key.runId, stepId: gate.id }, completion.outcome, completion.ending);
  if (before === null) return { ...key, status: "BLOCKED", completed: true, kept: true };
  return before.status === "WAITING_FOR_EXTERNAL" ? null : repeated(trx, before, completion, key);
}

async function openGateCompleted(
  trx: Executor,
  stepId: string,
  args: GateArguments,
  completion: PreparedCompletion,
): Promise<CompletedStep> {
  const { runId, stepKey } = args;
  const { outcome, ending } = completion;
  let status: StepStatus = "BLOCKED";
  try {
    const gate = { runId, id: stepId, status: outcome, output: ending.output };
    const change = { ending: [gate], endings: new Map([[stepId, ending]]), outcomes: [], additions: [], alsoLock: [] };
    await changeRuns(trx, change, async (steps) => {
      status = steps.find(({ id }) => id === stepId)?.status ?? "BLOCKED";
      if (status !== "WAITING_FOR_EXTERNAL") throw new NotWaiting();
      await tryLockRunReleaseShared(trx, [runId]);
    });
    return { runId, stepKey, status: outcome, completed: true, kept: false };
  } catch (error) {
    // The rows are given back even when the caller's transaction goes on: a cancel may be waiting for them.
    if (error instanceof NotWaiting || isConflict(error)) await rollbackToSavepoint(trx);
    if (!(error instanceof NotWaiting)) throw error;
    const gate = isTerminalStep(status) ? await find.executeFirst(trx, args) : undefined;
    if (gate === undefined) throw new LedgerError("workflow.external_step_not_waiting");
    return repeated(trx, gate, completion, { runId, stepKey });
  }
}

/** The step was not waiting once it was locked. */
class NotWaiting extends Error {}

function isConflict(error: unknown): boolean {
  return error instanceof LedgerError && error.code === "workflow.release_conflict" && error.sqlstate === undefined;
}

/** The answer for a gate that has ended, or keeps how it will: nothing to do when that is just so. */
async function repeated(
  { settings }: Executor,
  gate: GateBefore,
  { outcome, plainOutput }: PreparedCompletion,
  key: GateKey,
): Promise<CompletedStep> {
  const kept = gate.status === "BLOCKED";
  if ((kept ? gate.kept_outcome : gate.status) !== outcome) {
    throw new LedgerError("workflow.external_step_conflicting_completion_retry");
  }
  // A cancelled gate may have an output of a completion that it kept in vain.
  const same = gate.same_output || (await sameOutput(settings.values, gate.stored_output, plainOutput));
  if (outcome === "SUCCEEDED" && !same) throw new LedgerError("workflow.external_step_conflicting_output_retry");
  return { ...key, status: gate.status, completed: false, kept };
}

interface PreparedCompletion {
  readonly outcome: TerminalStatus;
  readonly ending: StepEnding;
  readonly plainOutput: JsonText | null;
  readonly keep: boolean;
}

async function preparedCompletion(rules: ValueRules, completion: ExternalCompletion): Promise<PreparedCompletion> {
  const { outcome = "SUCCEEDED", output, reason, completedBy, keep = false } = completion;
  if (typeof keep !== "boolean") throw new LedgerError("input.invalid", { message: "keep must be a boolean." });
  if (!isTerminalOutcome(outcome)) {
    throw new LedgerError("input.invalid", { message: `outcome must be one of ${terminalOutcomes.join(", ")}.` });
  }
  if (output !== undefined && outcome !== "SUCCEEDED") {
    throw new LedgerError("input.invalid", { message: "output goes with the outcome SUCCEEDED only." });
  }
  const plainOutput = optionalText(rules, output, "output");
  const stored = await storedValues(rules, "output", [plainOutput]);
  return {
    outcome,
    keep,
    plainOutput,
    ending: {
      output: stored(0),
      errorCode: outcome === "SUCCEEDED" ? null : `workflow.external_${outcome === "FAILED" ? "failed" : "canceled"}`,
      errorMessage: null,
      completedBy: completedBy === undefined ? null : validName(completedBy, "completedBy"),
      reason: reason === undefined ? null : storableText(reason),
    },
  };
}

const find = reading(
  "find_external_step",
  { runId: "uuid", stepKey: "text", output: "jsonb?", readsBack: "bool", ...scopeParameters },
  (db, p) =>
    db
      .selectFrom("workflow_steps as s")
      .innerJoin("workflow_runs as r", "r.id", "s.run_id")
      .where("s.run_id", "=", p.runId)
      .where("s.step_key", "=", p.stepKey)
      .where(inScope("r.organization_id", p))
      .select([
        "s.id",
        "s.kind",
        "s.status",
        sql<TerminalStatus | null>`s.kept_outcome`.as("kept_outcome"),
        sql<boolean>`s.output is not distinct from ${p.output}`.as("same_output"),
        sql<string | null>`case when ${p.readsBack} then s.output::text end`.as("stored_output"),
      ]),
);
