/** Completions inside a caller's transaction keep to the order of locks too, however many statements they take. */
import { afterEach, describe, expect, test } from "@jest/globals";
import { expectInvariants, watchForDeadlocks } from "../invariants.ts";
import { codeOf, failure, holding, ledgerOf, openTransaction, TestRun } from "../runs/fixtures.ts";
import { createTestDatabase } from "../support/database.ts";
import { waitForBackend } from "../support/waiting.ts";

const database = await createTestDatabase();
const expectNoDeadlocks = watchForDeadlocks(database);
const ledger = ledgerOf(database);

afterEach(async () => {
  await expectInvariants(database);
  expectNoDeadlocks();
});

test("a completion that the short way holds back gives its steps back before it locks all that it reaches", async () => {
  // Ids ascend in the order a, z, sad, wait, shared, ..., last: the short way locks `sad` and `last`, and the
  // cancelled `sad` then leads to `wait` and `shared` between them.
  const run = await TestRun.start(database, ledger, {
    bad: [],
    a: [],
    z: [],
    x: [],
    sad: ["bad", "a"],
    wait: ["sad"],
    shared: ["sad", "z"],
    y: ["x"],
    yy: ["y"],
    last: ["a", "z", "yy"],
  });
  await run.fail("bad");
  const [a, z] = await run.claimAll("a", "z");
  const held = await holding(database, [
    "select from runledger.workflow_steps where run_id = $1 and step_key = 'wait' for update",
    [run.id],
  ]);

  const trx = await openTransaction(database);
  const first = ledger.in(trx).jobs.complete(a.lease);
  await waitForBackend({ client: database.pool, marker: "lock_workflow_step_closure_for_update" });
  await ledgerOf(database, { lockWaitMs: 1000 }).jobs.complete(z.lease);
  await held.query("rollback");
  await first;
  await trx.commit().execute();

  expect(await run.statuses()).toMatchObject({
    sad: "CANCELED",
    wait: "CANCELED",
    shared: "CANCELED",
    last: "BLOCKED",
  });
});

test("a batch of a success and a failure holds both jobs before a cancel can come between", async () => {
  const run = await TestRun.start(database, ledger, { one: [], two: [], after: ["one", "two?"] });
  const [one, two] = await run.claimAll("one", "two");
  const held = await holding(database, ["select from runledger.job_queue where id = $1 for update", [two.lease.jobId]]);

  const trx = await openTransaction(database);
  const settling = ledger.in(trx).jobs.settle([
    { lease: two.lease, failure },
    { lease: one.lease, success: {} },
  ]);
  await waitForBackend({ client: database.pool, marker: "settle_attempts" });
  const canceling = ledger.runs.cancel(run.id, { scope: { global: true } });
  await waitForBackend({ client: database.pool, marker: "lock_workflow_step_jobs_for_update" });
  await held.query("rollback");

  expect(await settling).toMatchObject([{ ok: true }, { ok: true }]);
  await trx.commit().execute();
  expect(await canceling).toMatchObject({ canceled: true });
});

test("batches that touch two runs in opposite order, each with a success and a failure, do not stop each other", async () => {
  const left = await TestRun.start(database, ledger, { good: [], bad: [], next: ["good"], sad: ["bad"] });
  const right = await TestRun.start(database, ledger, { good: [], bad: [], next: ["good"], sad: ["bad"] });
  const [lg, lb] = await left.claimAll("good", "bad");
  const [rg, rb] = await right.claimAll("good", "bad");
  const held = await holding(database, [
    "select from runledger.workflow_steps where run_id = any($1) and step_key = 'sad' for update",
    [[left.id, right.id]],
  ]);

  const one = await openTransaction(database);
  const two = await openTransaction(database);
  const first = ledger.in(one).jobs.settle([
    { lease: lg.lease, success: {} },
    { lease: rb.lease, failure },
  ]);
  const second = ledger.in(two).jobs.settle([
    { lease: rg.lease, success: {} },
    { lease: lb.lease, failure },
  ]);
  await waitForBackend({ client: database.pool, count: 2 });
  await held.query("rollback");
  const commit = (settled: typeof first, trx: typeof one) =>
    settled.then(async (results) => {
      await trx.commit().execute();
      return results;
    });

  expect(await Promise.all([commit(first, one), commit(second, two)])).toMatchObject([
    [{ ok: true }, { ok: true }],
    [{ ok: true }, { ok: true }],
  ]);
});

describe("a completion in a caller's transaction waits no longer than the bound for", () => {
  const rows: [string, string][] = [
    ["its job", "select from runledger.job_queue where workflow_run_id = $1 for update"],
    ["a step", "select from runledger.workflow_steps where run_id = $1 for update"],
    ["the run", "select from runledger.workflow_runs where id = $1 for update"],
  ];
  test.each(rows)("%s", async (_, lock) => {
    const run = await TestRun.start(database, ledger, { a: [], next: ["a"] });
    const { lease } = await run.claim("a");
    const holder = await holding(database, [lock, [run.id]]);
    const impatient = ledgerOf(database, { lockWaitMs: 40 });

    for (const settlement of [
      { lease, success: {} },
      { lease, failure },
    ]) {
      const settling = database.db.transaction().execute((trx) => impatient.in(trx).jobs.settle([settlement]));
      expect(await codeOf(settling)).toBe("db.lock_timeout");
    }

    await holder.query("rollback");
    expect(await run.statuses()).toEqual({ a: "ENQUEUED", next: "BLOCKED" });
  });
});
