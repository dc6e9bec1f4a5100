/** Map steps fan out over an array and join what their items put out (FEATURES F-W8). */
import { afterEach, describe, expect, test } from "@jest/globals";
import { defineJob, type GraphSpec, typed, WorkflowBuilder } from "../../src/index.ts";
import { expectInvariants } from "../invariants.ts";
import { codeOf, countOf, failure, globally, ledgerOf, TestRun } from "../runs/fixtures.ts";
import { createTestDatabase } from "../support/database.ts";

const database = await createTestDatabase();
const ledger = ledgerOf(database);

afterEach(() => expectInvariants(database));

const list = defineJob("list", { output: typed<unknown[]>() });
const work = defineJob("work", { output: typed<unknown>(), maxAttempts: 1 });

interface MapGraphOptions {
  readonly onItemFailure?: "cancel" | "continue";
  readonly delaySeconds?: number;
  readonly priority?: number;
}

let types = 0;

/** list -> each (a map over list) -> end, with types of their own. */
function mapGraph(options: MapGraphOptions = {}): GraphSpec {
  types += 1;
  const type = `map-${types}`;
  const graph = new WorkflowBuilder(type);
  const listed = graph.job("list", { ...list, type: `${type}.list` }, undefined);
  const each = graph.map("each", { ...work, type: `${type}.each` }, { over: listed, ...options });
  graph.result(graph.job("end", `${type}.end`, {}, { onSuccess: [each] }));
  const built = graph.build();
  return {
    ...built,
    steps: built.steps.map((step) =>
      step.key === "list" && step.job ? { ...step, job: { ...step.job, payload: {} } } : step,
    ),
  };
}

async function start(graph: GraphSpec): Promise<TestRun> {
  const { id } = await ledger.runs.enqueue(graph);
  return new TestRun(database, ledger, id, graph.type);
}

async function claimItems(run: TestRun, limit = 100) {
  return ledger.jobs.claim({ workerId: "items", limit, types: [`${run.type}.each`] });
}

describe("a map step", () => {
  test("becomes one job for each element of its source's output, with the element as payload", async () => {
    const run = await start(mapGraph());
    await run.succeed("list", [{ n: 1 }, "two", null, [3]]);

    expect(await run.statuses()).toEqual({
      list: "SUCCEEDED",
      each: "BLOCKED",
      "each[0]": "ENQUEUED",
      "each[1]": "ENQUEUED",
      "each[2]": "ENQUEUED",
      "each[3]": "ENQUEUED",
      end: "BLOCKED",
    });
    const items = await claimItems(run);
    expect(items.map(({ payload }) => payload)).toEqual([{ n: 1 }, "two", null, [3]]);
    expect(items.map(({ maxAttempts }) => maxAttempts)).toEqual([1, 1, 1, 1]);
  });

  test("succeeds when its items have, with their outputs in the order of the elements, and releases its dependents", async () => {
    const run = await start(mapGraph());
    await run.succeed("list", ["a", "b", "c"]);
    for (const { lease, payload } of (await claimItems(run)).reverse()) {
      await ledger.jobs.complete(lease, payload === "b" ? {} : { output: { was: payload } });
    }

    const end = await run.claim("end");
    const found = await ledger.steps.prerequisites([end]);
    expect(found.get(end.lease.jobId)?.outputs).toEqual({ each: [{ was: "a" }, null, { was: "c" }] });
    expect(await run.statuses()).toMatchObject({ each: "SUCCEEDED", end: "ENQUEUED" });
  });

  test("of which all items end in one batch succeeds once", async () => {
    const run = await start(mapGraph());
    await run.succeed("list", [1, 2, 3, 4, 5]);
    const items = await claimItems(run);
    const results = await ledger.jobs.settle(
      items.map(({ lease, payload }) => ({ lease, success: { output: payload } })),
    );

    expect(results.map(({ ok }) => ok)).toEqual([true, true, true, true, true]);
    expect((await run.row("each")).output).toEqual([1, 2, 3, 4, 5]);
    expect(await run.liveJobs()).toEqual(["end"]);
  });

  test("over an empty array succeeds at once with an empty array", async () => {
    const run = await start(mapGraph());
    await run.succeed("list", []);

    expect((await run.row("each")).output).toEqual([]);
    expect(await run.statuses()).toEqual({ list: "SUCCEEDED", each: "SUCCEEDED", end: "ENQUEUED" });
  });

  test.each([[{ not: "an array" }], ["text"], [null], [undefined]])("over %j fails with its code", async (output) => {
    const run = await start(mapGraph());
    await run.succeed("list", output);

    expect(await run.row("each")).toMatchObject({ status: "FAILED", error_code: "workflow.map_source_not_array" });
    expect(await run.row("end")).toMatchObject({ status: "CANCELED", error_code: "workflow.dependency_unsatisfied" });
    expect((await run.state()).run).toBe("COMPLETED_WITH_ERRORS");
  });

  test("is cancelled when an item fails, once all items have ended", async () => {
    const run = await start(mapGraph());
    await run.succeed("list", [1, 2]);
    const [first, second] = await claimItems(run);
    await ledger.jobs.fail(first?.lease as never, failure);
    expect(await run.statuses()).toMatchObject({ each: "BLOCKED", "each[1]": "ENQUEUED" });
    await ledger.jobs.complete(second?.lease as never);

    expect(await run.row("each")).toMatchObject({ status: "CANCELED", error_code: "workflow.dependency_unsatisfied" });
    expect(await run.statuses()).toMatchObject({ end: "CANCELED" });
  });

  test("that continues after a failed item has null in its place", async () => {
    const run = await start(mapGraph({ onItemFailure: "continue" }));
    await run.succeed("list", [1, 2, 3]);
    for (const { lease, payload } of await claimItems(run)) {
      await (payload === 2 ? ledger.jobs.fail(lease, failure) : ledger.jobs.complete(lease, { output: payload }));
    }

    expect(await run.row("each")).toMatchObject({ status: "SUCCEEDED", output: [1, null, 3] });
    expect(await run.statuses()).toMatchObject({ "each[1]": "FAILED", end: "ENQUEUED" });
  });

  test("is cancelled when its source fails, without items", async () => {
    const run = await start(mapGraph());
    await run.fail("list");

    expect(await run.statuses()).toEqual({ list: "FAILED", each: "CANCELED", end: "CANCELED" });
  });

  test("gives its items its priority and its delay", async () => {
    const run = await start(mapGraph({ delaySeconds: 3600, priority: 7 }));
    await run.succeed("list", [1]);

    expect(await claimItems(run)).toEqual([]);
    const { rows } = await database.pool.query(
      "select priority, run_at > now() + interval '59 minutes' as later from runledger.job_queue where workflow_run_id = $1",
      [run.id],
    );
    expect(rows).toEqual([{ priority: 7, later: true }]);
  });

  test("over a map step fans out over what that has gathered, also when there is nothing", async () => {
    const type = "map-of-map";
    const graph = new WorkflowBuilder(type);
    const listed = graph.job("list", { ...list, type: `${type}.list` }, {});
    const first = graph.map("first", `${type}.first`, { over: listed });
    const second = graph.map("second", `${type}.second`, { over: first });
    graph.result(second);
    const run = await start(graph.build());
    await run.succeed("list", [1, 2]);
    await run.succeed("first", 10);
    await run.succeed("first", 20);
    const items = await ledger.jobs.claim({ workerId: "w", limit: 9, types: [`${type}.second`] });
    expect(items.map(({ payload }) => payload).sort()).toEqual([10, 20]);
    for (const { lease, payload } of items) await ledger.jobs.complete(lease, { output: Number(payload) + 1 });
    expect(await ledger.runs.getResult(run.id, globally)).toEqual([11, 21]);

    const empty = await start({ ...graph.build() });
    await empty.succeed("list", []);
    expect(await ledger.runs.getResult(empty.id, globally)).toEqual([]);
  });

  test("over a gate fans out over what completed it", async () => {
    const graph = new WorkflowBuilder("map-of-gate");
    const gate = graph.external("gate", { output: typed<number[]>() });
    graph.map("each", "map-of-gate.each", { over: gate });
    const run = await start(graph.build());
    await ledger.steps.complete(run.id, "gate", { ...globally, output: [1, 2, 3] });

    expect(await run.liveJobs()).toEqual(["each", "each", "each"]);
  });

  test("cannot be completed from outside", async () => {
    const run = await start(mapGraph());

    expect(await codeOf(ledger.steps.complete(run.id, "each", globally))).toBe("workflow.external_step_not_external");
  });

  test("and its items are cancelled with the run", async () => {
    const run = await start(mapGraph());
    await run.succeed("list", [1, 2, 3]);
    const [item] = await claimItems(run, 1);
    await ledger.runs.cancel(run.id, globally);

    expect(await run.liveJobs()).toEqual([]);
    expect(await codeOf(ledger.jobs.complete(item?.lease as never))).toBe("job.lease_owner_mismatch");
  });

  test("10 000 wide takes as many statements as one of ten, and joins in order", async () => {
    const wide = await start(mapGraph());
    const elements = Array.from({ length: 10_000 }, (_, n) => n);
    const source = await wide.claim("list");
    const expanding = await database.record(() => ledger.jobs.complete(source.lease, { output: elements }));
    const narrow = await start(mapGraph());
    const other = await narrow.claim("list");
    const few = await database.record(() => ledger.jobs.complete(other.lease, { output: elements.slice(0, 10) }));
    expect(expanding.statements.length).toBe(few.statements.length);

    for (let items = await claimItems(wide, 1000); items.length > 0; items = await claimItems(wide, 1000)) {
      await ledger.jobs.settle(
        items.map(({ lease, payload }) => ({ lease, success: { output: Number(payload) * 2 } })),
      );
    }
    expect((await wide.row("each")).output).toEqual(elements.map((n) => n * 2));
    expect(await countOf(database, "runledger.workflow_steps where run_id = $1", [wide.id])).toBe(10_003);
  });
});

describe("a graph is refused when", () => {
  const each = { type: "t" };
  test.each([
    [
      "a map step does not depend on its source",
      [
        { key: "a", job: each, dependencies: [] },
        { key: "m", job: each, map: { over: "a" }, dependencies: [] },
      ],
      "workflow.invalid_dag_step_shape",
    ],
    [
      "a map step has no job",
      [
        { key: "a", job: each, dependencies: [] },
        { key: "m", map: { over: "a" }, dependencies: [{ key: "a", kind: "ON_SUCCESS" as const }] },
      ],
      "workflow.invalid_dag_step_shape",
    ],
    [
      "a step has a key that an item of a map step will have",
      [
        { key: "a", job: { ...each, payload: 1 }, dependencies: [] },
        { key: "m[7]", job: { ...each, payload: 1 }, dependencies: [] },
        { key: "m", job: each, map: { over: "a" }, dependencies: [{ key: "a", kind: "ON_SUCCESS" as const }] },
      ],
      "workflow.invalid_dag_duplicate_step_key",
    ],
    [
      "a job type is reserved",
      [{ key: "a", job: { type: "runledger.child_run", payload: 1 }, dependencies: [] }],
      "workflow.invalid_dag_step_shape",
    ],
  ])("%s", async (_, steps, code) => {
    expect(await codeOf(ledger.runs.enqueue({ type: "refused", steps, resultStep: null }))).toBe(code);
  });
});
