/** Retrying failed steps of a run in place, alone and against everything else that may happen to it (FEATURES F-W11). */
import { afterEach, describe, expect, test } from "@jest/globals";
import type pg from "pg";
import type { Ledger, RetryRunOptions } from "../../src/index.ts";
import { runReleaseKey } from "../../src/locks/key.ts";
import { expectInvariants, watchForDeadlocks } from "../invariants.ts";
import { createTestDatabase } from "../support/database.ts";
import { backendPid, blockingPids, waitForBackend } from "../support/waiting.ts";
import {
  codeOf,
  countOf,
  errorOf,
  failure,
  globally,
  graphOf,
  holding,
  ledgerOf,
  openTransaction,
  otherOrganization,
  raw,
  someOrganization,
  TestRun,
  unknownId,
} from "./fixtures.ts";
import { advanceChildren, childOf, endItems, failed as failedItem, startMapRun, startParentRun } from "./shapes.ts";

const database = await createTestDatabase();
const expectNoDeadlocks = watchForDeadlocks(database);
const ledger = ledgerOf(database);

afterEach(async () => {
  await expectInvariants(database);
  expectNoDeadlocks();
});

const retry = (run: TestRun, options: Partial<RetryRunOptions> = {}, by: Ledger = ledger) =>
  by.runs.retry(run.id, { ...globally, ...options });
const start = (steps: Record<string, string[]>) => TestRun.start(database, ledger, steps);

/** A run in which `a` has failed, and nothing else is left to do. */
async function failed(steps: Record<string, string[]> = { a: [], b: ["a"] }): Promise<TestRun> {
  const run = await start(steps);
  await run.fail("a");
  return run;
}

/** Everything that a retry may change. */
async function everythingOf(run: TestRun): Promise<unknown[]> {
  const tables = [
    "runledger.workflow_runs where id = $1",
    "runledger.workflow_steps where run_id = $1 order by id",
    "runledger.job_queue where workflow_run_id = $1 order by id",
    "runledger.workflow_run_mutations where run_id = $1 order by mutation_key",
  ];
  return Promise.all(tables.map(async (rows) => (await database.pool.query(`select * from ${rows}`, [run.id])).rows));
}

describe("a retry", () => {
  test("puts failed steps back into the queue, and what waited for them waits again", async () => {
    const run = await start({ ok: [], a: ["ok"], b: ["a", "ok"], c: ["b"] });
    await run.succeed("ok", { kept: true });
    await run.fail("a");

    expect(await retry(run)).toEqual({ runId: run.id, status: "RUNNING", retried: ["a"], disposition: "applied" });

    expect(await run.state()).toEqual({
      run: "RUNNING",
      steps: { ok: "SUCCEEDED", a: "ENQUEUED", b: "BLOCKED", c: "BLOCKED" },
    });
    expect(await run.row("ok")).toMatchObject({ output: { kept: true } });
    expect(await run.row("a")).toMatchObject({ error_code: null, error_message: null });
    expect(await run.row("b")).toMatchObject({ pending_count: 1, unsatisfied_count: 0, error_code: null });
    expect(await ledger.runs.get(run.id, globally.scope)).toMatchObject({
      endedAt: null,
      openCount: 3,
      erroredCount: 0,
    });
    await run.succeed("a");
    await run.succeed("b");
    await run.succeed("c");
    expect((await run.state()).run).toBe("SUCCEEDED");
  });

  test("gives the job its next run number, fresh attempts and the step's own settings, and keeps the run before", async () => {
    const job = { type: "again", payload: { n: 1 }, maxAttempts: 2, priority: 7, timeoutSeconds: 11 };
    const { id } = await ledger.runs.enqueue({
      type: "again",
      steps: [{ key: "a", dependencies: [], job }],
      resultStep: null,
    });
    const claimed = await claimOf("again");
    await ledger.jobs.fail(claimed.lease, failure);

    await ledger.runs.retry(id, { ...globally, reason: "the host was down", retriedBy: "ops" });

    const { jobId } = claimed.lease;
    expect(await ledger.jobs.get(jobId, globally.scope)).toMatchObject({
      status: "PENDING",
      runNumber: 2,
      attempt: 0,
      maxAttempts: 2,
      priority: 7,
      timeoutSeconds: 11,
      payload: { n: 1 },
    });
    const again = await claimOf("again");
    expect(again.lease).toMatchObject({ jobId, runNumber: 2, attempt: 1 });
    await ledger.jobs.complete(again.lease);
    const { rows } = await database.pool.query(
      "select run_number, event, actor, code, details from runledger.job_timeline where job_id = $1 order by run_number, at, place",
      [jobId],
    );
    expect(rows).toMatchObject([
      { run_number: 1, event: "enqueued" },
      { run_number: 1, event: "leased" },
      { run_number: 1, event: "attempt_failed", code: "test.failed" },
      { run_number: 1, event: "dead_lettered", code: "test.failed" },
      { run_number: 2, event: "enqueued" },
      { run_number: 2, event: "retried", actor: "ops", details: { reason: "the host was down" } },
      { run_number: 2, event: "leased" },
      { run_number: 2, event: "succeeded" },
    ]);
  });

  test("gives the job a run number that it never had, whatever the ledger has kept of it", async () => {
    const [forgotten, continued] = [await failed(), await failed()];
    await database.pool.query("delete from runledger.job_ledger where workflow_run_id = $1", [forgotten.id]);
    await database.pool.query("update runledger.job_ledger set run_number = 5 where workflow_run_id = $1", [
      continued.id,
    ]);
    await retry(forgotten);
    await retry(continued);

    expect((await forgotten.claim("a")).lease.runNumber).toBe(2);
    expect((await continued.claim("a")).lease.runNumber).toBe(6);
  });

  test("does not wait for the delay of a step again", async () => {
    const run = await failed();
    await database.pool.query("update runledger.workflow_steps set delay_seconds = 3600 where run_id = $1", [run.id]);
    await retry(run);

    expect((await run.claim("a")).lease.runNumber).toBe(2);
  });

  test("takes every step that failed, and no other", async () => {
    const run = await start({ a: [], b: [], gate: [], gate2: [], d: ["a", "gate2"], e: ["gate"] });
    await run.fail("a");
    await run.succeed("b");
    await ledger.steps.complete(run.id, "gate", { ...globally, outcome: "FAILED" });
    await ledger.steps.complete(run.id, "gate2", { ...globally, outcome: "CANCELED" });

    expect((await retry(run)).retried).toEqual(["a", "gate"]);

    expect(await run.statuses()).toEqual({
      a: "ENQUEUED",
      b: "SUCCEEDED",
      gate: "WAITING_FOR_EXTERNAL",
      gate2: "CANCELED",
      d: "CANCELED",
      e: "BLOCKED",
    });
    expect(await run.row("d")).toMatchObject({ pending_count: 1, unsatisfied_count: 1 });
  });

  test("takes the named steps: failed ones, and gates that somebody cancelled", async () => {
    const run = await start({ a: [], b: [], gate: [], d: ["a", "gate"] });
    await run.fail("a");
    await run.fail("b");
    await ledger.steps.complete(run.id, "gate", { ...globally, outcome: "CANCELED", completedBy: "ops", reason: "no" });

    expect((await retry(run, { steps: ["gate", "a", "a"] })).retried).toEqual(["a", "gate"]);

    expect(await run.statuses()).toEqual({ a: "ENQUEUED", b: "FAILED", gate: "WAITING_FOR_EXTERNAL", d: "BLOCKED" });
    expect(await run.row("gate")).toMatchObject({ completed_by: null, reason: null, error_code: null });
    await ledger.steps.complete(run.id, "gate", globally);
    await run.succeed("a");
    await run.succeed("d");
    expect((await run.state()).run).toBe("COMPLETED_WITH_ERRORS");
  });

  test("of a gate alone leaves the run waiting, and the gate's time begins anew", async () => {
    const run = await start({ gate: [] });
    await ledger.steps.complete(run.id, "gate", { ...globally, outcome: "FAILED" });
    await database.pool.query(
      `update runledger.workflow_steps set expires_after_seconds = 3600, expiry_outcome = 'FAILED', expires_at = '2020-01-01'
       where run_id = $1`,
      [run.id],
    );

    expect(await retry(run)).toMatchObject({ status: "WAITING_FOR_EXTERNAL", retried: ["gate"] });

    const { rows } = await database.pool.query(
      `select open_since > now() - interval '1 minute' as opened, expires_at - open_since as time, ended_at, started_at
       from runledger.workflow_steps where run_id = $1`,
      [run.id],
    );
    expect(rows).toMatchObject([{ opened: true, time: { hours: 1 }, ended_at: null, started_at: null }]);
    await ledger.steps.complete(run.id, "gate", globally);
    expect((await run.state()).run).toBe("SUCCEEDED");
  });

  test("leaves what ran after the failure as it ended, and does not run it a second time", async () => {
    const run = await start({ a: [], clean: ["a?"], last: ["clean"], c: ["a"] });
    await run.fail("a");
    await run.succeed("clean", { cleaned: 1 });
    await run.succeed("last", { last: 1 });
    const before = await run.row("clean");
    await retry(run);
    expect(await run.row("clean")).toEqual({ ...before, pending_count: 1 });

    await run.fail("a");

    expect(await run.statuses()).toEqual({ a: "FAILED", clean: "SUCCEEDED", last: "SUCCEEDED", c: "CANCELED" });
    expect(await run.liveJobs()).toEqual([]);
    await retry(run);
    await run.succeed("a");
    await run.succeed("c");
    expect(await run.row("clean")).toEqual(before);
    expect((await run.state()).run).toBe("SUCCEEDED");
  });

  test("of a step behind another one that is retried: it waits, and then runs under its next run number", async () => {
    const run = await start({ a: [], b: ["a?"], c: ["b"] });
    await run.fail("a");
    await run.fail("b");

    expect(await retry(run)).toMatchObject({ retried: ["a", "b"] });
    expect(await run.statuses()).toEqual({ a: "ENQUEUED", b: "BLOCKED", c: "BLOCKED" });
    await run.succeed("a");

    const { lease } = await run.claim("b");
    expect(lease).toMatchObject({ runNumber: 2, attempt: 1 });
    await ledger.jobs.complete(lease);
    // It never ran before.
    expect((await run.claim("c")).lease).toMatchObject({ runNumber: 1 });
  });

  test("can be made again and again", async () => {
    const run = await failed({ a: [], b: ["a"], other: [] });
    await run.fail("other");
    for (const runNumber of [2, 3, 4]) {
      await retry(run, { steps: ["a"] });
      const { lease } = await run.claim("a");
      expect(lease).toMatchObject({ runNumber, attempt: 1 });
      await ledger.jobs.fail(lease, failure);
    }
    await retry(run);

    await run.succeed("a");
    await run.succeed("other");
    await run.succeed("b");
    expect((await run.state()).run).toBe("SUCCEEDED");
  });

  test.each(["SUCCEEDED", "FAILED"] as const)(
    "keeps an early completion as %s of a gate that never opened",
    async (outcome) => {
      const run = await start({ a: [], gate: ["a"], after: ["gate?"] });
      const early = { outcome, reason: "early", completedBy: "ops", ...(outcome === "SUCCEEDED" ? { output: 1 } : {}) };
      await ledger.steps.complete(run.id, "gate", { ...globally, ...early, keep: true });
      const before = await run.row("gate");
      await run.fail("a");
      await run.succeed("after");
      expect(await run.row("gate")).toMatchObject({ status: "CANCELED" });
      await retry(run);
      expect(await run.row("gate")).toEqual(before);

      await run.succeed("a");
      expect(await run.row("gate")).toMatchObject({ status: outcome, reason: "early", completed_by: "ops" });
      expect((await run.state()).run).toBe(outcome === "SUCCEEDED" ? "SUCCEEDED" : "COMPLETED_WITH_ERRORS");
    },
  );

  test("of a gate that was completed early opens it", async () => {
    const run = await start({ a: [], gate: ["a"] });
    await ledger.steps.complete(run.id, "gate", { ...globally, outcome: "FAILED", keep: true });
    await run.succeed("a");
    await retry(run);

    expect(await run.row("gate")).toMatchObject({ status: "WAITING_FOR_EXTERNAL", kept_outcome: null });
    await ledger.steps.complete(run.id, "gate", globally);
    expect((await run.state()).run).toBe("SUCCEEDED");
  });

  test("drops a deadline that has passed, and keeps one that has not", async () => {
    const [late, early] = [await failed(), await failed()];
    const setDeadline = (run: TestRun, time: string) =>
      database.pool.query("update runledger.workflow_runs set deadline_at = $2 where id = $1", [run.id, time]);
    await setDeadline(late, "2020-01-01T00:00:00Z");
    await setDeadline(early, "2120-01-01T00:00:00Z");
    await retry(late);
    await retry(early);

    const deadlineOf = async ({ id }: TestRun) =>
      (await database.pool.query("select deadline_at from runledger.workflow_runs where id = $1", [id])).rows;
    expect(await deadlineOf(late)).toEqual([{ deadline_at: null }]);
    expect(await deadlineOf(early)).toEqual([{ deadline_at: new Date("2120-01-01T00:00:00Z") }]);
  });

  test("lets waiters have the later result", async () => {
    const run = await TestRun.start(database, ledger, { a: [], b: ["a"] }, { result: "b" });
    await run.fail("a");
    expect(await codeOf(ledger.runs.getResult(run.id, globally))).toBe("workflow.result_unsuccessful_terminal");
    await retry(run);

    const result = ledger.runs.getResult(run.id, { ...globally, timeoutMs: 10_000 });
    await run.succeed("a");
    await run.succeed("b", { done: true });
    expect(await result).toEqual({ done: true });
  });

  test("wakes the workers, and only when there is something to do", async () => {
    const [run, waiting] = [await failed(), await start({ gate: [] })];
    await ledger.steps.complete(waiting.id, "gate", { ...globally, outcome: "FAILED" });
    const listener = await database.connect();
    const heard: string[] = [];
    listener.on("notification", ({ channel }) => heard.push(channel));
    await listener.query("listen runledger_jobs");

    await retry(waiting);
    await listener.query("select");
    expect(heard).toEqual([]);
    await retry(run);
    await listener.query("select");
    expect(heard).toEqual(["runledger_jobs"]);
  });
});

describe("a retry of a child or map step", () => {
  test("starts a new child in place of the one that failed, which cannot be retried by itself", async () => {
    const run = await startParentRun(database, ledger);
    await run.succeed("before");
    const first = await childOf(database, ledger, run);
    await first.fail("work");
    await advanceChildren(ledger);
    expect(await run.statuses()).toEqual({ before: "SUCCEEDED", child: "FAILED", after: "CANCELED" });
    expect(await codeOf(retry(first))).toBe("workflow.retry_child_run");

    await retry(run);
    expect(await run.row("child")).toMatchObject({ status: "ENQUEUED", child_run_id: null });
    const second = await childOf(database, ledger, run);

    expect(second.id).not.toBe(first.id);
    expect((await first.state()).run).toBe("COMPLETED_WITH_ERRORS");
    await second.succeed("work", "done");
    await advanceChildren(ledger);
    expect(await run.row("child")).toMatchObject({ status: "SUCCEEDED", output: "done", child_run_id: second.id });
    await run.succeed("after");
    expect((await run.state()).run).toBe("SUCCEEDED");
  });

  test("of an item: its map step waits for it again with the items it had, and joins them all", async () => {
    const run = await startMapRun(database, ledger);
    await run.succeed("setup");
    await run.succeed("list", ["x", "y", "z"]);
    await endItems(ledger, run, 1, failedItem, failedItem);
    expect(await run.state()).toMatchObject({ run: "COMPLETED_WITH_ERRORS", steps: { ship: "CANCELED" } });

    expect(await retry(run, { steps: ["ship[1]"] })).toMatchObject({ retried: ["ship[1]"] });
    expect(await run.statuses()).toMatchObject({ ship: "CANCELED", report: "CANCELED" });
    await endItems(ledger, run, 2);
    expect(await retry(run)).toMatchObject({ retried: ["ship[2]"] });
    expect(await run.row("ship")).toMatchObject({ status: "BLOCKED", pending_count: 1, item_count: 3 });
    expect(await run.row("report")).toMatchObject({ status: "BLOCKED" });
    await endItems(ledger, run, 3);

    expect(await run.row("ship")).toMatchObject({ status: "SUCCEEDED", output: [1, 2, 3] });
    await run.succeed("report");
    expect((await run.state()).run).toBe("SUCCEEDED");
  });

  test("of an item and of what the map step waited for: it joins when both have ended", async () => {
    const run = await startMapRun(database, ledger);
    await run.fail("setup");
    await run.succeed("list", ["x"]);
    await endItems(ledger, run, failedItem);
    await retry(run);
    await endItems(ledger, run, 1);

    expect(await run.row("ship")).toMatchObject({ status: "BLOCKED", pending_count: 1, item_count: 1 });
    await run.succeed("setup");
    expect(await run.row("ship")).toMatchObject({ status: "SUCCEEDED", output: [1], item_count: 1 });
  });

  test("of an item whose map step went on without it: the map step keeps its output", async () => {
    const run = await startMapRun(database, ledger, "continue");
    await run.succeed("setup");
    await run.succeed("list", ["x", "y"]);
    await endItems(ledger, run, 1, failedItem);
    await run.succeed("report");
    await retry(run);
    expect(await run.row("ship")).toMatchObject({ status: "SUCCEEDED", pending_count: 1, output: [1, null] });
    await endItems(ledger, run, 2);

    expect(await run.state()).toMatchObject({ run: "SUCCEEDED", steps: { ship: "SUCCEEDED", report: "SUCCEEDED" } });
    expect(await run.row("ship")).toMatchObject({ pending_count: 0, output: [1, null] });
    expect(await run.liveJobs()).toEqual([]);
  });

  test("of what a map step waited for in vain: it fans out", async () => {
    const run = await startMapRun(database, ledger);
    await run.succeed("setup");
    await run.fail("list");
    await retry(run);
    await run.succeed("list", ["x", "y"]);
    await endItems(ledger, run, 1, 2);

    expect(await run.row("ship")).toMatchObject({ status: "SUCCEEDED", output: [1, 2] });
  });

  test("of a map step without an array is refused, and left out by default", async () => {
    const run = await startMapRun(database, ledger);
    await run.fail("setup");
    await run.succeed("list", "no array");
    expect(await run.statuses()).toMatchObject({ ship: "FAILED" });

    expect(await codeOf(retry(run, { steps: ["ship"] }))).toBe("workflow.retry_map_step");
    expect((await retry(run)).retried).toEqual(["setup"]);
    await run.succeed("setup");
    expect(await run.statuses()).toEqual({ setup: "SUCCEEDED", list: "SUCCEEDED", ship: "FAILED", report: "CANCELED" });
    expect(await errorOf(retry(run))).toMatchObject({ code: "workflow.retry_map_step", details: { stepKey: "ship" } });
  });
});

describe("a retry is refused", () => {
  const cases: [string, string, (run: TestRun) => Promise<unknown>, Partial<RetryRunOptions>][] = [
    ["while the run is RUNNING", "workflow.retry_not_failed", async () => {}, {}],
    ["once the run SUCCEEDED", "workflow.retry_not_failed", (run) => run.succeed("a"), {}],
    ["once the run was cancelled", "workflow.retry_run_canceled", (run) => ledger.runs.cancel(run.id, globally), {}],
    ["of an unknown step", "workflow.step_not_found", (run) => run.fail("a"), { steps: ["a", "b"] }],
  ];
  test.each(cases)("%s", async (_, code, prepare, options) => {
    const run = await start({ a: [] });
    await prepare(run);
    const before = await everythingOf(run);

    expect(await codeOf(retry(run, options))).toBe(code);
    expect(await everythingOf(run)).toEqual(before);
  });

  test("of steps that have not failed", async () => {
    const run = await failed({ a: [], ok: [], b: ["a"] });
    await run.succeed("ok");
    const before = await everythingOf(run);

    for (const [key, status] of [
      ["ok", "SUCCEEDED"],
      ["b", "CANCELED"],
    ] as const) {
      const error = await errorOf(retry(run, { steps: ["a", key] }));
      expect(error).toMatchObject({ code: "workflow.retry_step_not_failed", details: { stepKey: key, status } });
    }
    expect(await everythingOf(run)).toEqual(before);
  });

  test("of a run in which only a gate was cancelled, unless it is named", async () => {
    const run = await start({ gate: [] });
    await ledger.steps.complete(run.id, "gate", { ...globally, outcome: "CANCELED" });

    expect(await codeOf(retry(run))).toBe("workflow.retry_step_not_failed");
    expect((await retry(run, { steps: ["gate"] })).retried).toEqual(["gate"]);
  });

  test("of a step that needs one that is not retried", async () => {
    const run = await failed({ a: [], b: ["a"] });
    await database.pool.query(
      "update runledger.workflow_steps set error_code = null where run_id = $1 and step_key = 'b'",
      [run.id],
    );

    expect(await errorOf(retry(run, { steps: ["b"] }))).toMatchObject({
      code: "workflow.retry_step_unsatisfied",
      details: { stepKey: "b" },
    });
    expect((await retry(run, { steps: ["a", "b"] })).retried).toEqual(["a", "b"]);
    expect(await run.statuses()).toEqual({ a: "ENQUEUED", b: "BLOCKED" });
  });

  test("to whoever is not of the run's tenant", async () => {
    const run = await TestRun.start(database, ledger, { a: [] }, { organizationId: someOrganization });
    await run.fail("a");

    for (const scope of [{ global: true }, { organization: otherOrganization }] as const) {
      expect(await codeOf(ledger.runs.retry(run.id, { scope }))).toBe("workflow.run_not_found");
    }
    expect(await codeOf(ledger.runs.retry(unknownId, { scope: { admin: true } }))).toBe("workflow.run_not_found");
    expect(await run.statuses()).toEqual({ a: "FAILED" });
    await ledger.runs.retry(run.id, { scope: { organization: someOrganization } });
    expect(await run.row("a")).toMatchObject({ status: "ENQUEUED", organization_id: someOrganization });
    expect((await run.claim("a")).organizationId).toBe(someOrganization);
  });

  const bad: [string, string, unknown, string][] = [
    ["an id that is none", "no-id", {}, "input.invalid"],
    ["no scope", unknownId, { scope: undefined }, "scope.required"],
    ["two scopes", unknownId, { scope: { global: true, admin: true } }, "scope.required"],
    ["no steps", unknownId, { steps: [] }, "input.invalid"],
    ["steps that are no array", unknownId, { steps: "a" }, "input.invalid"],
    ["a blank step key", unknownId, { steps: ["a", " "] }, "input.invalid"],
    ["a step key that is no string", unknownId, { steps: [1] }, "input.invalid"],
    ["a blank key", unknownId, { key: "" }, "input.invalid"],
    ["a key that is too long", unknownId, { key: "k".repeat(513) }, "input.invalid"],
    ["a blank name", unknownId, { retriedBy: "" }, "input.invalid"],
  ];
  test.each(bad)("with %s, before a statement is sent", async (_, id, options, code) => {
    const call = () => codeOf(ledger.runs.retry(id, { ...globally, ...(options as object) }));
    const { result, statements } = await database.record(() =>
      database.db
        .transaction()
        .execute((trx) => codeOf(ledger.in(trx).runs.retry(id, { ...globally, ...(options as object) }))),
    );

    expect(result).toBe(code);
    expect(statements.filter((text) => text.includes("runledger:"))).toEqual([]);
    expect(await call()).toBe(code);
  });
});

describe("a retry with a key", () => {
  test("is made once, whatever became of it since", async () => {
    const run = await failed();
    const applied = { runId: run.id, status: "RUNNING", retried: ["a"], disposition: "applied" };
    expect(await retry(run, { key: "k", steps: ["a"] })).toEqual(applied);
    expect(await retry(run, { key: "k", steps: ["a", "a"] })).toEqual({ ...applied, disposition: "already_applied" });
    await run.fail("a");

    expect(await retry(run, { key: "k", steps: ["a"] })).toEqual({
      ...applied,
      status: "COMPLETED_WITH_ERRORS",
      disposition: "already_applied",
    });
    expect(await run.statuses()).toEqual({ a: "FAILED", b: "CANCELED" });
    expect(await retry(run, { key: "k2", steps: ["a"] })).toEqual(applied);
    await run.succeed("a");
    await run.succeed("b");
    expect(await retry(run, { key: "k", steps: ["a"] })).toMatchObject({ status: "SUCCEEDED", retried: ["a"] });
  });

  test("is refused when the key was used for another request", async () => {
    const run = await failed({ a: [], a2: [] });
    await run.fail("a2");
    await retry(run, { key: "k", steps: ["a2", "a"] });

    expect(await retry(run, { key: "k", steps: ["a", "a2"] })).toMatchObject({ disposition: "already_applied" });
    expect(await codeOf(retry(run, { key: "k", steps: ["a"] }))).toBe("workflow.retry_conflicting_key");
    expect(await codeOf(retry(run, { key: "k" }))).toBe("workflow.retry_conflicting_key");
    await database.pool.query("update runledger.workflow_run_mutations set mutation = 'append' where run_id = $1", [
      run.id,
    ]);
    expect(await codeOf(retry(run, { key: "k", steps: ["a", "a2"] }))).toBe("workflow.retry_conflicting_key");
  });

  test("that comes while the same is under way finds it made", async () => {
    const run = await failed();
    const trx = await openTransaction(database);
    await retry(run, { key: "k" }, ledger.in(trx));

    const second = retry(run, { key: "k" });
    await waitsFor("lock_workflow_run_release");
    await trx.commit().execute();

    expect(await second).toMatchObject({ status: "RUNNING", disposition: "already_applied" });
    expect(await run.liveJobs()).toEqual(["a"]);
  });

  test("made ten times at once is made once", async () => {
    const run = await failed();
    const answers = await Promise.all(Array.from({ length: 10 }, () => retry(run, { key: "k" })));

    expect(answers.filter(({ disposition }) => disposition === "applied")).toHaveLength(1);
    expect(await run.liveJobs()).toEqual(["a"]);
  });
});

describe("a retry in a caller's transaction", () => {
  test("is taken back with it", async () => {
    const run = await failed();
    const before = await everythingOf(run);
    const trx = await openTransaction(database);
    await retry(run, { key: "k" }, ledger.in(trx));
    await trx.rollback().execute();

    expect(await everythingOf(run)).toEqual(before);
  });

  test.each(["repeatable read", "serializable"] as const)(
    "at %s it fails before any other statement",
    async (level) => {
      const run = await failed();
      const { result, statements } = await database.record(() =>
        database.db
          .transaction()
          .setIsolationLevel(level)
          .execute((trx) => codeOf(retry(run, {}, ledger.in(trx)))),
      );

      expect(result).toBe("workflow.retry_unsupported_isolation");
      expect(statements.map((text) => /runledger:(\w+)/.exec(text)?.[1])).toEqual([
        undefined,
        "isolation_level",
        undefined,
      ]);
    },
  );

  test("leaves lock_timeout as it was", async () => {
    const run = await failed();
    await database.db.transaction().execute(async (trx) => {
      await raw(trx, "set local lock_timeout = '61s'");
      await retry(run, {}, ledger.in(trx));
      expect(await raw(trx, "show lock_timeout")).toEqual([{ lock_timeout: "61s" }]);
    });
  });
});

describe("a retry waits for each lock, and no longer than the bound", () => {
  const stepRow = "select from runledger.workflow_steps where run_id = $1 and step_key = 'b' for update";
  const runRow = "select from runledger.workflow_runs where id = $1 for update";
  const locks: [string, (run: TestRun) => Promise<pg.Client>, string][] = [
    [
      "the release lock",
      (run) => holding(database, ["select pg_advisory_xact_lock_shared($1)", [String(runReleaseKey(run.id))]]),
      "lock_workflow_run_release",
    ],
    ["a step row", (run) => holding(database, [stepRow, [run.id]]), "lock_workflow_step_rows_for_update"],
    ["the run row", (run) => holding(database, [runRow, [run.id]]), "lock_workflow_run_for_update"],
  ];
  test.each(locks)("%s", async (_, hold, marker) => {
    const run = await failed();
    const before = await everythingOf(run);
    const holder = await hold(run);

    expect(await errorOf(retry(run, {}, ledgerOf(database, { lockWaitMs: 40 })))).toMatchObject({
      code: "db.lock_timeout",
      retryable: true,
      sqlstate: "55P03",
    });
    expect(await everythingOf(run)).toEqual(before);
    const retrying = retry(run);
    const waiting = await waitsFor(marker);
    expect(await blockingPids(database.pool, waiting.pid)).toEqual([await backendPid(holder)]);
    await holder.query("rollback");
    expect(await retrying).toMatchObject({ disposition: "applied" });
  });
});

describe("a retry against", () => {
  test("another retry: one of them did it", async () => {
    const run = await failed();
    const trx = await openTransaction(database);
    await retry(run, {}, ledger.in(trx));

    const second = codeOf(retry(run));
    await waitsFor("lock_workflow_run_release");
    await trx.commit().execute();

    expect(await second).toBe("workflow.retry_not_failed");
    expect(await run.liveJobs()).toEqual(["a"]);
  });

  test("another retry that is taken back: it is made", async () => {
    const run = await failed();
    const trx = await openTransaction(database);
    await retry(run, { steps: ["a"] }, ledger.in(trx));

    const second = retry(run);
    await waitsFor("lock_workflow_run_release");
    await trx.rollback().execute();

    expect(await second).toMatchObject({ disposition: "applied" });
    expect(await run.liveJobs()).toEqual(["a"]);
  });

  test("a cancel that comes during it: the run has ended to the cancel, which changes nothing", async () => {
    const run = await failed();
    const trx = await openTransaction(database);
    await retry(run, {}, ledger.in(trx));

    expect(await ledger.runs.cancel(run.id, globally)).toMatchObject({
      status: "COMPLETED_WITH_ERRORS",
      canceled: false,
    });
    await trx.commit().execute();
    expect(await ledger.runs.cancel(run.id, globally)).toMatchObject({ canceled: true });
    expect(await run.statuses()).toEqual({ a: "CANCELED", b: "CANCELED" });
    expect(await codeOf(retry(run))).toBe("workflow.retry_run_canceled");
  });

  test("a cancel of the run that was retried before: it waits, and is refused", async () => {
    const run = await failed();
    await retry(run);
    const trx = await openTransaction(database);
    await ledger.in(trx).runs.cancel(run.id, globally);
    // To the retry the run is RUNNING before the commit, and CANCELED after it.
    expect(await codeOf(retry(run))).toBe("workflow.retry_not_failed");
    await trx.commit().execute();

    expect(await codeOf(retry(run))).toBe("workflow.retry_run_canceled");
  });

  test("the completion that ends the run: the retry is refused before it and made after it", async () => {
    const run = await start({ a: [], b: [] });
    await run.fail("a");
    const trx = await openTransaction(database);
    await ledger.in(trx).jobs.complete((await run.claim("b")).lease);

    expect(await codeOf(retry(run))).toBe("workflow.retry_not_failed");
    await trx.commit().execute();
    expect(await retry(run)).toMatchObject({ retried: ["a"] });
  });

  test("a claim: the job is there once the retry has committed", async () => {
    const run = await failed();
    const trx = await openTransaction(database);
    await retry(run, {}, ledger.in(trx));
    const claim = () => ledger.jobs.claim({ workerId: "w", limit: 9, types: [`${run.type}.a`] });

    expect(await claim()).toEqual([]);
    await trx.commit().execute();
    expect(await claim()).toMatchObject([{ lease: { runNumber: 2, attempt: 1 } }]);
  });

  test("a completion of a step that it enqueued, made in the retry's own transaction", async () => {
    const run = await failed();
    await database.db.transaction().execute(async (trx) => {
      const within = ledger.in(trx);
      await retry(run, {}, within);
      const [job] = await within.jobs.claim({ workerId: "w", limit: 1, types: [`${run.type}.a`] });
      if (job === undefined) throw new Error("nothing to claim");
      await within.jobs.complete(job.lease);
    });

    expect(await run.statuses()).toEqual({ a: "SUCCEEDED", b: "ENQUEUED" });
  });

  test("a completion under the lease of the run before: the lease is lost", async () => {
    const run = await start({ a: [], b: ["a"] });
    const { lease } = await run.claim("a");
    await ledger.jobs.fail(lease, failure);
    await retry(run);
    const again = await run.claim("a");

    expect(again.lease.jobId).toBe(lease.jobId);
    expect(await codeOf(ledger.jobs.complete(lease))).toBe("job.lease_owner_mismatch");
    expect(await run.statuses()).toEqual({ a: "ENQUEUED", b: "BLOCKED" });
  });

  test("a writer that locks steps and tries the release lock: it is refused, and the retry goes on", async () => {
    const run = await failed({ a: [], gate: [] });
    await ledger.steps.complete(run.id, "gate", { ...globally, outcome: "FAILED" });
    // As an append does: step rows first, then the release lock, which it only tries.
    const writer = await holding(database, [
      "select from runledger.workflow_steps where run_id = $1 and step_key = 'gate' for update",
      [run.id],
    ]);
    const retrying = retry(run);
    await waitsFor("lock_workflow_step_rows_for_update");
    const { rows } = await writer.query("select pg_try_advisory_xact_lock_shared($1) as granted", [
      String(runReleaseKey(run.id)),
    ]);
    expect(rows).toEqual([{ granted: false }]);
    await writer.query("rollback");

    expect(await retrying).toMatchObject({ retried: ["a", "gate"] });
  });

  test("a completion of the gate that it opens: it comes after the commit or not at all", async () => {
    const run = await start({ gate: [], b: ["gate"] });
    await ledger.steps.complete(run.id, "gate", { ...globally, outcome: "FAILED" });
    const trx = await openTransaction(database);
    await retry(run, {}, ledger.in(trx));

    expect(await codeOf(ledger.steps.complete(run.id, "gate", globally))).toBe(
      "workflow.external_step_conflicting_completion_retry",
    );
    await trx.commit().execute();
    await ledger.steps.complete(run.id, "gate", globally);
    expect(await run.statuses()).toEqual({ gate: "SUCCEEDED", b: "ENQUEUED" });
  });

  test("workers, cancels and other retries, many times over", async () => {
    for (let round = 0; round < 10; round += 1) {
      const run = await start({ a: [], a2: [], b: ["a", "a2"], c: ["a?"], d: ["c"] });
      const types = ["a", "a2", "b", "c", "d"].map((key) => `${run.type}.${key}`);
      const codes: string[] = [];
      const work = async (worker: number) => {
        for (let turn = 0; turn < 12; turn += 1) {
          const jobs = await ledger.jobs.claim({ workerId: `w${worker}`, limit: 2, types });
          await ledger.jobs.settle(
            jobs.map(({ lease }, n) => ((turn + n + worker) % 3 === 0 ? { lease, success: {} } : { lease, failure })),
          );
          await retry(run).catch((error: { code: string }) => codes.push(error.code));
          if (turn === 11 && worker === 0) await ledger.runs.cancel(run.id, globally);
        }
      };
      await Promise.all([work(0), work(1), work(2), work(3)]);

      const unexpected = codes.filter((code) => !/^workflow\.retry_(not_failed|run_canceled)$/.test(code));
      expect(unexpected).toEqual([]);
      await expectInvariants(database);
    }
  });
});

describe("a retry takes", () => {
  test.each([
    ["alone", 13],
    ["in the caller's transaction", 12],
  ])("%s %i round trips", async (how, count) => {
    const run = await failed();
    const { statements } = await database.record(() =>
      how === "alone" ? retry(run) : database.db.transaction().execute((trx) => retry(run, {}, ledger.in(trx))),
    );

    expect(named(how === "alone" ? statements : statements.slice(1, -1))).toHaveLength(count);
  });

  test("three round trips when the key was used before, or there is nothing to retry", async () => {
    const run = await failed();
    await retry(run, { key: "k" });

    expect(named((await database.record(() => retry(run, { key: "k" }))).statements)).toHaveLength(3);
    expect(named((await database.record(() => codeOf(retry(run)))).statements)).toHaveLength(3);
  });

  test("as many statements for three thousand steps as for two", async () => {
    const wide = Object.fromEntries(Array.from({ length: 3_000 }, (_, n) => [`s${n}`, n < 600 ? [] : [`s${n - 600}`]]));
    const { id } = await ledger.runs.enqueue(graphOf("wide", wide));
    const run = new TestRun(database, ledger, id, "wide");
    for (;;) {
      const jobs = await ledger.jobs.claim({ workerId: "w", limit: 1000, types: firstTypes });
      if (jobs.length === 0) break;
      await ledger.jobs.settle(jobs.map(({ lease }) => ({ lease, failure })));
    }
    expect((await ledger.runs.getStatus(id, globally.scope)).erroredCount).toBe(3_000);

    const small = await database.record(async () => retry(await failed()));
    const { result, statements } = await database.record(() => retry(run));

    expect(named(statements)).toEqual(named(small.statements).slice(-statements.length));
    expect(result.retried).toHaveLength(600);
    expect(await countOf(database, "runledger.job_queue where workflow_run_id = $1", [id])).toBe(600);
    expect(await ledger.runs.getStatus(id, globally.scope)).toMatchObject({ openCount: 3_000, erroredCount: 0 });
  }, 120_000);
});

const firstTypes = Array.from({ length: 600 }, (_, n) => `wide.s${n}`);

const waitsFor = (marker: string) => waitForBackend({ client: database.pool, marker: `runledger:${marker} ` });

function named(statements: readonly string[]): string[] {
  return statements.map((text) => /runledger:(\w+)/.exec(text)?.[1] ?? text);
}

async function claimOf(type: string) {
  const [job] = await ledger.jobs.claim({ workerId: "w", limit: 1, types: [type] });
  if (job === undefined) throw new Error("no job to claim");
  return job;
}
