/** Runs whose time can be over: it passes when a test says so. */
import { createExecutor } from "../../src/database/executor.ts";
import type { GateExpiry, Ledger, RunOptions } from "../../src/index.ts";
import { type DueGate, expireGates } from "../../src/steps/expiry.ts";
import type { TestDatabase } from "../support/database.ts";
import { graphOf, TestRun } from "./fixtures.ts";

let runs = 0;

/** A run whose gates all expire so. */
export async function startExpiring(
  database: TestDatabase,
  ledger: Ledger,
  steps: Readonly<Record<string, readonly string[]>>,
  expires: Partial<GateExpiry> = {},
  options: RunOptions = {},
): Promise<TestRun> {
  runs += 1;
  const graph = graphOf(`timed-${runs}`, steps);
  const timed = graph.steps.map((step) =>
    step.key.startsWith("gate")
      ? { ...step, expires: { afterSeconds: 3600, outcome: "FAILED", ...expires } as const }
      : step,
  );
  const { id } = await ledger.runs.enqueue({ ...graph, steps: timed }, options);
  return new TestRun(database, ledger, id, graph.type);
}

/** The time of the run's open gates is over. */
export async function gatesAreDue(database: TestDatabase, ...of: readonly TestRun[]): Promise<void> {
  await database.pool.query(
    `update runledger.workflow_steps set expires_at = now() - interval '1 second'
     where run_id = any($1) and expires_at is not null and ended_at is null`,
    [of.map(({ id }) => id)],
  );
}

/** The run is past its deadline. */
export async function deadlineIsPast(database: TestDatabase, ...of: readonly TestRun[]): Promise<void> {
  await database.pool.query(
    "update runledger.workflow_runs set deadline_at = now() - interval '1 second' where id = any($1)",
    [of.map(({ id }) => id)],
  );
}

/** Expires the run's gate of this key with the full patience, so that a test may stand between two of its statements. */
export async function expirePatiently(database: TestDatabase, run: TestRun, key = "gate"): Promise<number> {
  const { rows } = await database.pool.query<DueGate>(
    `select run_id as "runId", id as "stepId", step_key as "stepKey", expiry_outcome as outcome, expiry_output::text as output
     from runledger.workflow_steps where run_id = $1 and step_key = $2`,
    [run.id, key],
  );
  const executor = createExecutor(database.db, "runledger", { notify: false, lockWaitMs: 20_000 });
  const { expired, setAside } = await expireGates(executor, rows);
  for (const { error } of setAside) throw error;
  return expired.length;
}
