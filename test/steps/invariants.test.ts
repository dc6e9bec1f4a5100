/** Each invariant is broken on purpose, and named. */
import { afterEach, expect, test } from "@jest/globals";
import { sql, type Transaction } from "kysely";
import { createExecutor } from "../../src/database/executor.ts";
import type { RunledgerDatabase } from "../../src/database/tables.ts";
import { checkInvariants, type InvariantName, invariants } from "../../src/invariants/check.ts";
import { expectInvariants } from "../invariants.ts";
import { startChild, startParent } from "../runs/children.ts";
import { ledgerOf, TestRun, unknownId } from "../runs/fixtures.ts";
import { createTestDatabase } from "../support/database.ts";

const database = await createTestDatabase({ max: 3 });
const ledger = ledgerOf(database);
const settings = { notify: false, lockWaitMs: 5000 };

// What the sabotage works on: a run with a step in every state, an ended run, a keyed job and a keyed run.
const run = await TestRun.start(
  database,
  ledger,
  { failed: [], sad: ["failed"], leased: [], blocked: ["leased"], gate: [], late: ["gate"] },
  { idempotencyKey: "key" },
);
await run.fail("failed");
await run.claim("leased");
const over = await TestRun.start(database, ledger, { first: [], second: ["first"] });
await over.succeed("first");
await over.succeed("second");
await ledger.jobs.enqueue("keyed", {}, { idempotencyKey: "key" });
await ledger.jobs.enqueue("limited", {}, { limit: { key: "key", concurrency: 1 } });

const parent = await startParent(database, ledger, { child: [] });
const child = await startChild(database, ledger, parent, "child", { only: [] });

const inRun = `run_id = '${run.id}'`;
const step = (key: string) => `${inRun} and step_key = '${key}'`;
const drop = (table: string, constraint: string) => `alter table runledger.${table} drop constraint ${constraint}`;

const sabotage: Record<InvariantName, readonly string[]> = {
  job_live_and_ended: [
    `insert into runledger.job_ledger (id, run_number, status, type, priority, run_at, attempt, max_attempts,
       timeout_seconds, enqueued_at, ended_at, payload)
     select id, run_number, 'SUCCEEDED', type, priority, run_at, attempt, max_attempts, timeout_seconds, now(), now(),
       payload from runledger.job_queue where type = 'keyed'`,
  ],
  lease_without_owner: [
    drop("job_queue", "job_queue_lease_has_owner"),
    `update runledger.job_queue set worker_id = null where status = 'LEASED'`,
  ],
  live_job_of_terminal_run: [
    `update runledger.job_queue set workflow_run_id = '${over.id}' where type = '${run.type}.leased'`,
  ],
  live_job_without_enqueued_step: [
    `update runledger.job_queue set workflow_step_id = '${unknownId}' where type = '${run.type}.leased'`,
  ],
  enqueued_step_without_live_job: [`delete from runledger.job_queue where type = '${run.type}.leased'`],
  child_without_parent_step: [
    `update runledger.workflow_runs set parent_run_id = '${run.id}',
       parent_step_id = (select id from runledger.workflow_steps where ${step("leased")}) where id = '${child.id}'`,
  ],
  live_descendant_of_canceled_run: [
    `update runledger.workflow_runs set parent_run_id = '${over.id}', parent_step_id = '${unknownId}' where id = '${child.id}'`,
    `update runledger.workflow_runs set parent_run_id = '${parent.id}', parent_step_id = '${unknownId}' where id = '${over.id}'`,
    `update runledger.workflow_runs set status = 'CANCELED', ended_at = now() where id = '${parent.id}'`,
  ],
  live_step_of_terminal_run: [
    `update runledger.workflow_steps set status = 'ENQUEUED', ended_at = null where run_id = '${over.id}'`,
  ],
  run_step_count: ["update runledger.workflow_runs set step_count = step_count + 1"],
  run_open_count: [`update runledger.workflow_runs set open_count = open_count - 1 where id = '${run.id}'`],
  run_waiting_count: [`update runledger.workflow_runs set waiting_count = 0 where id = '${run.id}'`],
  run_errored_count: [`update runledger.workflow_runs set errored_count = 1 where id = '${run.id}'`],
  step_dependent_count: [`update runledger.workflow_steps set dependent_count = 7 where ${step("failed")}`],
  step_pending_count: [`update runledger.workflow_steps set pending_count = 2 where ${step("blocked")}`],
  step_unsatisfied_count: [`update runledger.workflow_steps set unsatisfied_count = 0 where ${step("sad")}`],
  blocked_step_without_pending: [
    `update runledger.workflow_steps set status = 'SUCCEEDED', ended_at = now() where ${step("leased")}`,
  ],
  released_step_too_early: [`update runledger.workflow_steps set status = 'ENQUEUED' where ${step("blocked")}`],
  forgotten_limit_key: ["delete from runledger.job_limit_wakes"],
  job_key_without_job: ["delete from runledger.job_queue where type = 'keyed'"],
  run_key_without_run: [`update runledger.workflow_idempotency_keys set run_id = '${unknownId}'`],
  job_count: ["update runledger.status_count_deltas set delta = delta + 1 where type = 'keyed'"],
  run_count: ["delete from runledger.status_count_deltas where subject = 'run' and type like 'workflow-%'"],
};

afterEach(() => expectInvariants(database));

test("the invariants hold in a run with a step in every state, in one round trip", async () => {
  const executor = createExecutor(database.db, "runledger", settings);

  const { result, statements } = await database.record(() => checkInvariants(executor));

  expect(result).toEqual([]);
  expect(statements).toHaveLength(1);
});

test.each(Object.entries(sabotage))("%s is named when it is broken", async (name, statements) => {
  await rolledBack(async (trx) => {
    for (const statement of statements) await sql.raw(statement).execute(trx);

    const violations = await checkInvariants(createExecutor(trx, "runledger", settings));

    const violation = violations.find((found) => found.name === name);
    expect(violation?.count).toBeGreaterThan(0);
    // Of counts, the types.
    const example = ["job_count", "run_count"].includes(name) ? /^(keyed|workflow-\d+)$/ : /^[0-9a-f-]{36}$/;
    expect(violation?.examples).toEqual(expect.arrayContaining([expect.stringMatching(example)]));
  });
});

test("a violation names at most five rows and counts all", async () => {
  await rolledBack(async (trx) => {
    await sql`update runledger.workflow_steps set dependent_count = 9`.execute(trx);

    const [violation] = await checkInvariants(createExecutor(trx, "runledger", settings));

    expect(violation).toMatchObject({ name: "step_dependent_count", count: 10 });
    expect(violation?.examples).toHaveLength(5);
  });
});

test("every invariant has its sentence and its sabotage", () => {
  expect(Object.keys(sabotage)).toEqual(Object.keys(invariants));
});

/** Runs the body in a transaction that leaves nothing behind. */
async function rolledBack(body: (trx: Transaction<RunledgerDatabase>) => Promise<void>): Promise<void> {
  const over = new Error("rolled back");
  const done = database.db.transaction().execute(async (trx) => {
    await body(trx);
    throw over;
  });
  await expect(done).rejects.toBe(over);
}
