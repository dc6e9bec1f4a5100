/** Recover and rerun: a new run that takes over from an ended one what need not be done again (FEATURES F-W11). */
import type { Executor } from "../database/executor.ts";
import { isUuid, validUuid } from "../database/ids.ts";
import { ownJson } from "../database/json.ts";
import { type Scope, scopeArguments } from "../database/scope.ts";
import { isTerminalRun, type RunStatus } from "../database/statuses.ts";
import { inTransaction, requireReadCommitted } from "../database/transaction.ts";
import { LedgerError, type LedgerErrorCode } from "../errors.ts";
import { validDuration, validName } from "../jobs/arguments.ts";
import { lockRunForShare } from "../locks/rows.ts";
import { withBoundedWait } from "../locks/wait.ts";
import { type CopyRequest, copyRun } from "./copy.ts";
import type { EnqueuedRun } from "./insertion.ts";
import { findMutation, validStepKeys } from "./mutation.ts";
import { getRunStatus } from "./read.ts";
import { type Renewal, recovery, rerun } from "./renewal.ts";
import { type RunStructure, readStructure } from "./structure.ts";

export interface RecoverRunOptions {
  readonly scope: Scope;
  /** The same key and run give the same new run. At most 512 bytes. */
  readonly key: string;
  /** The new run is cancelled when it has not ended this many seconds after its start. Default: it has no deadline. */
  readonly deadlineSeconds?: number;
}

export interface RerunOptions extends RecoverRunOptions {
  /** The key of the step, or the keys of the steps, that start anew with all that comes after them. */
  readonly from: string | readonly string[];
}

/**
 * Starts a new run of the same graph from one that ended COMPLETED_WITH_ERRORS or CANCELED: steps that
 * succeeded are taken over with their outputs, all others start anew. Outputs and payloads stay on the
 * server. Nine round trips in a transaction of its own, four when the key was used before. Throws
 * `workflow.run_not_found`, `workflow.recover_not_ended`, `workflow.recover_succeeded`,
 * `workflow.recover_conflicting_key`, `workflow.active_key_taken`, `workflow.rerun_item_needed`, `workflow.recover_unsupported_isolation`,
 * `scope.required`, `input.invalid`, `db.lock_timeout`.
 */
export async function recoverRun(executor: Executor, runId: string, options: RecoverRunOptions): Promise<EnqueuedRun> {
  const deadlineSeconds = validDuration(options.deadlineSeconds, "deadlineSeconds");
  return renewRun(executor, {
    ...mutationOf(runId, options),
    mutation: "recover",
    requested: ownJson({ deadlineSeconds }),
    deadlineSeconds,
    renewalOf: recovery,
    codes: {
      live: "workflow.recover_not_ended",
      succeeded: "workflow.recover_succeeded",
      conflict: "workflow.recover_conflicting_key",
      isolation: "workflow.recover_unsupported_isolation",
    },
  });
}

/**
 * Starts a new run of the same graph from one that has ended, in whatever way: the named steps and all that
 * comes after them start anew, all others are taken over as they ended, failed and cancelled ones too. Round
 * trips as `recoverRun`. Throws `workflow.run_not_found`, `workflow.step_not_found`, `workflow.rerun_not_ended`,
 * `workflow.rerun_step_unsatisfied`, `workflow.rerun_map_step`, `workflow.rerun_item_needed`,
 * `workflow.active_key_taken`, `workflow.rerun_conflicting_key`, `workflow.rerun_unsupported_isolation`, `scope.required`, `input.invalid`,
 * `db.lock_timeout`.
 */
export async function rerunRun(executor: Executor, runId: string, options: RerunOptions): Promise<EnqueuedRun> {
  const deadlineSeconds = validDuration(options.deadlineSeconds, "deadlineSeconds");
  const from = validStepKeys(typeof options.from === "string" ? [options.from] : options.from, "from");
  return renewRun(executor, {
    ...mutationOf(runId, options),
    mutation: "rerun",
    requested: ownJson({ from, deadlineSeconds }),
    deadlineSeconds,
    renewalOf: (run) => rerun(run, idsOf(run, from)),
    codes: {
      live: "workflow.rerun_not_ended",
      succeeded: null,
      conflict: "workflow.rerun_conflicting_key",
      isolation: "workflow.rerun_unsupported_isolation",
    },
  });
}

interface RenewalRequest extends CopyRequest {
  readonly renewalOf: (run: RunStructure) => Renewal;
  readonly codes: {
    readonly live: LedgerErrorCode;
    /** Null: a run that succeeded will do. */
    readonly succeeded: LedgerErrorCode | null;
    readonly conflict: LedgerErrorCode;
    readonly isolation: LedgerErrorCode;
  };
}

function mutationOf(runId: string, { scope, key }: RecoverRunOptions) {
  scopeArguments(scope);
  return { runId: validUuid(runId, "runId"), scope, key: validName(key, "key") };
}

function idsOf({ steps }: RunStructure, keys: readonly string[]): Set<string> {
  const ids = new Map(steps.map(({ key, id }) => [key, id]));
  return new Set(
    keys.map((stepKey) => {
      const id = ids.get(stepKey);
      if (id === undefined) throw new LedgerError("workflow.step_not_found", { details: { stepKey } });
      return id;
    }),
  );
}

/**
 * The run row is locked in share mode only: a retry in place waits for the copy, or the copy for the retry.
 * Nothing else of an ended run can change, and nobody knows the new one yet.
 */
async function renewRun(executor: Executor, request: RenewalRequest): Promise<EnqueuedRun> {
  await requireReadCommitted(executor, request.codes.isolation);
  return inTransaction(executor, async (trx) => {
    const before = await existing(trx, request);
    if (before !== null) return before;
    return withBoundedWait(trx, async () => {
      requireEnded(await lockRunForShare(trx, request.runId, request.scope), request);
      const renewal = request.renewalOf(await readStructure(trx, request.runId));
      const made = (await copyRun(trx, request, renewal)) ?? (await existing(trx, request));
      if (made === null) throw new LedgerError("workflow.internal_state");
      return made;
    });
  });
}

/** The run that the key gave before, or null. Throws when there is none and the source cannot be used. */
async function existing(executor: Executor, request: RenewalRequest): Promise<EnqueuedRun | null> {
  const { run, result } = await findMutation(executor, request, request.codes.conflict);
  if (result === null) {
    requireEnded(run.status, request);
    return null;
  }
  const { runId }: { runId?: unknown } = JSON.parse(result);
  if (!isUuid(runId)) throw new LedgerError("workflow.internal_state");
  const { id, status } = await getRunStatus(executor, runId, request.scope);
  return { id, status, disposition: "existing" };
}

function requireEnded(status: RunStatus, { codes }: RenewalRequest): void {
  if (!isTerminalRun(status)) throw new LedgerError(codes.live, { details: { status } });
  if (status === "SUCCEEDED" && codes.succeeded !== null) throw new LedgerError(codes.succeeded);
}
