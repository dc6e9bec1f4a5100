/**
 * Terminal completion with everything that may follow: failures, cancelled dependents, and runs whose
 * release lock has to be waited for. One transaction, in the order of LOCKS.md §3, in a number of round
 * trips that does not depend on the depth of the graph.
 */
import { sql } from "kysely";
import type { Executor } from "../database/executor.ts";
import { rowsOf } from "../database/parameters.ts";
import { reading } from "../database/statement.ts";
import { inTransaction, rollbackToSavepoint, savepoint } from "../database/transaction.ts";
import { LedgerError } from "../errors.ts";
import {
  leaseArguments,
  leaseColumns,
  leaseKey,
  leaseKeyOf,
  leaseParameters,
  sameLease,
  unexpired,
} from "../jobs/lease.ts";
import type { PreparedOutcome } from "../jobs/outcome.ts";
import { runReleaseKey } from "../locks/key.ts";
import { lockRunReleaseShared } from "../locks/release.ts";
import { boundedHere } from "../locks/wait.ts";
import type { Addition } from "./additions.ts";
import type { StepEnding } from "./apply.ts";
import { changeRuns } from "./changes.ts";
import type { EndingStep } from "./closure.ts";

/** How an attempt ended, and what its step adds to the run with its success. */
export interface StepOutcome extends PreparedOutcome {
  readonly additions?: readonly Addition[];
}

/** Whether the leases must live, or must have expired (the reaper's). */
export type LeaseState = "live" | "expired";

/**
 * Ends the jobs and their steps and answers with the keys of the leases that were held; the others
 * are untouched. In a transaction of its own, where no lock is waited for, seven round trips: one less
 * when nothing depends on the steps, one more for several runs, up to three more where map steps begin or end,
 * five more when steps are added. Throws `workflow.release_conflict` with
 * nothing written when the wait for a release lock was too long. In a caller's transaction the bound of
 * the waits is the caller's to set.
 */
export async function endStepJobs(
  executor: Executor,
  outcomes: readonly StepOutcome[],
  leases: LeaseState,
): Promise<Set<string>> {
  return inTransaction(executor, (trx) => endHeld(trx, outcomes, leases));
}

async function endHeld(trx: Executor, outcomes: readonly StepOutcome[], leases: LeaseState): Promise<Set<string>> {
  const held = await holdJobs(trx, outcomes, leases);
  if (held.length === 0) return new Set();
  const byLease = new Map(outcomes.map((outcome) => [leaseKey(outcome.lease), outcome]));
  const ending: EndingStep[] = [];
  const endings = new Map<string, StepEnding>();
  const ended: StepOutcome[] = [];
  for (const { lease_key, run_id, step_id } of held) {
    const outcome = byLease.get(lease_key);
    if (outcome === undefined || step_id === null) throw new LedgerError("workflow.internal_state");
    const status = outcome.kind === null ? "SUCCEEDED" : "FAILED";
    ending.push({ runId: run_id, id: step_id, status, output: outcome.output });
    endings.set(step_id, endingOf(outcome));
    ended.push(outcome);
  }
  const additions = ended.flatMap((outcome) => outcome.additions ?? []);
  await changeRuns(trx, { ending, endings, outcomes: ended, additions, alsoLock: [] }, async () => {});
  return new Set(held.map(({ lease_key }) => lease_key));
}

/**
 * Locks the job rows and then the release locks of their runs, without a wait where that is possible.
 * Of several runs, those that were granted are given back before the wait for all of them in key
 * order: who waits for one while holding another could stand in a circle with two cancels.
 */
export async function holdJobs(trx: Executor, outcomes: readonly PreparedOutcome[], leases: LeaseState) {
  const hold = leases === "live" ? holdLive : holdExpired;
  const args = holdArguments(trx, outcomes);
  const severalRuns = new Set(args.runIds).size > 1;
  if (severalRuns) await savepoint(trx);
  const held = await hold.execute(trx, { ...args, trying: true });
  if (held.every(({ granted }) => granted)) return held;
  if (severalRuns) await rollbackToSavepoint(trx);
  const waiting = severalRuns ? await hold.execute(trx, { ...args, trying: false }) : held;
  await lockRunReleaseShared(
    trx,
    waiting.map(({ run_id }) => run_id),
  );
  return waiting;
}

function endingOf({ output, code, message }: PreparedOutcome): StepEnding {
  return { output, errorCode: code, errorMessage: message, completedBy: null, reason: null };
}

function holdArguments(executor: Executor, outcomes: readonly PreparedOutcome[]) {
  const runIds = outcomes.map(({ lease }) => lease.workflowRunId ?? "");
  return {
    ...leaseArguments(
      executor,
      outcomes.map(({ lease }) => lease),
    ),
    runIds,
    releaseKeys: runIds.map((runId) => String(runReleaseKey(runId))),
  };
}

const holdLive = holding("lock_step_jobs_of_leases_for_update", "live");
const holdExpired = holding("lock_step_jobs_of_expired_leases_for_update", "expired");

// The release locks are tried after the job rows are held, once for each run.
function holding(name: string, leases: LeaseState) {
  return reading(name, { ...leaseParameters, runIds: "uuid[]", releaseKeys: "int8[]", trying: "bool" }, (db, p) =>
    db
      .with("input", (qb) =>
        qb
          .selectFrom(rowsOf("given", { ...leaseColumns(p), run_id: p.runIds, release_key: p.releaseKeys }))
          .selectAll(),
      )
      .with(
        (cte) => cte("held").materialized(),
        (qb) =>
          qb
            .selectFrom("job_queue as q")
            .innerJoin("input", "input.job_id", "q.id")
            .whereRef("q.workflow_run_id", "=", "input.run_id")
            .where(sameLease("q", "input"))
            .where(boundedHere(p.lockWait))
            .select([
              "q.id as job_id",
              "q.lease_expires_at",
              "q.workflow_step_id as step_id",
              leaseKeyOf("input").as("lease_key"),
              "input.run_id",
              "input.release_key",
            ])
            .orderBy("q.id")
            .forUpdate("q")
            .$if(leases === "expired", (query) => query.skipLocked()),
      )
      .with(
        (cte) => cte("fenced").materialized(),
        (qb) =>
          qb
            .selectFrom("held")
            .where(leases === "live" ? unexpired("held") : sql<boolean>`not ${unexpired("held")}`)
            .selectAll(),
      )
      .with(
        (cte) => cte("tried").materialized(),
        (qb) =>
          qb
            .selectFrom(qb.selectFrom("fenced").select(["fenced.run_id", "fenced.release_key"]).distinct().as("f"))
            .select([
              "f.run_id",
              sql<boolean>`${p.trying} and pg_try_advisory_xact_lock_shared(f.release_key)`.as("granted"),
            ]),
      )
      .selectFrom("fenced as f")
      .innerJoin("tried as t", "t.run_id", "f.run_id")
      .select(["f.job_id", "f.lease_key", "f.run_id", "f.step_id", "t.granted"]),
  );
}
