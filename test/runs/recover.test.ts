/** Recovering an ended run as a new one, and rerunning one from a step (FEATURES F-W11). */
import { afterEach, describe, expect, test } from "@jest/globals";
import type { EnqueuedRun, Ledger, RecoverRunOptions, RerunOptions } from "../../src/index.ts";
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

const start = (steps: Record<string, string[]>) => TestRun.start(database, ledger, steps);
const recover = (run: TestRun, options: Partial<RecoverRunOptions> = {}, by: Ledger = ledger) =>
  by.runs.recover(run.id, { ...globally, key: "k", ...options });
const rerun = (run: TestRun, from: RerunOptions["from"], options: Partial<RerunOptions> = {}, by: Ledger = ledger) =>
  by.runs.rerun(run.id, { ...globally, key: "k", from, ...options });
/** The new run, with its steps within reach. */
const made = (of: TestRun, { id }: EnqueuedRun) => new TestRun(database, ledger, id, of.type);
const recovered = async (run: TestRun) => made(run, await recover(run));
const rerunFrom = async (run: TestRun, from: RerunOptions["from"]) => made(run, await rerun(run, from));

/** A run in which `a` has failed, `ok` succeeded, and nothing else is left to do. */
async function failed(steps: Record<string, string[]> = { ok: [], a: ["ok"], b: ["a"] }): Promise<TestRun> {
  const run = await start(steps);
  if ("ok" in steps) await run.succeed("ok", { kept: true });
  await run.fail("a");
  return run;
}

async function succeeded(steps: Record<string, string[]>): Promise<TestRun> {
  const run = await start(steps);
  for (const key of Object.keys(steps)) await run.succeed(key, { of: key });
  return run;
}

async function everythingOf(run: TestRun): Promise<unknown[]> {
  const tables = [
    "runledger.workflow_runs where id = $1 or source_run_id = $1",
    "runledger.workflow_steps where run_id = $1 order by id",
    "runledger.job_queue where workflow_run_id = $1 order by id",
    "runledger.workflow_run_mutations where run_id = $1",
  ];
  return Promise.all(tables.map(async (rows) => (await database.pool.query(`select * from ${rows}`, [run.id])).rows));
}

describe("recover", () => {
  test("starts a new run that takes over what succeeded and does all else anew", async () => {
    const run = await failed({ ok: [], a: ["ok"], b: ["a"], gate: [], after: ["gate", "ok"] });
    await ledger.steps.complete(run.id, "gate", { ...globally, outcome: "CANCELED", reason: "no", completedBy: "ops" });
    const source = await everythingOf(run);

    const answer = await recover(run);
    expect(answer).toEqual({ id: expect.any(String), status: "RUNNING", disposition: "inserted" });
    const fresh = made(run, answer);

    expect(await fresh.state()).toEqual({
      run: "RUNNING",
      steps: { ok: "SUCCEEDED", a: "ENQUEUED", b: "BLOCKED", gate: "WAITING_FOR_EXTERNAL", after: "BLOCKED" },
    });
    const before = await run.row("ok");
    expect(await fresh.row("ok")).toEqual({
      ...before,
      run_id: fresh.id,
      id: expect.not.stringContaining(before.id),
      job_id: expect.not.stringContaining(before.job_id),
    });
    expect(await fresh.row("gate")).toMatchObject({
      reason: null,
      completed_by: null,
      error_code: null,
      ended_at: null,
    });
    expect(await fresh.row("a")).toMatchObject({ error_code: null, started_at: null, ended_at: null });
    expect((await everythingOf(run)).slice(1, 3)).toEqual(source.slice(1, 3));
    const claimed = await fresh.claim("a");
    expect(claimed).toMatchObject({
      payload: { key: "a" },
      lease: { runNumber: 1, attempt: 1, workflowRunId: fresh.id },
    });
    expect((await ledger.steps.prerequisites([claimed])).get(claimed.lease.jobId)?.outputs).toEqual({
      ok: { kept: true },
    });
    await ledger.jobs.complete(claimed.lease);
    await fresh.succeed("b");
    await ledger.steps.complete(fresh.id, "gate", globally);
    await fresh.succeed("after");
    expect((await fresh.state()).run).toBe("SUCCEEDED");
  });

  test("keeps type, organization, result step, settings and lineage, and the order of the ids", async () => {
    const steps = { s0: [], a: ["s0"], s2: ["a"], s3: ["a", "s0"] };
    const run = await TestRun.start(database, ledger, steps, { organizationId: someOrganization, result: "s3" });
    await run.succeed("s0");
    await run.fail("a");
    await database.pool.query(
      `update runledger.workflow_steps set priority = 3, max_attempts = 4, timeout_seconds = 5, delay_seconds = 6
       where run_id = $1`,
      [run.id],
    );
    const scope = { organization: someOrganization };
    const { id } = await recover(run, { scope, deadlineSeconds: 3600 });

    const [before, after] = [await ledger.runs.get(run.id, scope), await ledger.runs.get(id, scope)];
    expect(after).toMatchObject({
      type: run.type,
      organizationId: someOrganization,
      resultStep: "s3",
      sourceRunId: run.id,
      sourceKind: "recover",
      parentRunId: null,
      endedAt: null,
    });
    expect(Math.round(((after.deadlineAt?.getTime() ?? 0) - after.createdAt.getTime()) / 1000)).toBe(3600);
    expect(before).toMatchObject({ sourceRunId: null, sourceKind: null, deadlineAt: null });
    expect(after.steps.map(({ key }) => key)).toEqual(before.steps.map(({ key }) => key));
    const jobIds = after.steps.map(({ jobId }) => jobId);
    expect(jobIds).toEqual([...jobIds].sort());
    const settings =
      "select priority, max_attempts, timeout_seconds, delay_seconds, organization_id from runledger.workflow_steps where run_id = $1";
    const rows = async (runId: string) => (await database.pool.query(settings, [runId])).rows;
    expect(await rows(id)).toEqual(await rows(run.id));
    const { rows: queued } = await database.pool.query(
      "select priority, max_attempts, organization_id, run_at - now() > interval '3 seconds' as delayed from runledger.job_queue where workflow_run_id = $1",
      [id],
    );
    expect(queued).toEqual([{ priority: 3, max_attempts: 4, organization_id: someOrganization, delayed: true }]);
  });

  test("of a cancelled run does anew what had not succeeded", async () => {
    const run = await start({ a: [], b: ["a"], c: ["b"], d: ["c?"] });
    await run.succeed("a", 1);
    await run.claim("b");
    await ledger.runs.cancel(run.id, { ...globally, reason: "stop" });
    const fresh = await recovered(run);

    expect(await fresh.statuses()).toEqual({ a: "SUCCEEDED", b: "ENQUEUED", c: "BLOCKED", d: "BLOCKED" });
    expect(await fresh.row("b")).toMatchObject({ reason: null });
    expect((await ledger.runs.get(fresh.id, globally.scope)).canceledReason).toBeNull();
    for (const key of ["b", "c", "d"]) await fresh.succeed(key);
    expect((await fresh.state()).run).toBe("SUCCEEDED");
    expect((await run.state()).run).toBe("CANCELED");
  });

  test("leaves what ran after a failure as it ended, and does not run it a second time", async () => {
    const run = await failed({ a: [], clean: ["a?"], b: ["a"] });
    await run.succeed("clean", "cleaned");
    const fresh = await recovered(run);
    expect(await fresh.row("clean")).toMatchObject({ status: "SUCCEEDED", pending_count: 1, output: "cleaned" });
    const before = await fresh.row("clean");

    await fresh.succeed("a");
    await fresh.succeed("b");
    expect(await fresh.row("clean")).toEqual({ ...before, pending_count: 0 });
    expect((await fresh.state()).run).toBe("SUCCEEDED");
  });

  test("can be followed by a retry in place, of the new run as of the old one", async () => {
    const run = await failed();
    const fresh = await recovered(run);
    await ledger.runs.retry(run.id, globally);
    await fresh.fail("a");
    await ledger.runs.retry(fresh.id, globally);

    expect(await run.liveJobs()).toEqual(["a"]);
    expect(await fresh.liveJobs()).toEqual(["a"]);
    for (const each of [fresh, run]) {
      const jobs = await ledger.jobs.claim({ workerId: "w", limit: 9, types: [`${run.type}.a`, `${run.type}.b`] });
      await ledger.jobs.settle(jobs.map(({ lease }) => ({ lease, success: {} })));
      expect(await each.statuses()).toMatchObject({ ok: "SUCCEEDED", a: "SUCCEEDED" });
    }
  });

  test("of a recovered run goes on from that one", async () => {
    const fresh = await recovered(await failed());
    await fresh.fail("a");
    const { id } = await recover(fresh);

    expect(await ledger.runs.get(id, globally.scope)).toMatchObject({ sourceRunId: fresh.id });
  });

  test("is refused while the run lives, and once it succeeded", async () => {
    const run = await start({ ok: [], gate: [] });
    expect(await errorOf(recover(run))).toMatchObject({
      code: "workflow.recover_not_ended",
      details: { status: "RUNNING" },
    });
    await run.succeed("ok");
    expect(await codeOf(recover(run))).toBe("workflow.recover_not_ended");
    await ledger.steps.complete(run.id, "gate", globally);
    expect(await codeOf(recover(run))).toBe("workflow.recover_succeeded");
    expect(await countOf(database, "runledger.workflow_runs where source_run_id = $1", [run.id])).toBe(0);
  });
});

describe("rerun", () => {
  test("does the named step and all after it anew, and takes over the rest as it ended", async () => {
    const run = await succeeded({ a: [], b: ["a"], c: ["b?"], d: ["a"] });
    const fresh = await rerunFrom(run, "b");

    expect(await fresh.state()).toEqual({
      run: "RUNNING",
      steps: { a: "SUCCEEDED", b: "ENQUEUED", c: "BLOCKED", d: "SUCCEEDED" },
    });
    expect(await fresh.row("a")).toMatchObject({ output: { of: "a" } });
    expect(await fresh.row("c")).toMatchObject({ output: null });
    expect(await ledger.runs.get(fresh.id, globally.scope)).toMatchObject({ sourceRunId: run.id, sourceKind: "rerun" });
    await fresh.succeed("b");
    await fresh.succeed("c");
    expect((await fresh.state()).run).toBe("SUCCEEDED");
  });

  test("takes failed and cancelled steps over as they ended, and they count", async () => {
    const run = await failed({ ok: [], a: ["ok"], b: ["a"], other: [] });
    await run.succeed("other");
    const fresh = await rerunFrom(run, ["other"]);

    expect(await fresh.statuses()).toEqual({ ok: "SUCCEEDED", a: "FAILED", b: "CANCELED", other: "ENQUEUED" });
    expect(await fresh.row("a")).toMatchObject({ error_code: "test.failed", error_message: "It failed." });
    expect(await ledger.runs.getStatus(fresh.id, globally.scope)).toMatchObject({ openCount: 1, erroredCount: 2 });
    await fresh.succeed("other");
    expect((await fresh.state()).run).toBe("COMPLETED_WITH_ERRORS");
    await ledger.runs.retry(fresh.id, globally);
    await fresh.succeed("a");
    await fresh.succeed("b");
    expect((await fresh.state()).run).toBe("SUCCEEDED");
  });

  test("opens gates again, with their time", async () => {
    const run = await start({ gate: [], b: ["gate"] });
    await database.pool.query(
      "update runledger.workflow_steps set expires_after_seconds = 60, expiry_outcome = 'FAILED' where run_id = $1 and step_key = 'gate'",
      [run.id],
    );
    await ledger.steps.complete(run.id, "gate", { ...globally, output: 1, completedBy: "ops" });
    await run.succeed("b");
    const fresh = await rerunFrom(run, "gate");

    const { steps, status } = await ledger.runs.get(fresh.id, globally.scope);
    expect(status).toBe("RUNNING");
    expect(steps).toMatchObject([
      { key: "gate", status: "WAITING_FOR_EXTERNAL", output: null, completedBy: null, expiresAt: expect.any(Date) },
      { key: "b", status: "BLOCKED" },
    ]);
    await ledger.steps.complete(fresh.id, "gate", { ...globally, output: 2 });
    await fresh.succeed("b");
    expect((await fresh.state()).run).toBe("SUCCEEDED");
  });

  test("of a cancelled run starts where it is told", async () => {
    const run = await start({ a: [], b: ["a"], other: [] });
    await ledger.runs.cancel(run.id, { ...globally, reason: "stop" });
    const fresh = await rerunFrom(run, "a");

    expect(await fresh.statuses()).toEqual({ a: "ENQUEUED", b: "BLOCKED", other: "CANCELED" });
    expect(await fresh.row("other")).toMatchObject({ reason: "stop" });
    await fresh.succeed("a");
    await fresh.succeed("b");
    expect((await fresh.state()).run).toBe("COMPLETED_WITH_ERRORS");
  });

  test("is refused for steps that there are not, or that cannot start, before anything is written", async () => {
    const run = await failed();
    const before = await everythingOf(run);

    expect(await errorOf(rerun(run, ["a", "nowhere"]))).toMatchObject({
      code: "workflow.step_not_found",
      details: { stepKey: "nowhere" },
    });
    expect(await codeOf(rerun(run, "b"))).toBe("workflow.rerun_step_unsatisfied");
    expect(await codeOf(rerun(await start({ a: [] }), "a"))).toBe("workflow.rerun_not_ended");
    expect(await everythingOf(run)).toEqual(before);
  });
});

describe("a map step", () => {
  test("recovered keeps its items: those that succeeded are not done again", async () => {
    const run = await startMapRun(database, ledger);
    await run.succeed("setup");
    await run.succeed("list", ["x", "y"]);
    await endItems(ledger, run, 1, failedItem);
    const fresh = await recovered(run);

    expect(await fresh.statuses()).toMatchObject({ ship: "BLOCKED", "ship[0]": "SUCCEEDED", "ship[1]": "ENQUEUED" });
    const [map, item, list] = [await fresh.row("ship"), await fresh.row("ship[1]"), await fresh.row("list")];
    expect(map).toMatchObject({ item_count: 2, pending_count: 1, map_source_id: list.id });
    expect(item).toMatchObject({ map_step_id: map.id, map_index: 1, payload: "y" });
    await endItems(ledger, fresh, 2);
    expect(await fresh.row("ship")).toMatchObject({ status: "SUCCEEDED", output: [1, 2] });
    await fresh.succeed("report");
    expect((await fresh.state()).run).toBe("SUCCEEDED");
  });

  test("recovered from a source without an array fans out over the new output", async () => {
    const run = await startMapRun(database, ledger);
    await run.succeed("setup");
    await run.succeed("list", "none");
    const fresh = await recovered(run);
    expect(await fresh.statuses()).toEqual({
      setup: "SUCCEEDED",
      list: "ENQUEUED",
      ship: "BLOCKED",
      report: "BLOCKED",
    });
    await fresh.succeed("list", ["x"]);
    await endItems(ledger, fresh, 1);

    expect(await fresh.row("ship")).toMatchObject({ status: "SUCCEEDED", output: [1] });
  });

  async function mapped(): Promise<TestRun> {
    const run = await startMapRun(database, ledger);
    await run.succeed("setup");
    await run.succeed("list", ["x", "y"]);
    await endItems(ledger, run, 1, 2);
    await run.succeed("report");
    return run;
  }

  test.each(["list", "setup"])("rerun from %s fans out anew", async (key) => {
    const run = await mapped();
    const fresh = await rerunFrom(run, key);

    expect(Object.keys(await fresh.statuses()).sort()).toEqual(["list", "report", "setup", "ship"]);
    expect(await ledger.runs.getStatus(fresh.id, globally.scope)).toMatchObject({ stepCount: 4, openCount: 3 });
    await fresh.succeed(key, ["p", "q", "r"]);
    await endItems(ledger, fresh, ...(key === "list" ? [7, 8, 9] : [7, 8]));
    await fresh.succeed("report");
    expect(await fresh.row("ship")).toMatchObject({ output: key === "list" ? [7, 8, 9] : [7, 8] });
    expect((await fresh.state()).run).toBe("SUCCEEDED");
  });

  test("rerun by itself does its items again, and rerun from an item only that one", async () => {
    const run = await mapped();
    const whole = await rerunFrom(run, "ship");
    expect(await whole.statuses()).toMatchObject({ ship: "BLOCKED", "ship[0]": "ENQUEUED", "ship[1]": "ENQUEUED" });
    await endItems(ledger, whole, 7, 8);
    expect(await whole.row("ship")).toMatchObject({ status: "SUCCEEDED", output: [7, 8] });

    const one = made(run, await rerun(run, "ship[1]", { key: "k2" }));
    await endItems(ledger, one, 9);
    expect(await one.row("ship")).toMatchObject({ status: "SUCCEEDED", output: [1, 9] });
    const { steps } = await ledger.runs.get(one.id, globally.scope);
    expect(steps.map(({ key, itemCount, mapIndex }) => ({ key, itemCount, mapIndex }))).toEqual([
      { key: "setup", itemCount: null, mapIndex: null },
      { key: "list", itemCount: null, mapIndex: null },
      { key: "ship", itemCount: 2, mapIndex: null },
      { key: "report", itemCount: null, mapIndex: null },
      { key: "ship[0]", itemCount: null, mapIndex: 0 },
      { key: "ship[1]", itemCount: null, mapIndex: 1 },
    ]);
  });
});

describe("a child run", () => {
  test("is started anew with its step, and kept for reading with one that is taken over", async () => {
    const run = await startParentRun(database, ledger);
    await run.succeed("before");
    const child = await childOf(database, ledger, run);
    await child.succeed("work", 1);
    await advanceChildren(ledger);
    await run.succeed("after");

    const kept = made(run, await rerun(run, "after", { key: "after" }));
    const keptStep = (await ledger.runs.get(kept.id, globally.scope)).steps.find(({ key }) => key === "child");
    expect(keptStep).toMatchObject({ status: "SUCCEEDED", childRunId: child.id, output: 1 });
    await kept.succeed("after");

    const anew = made(run, await rerun(run, "child", { key: "child" }));
    expect(await anew.row("child")).toMatchObject({ status: "ENQUEUED", child_run_id: null });
    const second = await childOf(database, ledger, anew);
    expect(await ledger.runs.get(second.id, globally.scope)).toMatchObject({ parentRunId: anew.id });
    await second.succeed("work", 2);
    await advanceChildren(ledger);
    expect(await anew.row("child")).toMatchObject({ status: "SUCCEEDED", output: 2, child_run_id: second.id });
    await anew.succeed("after");
    expect((await anew.state()).run).toBe("SUCCEEDED");
  });

  test("that failed can be recovered, as a run of its own", async () => {
    const run = await startParentRun(database, ledger);
    await run.succeed("before");
    const child = await childOf(database, ledger, run);
    await child.fail("work");
    await advanceChildren(ledger);
    const fresh = await recovered(child);
    await fresh.succeed("work");

    expect(await ledger.runs.get(fresh.id, globally.scope)).toMatchObject({ status: "SUCCEEDED", parentRunId: null });
    expect(await run.statuses()).toMatchObject({ child: "FAILED" });
  });
});

describe("the same key", () => {
  test("gives the same new run, whatever became of it and of the old one", async () => {
    const run = await failed();
    const { id } = await recover(run);
    expect(await recover(run)).toEqual({ id, status: "RUNNING", disposition: "existing" });
    await ledger.runs.cancel(id, globally);
    await ledger.runs.retry(run.id, globally);

    expect(await recover(run)).toEqual({ id, status: "CANCELED", disposition: "existing" });
    expect(await codeOf(recover(run, { key: "k2" }))).toBe("workflow.recover_not_ended");
  });

  test("with another request is refused", async () => {
    const run = await failed({ ok: [], a: ["ok"], b: ["a"], other: [] });
    await run.succeed("other");
    await rerun(run, ["other", "a"]);

    expect(await rerun(run, ["a", "other", "a"])).toMatchObject({ disposition: "existing" });
    expect(await codeOf(rerun(run, "a"))).toBe("workflow.rerun_conflicting_key");
    expect(await codeOf(rerun(run, ["a", "other"], { deadlineSeconds: 5 }))).toBe("workflow.rerun_conflicting_key");
    expect(await codeOf(recover(run))).toBe("workflow.recover_conflicting_key");
    expect(await codeOf(ledger.runs.retry(run.id, { ...globally, key: "k" }))).toBe("workflow.retry_conflicting_key");
    expect(await rerun(run, "a", { key: "another" })).toMatchObject({ disposition: "inserted" });
  });

  test("of two calls at once makes one run: the second waits and gets it", async () => {
    const run = await failed();
    const trx = await openTransaction(database);
    const { id } = await recover(run, {}, ledger.in(trx));

    const second = recover(run);
    await waitsFor("copy_workflow_run");
    await trx.commit().execute();

    expect(await second).toEqual({ id, status: "RUNNING", disposition: "existing" });
    expect(await countOf(database, "runledger.workflow_runs where source_run_id = $1", [run.id])).toBe(1);
  });

  test("of two calls at once, of which the first is taken back: the second makes the run", async () => {
    const run = await failed();
    const trx = await openTransaction(database);
    await recover(run, {}, ledger.in(trx));

    const second = recover(run);
    await waitsFor("copy_workflow_run");
    await trx.rollback().execute();

    const { id, disposition } = await second;
    expect(disposition).toBe("inserted");
    expect((await made(run, { id } as EnqueuedRun).statuses()).ok).toBe("SUCCEEDED");
  });

  test("of ten calls at once makes one run", async () => {
    const run = await failed();
    const answers = await Promise.all(Array.from({ length: 10 }, () => rerun(run, "a")));

    expect(new Set(answers.map(({ id }) => id)).size).toBe(1);
    expect(answers.filter(({ disposition }) => disposition === "inserted")).toHaveLength(1);
    expect(await countOf(database, "runledger.workflow_runs where source_run_id = $1", [run.id])).toBe(1);
  });
});

describe("recover and rerun", () => {
  const calls: [string, (id: string, options: object, by: Ledger) => Promise<unknown>][] = [
    ["recover", (id, options, by) => by.runs.recover(id, { ...globally, key: "k", ...options })],
    ["rerun", (id, options, by) => by.runs.rerun(id, { ...globally, key: "k", from: "a", ...options })],
  ];

  test.each(calls)("%s: a run is found by its tenant and by an admin, by nobody else", async (_, call) => {
    const run = await TestRun.start(database, ledger, { a: [] }, { organizationId: someOrganization });
    await run.fail("a");

    for (const scope of [{ global: true }, { organization: otherOrganization }]) {
      expect(await codeOf(call(run.id, { scope }, ledger))).toBe("workflow.run_not_found");
    }
    expect(await codeOf(call(unknownId, { scope: { admin: true } }, ledger))).toBe("workflow.run_not_found");
    await call(run.id, { scope: { organization: someOrganization } }, ledger);
    expect(await call(run.id, { scope: { admin: true } }, ledger)).toMatchObject({ disposition: "existing" });
    expect(await codeOf(call(run.id, { scope: { global: true } }, ledger))).toBe("workflow.run_not_found");
  });

  const bad: [string, string, object, string][] = [
    ["an id that is none", "no-id", {}, "input.invalid"],
    ["no scope", unknownId, { scope: undefined }, "scope.required"],
    ["no key", unknownId, { key: undefined }, "input.invalid"],
    ["a blank key", unknownId, { key: " " }, "input.invalid"],
    ["a key that is too long", unknownId, { key: "k".repeat(513) }, "input.invalid"],
    ["a deadline of no time", unknownId, { deadlineSeconds: 0 }, "input.invalid"],
  ];
  const badFrom: [string, string, object, string][] = [
    ["no step", unknownId, { from: undefined }, "input.invalid"],
    ["no steps", unknownId, { from: [] }, "input.invalid"],
    ["a blank step key", unknownId, { from: "" }, "input.invalid"],
  ];
  const refusals = calls.flatMap(([name, call]) =>
    [...bad, ...(name === "rerun" ? badFrom : [])].map(
      ([what, id, options, code]) => [name, what, (by: Ledger) => call(id, options, by), code] as const,
    ),
  );
  test.each(refusals)("%s with %s is refused before a statement is sent", async (_, __, call, code) => {
    const { result, statements } = await database.record(() =>
      database.db.transaction().execute((trx) => codeOf(call(ledger.in(trx)))),
    );

    expect(result).toBe(code);
    expect(statements.filter((text) => text.includes("runledger:"))).toEqual([]);
  });

  test.each(calls)("%s at another isolation level fails before any other statement", async (name, call) => {
    const run = await failed();
    for (const level of ["repeatable read", "serializable"] as const) {
      const { result, statements } = await database.record(() =>
        database.db
          .transaction()
          .setIsolationLevel(level)
          .execute((trx) => codeOf(call(run.id, {}, ledger.in(trx)))),
      );

      expect(result).toBe(`workflow.${name}_unsupported_isolation`);
      expect(named(statements.slice(1, -1))).toEqual(["isolation_level"]);
    }
  });

  test.each(calls)("%s is taken back with the caller's transaction, and leaves its lock_timeout", async (_, call) => {
    const run = await failed();
    const before = await everythingOf(run);
    const trx = await openTransaction(database);
    await raw(trx, "set local lock_timeout = '61s'");
    await call(run.id, {}, ledger.in(trx));
    expect(await raw(trx, "show lock_timeout")).toEqual([{ lock_timeout: "61s" }]);
    await trx.rollback().execute();

    expect(await everythingOf(run)).toEqual(before);
  });

  test("wait for a retry in place, and are refused when it was made", async () => {
    const run = await failed();
    const trx = await openTransaction(database);
    await ledger.in(trx).runs.retry(run.id, globally);

    const recovering = codeOf(recover(run));
    await waitsFor("lock_workflow_run_for_share");
    await trx.commit().execute();

    expect(await recovering).toBe("workflow.recover_not_ended");
  });

  test("make a retry in place wait, which then goes on", async () => {
    const run = await failed();
    const trx = await openTransaction(database);
    const { id } = await recover(run, {}, ledger.in(trx));

    const retrying = ledger.runs.retry(run.id, globally);
    await waitsFor("lock_workflow_run_for_update");
    await trx.commit().execute();

    expect(await retrying).toMatchObject({ disposition: "applied" });
    expect(await run.statuses()).toMatchObject({ a: "ENQUEUED" });
    expect(await made(run, { id } as EnqueuedRun).statuses()).toMatchObject({ a: "ENQUEUED" });
  });

  test("wait for the run row no longer than the bound", async () => {
    const run = await failed();
    const holder = await holding(database, ["select from runledger.workflow_runs where id = $1 for update", [run.id]]);

    expect(await errorOf(recover(run, {}, ledgerOf(database, { lockWaitMs: 40 })))).toMatchObject({
      code: "db.lock_timeout",
      sqlstate: "55P03",
    });
    const recovering = recover(run);
    const waiting = await waitsFor("lock_workflow_run_for_share");
    expect(await blockingPids(database.pool, waiting.pid)).toEqual([await backendPid(holder)]);
    await holder.query("rollback");
    expect(await recovering).toMatchObject({ disposition: "inserted" });
  });

  test("at the same time as retries and cancels leave every run whole", async () => {
    for (let round = 0; round < 8; round += 1) {
      const run = await failed({ ok: [], a: ["ok"], b: ["a"], any: ["a?"] });
      await run.fail("any");
      const codes: string[] = [];
      const attempts = Array.from({ length: 12 }, async (_, n) => {
        const key = `key-${n % 3}`;
        const calls = [
          () => recover(run, { key }),
          () => rerun(run, "any", { key: `${key}-rerun` }),
          () => ledger.runs.retry(run.id, globally),
          () => ledger.runs.cancel(run.id, globally),
        ];
        await calls[n % 4]?.().catch((error: { code: string }) => codes.push(error.code));
      });
      await Promise.all(attempts);

      const expected = /^workflow\.(recover_not_ended|rerun_not_ended|retry_not_failed|retry_run_canceled)$/;
      expect(codes.filter((code) => !expected.test(code))).toEqual([]);
      await expectInvariants(database);
    }
  });

  test.each([
    ["alone", 9],
    ["in the caller's transaction", 8],
  ])("take, %s, %i round trips", async (how, count) => {
    for (const [, call] of calls) {
      const run = await failed();
      const { statements } = await database.record(() =>
        how === "alone"
          ? call(run.id, {}, ledger)
          : database.db.transaction().execute((trx) => call(run.id, {}, ledger.in(trx))),
      );
      expect(named(how === "alone" ? statements : statements.slice(1, -1))).toHaveLength(count);
    }
  });

  test("take four round trips when the key was used before", async () => {
    const run = await failed();
    await recover(run);

    expect(named((await database.record(() => recover(run))).statements)).toHaveLength(4);
  });

  test("take as many statements for ten thousand steps as for three", async () => {
    const wide = Object.fromEntries(
      Array.from({ length: 10_000 }, (_, n) => [`s${n}`, n < 2_000 ? [] : [`s${n - 2_000}`]]),
    );
    const { id } = await ledger.runs.enqueue(graphOf("wide", wide));
    const run = new TestRun(database, ledger, id, "wide");
    const types = Array.from({ length: 2_000 }, (_, n) => `wide.s${n}`);
    for (;;) {
      const jobs = await ledger.jobs.claim({ workerId: "w", limit: 1000, types });
      if (jobs.length === 0) break;
      await ledger.jobs.settle(jobs.map(({ lease }) => ({ lease, failure })));
    }

    const small = await database.record(async () => recover(await start({ a: [] }).then(failedOf)));
    const large = await database.record(() => recover(run));
    const again = await database.record(() => rerun(run, "s7", { key: "from" }));

    expect(named(large.statements)).toEqual(named(small.statements).slice(-large.statements.length));
    expect(named(again.statements)).toEqual(named(large.statements));
    expect(await ledger.runs.getStatus(large.result.id, globally.scope)).toMatchObject({ openCount: 10_000 });
    expect(await ledger.runs.getStatus(again.result.id, globally.scope)).toMatchObject({
      openCount: 5,
      erroredCount: 9_995,
    });
    expect(await countOf(database, "runledger.job_queue where workflow_run_id = $1", [large.result.id])).toBe(2_000);
  }, 120_000);
});

async function failedOf(run: TestRun): Promise<TestRun> {
  await run.fail("a");
  return run;
}

const waitsFor = (marker: string) => waitForBackend({ client: database.pool, marker: `runledger:${marker} ` });

function named(statements: readonly string[]): string[] {
  return statements.map((text) => /runledger:(\w+)/.exec(text)?.[1] ?? text);
}
