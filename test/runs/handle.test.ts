/** Handles on runs (FEATURES F-W10). */
import { expect, test } from "@jest/globals";
import pg from "pg";
import { createLedger, defineJob, defineWorkflow, isLedgerError, type RunHandle, typed } from "../../src/index.ts";
import { createTestDatabase } from "../support/database.ts";
import { waitForBackend } from "../support/waiting.ts";
import {
  codeOf,
  countOf,
  errorOf,
  globally,
  ledgerOf,
  openTransaction,
  otherOrganization,
  someOrganization,
  TestRun,
  unknownId,
} from "./fixtures.ts";

const database = await createTestDatabase();
const ledger = ledgerOf(database);

test("a handle says what the run's own functions say", async () => {
  const run = await TestRun.start(database, ledger, { a: [], b: ["a"] }, { result: "a" });
  const handle = ledger.runs.handle(run.id.toUpperCase(), globally);

  expect(handle.id).toBe(run.id);
  expect(await handle.getStatus()).toEqual(await ledger.runs.getStatus(run.id, globally.scope));
  expect(await handle.getRun()).toEqual(await ledger.runs.get(run.id, globally.scope));
  expect(await codeOf(handle.getResult())).toBe("workflow.result_wait_timeout");
  await run.succeed("a", [1]);
  await run.succeed("b");
  expect(await handle.getResult({ timeoutMs: 5000 })).toEqual([1]);
  expect(await handle.cancel()).toEqual({ id: run.id, status: "SUCCEEDED", canceled: false });
});

test("a handle cancels its run with a reason", async () => {
  const run = await TestRun.start(database, ledger, { a: [] }, { result: "a" });
  const handle = ledger.runs.handle(run.id, globally);

  expect(await handle.cancel({ reason: "enough" })).toEqual({ id: run.id, status: "CANCELED", canceled: true });
  expect(await handle.getRun()).toMatchObject({ status: "CANCELED", canceledReason: "enough" });
  expect(await errorOf(handle.getResult({ timeoutMs: 5000 }))).toMatchObject({
    code: "workflow.result_unsuccessful_terminal",
    details: { status: "CANCELED" },
  });
});

test("the result has the type that the workflow's definition declares", async () => {
  const add = defineJob("handle-add", { output: typed<{ sum: number }>() });
  const workflow = defineWorkflow("typed-handle", { build: (graph) => graph.job("add", add, null) });
  const { id } = await ledger.runs.enqueue(workflow, undefined);
  const handle: RunHandle<{ sum: number }> = ledger.runs.handle(id, { ...globally, workflow });
  const [job] = await ledger.jobs.claim({ workerId: "w", limit: 1, types: ["handle-add"] });
  if (job !== undefined) await ledger.jobs.complete(job.lease, { output: { sum: 3 } });

  const { sum } = await handle.getResult();
  expect(sum + 1).toBe(4);
});

test("a handle is made without a word to the database, and refuses bad input at once", async () => {
  const made = (runId: string, scope: never) => {
    try {
      return ledger.runs.handle(runId, { scope }).id;
    } catch (error) {
      return isLedgerError(error) ? error.code : error;
    }
  };
  const { result, statements } = await database.record(async () => [
    made("x", { global: true } as never),
    made(unknownId, undefined as never),
    made(unknownId, {} as never),
    made(unknownId, { global: true, admin: true } as never),
    made(unknownId, { global: true } as never),
  ]);

  expect(result).toEqual(["input.invalid", "scope.required", "scope.required", "scope.required", unknownId]);
  expect(statements).toEqual([]);
});

test("a handle keeps to its scope", async () => {
  const run = await TestRun.start(database, ledger, { a: [] }, { organizationId: someOrganization, result: "a" });

  for (const scope of [{ global: true }, { organization: otherOrganization }] as const) {
    const handle = ledger.runs.handle(run.id, { scope });
    const calls = [handle.getStatus(), handle.getRun(), handle.getResult({ timeoutMs: 1000 }), handle.cancel()];
    expect(await Promise.all(calls.map(codeOf))).toEqual(calls.map(() => "workflow.run_not_found"));
  }
  expect((await run.state()).run).toBe("RUNNING");
  expect(await ledger.runs.handle(run.id, { scope: { organization: someOrganization } }).getStatus()).toMatchObject({
    status: "RUNNING",
  });
});

test("a handle of a caller's transaction works inside it", async () => {
  const run = await TestRun.start(database, ledger, { a: [] });
  const trx = await openTransaction(database);
  const handle = ledger.in(trx).runs.handle(run.id, globally);

  expect(await handle.cancel()).toMatchObject({ canceled: true });
  expect(await handle.getStatus()).toMatchObject({ status: "CANCELED" });
  await trx.rollback().execute();
  expect(await ledger.runs.handle(run.id, globally).getStatus()).toMatchObject({ status: "RUNNING" });
});

test("five hundred waiters use one connection, and each gets its own result", async () => {
  const graph = {
    type: "awaited",
    steps: [{ key: "a", dependencies: [], job: { type: "awaited", payload: null } }],
    resultStep: "a",
  };
  const runs = await ledger.runs.enqueueMany(Array(500).fill({ graph }));
  const listen = () => new pg.Client({ connectionString: database.url, application_name: "waiters" });
  const waiter = createLedger({ db: database.db, listen });
  const connections = () =>
    countOf(database, "pg_stat_activity where application_name = 'waiters' and datname = current_database()");
  const all = () => countOf(database, "pg_stat_activity where datname = current_database()");

  const waiting = runs.map(({ id }) => waiter.runs.handle(id, globally).getResult({ timeoutMs: 60_000 }));
  await waitForBackend({ client: database.pool, marker: 'listen "runledger_runs"', waitEventType: "Client" });
  expect(await connections()).toBe(1);
  const jobs = await ledger.jobs.claim({ workerId: "w", limit: 500, types: ["awaited"] });
  await ledger.jobs.settle(
    jobs.map(({ lease }) => ({ lease, success: { output: { mine: lease.workflowRunId ?? "" } } })),
  );

  expect(await Promise.all(waiting)).toEqual(runs.map(({ id }) => ({ mine: id })));
  expect(await all()).toBeLessThanOrEqual(database.pool.totalCount + 1);
});
