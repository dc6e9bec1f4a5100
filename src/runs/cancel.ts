/** Cancel runs with all that hangs on them, correct under any interleaving: exactly the order of LOCKS.md §3. */
import { type RawBuilder, sql } from "kysely";
import { announceJobs, announceRuns } from "../database/announce.ts";
import type { Executor } from "../database/executor.ts";
import { validUuid } from "../database/ids.ts";
import { rowsOf } from "../database/parameters.ts";
import { type Scope, scopeArguments } from "../database/scope.ts";
import { writing } from "../database/statement.ts";
import { isTerminalRun, type RunStatus, type StepStatus } from "../database/statuses.ts";
import { inTransaction, requireReadCommitted, rollbackToSavepoint, savepoint } from "../database/transaction.ts";
import { isLedgerError, LedgerError } from "../errors.ts";
import { appendEnded, canceledOfQueue } from "../jobs/ending.ts";
import { insertReleased } from "../jobs/insertion.ts";
import { storableText } from "../jobs/outcome.ts";
import { lockRunReleaseExclusiveAfterJobs } from "../locks/release.ts";
import {
  lockRunsForUpdate,
  lockStepJobsForUpdate,
  lockStepJobsForUpdateNoWait,
  lockStepRowsForUpdate,
} from "../locks/rows.ts";
import { withBoundedWait } from "../locks/wait.ts";
import { jobsOfEndedChildren } from "../steps/release.ts";
import { type FamilyMember, findFamily, liveIds } from "./family.ts";

export interface CancelRunOptions {
  readonly scope: Scope;
  /** Kept with the run, its jobs and its child runs. */
  readonly reason?: string;
}

export interface CanceledRun {
  readonly id: string;
  /** CANCELED, or the status with which the run had ended before. */
  readonly status: RunStatus;
  /** Whether this call cancelled it. */
  readonly canceled: boolean;
}

/** A late job row or child run is in the next round's first pass: each round holds more of them. */
const MAX_ROUNDS = 32;

/**
 * Cancels a run and its live descendants: once this has committed no step of them starts and no
 * dependent is released. A terminal run is returned unchanged. A step of a parent run that waits for the
 * run goes on. The wait for each lock is bounded. Fourteen round trips in a transaction of its own where
 * nothing is in the way, whatever the number of descendants, three for a terminal run. Throws
 * `workflow.run_not_found`, `workflow.cancel_unsupported_isolation`, `scope.required`, `input.invalid`,
 * `db.lock_timeout`.
 */
export async function cancelRun(executor: Executor, runId: string, options: CancelRunOptions): Promise<CanceledRun> {
  const id = validUuid(runId, "runId");
  const run = (await cancelRuns(executor, [id], options)).find((canceled) => canceled.id === id);
  if (run === undefined) throw new LedgerError("workflow.run_not_found");
  return run;
}

/**
 * Cancels a set of runs and their live descendants, all or none, in the round trips of one. Answers for
 * those of the runs that are in scope and for each descendant that went with them, in id order. Throws
 * as `cancelRun`, but for the runs that are not found.
 */
export async function cancelRuns(
  executor: Executor,
  runIds: readonly string[],
  { scope, reason }: CancelRunOptions,
): Promise<CanceledRun[]> {
  const ids = runIds.map((runId) => validUuid(runId, "runId"));
  const text = reason === undefined ? null : storableText(reason);
  scopeArguments(scope);
  await requireReadCommitted(executor, "workflow.cancel_unsupported_isolation");
  return inTransaction(executor, async (trx) => {
    const found = await findFamily(trx, ids, scope);
    if (liveIds(found).length === 0) return found.map(unchanged);
    return withBoundedWait(trx, async () => {
      const family = await lockInOrder(trx, ids, found, scope);
      const live = liveIds(family);
      if (live.length > 0) await cancelLocked(trx, live, scope, text);
      return family.map((member) => (isTerminalRun(member.status) ? unchanged(member) : canceled(member)));
    });
  });
}

function unchanged({ id, status }: FamilyMember): CanceledRun {
  return { id, status, canceled: false };
}

function canceled({ id }: FamilyMember): CanceledRun {
  return { id, status: "CANCELED", canceled: true };
}

/**
 * Job rows, release locks, job rows again. The second pass finds the jobs that a release added while a
 * lock was waited for; it does not wait, because who holds such a row may be waiting for a lock that is
 * held here. A child run may have been started meanwhile too: its starter held its parent's lock shared.
 * After either everything is given back and the round starts over with those rows in the first pass.
 * Returns the family as it stays while the locks are held.
 */
async function lockInOrder(
  trx: Executor,
  ids: readonly string[],
  found: readonly FamilyMember[],
  scope: Scope,
): Promise<readonly FamilyMember[]> {
  let family = found;
  await savepoint(trx);
  for (let round = 1; round <= MAX_ROUNDS; round += 1) {
    const locked = liveIds(family);
    await lockStepJobsForUpdate(trx, locked, scope);
    await lockRunReleaseExclusiveAfterJobs(trx, locked);
    if (await lockedLateJobs(trx, locked, scope)) {
      family = await findFamily(trx, ids, scope);
      const held = new Set(locked);
      if (liveIds(family).every((id) => held.has(id))) return family;
    }
    await rollbackToSavepoint(trx);
  }
  throw new LedgerError("db.lock_timeout", { sqlstate: "55P03" });
}

async function lockedLateJobs(trx: Executor, runIds: readonly string[], scope: Scope): Promise<boolean> {
  try {
    await lockStepJobsForUpdateNoWait(trx, runIds, scope);
    return true;
  } catch (error) {
    if (isLedgerError(error) && error.sqlstate === "55P03") return false;
    throw error;
  }
}

/** Under the release locks the runs stay as they are: no completion, append, start of a child or other cancel gets in. */
async function cancelLocked(trx: Executor, ids: readonly string[], scope: Scope, reason: string | null): Promise<void> {
  await lockStepRowsForUpdate(trx, ids, scope);
  const runs = await lockRunsForUpdate(trx, ids, scope);
  if (runs.some(({ status }) => isTerminalRun(status))) throw new LedgerError("workflow.internal_state");
  await cancel.execute(trx, { ids, reason, notify: trx.settings.notify });
}

/** As an array that the planner cannot look into: however many there are, the steps of each are found by index. */
function ofRuns(ids: RawBuilder<readonly string[]>): RawBuilder<boolean> {
  return sql<boolean>`s.run_id = any(array(select unnest(${ids})))`;
}

const ended = sql`('SUCCEEDED', 'FAILED', 'CANCELED')`;

// Every row that changes here is locked by the transaction already.
const cancel = writing("cancel_workflow_runs", { ids: "uuid[]", reason: "text?", notify: "bool" }, (db, p, schema) =>
  db
    .with("ended", (qb) =>
      qb
        .deleteFrom("job_queue as q")
        .where((eb) => {
          const jobs = eb
            .selectFrom("workflow_steps as s")
            .select("s.job_id")
            .where(ofRuns(p.ids))
            .where("s.status", "in", ["ENQUEUED", "RUNNING"]);
          return sql<boolean>`q.id = any(array(${jobs}))`;
        })
        .returning(canceledOfQueue(schema, p.reason)),
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
        .where(ofRuns(p.ids))
        .where(sql<boolean>`s.status not in ${ended}`)
        .set({
          status: sql<StepStatus>`'CANCELED'::${sql.id(schema, "step_status")}`,
          reason: p.reason,
          open_since: null,
          // A step that waits for its child run has started, and has no job now.
          started_at: sql<Date | null>`coalesce(
            (select e.leased_at from started as e where e.workflow_step_id = s.id), s.started_at)`,
          // A cancelled step that was never released has its prerequisites still pending.
          ended_at: sql<Date>`clock_timestamp()`,
        })
        .returning("s.run_id"),
    )
    .with("tally", (qb) =>
      qb
        .selectFrom(rowsOf("given", { id: p.ids }))
        .leftJoin("canceled as c", "c.run_id", "given.id")
        .groupBy("given.id")
        .select(({ fn }) => ["given.id", fn.count<number>("c.run_id").as("steps")]),
    )
    .with("run", (qb) =>
      qb
        .updateTable("workflow_runs as r")
        .from("tally as t")
        .whereRef("r.id", "=", "t.id")
        // Says nothing new, but without it the planner may read all runs there are.
        .where(sql<boolean>`r.id = any(${p.ids})`)
        .set({
          status: sql<RunStatus>`'CANCELED'::${sql.id(schema, "run_status")}`,
          open_count: 0,
          waiting_count: 0,
          errored_count: sql<number>`r.errored_count + t.steps`,
          canceled_reason: p.reason,
          ended_at: sql<Date>`clock_timestamp()`,
        })
        .returning(["r.id", "r.ended_at", "r.parent_run_id", "r.parent_step_id"]),
    )
    // A parent that is cancelled here has no use for the end of its child.
    .with("counted", (qb) =>
      qb.selectFrom("run as r").where(sql<boolean>`r.parent_run_id <> all(${p.ids})`).selectAll(),
    )
    .with("released", (qb) => jobsOfEndedChildren(qb))
    .with("inserted", (qb) => insertReleased(qb))
    .selectNoFrom([
      announceJobs(p.notify, schema, sql`select from inserted`).as("jobs_announced"),
      announceRuns(p.notify, schema, sql`select id from run`).as("runs_announced"),
    ]),
);
