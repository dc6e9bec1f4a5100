/** Enqueueing runs: all rows of a graph at once, and idempotency over (type, scope, key) (FEATURES F-W2). */
import { afterEach, describe, expect, test } from "@jest/globals";
import { z } from "zod";
import { defineJob, defineWorkflow, type GraphSpec, typed } from "../../src/index.ts";
import { expectInvariants, watchForDeadlocks } from "../invariants.ts";
import { createTestDatabase } from "../support/database.ts";
import { waitForBackend } from "../support/waiting.ts";
import {
  codeOf,
  countOf,
  errorOf,
  globally,
  graphOf,
  ledgerOf,
  openTransaction,
  otherOrganization,
  someOrganization,
  TestRun,
} from "./fixtures.ts";

const database = await createTestDatabase();
const expectNoDeadlocks = watchForDeadlocks(database);
const ledger = ledgerOf(database);

afterEach(async () => {
  await expectInvariants(database);
  expectNoDeadlocks();
});

const runsOf = (type: string) => countOf(database, "runledger.workflow_runs where type = $1", [type]);
const marker = "runledger:enqueue_keyed_workflow_runs ";

describe("enqueue", () => {
  test("makes the roots runnable at once, and nothing else", async () => {
    const run = await TestRun.start(database, ledger, { a: [], b: ["a"], c: [], gate: [], gateLate: ["gate"] });

    expect(await run.state()).toEqual({
      run: "RUNNING",
      steps: { a: "ENQUEUED", b: "BLOCKED", c: "ENQUEUED", gate: "WAITING_FOR_EXTERNAL", gateLate: "BLOCKED" },
    });
    expect(await run.liveJobs()).toEqual(["a", "c"]);
    expect(await ledger.runs.getStatus(run.id, globally.scope)).toEqual({
      id: run.id,
      status: "RUNNING",
      stepCount: 5,
      openCount: 4,
      waitingCount: 1,
      erroredCount: 0,
    });
  });

  test("a graph whose roots are all external waits from the start", async () => {
    const { id, ...rest } = await ledger.runs.enqueue(graphOf("gated", { gate: [], gateToo: [] }));

    expect(rest).toEqual({ status: "WAITING_FOR_EXTERNAL", disposition: "inserted" });
    expect(await ledger.runs.getStatus(id, globally.scope)).toMatchObject({ waitingCount: 2, openCount: 0 });
  });

  test("steps and jobs belong to the organization of their run, those that are released later too", async () => {
    const run = await TestRun.start(database, ledger, { a: [], b: ["a"] }, { organizationId: someOrganization });
    await run.succeed("a");
    const job = await run.claim("b");

    expect(job.organizationId).toBe(someOrganization);
    expect((await run.row("a")).organization_id).toBe(someOrganization);
    expect(await ledger.runs.get(run.id, { organization: someOrganization })).toMatchObject({
      organizationId: someOrganization,
    });
    for (const scope of [{ global: true }, { organization: otherOrganization }] as const) {
      expect(await codeOf(ledger.runs.get(run.id, scope))).toBe("workflow.run_not_found");
      expect(await codeOf(ledger.runs.getStatus(run.id, scope))).toBe("workflow.run_not_found");
      expect(await codeOf(ledger.runs.getResult(run.id, { scope }))).toBe("workflow.run_not_found");
    }
    expect(await ledger.runs.getStatus(run.id, { admin: true })).toMatchObject({ id: run.id });
  });

  test("in a caller's transaction is there when it commits, and not when it rolls back", async () => {
    const kept = await openTransaction(database);
    const { id } = await ledger.in(kept).runs.enqueue(graphOf("mine", { a: [] }));
    expect(await runsOf("mine")).toBe(0);
    await kept.commit().execute();
    expect(await ledger.runs.getStatus(id, globally.scope)).toMatchObject({ status: "RUNNING" });

    const dropped = await openTransaction(database);
    await ledger.in(dropped).runs.enqueue(graphOf("mine", { a: [] }), { idempotencyKey: "free again" });
    await dropped.rollback().execute();
    expect(await runsOf("mine")).toBe(1);
    expect(await ledger.runs.enqueue(graphOf("mine", { a: [] }), { idempotencyKey: "free again" })).toMatchObject({
      disposition: "inserted",
    });
  });

  test("of many runs answers in the order of the requests, in one statement", async () => {
    const requests = Array.from({ length: 30 }, (_, n) => ({ graph: graphOf(`many-${n}`, { a: [], b: ["a"] }) }));
    const { result, statements } = await database.record(() => ledger.runs.enqueueMany(requests));

    expect(statements).toHaveLength(1);
    const { rows } = await database.pool.query("select id, type from runledger.workflow_runs where type like 'many-%'");
    const types = new Map(rows.map(({ id, type }) => [id, type]));
    expect(result.map(({ id }) => types.get(id))).toEqual(requests.map(({ graph }) => graph.type));
    expect(await ledger.runs.enqueueMany([])).toEqual([]);
  });

  test("of many runs is all or none", async () => {
    const wrong = { graph: graphOf("half", { a: ["nowhere"] }) };

    expect(await codeOf(ledger.runs.enqueueMany([{ graph: graphOf("half", { a: [] }) }, wrong]))).toBe(
      "workflow.invalid_dag_missing_dependency",
    );
    expect(await runsOf("half")).toBe(0);
  });

  test("checks a step's payload and a workflow's input against their schemas, and names paths only", async () => {
    const pay = defineJob("pay", { input: z.object({ amount: z.number(), to: z.object({ name: z.string() }) }) });
    const workflow = defineWorkflow("checked", {
      input: z.object({ secret: z.string() }),
      build: (graph, { secret }) => graph.job("pay", pay, JSON.parse(secret)),
    });

    const input = await errorOf(ledger.runs.enqueue(workflow, JSON.parse(`{"secret":42}`)));
    expect(input).toMatchObject({ code: "payload.invalid", details: { paths: ["secret"] } });
    const secret = JSON.stringify({ amount: "4711", to: {} });
    const payload = await errorOf(ledger.runs.enqueue(workflow, { secret }));
    expect(payload).toMatchObject({ code: "payload.invalid", details: { paths: ["amount", "to.name"] } });
    expect(JSON.stringify(payload) + payload.message).not.toContain("4711");
    expect(await runsOf("checked")).toBe(0);
  });
});

describe("an idempotency key", () => {
  const graph = (type: string): GraphSpec => ({
    type,
    resultStep: "b",
    steps: [
      { key: "a", dependencies: [], job: { type: "work", payload: { n: 1, list: [1, 2] } } },
      { key: "gate", dependencies: [] },
      {
        key: "b",
        dependencies: [
          { key: "a", kind: "ON_SUCCESS" },
          { key: "gate", kind: "ON_TERMINAL" },
        ],
        job: { type: "work", payload: null, priority: 5 },
      },
    ],
  });

  test("used again for the same graph gives the same run, with its status of now", async () => {
    const first = await ledger.runs.enqueue(graph("same"), { idempotencyKey: "k" });
    await ledger.runs.cancel(first.id, globally);

    expect(await ledger.runs.enqueue(graph("same"), { idempotencyKey: "k" })).toEqual({
      id: first.id,
      status: "CANCELED",
      disposition: "existing",
    });
    expect(await runsOf("same")).toBe(1);
  });

  const change = (type: string, edit: (steps: Step[]) => void): GraphSpec => {
    const copy = JSON.parse(JSON.stringify(graph(type)));
    edit(copy.steps);
    return copy;
  };
  const equal: [string, (steps: Step[]) => void][] = [
    ["its steps in another order", (steps) => steps.reverse()],
    ["a step's dependencies in another order", (steps) => steps[2]?.dependencies.reverse()],
    ["a payload's properties in another order", (steps) => setJob(steps[0], { payload: { list: [1, 2], n: 1 } })],
    ["1 written as 1.0", (steps) => setJob(steps[0], { payload: JSON.parse(`{"n":1.0,"list":[1,2.00]}`) })],
    ["other defaults in code", (steps) => setJob(steps[0], { defaults: { maxAttempts: 3 } })],
  ];
  test.each(equal)("takes a graph for the same that has %s", async (what, edit) => {
    const { id } = await ledger.runs.enqueue(graph(what), { idempotencyKey: "k" });

    expect(await ledger.runs.enqueue(change(what, edit), { idempotencyKey: "k" })).toMatchObject({
      id,
      disposition: "existing",
    });
  });

  const different: [string, (steps: Step[]) => void][] = [
    ["one step more", (steps) => steps.push({ key: "more", dependencies: [] })],
    ["one step less", (steps) => steps.splice(0, 3, { key: "b", dependencies: [] })],
    ["another payload", (steps) => setJob(steps[0], { payload: { n: 2, list: [1, 2] } })],
    ["an array in another order", (steps) => setJob(steps[0], { payload: { n: 1, list: [2, 1] } })],
    ["another job type", (steps) => setJob(steps[0], { type: "other" })],
    ["another priority", (steps) => setJob(steps[2], { priority: 6 })],
    ["other attempts", (steps) => setJob(steps[2], { maxAttempts: 3 })],
    ["another time limit", (steps) => setJob(steps[2], { timeoutSeconds: 3 })],
    ["one dependency less", (steps) => steps[2]?.dependencies.pop()],
    ["another kind of dependency", (steps) => Object.assign(steps[2]?.dependencies[0] ?? {}, { kind: "ON_TERMINAL" })],
    ["a job where a gate was", (steps) => setJob(steps[1], { type: "work", payload: null })],
  ];
  test.each(different)("refuses a graph that has %s", async (what, edit) => {
    await ledger.runs.enqueue(graph(what), { idempotencyKey: "k" });

    const error = await errorOf(ledger.runs.enqueue(change(what, edit), { idempotencyKey: "k" }));
    expect(error).toMatchObject({ code: "workflow.enqueue_conflicting_retry", category: "conflict", retryable: false });
    expect(await runsOf(what)).toBe(1);
  });

  test("refuses another result step", async () => {
    await ledger.runs.enqueue(graph("result"), { idempotencyKey: "k" });

    expect(await codeOf(ledger.runs.enqueue({ ...graph("result"), resultStep: "a" }, { idempotencyKey: "k" }))).toBe(
      "workflow.enqueue_conflicting_retry",
    );
  });

  test("never appears in an error", async () => {
    await ledger.runs.enqueue(graph("hidden"), { idempotencyKey: "s3cret" });
    const error = await errorOf(
      ledger.runs.enqueue({ ...graph("hidden"), resultStep: "a" }, { idempotencyKey: "s3cret" }),
    );

    expect(`${error.message}${JSON.stringify(error)}${error.stack}`).not.toContain("s3cret");
  });

  test("is another one for another workflow type and in another organization", async () => {
    const runs = [
      await ledger.runs.enqueue(graph("scoped"), { idempotencyKey: "k" }),
      await ledger.runs.enqueue(graph("scoped-2"), { idempotencyKey: "k" }),
      await ledger.runs.enqueue(graph("scoped"), { idempotencyKey: "k", organizationId: someOrganization }),
      await ledger.runs.enqueue(graph("scoped"), { idempotencyKey: "k", organizationId: otherOrganization }),
    ];

    expect(runs.map(({ disposition }) => disposition)).toEqual(Array(4).fill("inserted"));
  });

  test("used by fifty at once gives one run to all", async () => {
    const runs = await Promise.all(
      Array.from({ length: 50 }, () => ledger.runs.enqueue(graph("fifty"), { idempotencyKey: "k" })),
    );

    expect(new Set(runs.map(({ id }) => id)).size).toBe(1);
    expect(runs.filter(({ disposition }) => disposition === "inserted")).toHaveLength(1);
    expect(await runsOf("fifty")).toBe(1);
    expect(
      await countOf(
        database,
        "runledger.workflow_steps as s join runledger.workflow_runs as r on r.id = s.run_id where r.type = 'fifty'",
      ),
    ).toBe(3);
  });

  test("that another transaction has just taken is waited for, and free when that rolls back", async () => {
    const first = await openTransaction(database);
    await ledger.in(first).runs.enqueue(graph("taken"), { idempotencyKey: "k" });
    const second = ledger.runs.enqueue(graph("taken"), { idempotencyKey: "k" });
    await waitForBackend({ client: database.pool, marker });
    await first.rollback().execute();
    expect(await second).toMatchObject({ disposition: "inserted" });

    const third = await openTransaction(database);
    const { id } = await ledger.in(third).runs.enqueue(graph("taken"), { idempotencyKey: "k2" });
    const fourth = ledger.runs.enqueue(graph("taken"), { idempotencyKey: "k2" });
    await waitForBackend({ client: database.pool, marker });
    await third.commit().execute();
    expect(await fourth).toMatchObject({ id, disposition: "existing" });
  });

  test("twice in one batch gives one run; a new key, an old one and none go together", async () => {
    const { id } = await ledger.runs.enqueue(graph("batch"), { idempotencyKey: "old" });
    const [twice, again, old, none] = await ledger.runs.enqueueMany([
      { graph: graph("batch"), idempotencyKey: "new" },
      { graph: graph("batch"), idempotencyKey: "new" },
      { graph: graph("batch"), idempotencyKey: "old" },
      { graph: graph("batch") },
    ]);

    expect(twice).toMatchObject({ disposition: "inserted" });
    expect(again).toEqual({ ...twice, disposition: "existing" });
    expect(old).toMatchObject({ id, disposition: "existing" });
    expect(none).toMatchObject({ disposition: "inserted" });
    expect(await runsOf("batch")).toBe(3);
  });

  test("that conflicts takes the whole batch back", async () => {
    await ledger.runs.enqueue(graph("conflict"), { idempotencyKey: "old" });
    const other = { ...graph("conflict"), resultStep: "a" };

    expect(
      await codeOf(
        ledger.runs.enqueueMany([
          { graph: graph("conflict"), idempotencyKey: "new" },
          { graph: graph("conflict") },
          { graph: other, idempotencyKey: "old" },
        ]),
      ),
    ).toBe("workflow.enqueue_conflicting_retry");
    expect(await runsOf("conflict")).toBe(1);
  });

  test("that conflicts is taken back from a caller's transaction that goes on", async () => {
    await ledger.runs.enqueue(graph("conflict-inside"), { idempotencyKey: "old-inside" });
    await database.db.transaction().execute(async (trx) => {
      const requests = [
        { graph: graph("conflict-inside"), idempotencyKey: "new-inside" },
        { graph: { ...graph("conflict-inside"), resultStep: "a" }, idempotencyKey: "old-inside" },
      ];
      await expect(ledger.in(trx).runs.enqueueMany(requests)).rejects.toMatchObject({
        code: "workflow.enqueue_conflicting_retry",
      });
    });

    expect(await runsOf("conflict-inside")).toBe(1);
  });

  test("shared by batches in opposite order stops neither of them", async () => {
    const batch = (keys: string[]) => keys.map((key) => ({ graph: graph("opposite"), idempotencyKey: key }));
    const keys = Array.from({ length: 20 }, (_, n) => `k${n}`);
    const rounds = await Promise.all(
      Array.from({ length: 12 }, (_, n) => ledger.runs.enqueueMany(batch(n % 2 === 0 ? keys : [...keys].reverse()))),
    );

    const ids = rounds.map((runs, n) => (n % 2 === 0 ? runs : [...runs].reverse()).map(({ id }) => id));
    expect(new Set(ids.map((row) => row.join())).size).toBe(1);
    expect(await runsOf("opposite")).toBe(20);
  });

  test.each(["repeatable read", "serializable"] as const)("at %s fails before any other statement", async (level) => {
    const { result, statements } = await database.record(() =>
      database.db
        .transaction()
        .setIsolationLevel(level)
        .execute((trx) => codeOf(ledger.in(trx).runs.enqueue(graph("level"), { idempotencyKey: "k" }))),
    );

    expect(result).toBe("workflow.enqueue_idempotency_unsupported_isolation");
    expect(statements.filter((text) => text.includes("runledger:"))).toHaveLength(1);
  });

  test("that is missing leaves every isolation level to the caller", async () => {
    const enqueued = database.db
      .transaction()
      .setIsolationLevel("serializable")
      .execute((trx) => ledger.in(trx).runs.enqueue(graph("serializable")));

    expect(await enqueued).toMatchObject({ disposition: "inserted" });
  });

  test("whose run is gone says so", async () => {
    const client = await database.connect();
    await ledger.runs.enqueue(graph("gone"), { idempotencyKey: "k" });
    await client.query("truncate runledger.job_queue, runledger.workflow_runs cascade");
    await client.query("delete from runledger.workflow_idempotency_keys where type <> 'gone'");

    expect(await codeOf(ledger.runs.enqueue(graph("gone"), { idempotencyKey: "k" }))).toBe("workflow.run_not_found");
    await client.query("delete from runledger.workflow_idempotency_keys where type = 'gone'");
  });
});

test("a definition's workflow is enqueued with its input", async () => {
  const add = defineJob("add", { input: typed<{ a: number; b: number }>(), output: typed<number>() });
  const sum = defineWorkflow("sum", {
    input: typed<{ a: number; b: number }>(),
    build: (graph, input) => graph.job("add", add, input),
  });

  const { id } = await ledger.runs.enqueue(sum, { a: 1, b: 2 }, { organizationId: someOrganization });
  const [job] = await ledger.jobs.claim({ workerId: "w", limit: 1, types: ["add"] });

  expect(job).toMatchObject({ payload: { a: 1, b: 2 }, organizationId: someOrganization });
  expect(await ledger.runs.get(id, { admin: true })).toMatchObject({ type: "sum", resultStep: "add" });
});

type Step = { key: string; dependencies: { key: string; kind: string }[]; job?: Record<string, unknown> };

function setJob(step: Step | undefined, change: Record<string, unknown>): void {
  if (step !== undefined) step.job = { ...step.job, ...change };
}
