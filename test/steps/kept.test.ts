/** Early completion: what comes before the gate opens is kept, if asked for (FEATURES F-W6). */
import { afterEach, describe, expect, test } from "@jest/globals";
import type { ExternalCompletion, StepSpec } from "../../src/index.ts";
import { runReleaseKey } from "../../src/locks/key.ts";
import { expectInvariants, watchForDeadlocks } from "../invariants.ts";
import {
  codeOf,
  failure,
  globally,
  holding,
  ledgerOf,
  openTransaction,
  otherOrganization,
  someOrganization,
  TestRun,
} from "../runs/fixtures.ts";
import { createTestDatabase } from "../support/database.ts";
import { waitForBackend } from "../support/waiting.ts";

const database = await createTestDatabase();
const expectNoDeadlocks = watchForDeadlocks(database);
const ledger = ledgerOf(database);

afterEach(async () => {
  await expectInvariants(database);
  expectNoDeadlocks();
});

const graph = { a: [], gate: ["a"], on: ["gate"], any: ["gate?"], job: [] };
const start = () => TestRun.start(database, ledger, graph);
type Change = Partial<ExternalCompletion>;
const keep = (run: TestRun, completion: Change = {}, key = "gate", by = ledger) =>
  by.steps.complete(run.id, key, { ...globally, keep: true, ...completion });
const seen = (marker: string) => waitForBackend({ client: database.pool, marker });

const conflictingOutcome = "workflow.external_step_conflicting_completion_retry";
const conflictingOutput = "workflow.external_step_conflicting_output_retry";

describe("a gate that has not opened", () => {
  test("keeps a completion with its output, its reason and who it is from, and stays BLOCKED", async () => {
    const run = await start();
    const before = await run.state();

    expect(await keep(run, { output: { ok: [1, null] }, completedBy: "ann", reason: "seen before" })).toEqual({
      runId: run.id,
      stepKey: "gate",
      status: "BLOCKED",
      completed: true,
      kept: true,
    });

    expect(await run.state()).toEqual(before);
    expect(await run.row("gate")).toMatchObject({
      kept_outcome: "SUCCEEDED",
      output: { ok: [1, null] },
      completed_by: "ann",
      reason: "seen before",
      error_code: null,
      ended_at: null,
    });
  });

  test.each([
    ["FAILED", "workflow.external_failed"],
    ["CANCELED", "workflow.external_canceled"],
  ] as const)("keeps the outcome %s with its code", async (outcome, code) => {
    const run = await start();
    await keep(run, { outcome });

    expect(await run.row("gate")).toMatchObject({ status: "BLOCKED", kept_outcome: outcome, error_code: code });
  });

  test("is not waiting for those who do not ask for it, also when it keeps just that completion", async () => {
    const run = await start();
    expect(await codeOf(keep(run, { keep: false }))).toBe("workflow.external_step_not_waiting");
    await keep(run);

    expect(await codeOf(keep(run, { keep: false }))).toBe("workflow.external_step_not_waiting");
    expect(await codeOf(ledger.steps.complete(run.id, "gate", globally))).toBe("workflow.external_step_not_waiting");
  });

  test("keeps nothing when the caller's transaction rolls back", async () => {
    const run = await start();
    const before = await run.row("gate");
    const trx = await openTransaction(database);
    await keep(run, { output: 1 }, "gate", ledger.in(trx));
    await trx.rollback().execute();

    expect(await run.row("gate")).toEqual(before);
  });
});

describe("the same completion again", () => {
  const completions: Change[] = [
    {},
    { output: null },
    { output: { a: 1, b: [true] } },
    { outcome: "FAILED" },
    { outcome: "CANCELED" },
  ];
  test.each(completions)("changes nothing of what is kept: %j", async (completion) => {
    const run = await start();
    await keep(run, completion);
    const before = await run.row("gate");

    expect(await keep(run, { ...completion, completedBy: "another", reason: "another" })).toEqual({
      runId: run.id,
      stepKey: "gate",
      status: "BLOCKED",
      completed: false,
      kept: true,
    });
    expect(await run.row("gate")).toEqual(before);
  });

  test("at the same time is kept once", async () => {
    const run = await start();
    const answers = await Promise.all(Array.from({ length: 12 }, () => keep(run, { output: 7 })));

    expect(answers.filter(({ completed }) => completed)).toHaveLength(1);
    expect(answers.every(({ kept }) => kept)).toBe(true);
  });
});

describe("another completion", () => {
  test.each<[Change, Change, string]>([
    [{}, { outcome: "FAILED" }, conflictingOutcome],
    [{ outcome: "FAILED" }, {}, conflictingOutcome],
    [{ outcome: "CANCELED" }, { outcome: "FAILED" }, conflictingOutcome],
    [{ output: { a: 1 } }, { output: { a: 2 } }, conflictingOutput],
    [{}, { output: null }, conflictingOutput],
    [{ output: null }, {}, conflictingOutput],
  ])("than the kept one conflicts: %j, then %j", async (first, second, code) => {
    const run = await start();
    await keep(run, first);
    const before = await run.row("gate");

    expect(await codeOf(keep(run, second))).toBe(code);
    expect(await run.row("gate")).toEqual(before);
  });

  test("that waited for the first one finds the conflict", async () => {
    const run = await start();
    const trx = await openTransaction(database);
    await keep(run, { outcome: "FAILED" }, "gate", ledger.in(trx));

    const second = codeOf(keep(run));
    await seen("keep_gate_completion");
    await trx.commit().execute();

    expect(await second).toBe(conflictingOutcome);
  });

  test("that waited for one that rolled back is kept", async () => {
    const run = await start();
    const trx = await openTransaction(database);
    await keep(run, { outcome: "FAILED" }, "gate", ledger.in(trx));

    const second = keep(run, { output: 2 });
    await seen("keep_gate_completion");
    await trx.rollback().execute();

    expect(await second).toMatchObject({ completed: true, kept: true });
    expect(await run.row("gate")).toMatchObject({ kept_outcome: "SUCCEEDED", output: 2, error_code: null });
  });
});

describe("a gate that has opened", () => {
  test("ends with the completion as with any other", async () => {
    const run = await start();
    await run.succeed("a");

    expect(await keep(run, { output: 1 })).toMatchObject({ status: "SUCCEEDED", completed: true, kept: false });
    expect(await run.statuses()).toMatchObject({ gate: "SUCCEEDED", on: "ENQUEUED", any: "ENQUEUED" });
    expect(await keep(run, { output: 1 })).toMatchObject({ status: "SUCCEEDED", completed: false, kept: false });
    expect(await codeOf(keep(run, { output: 2 }))).toBe(conflictingOutput);
    expect(await codeOf(keep(run, { outcome: "FAILED" }))).toBe(conflictingOutcome);
  });
});

describe("refused", () => {
  test.each<[string, string, Change, string]>([
    ["a JOB step", "on", {}, "workflow.external_step_not_external"],
    ["an unknown step", "nowhere", {}, "workflow.step_not_found"],
    ["another tenant's scope", "gate", { scope: { organization: someOrganization } }, "workflow.step_not_found"],
    ["an output with a failure", "gate", { outcome: "FAILED", output: 1 }, "input.invalid"],
    ["an output that is no JSON", "gate", { output: () => 1 }, "payload.not_json"],
    ["an unknown outcome", "gate", { outcome: "BLOCKED" as never }, "input.invalid"],
    ["a keep that is no boolean", "gate", { keep: "yes" as never }, "input.invalid"],
    ["no scope", "gate", { scope: undefined as never }, "scope.required"],
  ])("is %s, and nothing changes", async (_, key, completion, code) => {
    const run = await start();
    const before = await run.row("gate");

    expect(await codeOf(keep(run, completion, key))).toBe(code);
    expect(await run.row("gate")).toEqual(before);
  });

  test("is a gate of another organization, to all but its own and an admin", async () => {
    const run = await TestRun.start(database, ledger, graph, { organizationId: someOrganization });
    for (const scope of [{ global: true }, { organization: otherOrganization }] as const) {
      expect(await codeOf(keep(run, { scope }))).toBe("workflow.step_not_found");
    }
    expect(await keep(run, { scope: { organization: someOrganization } })).toMatchObject({ completed: true });
    expect(await keep(run, { scope: { admin: true } })).toMatchObject({ completed: false, kept: true });
  });

  test("while the run is being cancelled leaves the caller's transaction usable, without locks, and nothing written", async () => {
    const run = await start();
    const before = await run.row("gate");
    const canceling = await holding(database, ["select pg_advisory_xact_lock($1)", [String(runReleaseKey(run.id))]]);
    const trx = await openTransaction(database);

    expect(await codeOf(keep(run, { output: 1 }, "gate", ledger.in(trx)))).toBe("workflow.release_conflict");
    await canceling.query("select from runledger.workflow_steps where run_id = $1 for update nowait", [run.id]);
    await canceling.query("rollback");
    expect(await keep(run, { output: 2 }, "gate", ledger.in(trx))).toMatchObject({ kept: true });
    await trx.rollback().execute();

    expect(await run.row("gate")).toEqual(before);
  });

  test("is a transaction at repeatable read, before any other statement", async () => {
    const run = await start();
    const { result, statements } = await database.record(() =>
      database.db
        .transaction()
        .setIsolationLevel("repeatable read")
        .execute((trx) => codeOf(keep(run, {}, "gate", ledger.in(trx)))),
    );

    expect(result).toBe("workflow.external_completion_unsupported_isolation");
    expect(statements.filter((text) => text.includes("runledger:"))).toHaveLength(1);
  });
});

describe("when its prerequisites have ended", () => {
  test("the gate ends with what it kept, and hands it to its dependents", async () => {
    const run = await start();
    await keep(run, { output: { by: "ann" }, completedBy: "ann", reason: "seen before" });
    await run.succeed("a");

    expect(await run.statuses()).toEqual({
      a: "SUCCEEDED",
      gate: "SUCCEEDED",
      on: "ENQUEUED",
      any: "ENQUEUED",
      job: "ENQUEUED",
    });
    expect(await run.row("gate")).toMatchObject({
      output: { by: "ann" },
      completed_by: "ann",
      reason: "seen before",
      error_code: null,
    });
    expect(await keep(run, { output: { by: "ann" } })).toMatchObject({ status: "SUCCEEDED", completed: false });
    expect(await codeOf(keep(run, { output: { by: "bob" } }))).toBe(conflictingOutput);
  });

  test.each([
    ["FAILED", "workflow.external_failed"],
    ["CANCELED", "workflow.external_canceled"],
  ] as const)("a gate that keeps %s cancels those that need its success", async (outcome, code) => {
    const run = await start();
    await keep(run, { outcome, reason: "no" });
    await run.succeed("a");

    expect(await run.statuses()).toMatchObject({ gate: outcome, on: "CANCELED", any: "ENQUEUED" });
    expect(await run.row("gate")).toMatchObject({ error_code: code, reason: "no" });
  });

  test("without success, the gate is CANCELED whatever it kept", async () => {
    const run = await start();
    await keep(run, { output: 1 });
    await run.fail("a");

    expect(await run.statuses()).toMatchObject({ gate: "CANCELED", on: "CANCELED", any: "ENQUEUED" });
    expect(await run.row("gate")).toMatchObject({ error_code: "workflow.dependency_unsatisfied" });
    expect(await codeOf(keep(run, { output: 1 }))).toBe(conflictingOutcome);
  });

  test("one by one, the gate keeps its completion until the last", async () => {
    const run = await TestRun.start(database, ledger, { a: [], b: [], gate: ["a", "b"], on: ["gate"] });
    await keep(run, { output: 1, completedBy: "ann", reason: "seen before" });
    await run.succeed("a");
    await run.succeed("b");

    expect(await run.statuses()).toMatchObject({ gate: "SUCCEEDED", on: "ENQUEUED" });
    expect(await run.row("gate")).toMatchObject({ output: 1, completed_by: "ann", reason: "seen before" });
  });

  test("what the gate kept is what a map step fans out over", async () => {
    const steps: StepSpec[] = [
      { key: "a", job: { type: "kept-map.a", payload: null }, dependencies: [] },
      { key: "gate", dependencies: [{ key: "a", kind: "ON_SUCCESS" }] },
      {
        key: "each",
        job: { type: "kept-map.each" },
        map: { over: "gate" },
        dependencies: [{ key: "gate", kind: "ON_SUCCESS" }],
      },
    ];
    const { id } = await ledger.runs.enqueue({ type: "kept-map", steps, resultStep: null });
    const run = new TestRun(database, ledger, id, "kept-map");
    await keep(run, { output: [1, 2, 3] });
    await run.succeed("a");

    expect(await run.statuses()).toMatchObject({ gate: "SUCCEEDED", each: "BLOCKED", "each[2]": "ENQUEUED" });
  });

  test("gates in a row end one after the other, and with the last step the run", async () => {
    const run = await TestRun.start(database, ledger, { a: [], gate: ["a"], gateToo: ["gate"], gate3: ["gateToo?"] });
    await keep(run, { output: 1 }, "gateToo");
    await keep(run, { outcome: "FAILED" }, "gate");
    await keep(run, {}, "gate3");
    await run.succeed("a");

    expect(await run.state()).toEqual({
      run: "COMPLETED_WITH_ERRORS",
      steps: { a: "SUCCEEDED", gate: "FAILED", gateToo: "CANCELED", gate3: "SUCCEEDED" },
    });
  });

  test("a gate behind another one ends with it", async () => {
    const run = await TestRun.start(database, ledger, { gate: [], gateToo: ["gate"], on: ["gateToo"] });
    await keep(run, { output: 1 }, "gateToo");
    await keep(run);

    expect(await run.statuses()).toEqual({ gate: "SUCCEEDED", gateToo: "SUCCEEDED", on: "ENQUEUED" });
  });
});

describe("against the release of the gate", () => {
  test("a release that waited for the completion ends the gate with it", async () => {
    const run = await start();
    const { lease } = await run.claim("a");
    const early = await openTransaction(database);
    await keep(run, { output: 1 }, "gate", ledger.in(early));

    const released = ledger.jobs.complete(lease);
    await seen("complete_step_jobs");
    await early.commit().execute();
    await released;

    expect(await run.statuses()).toMatchObject({ a: "SUCCEEDED", gate: "SUCCEEDED", on: "ENQUEUED" });
    expect(await run.row("gate")).toMatchObject({ output: 1 });
  });

  test("so does the failure of an ON_TERMINAL prerequisite that waited for it", async () => {
    const run = await TestRun.start(database, ledger, { a: [], gate: ["a?"], on: ["gate"] });
    const { lease } = await run.claim("a");
    const early = await openTransaction(database);
    await keep(run, { output: 1 }, "gate", ledger.in(early));

    const released = ledger.jobs.fail(lease, failure);
    await seen("lock_workflow_step_closure_for_update");
    await early.commit().execute();
    await released;

    expect(await run.statuses()).toEqual({ a: "FAILED", gate: "SUCCEEDED", on: "ENQUEUED" });
  });

  test("a completion that waited for the release ends the open gate", async () => {
    const run = await start();
    const { lease } = await run.claim("a");
    const releasing = await openTransaction(database);
    await ledger.in(releasing).jobs.complete(lease);

    const early = keep(run, { output: 1 });
    await seen("keep_gate_completion");
    await releasing.commit().execute();

    expect(await early).toMatchObject({ status: "SUCCEEDED", completed: true, kept: false });
    expect(await run.statuses()).toMatchObject({ gate: "SUCCEEDED", on: "ENQUEUED" });
    expect(await run.row("gate")).toMatchObject({ output: 1, kept_outcome: null });
  });

  test("a completion that waited for a release that rolled back is kept", async () => {
    const run = await start();
    const { lease } = await run.claim("a");
    const releasing = await openTransaction(database);
    await ledger.in(releasing).jobs.complete(lease);

    const early = keep(run, { output: 1 });
    await seen("keep_gate_completion");
    await releasing.rollback().execute();

    expect(await early).toMatchObject({ status: "BLOCKED", completed: true, kept: true });
  });

  test("a release that waited for a completion that rolled back opens the gate", async () => {
    const run = await start();
    const { lease } = await run.claim("a");
    const early = await openTransaction(database);
    await keep(run, { output: 1 }, "gate", ledger.in(early));

    const released = ledger.jobs.complete(lease);
    await seen("complete_step_jobs");
    await early.rollback().execute();
    await released;

    expect(await run.row("gate")).toMatchObject({ status: "WAITING_FOR_EXTERNAL", output: null, kept_outcome: null });
  });
});

describe("against a cancel of the run", () => {
  test("a cancel waits for the completion, and the gate is CANCELED", async () => {
    const run = await start();
    const early = await openTransaction(database);
    await keep(run, { output: 1 }, "gate", ledger.in(early));

    const canceled = ledger.runs.cancel(run.id, globally);
    await seen("lock_workflow_run_release");
    await early.commit().execute();

    expect(await canceled).toMatchObject({ canceled: true });
    expect(await run.statuses()).toMatchObject({ gate: "CANCELED", on: "CANCELED", any: "CANCELED" });
    expect(await codeOf(keep(run, { output: 1 }))).toBe(conflictingOutcome);
    expect(await keep(run, { outcome: "CANCELED" })).toMatchObject({ status: "CANCELED", completed: false });
  });

  test("a completion that waited for the cancel finds the gate CANCELED", async () => {
    const run = await start();
    const canceling = await openTransaction(database);
    await ledger.in(canceling).runs.cancel(run.id, globally);

    const early = codeOf(keep(run, { output: 1 }));
    await seen("keep_gate_completion");
    await canceling.commit().execute();

    expect(await early).toBe(conflictingOutcome);
    expect(await run.row("gate")).toMatchObject({ status: "CANCELED", output: null, kept_outcome: null });
  });

  test("a completion that waited for a cancel that rolled back is kept", async () => {
    const run = await start();
    const canceling = await openTransaction(database);
    await ledger.in(canceling).runs.cancel(run.id, globally);

    const early = keep(run, { output: 1 });
    await seen("keep_gate_completion");
    await canceling.rollback().execute();

    expect(await early).toMatchObject({ status: "BLOCKED", completed: true, kept: true });
  });
});
