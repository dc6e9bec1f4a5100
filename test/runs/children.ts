/** Child runs as their parents' handlers start them, by hand: what a cancel finds of them. */
import { randomUUID } from "node:crypto";
import type { Transaction } from "kysely";
import { sql } from "kysely";
import type { RunledgerDatabase } from "../../src/database/tables.ts";
import type { GraphSpec, Ledger, RunOptions, StepSpec } from "../../src/index.ts";
import { runReleaseKey } from "../../src/locks/key.ts";
import type { TestDatabase } from "../support/database.ts";
import { graphOf, TestRun } from "./fixtures.ts";

type Steps = Readonly<Record<string, readonly string[]>>;

let families = 0;

/** Enqueues a run of `steps`, in which those whose keys start with "child" are child runs. */
export async function startParent(
  database: TestDatabase,
  ledger: Ledger,
  steps: Steps,
  options: RunOptions = {},
): Promise<TestRun> {
  families += 1;
  const graph = graphOf(`family-${families}`, steps);
  const { id } = await ledger.runs.enqueue({ ...graph, steps: graph.steps.map(asChild) }, options);
  return new TestRun(database, ledger, id, graph.type);
}

function asChild({ job, ...step }: StepSpec): StepSpec {
  if (!step.key.startsWith("child")) return job === undefined ? step : { ...step, job };
  return { ...step, child: { graph: graphOf("described", { only: [] }) } };
}

/** Starts the child run of a step that is ENQUEUED, in one transaction, under its parent's release lock. */
export async function startChild(
  database: TestDatabase,
  ledger: Ledger,
  parent: TestRun,
  stepKey: string,
  steps: Steps,
): Promise<TestRun> {
  return database.db.transaction().execute((trx) => startChildIn(trx, database, ledger, parent, stepKey, steps));
}

export async function startChildIn(
  trx: Transaction<RunledgerDatabase>,
  database: TestDatabase,
  ledger: Ledger,
  parent: TestRun,
  stepKey: string,
  steps: Steps,
): Promise<TestRun> {
  families += 1;
  const graph = graphOf(`family-${families}`, steps);
  await sql`
    select q.id from runledger.workflow_steps as s join runledger.job_queue as q on q.id = s.job_id
    where s.run_id = ${parent.id} and s.step_key = ${stepKey} for update of q`.execute(trx);
  await sql`select pg_advisory_xact_lock_shared(${String(runReleaseKey(parent.id))}::bigint)`.execute(trx);
  const id = await enqueueIn(trx, ledger, parent, graph);
  const started = await sql`
    with step as (
      update runledger.workflow_steps
      set status = 'RUNNING', child_run_id = ${id}, job_run_number = job_run_number + 1, started_at = clock_timestamp()
      where run_id = ${parent.id} and step_key = ${stepKey} and status = 'ENQUEUED'
      returning run_id, id, job_id
    ), slice as (
      delete from runledger.job_queue as q using step where q.id = step.job_id returning q.*
    ), kept as (
      insert into runledger.job_ledger (
        id, run_number, type, organization_id, priority, run_at, attempt, max_attempts, timeout_seconds, enqueued_at,
        workflow_run_id, workflow_step_id, payload, status, ended_at
      )
      select id, run_number, type, organization_id, priority, run_at, attempt, max_attempts, timeout_seconds, enqueued_at,
        workflow_run_id, workflow_step_id, payload, 'SUCCEEDED', clock_timestamp()
      from slice returning id
    )
    update runledger.workflow_runs as r set parent_run_id = step.run_id, parent_step_id = step.id
    from step, kept where r.id = ${id}`.execute(trx);
  if (started.numAffectedRows !== 1n) throw new Error(`step ${stepKey} could not start a child run`);
  return new TestRun(database, ledger, id, graph.type);
}

async function enqueueIn(
  trx: Transaction<RunledgerDatabase>,
  ledger: Ledger,
  parent: TestRun,
  graph: GraphSpec,
): Promise<string> {
  const { rows } = await sql<{
    organization_id: string | null;
  }>`select organization_id from runledger.workflow_runs where id = ${parent.id}`.execute(trx);
  const { id } = await ledger
    .in(trx)
    .runs.enqueue(graph, { organizationId: rows[0]?.organization_id ?? null, idempotencyKey: randomUUID() });
  return id;
}
