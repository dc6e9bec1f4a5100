/** External gates: who completes them, how often, and what the second completion finds (FEATURES F-W6). */
import { afterEach, describe, expect, test } from "@jest/globals";
import type { ExternalCompletion } from "../../src/index.ts";
import { expectInvariants, watchForDeadlocks } from "../invariants.ts";
import {
  codeOf,
  errorOf,
  globally,
  holding,
  ledgerOf,
  openTransaction,
  otherOrganization,
  raw,
  someOrganization,
  TestRun,
  unknownId,
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

const graph = { gate: [], on: ["gate"], any: ["gate?"], gateToo: ["on"] };
const start = () => TestRun.start(database, ledger, graph);
const complete = (run: TestRun, completion: Partial<ExternalCompletion> = {}, key = "gate") =>
  ledger.steps.complete(run.id, key, { ...globally, ...completion });

describe("an open gate", () => {
  test("completed with an output releases its dependents and keeps who did it and why", async () => {
    const run = await start();

    expect(await complete(run, { output: { ok: [1, null] }, completedBy: "ann", reason: "looks fine" })).toEqual({
      runId: run.id,
      stepKey: "gate",
      status: "SUCCEEDED",
      completed: true,
      kept: false,
    });

    expect(await run.state()).toEqual({
      run: "RUNNING",
      steps: { gate: "SUCCEEDED", on: "ENQUEUED", any: "ENQUEUED", gateToo: "BLOCKED" },
    });
    expect(await run.row("gate")).toMatchObject({
      output: { ok: [1, null] },
      completed_by: "ann",
      reason: "looks fine",
      error_code: null,
    });
  });

  test.each([
    ["FAILED", "workflow.external_failed"],
    ["CANCELED", "workflow.external_canceled"],
  ] as const)("completed as %s cancels those that need its success", async (outcome, code) => {
    const run = await start();
    expect(await complete(run, { outcome, reason: "no" })).toMatchObject({ status: outcome, completed: true });

    expect(await run.statuses()).toEqual({ gate: outcome, on: "CANCELED", any: "ENQUEUED", gateToo: "CANCELED" });
    expect(await run.row("gate")).toMatchObject({ error_code: code, reason: "no", output: null });
  });

  test("that is the last open step ends the run", async () => {
    const run = await TestRun.start(database, ledger, { gate: [] });
    await complete(run);

    expect((await run.state()).run).toBe("SUCCEEDED");
  });

  test("in a caller's transaction is completed with its commit, and open when it rolls back", async () => {
    const run = await start();
    const before = await run.state();
    const dropped = await openTransaction(database);
    await ledger.in(dropped).steps.complete(run.id, "gate", globally);
    await dropped.rollback().execute();
    expect(await run.state()).toEqual(before);

    const kept = await openTransaction(database);
    await raw(kept, "set local lock_timeout = '90s'");
    await ledger.in(kept).steps.complete(run.id, "gate", globally);
    expect(await raw(kept, "show lock_timeout")).toEqual([{ lock_timeout: "90s" }]);
    await kept.commit().execute();
    expect(await run.statuses()).toMatchObject({ gate: "SUCCEEDED", on: "ENQUEUED" });
  });
});

describe("the same completion again", () => {
  const completions: Partial<ExternalCompletion>[] = [
    {},
    { output: null },
    { output: { a: 1, b: [true] } },
    { outcome: "FAILED" },
    { outcome: "CANCELED", reason: "no" },
  ];
  test.each(completions)("changes nothing: %j", async (completion) => {
    const run = await start();
    await complete(run, completion);
    const before = await run.row("gate");

    expect(await complete(run, { ...completion, completedBy: "another", reason: "another" })).toMatchObject({
      status: completion.outcome ?? "SUCCEEDED",
      completed: false,
    });
    expect(await run.row("gate")).toEqual(before);
  });

  test("is the same with the output's properties in another order, and 1 as 1.0", async () => {
    const run = await start();
    await complete(run, { output: { a: 1, b: 2 } });

    expect(await complete(run, { output: JSON.parse(`{"b":2.0,"a":1.00}`) })).toMatchObject({ completed: false });
  });

  test("at the same time completes it once", async () => {
    const run = await start();
    const results = await Promise.all(Array.from({ length: 12 }, () => complete(run, { output: 7 })));

    expect(results.filter(({ completed }) => completed)).toHaveLength(1);
    expect(await run.liveJobs()).toEqual(["any", "on"]);
  });
});

describe("another completion", () => {
  test("with another outcome conflicts, whichever was first", async () => {
    for (const first of ["SUCCEEDED", "FAILED", "CANCELED"] as const) {
      const run = await start();
      await complete(run, { outcome: first });
      for (const second of ["SUCCEEDED", "FAILED", "CANCELED"] as const) {
        if (first === second) continue;
        expect(await errorOf(complete(run, { outcome: second }))).toMatchObject({
          code: "workflow.external_step_conflicting_completion_retry",
          retryable: false,
        });
      }
    }
  });

  test.each([
    [{ a: 1 }, { a: 2 }],
    [undefined, null],
    [null, undefined],
    [
      [1, 2],
      [2, 1],
    ],
  ])("with another output conflicts: %j, then %j", async (first, second) => {
    const run = await start();
    await complete(run, first === undefined ? {} : { output: first });

    expect(await codeOf(complete(run, second === undefined ? {} : { output: second }))).toBe(
      "workflow.external_step_conflicting_output_retry",
    );
  });

  test("that waited for the first one finds the conflict", async () => {
    const run = await start();
    const trx = await openTransaction(database);
    await ledger.in(trx).steps.complete(run.id, "gate", { ...globally, outcome: "FAILED" });

    const second = codeOf(complete(run));
    await waitForBackend({ client: database.pool, marker: "lock_workflow_step_closure_for_update" });
    await trx.commit().execute();

    expect(await second).toBe("workflow.external_step_conflicting_completion_retry");
  });

  test("that waited for one that rolled back completes the gate", async () => {
    const run = await start();
    const trx = await openTransaction(database);
    await ledger.in(trx).steps.complete(run.id, "gate", { ...globally, outcome: "FAILED" });

    const second = complete(run, { output: 2 });
    await waitForBackend({ client: database.pool, marker: "lock_workflow_step_closure_for_update" });
    await trx.rollback().execute();

    expect(await second).toMatchObject({ completed: true });
    expect(await run.row("gate")).toMatchObject({ status: "SUCCEEDED", output: 2 });
  });
});

describe("refused", () => {
  test.each<[string, string, Partial<ExternalCompletion>, string]>([
    ["a gate that is still blocked", "gateToo", {}, "workflow.external_step_not_waiting"],
    ["a JOB step", "on", {}, "workflow.external_step_not_external"],
    ["an unknown step", "nowhere", {}, "workflow.step_not_found"],
    ["another tenant's scope", "gate", { scope: { organization: someOrganization } }, "workflow.step_not_found"],
    ["an output with a failure", "gate", { outcome: "FAILED", output: 1 }, "input.invalid"],
    ["an output that is no JSON", "gate", { output: 1n }, "payload.not_json"],
    ["an unknown outcome", "gate", { outcome: "MAYBE" as never }, "input.invalid"],
    ["a blank completer", "gate", { completedBy: " " }, "input.invalid"],
    ["no scope", "gate", { scope: {} as never }, "scope.required"],
  ])("is %s, and nothing changes", async (_, key, completion, code) => {
    const run = await start();
    const before = await run.state();

    expect(await codeOf(complete(run, completion, key))).toBe(code);
    expect(await run.state()).toEqual(before);
  });

  test("is an unknown run, and a gate of another organization to all but its own and an admin", async () => {
    expect(await codeOf(ledger.steps.complete(unknownId, "gate", globally))).toBe("workflow.step_not_found");
    const run = await TestRun.start(database, ledger, graph, { organizationId: someOrganization });
    for (const scope of [{ global: true }, { organization: otherOrganization }] as const) {
      expect(await codeOf(complete(run, { scope }))).toBe("workflow.step_not_found");
    }
    expect(await complete(run, { scope: { admin: true } })).toMatchObject({ completed: true });
    expect(await complete(run, { scope: { organization: someOrganization } })).toMatchObject({ completed: false });
  });

  test("in a caller's transaction leaves it usable and without locks", async () => {
    const run = await start();
    const trx = await openTransaction(database);
    expect(await codeOf(ledger.in(trx).steps.complete(run.id, "gateToo", globally))).toBe(
      "workflow.external_step_not_waiting",
    );

    await holding(database, [
      "select from runledger.workflow_steps where run_id = $1 for update nowait",
      [run.id],
    ]).then((client) => client.query("rollback"));
    expect(await ledger.in(trx).steps.complete(run.id, "gate", globally)).toMatchObject({ completed: true });
    await trx.commit().execute();
  });

  test.each(["repeatable read", "serializable"] as const)(
    "is a transaction at %s, before any other statement",
    async (level) => {
      const run = await start();
      const { result, statements } = await database.record(() =>
        database.db
          .transaction()
          .setIsolationLevel(level)
          .execute((trx) => codeOf(ledger.in(trx).steps.complete(run.id, "gate", globally))),
      );

      expect(result).toBe("workflow.external_completion_unsupported_isolation");
      expect(statements.filter((text) => text.includes("runledger:"))).toHaveLength(1);
    },
  );
});

test("it locks the steps that follow from it, not all steps of the run", async () => {
  const run = await TestRun.start(database, ledger, {
    gate: [],
    on: ["gate"],
    other: [],
    far: ["other"],
    deep: ["on"],
  });
  await holding(database, [
    "select from runledger.workflow_steps where run_id = $1 and step_key in ('other', 'far', 'deep') for update",
    [run.id],
  ]);

  expect(await ledgerOf(database, { lockWaitMs: 100 }).steps.complete(run.id, "gate", globally)).toMatchObject({
    completed: true,
  });
});

test("a wait for a step that somebody else holds is bounded", async () => {
  const run = await start();
  await holding(database, [
    "select from runledger.workflow_steps where run_id = $1 and step_key = 'on' for update",
    [run.id],
  ]);

  expect(await codeOf(ledgerOf(database, { lockWaitMs: 40 }).steps.complete(run.id, "gate", globally))).toBe(
    "db.lock_timeout",
  );
  expect(await run.statuses()).toMatchObject({ gate: "WAITING_FOR_EXTERNAL" });
});
