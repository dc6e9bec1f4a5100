/** Append: adds steps to a live run while an external gate of it is open (FEATURES F-W7). */
import { sql } from "kysely";
import type { Executor } from "../database/executor.ts";
import { validUuid } from "../database/ids.ts";
import { fromJson } from "../database/json.ts";
import { inScope, type Scope, scopeArguments, scopeParameters } from "../database/scope.ts";
import { reading } from "../database/statement.ts";
import { decodeRunStatus, decodeStepStatus, isTerminalRun } from "../database/statuses.ts";
import { inTransaction, requireReadCommitted, rollbackToSavepoint } from "../database/transaction.ts";
import { sameRequest } from "../database/values/sameness.ts";
import { LedgerError } from "../errors.ts";
import { validName } from "../jobs/arguments.ts";
import { tryLockRunReleaseShared } from "../locks/release.ts";
import { withBoundedWait } from "../locks/wait.ts";
import type { Addition } from "../steps/additions.ts";
import { type AppendedStep, appendedSteps } from "../steps/append.ts";
import { changeRuns } from "../steps/changes.ts";
import { type AppendRequest, prepareAddition } from "./additions.ts";

export interface AppendOptions extends AppendRequest {
  readonly scope: Scope;
  /** The key of the open gate that keeps the run from ending meanwhile. Default: any that is open. */
  readonly gate?: string;
}

export interface AppendedSteps {
  readonly runId: string;
  /** `already_applied`: the same key had added them before. */
  readonly disposition: "applied" | "already_applied";
  readonly steps: readonly AppendedStep[];
}

/**
 * Adds steps to a live run; those with nothing to wait for become runnable at once. The same key again changes
 * nothing, whatever has become of the run. Never waits for the run's release lock. Sixteen round trips in a
 * transaction of its own, five for a repetition. Throws `workflow.run_not_found`, `workflow.append_run_ended`,
 * `workflow.append_no_open_gate`, `workflow.append_conflicting_retry`, `workflow.append_unknown_dependency`,
 * `workflow.append_duplicate_step_key`, `workflow.release_conflict`, `workflow.append_unsupported_isolation`,
 * `workflow.invalid_dag_*`, `payload.not_json`, `payload.too_large`, `payload.reserved`, `payload.invalid`,
 * `payload.unencodable`, `payload.undecodable`, `payload.codec_unavailable`, `scope.required`, `input.invalid`.
 */
export async function appendSteps(executor: Executor, runId: string, options: AppendOptions): Promise<AppendedSteps> {
  const id = validUuid(runId, "runId");
  const gate = options.gate === undefined ? null : validName(options.gate, "gate");
  const args = { runId: id, gate, key: validName(options.key, "key"), ...scopeArguments(options.scope) };
  const addition = await prepareAddition(executor.settings.values, id, options);
  await requireReadCommitted(executor, "workflow.append_unsupported_isolation");
  return inTransaction(executor, (trx) => withBoundedWait(trx, () => append(trx, addition, args)));
}

type FindArguments = Omit<Parameters<typeof find.execute>[1], "requested">;

async function append(trx: Executor, addition: Addition, args: FindArguments): Promise<AppendedSteps> {
  const { runId } = addition;
  const requested = addition.requested.stored;
  const run = await find.executeFirst(trx, { ...args, requested });
  if (run === undefined) throw new LedgerError("workflow.run_not_found");
  if (run.result !== null) return alreadyApplied(trx, addition, run);
  if (isTerminalRun(decodeRunStatus(run.status))) throw new LedgerError("workflow.append_run_ended");
  const gateId = run.gate_id;
  if (gateId === null) throw new LedgerError("workflow.append_no_open_gate");
  const change = {
    ending: [],
    endings: new Map(),
    outcomes: [],
    additions: [addition],
    alsoLock: [{ runId, id: gateId }],
  };
  try {
    const { resolution, applied } = await changeRuns(trx, change, async (steps) => {
      const gate = steps.find(({ id }) => id === gateId);
      if (gate === undefined || decodeStepStatus(gate.status) !== "WAITING_FOR_EXTERNAL") throw new GateClosed();
      await tryLockRunReleaseShared(trx, [runId]);
    });
    if (applied.length > 0) return { runId, disposition: "applied", steps: appendedSteps(addition, resolution) };
  } catch (error) {
    return closedMeanwhile(trx, addition, args, error);
  }
  const again = await find.executeFirst(trx, { ...args, requested });
  if (again === undefined || again.result === null) throw new LedgerError("workflow.internal_state");
  return alreadyApplied(trx, addition, again);
}

/** The gate was open when it was looked for, and closed when it was locked. */
class GateClosed extends Error {}

/** The rows are given back even when the caller's transaction goes on: a cancel may be waiting for them. */
async function closedMeanwhile(
  trx: Executor,
  addition: Addition,
  args: FindArguments,
  error: unknown,
): Promise<AppendedSteps> {
  const conflict =
    error instanceof LedgerError && error.code === "workflow.release_conflict" && error.sqlstate === undefined;
  if (conflict || error instanceof GateClosed) await rollbackToSavepoint(trx);
  if (!(error instanceof GateClosed)) throw error;
  return append(trx, addition, args);
}

type FoundRun = Awaited<ReturnType<typeof find.execute>>[number];

async function alreadyApplied(
  { settings }: Executor,
  { runId, requested }: Addition,
  { result, same, stored }: FoundRun,
): Promise<AppendedSteps> {
  if (!same && (stored === null || !(await sameRequest(settings.values, stored, requested)))) {
    throw new LedgerError("workflow.append_conflicting_retry");
  }
  const steps = fromJson(result);
  return { runId, disposition: "already_applied", steps: Array.isArray(steps) ? steps.flatMap(appendedStep) : [] };
}

function appendedStep(value: unknown): AppendedStep[] {
  if (typeof value !== "object" || value === null) return [];
  const { key, id, status }: Partial<Record<keyof AppendedStep, unknown>> = value;
  return [{ key: String(key), id: String(id), status: decodeStepStatus(status) }];
}

// One look for everything that decides: the key first, because it succeeds even after the run's end.
const find = reading(
  "find_workflow_run_to_append",
  { runId: "uuid", key: "text", gate: "text?", requested: "jsonb", ...scopeParameters },
  (db, p) =>
    db
      .selectFrom("workflow_runs as r")
      .leftJoin("workflow_run_mutations as m", (join) =>
        join.onRef("m.run_id", "=", "r.id").on("m.mutation_key", "=", p.key),
      )
      .where("r.id", "=", p.runId)
      .where(inScope("r.organization_id", p))
      .select((eb) => [
        "r.status",
        sql<string | null>`m.result::text`.as("result"),
        sql<boolean>`coalesce(m.mutation = 'append' and m.requested = ${p.requested}, false)`.as("same"),
        sql<
          string | null
        >`case when m.mutation = 'append' and m.requested <> ${p.requested} then m.requested::text end`.as("stored"),
        eb
          .selectFrom("workflow_steps as s")
          .whereRef("s.run_id", "=", "r.id")
          .where("s.open_since", "is not", null)
          .where(sql<boolean>`(${p.gate} is null or s.step_key = ${p.gate})`)
          .orderBy("s.id")
          .limit(1)
          .select("s.id")
          .as("gate_id"),
      ]),
);
