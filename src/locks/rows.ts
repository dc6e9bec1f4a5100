/** Row locks of a run, each kind in one statement and in id order, by LOCKS.md §2. */
import type { ExpressionBuilder, QueryCreator } from "kysely";
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

const runParameters = { runId: "uuid", ...scopeParameters } as const;
type RunPlaceholders = Placeholders<typeof runParameters>;

/** Locks the live jobs of the run's steps and waits for each. One round trip. */
export async function lockStepJobsForUpdate(executor: Executor, runId: string, scope: Scope): Promise<void> {
  await stepJobs.execute(executor, { runId, ...scopeArguments(scope) });
}

/** The same without waiting: throws `db.lock_timeout` (55P03) when another session holds one of them. One round trip. */
export async function lockStepJobsForUpdateNoWait(executor: Executor, runId: string, scope: Scope): Promise<void> {
  await stepJobsNoWait.execute(executor, { runId, ...scopeArguments(scope) });
}

/** Locks the run's steps. One round trip. */
export async function lockStepRowsForUpdate(executor: Executor, runId: string, scope: Scope): Promise<void> {
  await stepRows.execute(executor, { runId, ...scopeArguments(scope) });
}

/** Locks the run's steps and returns the state of each, in id order. One round trip. Throws `workflow.internal_state`. */
export async function lockStepsForUpdate(executor: Executor, runId: string, scope: Scope): Promise<LockedStep[]> {
  const rows = await steps.execute(executor, { runId, ...scopeArguments(scope) });
  return rows.map((row) => ({
    id: row.id,
    stepKey: row.step_key,
    kind: decodeStepKind(row.kind),
    organizationId: row.organization_id,
    status: decodeStepStatus(row.status),
    jobId: row.job_id,
  }));
}

/**
 * Locks the run row, then reads the run anew. Two round trips. Throws `workflow.run_not_found` when
 * absent or out of scope, `workflow.internal_state` when its status is not the one that was locked.
 */
export async function lockRunForUpdate(executor: Executor, runId: string, scope: Scope): Promise<LockedRun> {
  const args = { runId, ...scopeArguments(scope) };
  const locked = await runRow.executeFirst(executor, args);
  if (locked === undefined) throw new LedgerError("workflow.run_not_found");
  const run = await reloadedRun.executeFirst(executor, args);
  if (run === undefined || run.status !== locked.status) {
    throw new LedgerError("workflow.internal_state", { message: "The run changed while its row was locked." });
  }
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

type Tables = ExpressionBuilder<LedgerTables, never>;

function liveStepJobs(tables: Tables, p: RunPlaceholders) {
  return tables
    .selectFrom("job_queue as q")
    .select("q.id")
    .where("q.id", "in", (eb) =>
      eb
        .selectFrom("workflow_steps as s")
        .innerJoin("workflow_runs as r", "r.id", "s.run_id")
        .select("s.job_id")
        .where("s.run_id", "=", p.runId)
        .where("s.status", "in", ["ENQUEUED", "RUNNING"])
        .where(inScope("r.organization_id", p)),
    )
    .orderBy("q.id")
    .forUpdate("q");
}

function stepsOfRun(tables: Tables | QueryCreator<LedgerTables>, p: RunPlaceholders) {
  return tables
    .selectFrom("workflow_steps as s")
    .innerJoin("workflow_runs as r", "r.id", "s.run_id")
    .where("s.run_id", "=", p.runId)
    .where(inScope("r.organization_id", p))
    .orderBy("s.id")
    .forUpdate("s");
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
    .selectFrom((tables) => stepsOfRun(tables, p).select("s.id").as("locked"))
    .select((eb) => eb.fn.countAll().as("count")),
);

const steps = reading("lock_workflow_steps_for_update", runParameters, (db, p) =>
  stepsOfRun(db, p).select(["s.id", "s.step_key", "s.kind", "s.organization_id", "s.status", "s.job_id"]),
);

const runRow = reading("lock_workflow_run_for_update", runParameters, (db, p) =>
  db
    .selectFrom("workflow_runs as r")
    .select(["r.id", "r.status"])
    .where("r.id", "=", p.runId)
    .where(inScope("r.organization_id", p))
    .orderBy("r.id")
    .forUpdate("r"),
);

const reloadedRun = reading("reload_workflow_run", runParameters, (db, p) =>
  db
    .selectFrom("workflow_runs as r")
    .select(["r.id", "r.type", "r.organization_id", "r.status", "r.canceled_reason", "r.created_at", "r.ended_at"])
    .where("r.id", "=", p.runId)
    .where(inScope("r.organization_id", p)),
);
