/** Row locks of runs, each kind in one statement and in id order over all of the runs, by LOCKS.md §2. */
import { type ExpressionBuilder, type QueryCreator, type RawBuilder, sql } from "kysely";
import { toDate, toDateOrNull } from "../database/decode.ts";
import type { Executor } from "../database/executor.ts";
import type { Placeholders } from "../database/parameters.ts";
import { inScope, type Scope, scopeArguments, scopeParameters } from "../database/scope.ts";
import { reading } from "../database/statement.ts";
import {
  decodeRunStatus,
  decodeStepKind,
  decodeStepStatus,
  type RunStatus,
  type StepKind,
  type StepStatus,
} from "../database/statuses.ts";
import type { LedgerTables } from "../database/tables.ts";
import { LedgerError } from "../errors.ts";

/** A step under its row lock. */
export interface LockedStep {
  readonly id: string;
  readonly runId: string;
  readonly stepKey: string;
  readonly kind: StepKind;
  readonly organizationId: string | null;
  readonly status: StepStatus;
  readonly jobId: string | null;
}

/** A run under its row lock. */
export interface LockedRun {
  readonly id: string;
  readonly type: string;
  readonly organizationId: string | null;
  readonly status: RunStatus;
  readonly canceledReason: string | null;
  readonly createdAt: Date;
  readonly endedAt: Date | null;
}

const runParameters = { runIds: "uuid[]", ...scopeParameters } as const;
type RunPlaceholders = Placeholders<typeof runParameters>;

function runArguments(runIds: readonly string[], scope: Scope) {
  return { runIds, ...scopeArguments(scope) };
}

/** Locks the live jobs of the runs' steps and waits for each. One round trip. */
export async function lockStepJobsForUpdate(
  executor: Executor,
  runIds: readonly string[],
  scope: Scope,
): Promise<void> {
  await stepJobs.execute(executor, runArguments(runIds, scope));
}

/** The same without waiting: throws `db.lock_timeout` (55P03) when another session holds one of them. One round trip. */
export async function lockStepJobsForUpdateNoWait(
  executor: Executor,
  runIds: readonly string[],
  scope: Scope,
): Promise<void> {
  await stepJobsNoWait.execute(executor, runArguments(runIds, scope));
}

/** Locks the runs' steps. One round trip. */
export async function lockStepRowsForUpdate(
  executor: Executor,
  runIds: readonly string[],
  scope: Scope,
): Promise<void> {
  await stepRows.execute(executor, runArguments(runIds, scope));
}

/** Locks the runs' steps and returns the state of each, in id order. One round trip. Throws `workflow.internal_state`. */
export async function lockStepsForUpdate(
  executor: Executor,
  runIds: readonly string[],
  scope: Scope,
): Promise<LockedStep[]> {
  const rows = await steps.execute(executor, runArguments(runIds, scope));
  return rows.map((row) => ({
    id: row.id,
    runId: row.run_id,
    stepKey: row.step_key,
    kind: decodeStepKind(row.kind),
    organizationId: row.organization_id,
    status: decodeStepStatus(row.status),
    jobId: row.job_id,
  }));
}

/**
 * Locks the run rows, then reads the runs anew, in id order. Two round trips. Throws
 * `workflow.run_not_found` when one is absent or out of scope, `workflow.internal_state` when the status
 * of one is not the one that was locked.
 */
export async function lockRunsForUpdate(
  executor: Executor,
  runIds: readonly string[],
  scope: Scope,
): Promise<LockedRun[]> {
  const args = runArguments(runIds, scope);
  const locked = await runRows.execute(executor, args);
  if (locked.length < new Set(runIds).size) throw new LedgerError("workflow.run_not_found");
  const reloaded = new Map((await reloadedRuns.execute(executor, args)).map((run) => [run.id, run]));
  return locked.map(({ id, status }) => {
    const run = reloaded.get(id);
    if (run === undefined || run.status !== status) {
      throw new LedgerError("workflow.internal_state", { message: "A run changed while its row was locked." });
    }
    return decodeRun(run);
  });
}

function decodeRun(run: Awaited<ReturnType<typeof reloadedRuns.execute>>[number]): LockedRun {
  return {
    id: run.id,
    type: run.type,
    organizationId: run.organization_id,
    status: decodeRunStatus(run.status),
    canceledReason: run.canceled_reason,
    createdAt: toDate(run.created_at),
    endedAt: toDateOrNull(run.ended_at),
  };
}

/**
 * Locks the run row against changes by others, and returns its status. Only for who never changes the row
 * itself: a share lock is not to be made stronger. One round trip. Throws `workflow.run_not_found`.
 */
export async function lockRunForShare(executor: Executor, runId: string, scope: Scope): Promise<RunStatus> {
  const row = await sharedRunRow.executeFirst(executor, runArguments([runId], scope));
  if (row === undefined) throw new LedgerError("workflow.run_not_found");
  return decodeRunStatus(row.status);
}

type Tables = ExpressionBuilder<LedgerTables, never> | QueryCreator<LedgerTables>;

function oneOf(column: string, { runIds }: RunPlaceholders): RawBuilder<boolean> {
  return sql<boolean>`${sql.ref(column)} = any(${runIds})`;
}

/**
 * Steps of those of the runs that are in scope. Runs, and jobs below, come as arrays: whatever the planner
 * thinks of their number, each is found by its key. Joined, the list of ids does not even reach the runs.
 */
function ofRuns(tables: Tables, p: RunPlaceholders): RawBuilder<boolean> {
  const runs = tables
    .selectFrom("workflow_runs as r")
    .select("r.id")
    .where(oneOf("r.id", p))
    .where(inScope("r.organization_id", p));
  return sql<boolean>`s.run_id = any(array(${runs}))`;
}

function liveStepJobs(tables: Tables, p: RunPlaceholders) {
  const jobs = tables
    .selectFrom("workflow_steps as s")
    .select("s.job_id")
    .where("s.status", "in", ["ENQUEUED", "RUNNING"])
    .where(ofRuns(tables, p));
  return tables
    .selectFrom("job_queue as q")
    .select("q.id")
    .where(sql<boolean>`q.id = any(array(${jobs}))`)
    .orderBy("q.id")
    .forUpdate("q");
}

function stepsOfRuns(tables: Tables, p: RunPlaceholders) {
  return tables.selectFrom("workflow_steps as s").where(ofRuns(tables, p)).orderBy("s.id").forUpdate("s");
}

// Counted outside of the locking query, which may not aggregate: ten thousand ids stay on the server. Through a
// callback: Kysely 0.28 cannot put a schema to the FOR UPDATE of a query that has one already.
const stepJobs = reading("lock_workflow_step_jobs_for_update", runParameters, (db, p) =>
  db.selectFrom((tables) => liveStepJobs(tables, p).as("locked")).select((eb) => eb.fn.countAll().as("count")),
);

const stepJobsNoWait = reading("lock_workflow_step_jobs_for_update_nowait", runParameters, (db, p) =>
  db.selectFrom((tables) => liveStepJobs(tables, p).noWait().as("locked")).select((eb) => eb.fn.countAll().as("count")),
);

const stepRows = reading("lock_workflow_step_rows_for_update", runParameters, (db, p) =>
  db
    .selectFrom((tables) => stepsOfRuns(tables, p).select("s.id").as("locked"))
    .select((eb) => eb.fn.countAll().as("count")),
);

const steps = reading("lock_workflow_steps_for_update", runParameters, (db, p) =>
  stepsOfRuns(db, p).select(["s.id", "s.run_id", "s.step_key", "s.kind", "s.organization_id", "s.status", "s.job_id"]),
);

const runRows = reading("lock_workflow_run_for_update", runParameters, (db, p) =>
  db
    .selectFrom("workflow_runs as r")
    .select(["r.id", "r.status"])
    .where(oneOf("r.id", p))
    .where(inScope("r.organization_id", p))
    .orderBy("r.id")
    .forUpdate("r"),
);

const sharedRunRow = reading("lock_workflow_run_for_share", runParameters, (db, p) =>
  db
    .selectFrom("workflow_runs as r")
    .select(["r.id", "r.status"])
    .where(oneOf("r.id", p))
    .where(inScope("r.organization_id", p))
    .orderBy("r.id")
    .forShare("r"),
);

const reloadedRuns = reading("reload_workflow_runs", runParameters, (db, p) =>
  db
    .selectFrom("workflow_runs as r")
    .select(["r.id", "r.type", "r.organization_id", "r.status", "r.canceled_reason", "r.created_at", "r.ended_at"])
    .where(oneOf("r.id", p))
    .where(inScope("r.organization_id", p)),
);
