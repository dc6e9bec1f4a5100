/** Cancel a run, correct under any interleaving: exactly the order of LOCKS.md §3. */
import { sql } from "kysely";
import { announceRuns } from "../database/announce.ts";
import type { Executor } from "../database/executor.ts";
import { validUuid } from "../database/ids.ts";
import type { Scope } from "../database/scope.ts";
import { writing } from "../database/statement.ts";
import { isTerminalRun, type JobStatus, type RunStatus, type StepStatus } from "../database/statuses.ts";
import { inTransaction, requireReadCommitted, rollbackToSavepoint, savepoint } from "../database/transaction.ts";
import { isLedgerError, LedgerError } from "../errors.ts";
import { appendEnded, keptOfQueue } from "../jobs/ending.ts";
import { storableText } from "../jobs/outcome.ts";
import { lockRunReleaseExclusiveAfterJobs } from "../locks/release.ts";
import {
  lockRunForUpdate,
  lockStepJobsForUpdate,
  lockStepJobsForUpdateNoWait,
  lockStepRowsForUpdate,
} from "../locks/rows.ts";
import { withBoundedWait } from "../locks/wait.ts";
import { getRunStatus } from "./read.ts";

export interface CancelRunOptions {
  readonly scope: Scope;
  /** Kept with the run and its jobs. */
  readonly reason?: string;
}

export interface CanceledRun {
  readonly id: string;
  /** CANCELED, or the status with which the run had ended before. */
  readonly status: RunStatus;
  /** Whether this call cancelled it. */
  readonly canceled: boolean;
}

/** A late job row is waited for in the next round, which then holds it: each round holds more of them. */
const MAX_ROUNDS = 32;

/**
 * Cancels a run: once this has committed no step of it starts and no dependent is released. A terminal
 * run is returned unchanged. Its wait for each lock is bounded. Thirteen round trips in a transaction
 * of its own where nothing is in the way, three for a terminal run. Throws `workflow.run_not_found`,
 * `workflow.cancel_unsupported_isolation`, `scope.required`, `input.invalid`, `db.lock_timeout`.
 */
export async function cancelRun(executor: Executor, runId: string, options: CancelRunOptions): Promise<CanceledRun> {
  const id = validUuid(runId, "runId");
  const reason = options.reason === undefined ? null : storableText(options.reason);
  await requireReadCommitted(executor, "workflow.cancel_unsupported_isolation");
  return inTransaction(executor, async (trx) => {
    const { status } = await getRunStatus(trx, id, options.scope);
    if (isTerminalRun(status)) return { id, status, canceled: false };
    return withBoundedWait(trx, async () => {
      await lockInOrder(trx, id, options.scope);
      const run = await lockRunForUpdate(trx, id, options.scope);
      if (isTerminalRun(run.status)) return { id, status: run.status, canceled: false };
      await cancel.execute(trx, { id, reason, notify: trx.settings.notify });
      return { id, status: "CANCELED", canceled: true };
    });
  });
}

/**
 * Job rows, release lock, job rows again, step rows. The second pass finds the jobs that a release added
 * while the lock was waited for. It does not wait: who holds such a row may be waiting for the lock
 * that is held here. Then everything is given back and the round starts over with that row in the first pass.
 */
async function lockInOrder(trx: Executor, runId: string, scope: Scope): Promise<void> {
  await savepoint(trx);
  for (let round = 1; round <= MAX_ROUNDS; round += 1) {
    await lockStepJobsForUpdate(trx, runId, scope);
    await lockRunReleaseExclusiveAfterJobs(trx, runId);
    if (await lockedLateJobs(trx, runId, scope)) return lockStepRowsForUpdate(trx, runId, scope);
    await rollbackToSavepoint(trx);
  }
  throw new LedgerError("db.lock_timeout", { sqlstate: "55P03" });
}

async function lockedLateJobs(trx: Executor, runId: string, scope: Scope): Promise<boolean> {
  try {
    await lockStepJobsForUpdateNoWait(trx, runId, scope);
    return true;
  } catch (error) {
    if (isLedgerError(error) && error.sqlstate === "55P03") return false;
    throw error;
  }
}

const ended = sql`('SUCCEEDED', 'FAILED', 'CANCELED')`;

// Every row that changes here is locked by the transaction already.
const cancel = writing("cancel_workflow_run", { id: "uuid", reason: "text?", notify: "bool" }, (db, p, schema) =>
  db
    .with("ended", (qb) =>
      qb
        .deleteFrom("job_queue as q")
        .using("workflow_steps as s")
        .whereRef("q.id", "=", "s.job_id")
        .where("s.run_id", "=", p.id)
        .where("s.status", "in", ["ENQUEUED", "RUNNING"])
        .returning([
          ...keptOfQueue,
          sql<JobStatus>`'CANCELED'::${sql.id(schema, "job_status")}`.as("status"),
          sql<Date>`clock_timestamp()`.as("ended_at"),
          sql<null>`null::${sql.id(schema, "failure_kind")}`.as("failure_kind"),
          sql<null>`null::text`.as("error_code"),
          sql<null>`null::text`.as("error_message"),
          sql<string | null>`${p.reason}`.as("canceled_reason"),
          sql<null>`null::jsonb`.as("output"),
        ]),
    )
    .with("appended", (qb) => appendEnded(qb))
    // Few: only the leased ones. Looked up in all ended jobs, each step of a wide run would scan them all.
    .with(
      (cte) => cte("started").materialized(),
      (qb) =>
        qb.selectFrom("ended as e").where("e.leased_at", "is not", null).select(["e.workflow_step_id", "e.leased_at"]),
    )
    .with("canceled", (qb) =>
      qb
        .updateTable("workflow_steps as s")
        .where("s.run_id", "=", p.id)
        .where(sql<boolean>`s.status not in ${ended}`)
        .set({
          status: sql<StepStatus>`'CANCELED'::${sql.id(schema, "step_status")}`,
          reason: p.reason,
          open_since: null,
          started_at: sql<Date | null>`(select e.leased_at from started as e where e.workflow_step_id = s.id)`,
          // A cancelled step that was never released has its prerequisites still pending.
          ended_at: sql<Date>`clock_timestamp()`,
        })
        .returning("s.id"),
    )
    .with("run", (qb) =>
      qb
        .updateTable("workflow_runs as r")
        .where("r.id", "=", p.id)
        .set({
          status: sql<RunStatus>`'CANCELED'::${sql.id(schema, "run_status")}`,
          open_count: 0,
          waiting_count: 0,
          errored_count: sql<number>`r.errored_count + (select count(*) from canceled)`,
          canceled_reason: p.reason,
          ended_at: sql<Date>`clock_timestamp()`,
        })
        .returning("r.id"),
    )
    .selectNoFrom(announceRuns(p.notify, schema, sql`select id from run`).as("announced")),
);
