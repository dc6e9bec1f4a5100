/** A worker runs whole workflows: steps that add steps, map steps, and child runs that it starts and ends by itself. */
import { afterEach, describe, expect, test } from "@jest/globals";
import { defineJob, defineWorkflow, LedgerError, typed, WorkflowBuilder } from "../../src/index.ts";
import { handle } from "../../src/worker/index.ts";
import { expectInvariants } from "../invariants.ts";
import { createTestDatabase } from "../support/database.ts";
import { everywhere, ledgerOn, startWorker } from "./support.ts";

const database = await createTestDatabase();
const ledger = ledgerOn(database);
const result = (runId: string) => ledger.runs.getResult(runId, { scope: everywhere, timeoutMs: 15_000 });

afterEach(() => expectInvariants(database));

const double = defineJob("double", { input: typed<number>(), output: typed<number>() });
const sum = defineJob("sum", { output: typed<number>(), prerequisites: typed<{ doubled: number[] }>() });
const numbers = defineJob("numbers", { input: typed<number>(), output: typed<number[]>() });
const plan = defineJob("plan", { input: typed<number>(), output: typed<number[]>(), maxAttempts: 3 });

const doubled = defineWorkflow("doubled", {
  input: typed<number>(),
  build(graph, count) {
    const list = graph.job("list", numbers, count);
    const items = graph.map("doubled", double, { over: list });
    return graph.job("sum", sum, {}, { onSuccess: [items] });
  },
});

const handlers = [
  handle(numbers, ({ payload }) => Array.from({ length: payload }, (_, n) => n)),
  handle(double, ({ payload }) => payload * 2),
  handle(sum, ({ prerequisites }) => prerequisites.doubled.reduce((a, b) => a + b, 0)),
];

test("a map fans out, its items run, and the join has their outputs", async () => {
  await startWorker({ ledger, handlers });
  const { id } = await ledger.runs.enqueue(doubled, 50);

  expect(await result(id)).toBe(50 * 49);
});

describe("a step that adds steps", () => {
  test("plans its fan-out and the join at run time", async () => {
    const planned = handle(plan, ({ payload, append }) => {
      append("fan-out", (graph) => {
        const items = graph.map("doubled", double, { over: graph.existing("plan", typed<number[]>()) });
        graph.job("sum", sum, {}, { onSuccess: [items] });
      });
      return Array.from({ length: payload }, (_, n) => n);
    });
    const watched = await startWorker({ ledger, handlers: [...handlers, planned] });
    const graph = new WorkflowBuilder("planned");
    graph.job("plan", plan, 4);
    const { id } = await ledger.runs.enqueue(graph.build());
    await watched.event("succeeded", ({ job }) => job.type === "sum");

    const run = await ledger.runs.get(id, everywhere);
    expect(run.status).toBe("SUCCEEDED");
    expect(run.steps.find(({ key }) => key === "sum")?.output).toBe(12);
  });

  test("in an attempt that fails adds nothing, and what its next attempt adds counts", async () => {
    const flaky = defineJob("flaky-plan", { backoff: { initialSeconds: 0 } });
    const seen: number[] = [];
    const watched = await startWorker({
      ledger,
      handlers: [
        ...handlers,
        handle(flaky, ({ attempt, append }) => {
          seen.push(attempt);
          append("more", (graph) => graph.job(`of-attempt-${attempt}`, double, 1));
          if (attempt === 1) throw new Error("not yet");
        }),
      ],
    });
    await ledger.jobs.sync([flaky]);
    const graph = new WorkflowBuilder("flaky");
    graph.job("plan", flaky, {});
    const { id } = await ledger.runs.enqueue(graph.build());
    await watched.event("succeeded", ({ job }) => job.type === "double");

    const { steps } = await ledger.runs.get(id, everywhere);
    expect(steps.map(({ key }) => key)).toEqual(["plan", "of-attempt-2"]);
    expect(seen).toEqual([1, 2]);
  });

  test("which do not fit the run ends as PANICKED with the code of the refusal", async () => {
    const wrong = handle("wrong-plan", ({ append }) => {
      append("more", (graph) => graph.job("x", double, 1, { onSuccess: [graph.existing("nobody")] }));
    });
    const watched = await startWorker({ ledger, handlers: [...handlers, wrong] });
    const graph = new WorkflowBuilder("wrong");
    graph.job("plan", "wrong-plan", {});
    await ledger.runs.enqueue(graph.build());
    const { failure } = await watched.event("failed");

    expect(failure).toMatchObject({ kind: "PANICKED", code: "workflow.append_unknown_dependency" });
  });

  test("that is no step is told so at once", async () => {
    const lonely = handle("lonely", ({ append }) => {
      append("more", () => {});
    });
    const watched = await startWorker({ ledger, handlers: [lonely] });
    await ledger.jobs.enqueue("lonely", {}, { maxAttempts: 1 });
    const { failure } = await watched.event("failed", ({ job }) => job.type === "lonely");

    expect(failure.message).toBe(new LedgerError("workflow.append_not_a_step").message);
  });
});

describe("child runs", () => {
  test("are started and ended by any worker, also within each other", async () => {
    const outer = defineWorkflow("outer", { build: (graph) => graph.child("inner", doubled, 3) });
    const top = defineWorkflow("top", {
      build(graph) {
        const one = graph.child("one", outer, undefined);
        return graph.child("two", doubled, 2, { onSuccess: [one] });
      },
    });
    const watched = await startWorker({ ledger, handlers });
    const { id } = await ledger.runs.enqueue(top, undefined);

    expect(await result(id)).toBe(2);
    const { steps } = await ledger.runs.get(id, everywhere);
    expect(steps.find(({ key }) => key === "one")?.output).toBe(6);
    expect(watched.events.filter(({ type }) => type === "lost" || type === "error")).toEqual([]);
  });

  test("that fail make their step fail", async () => {
    const bad = defineWorkflow("bad", { build: (graph) => graph.job("fail", "always-fails", {}, { maxAttempts: 1 }) });
    const parent = defineWorkflow("parent-of-bad", { build: (graph) => graph.child("child", bad, undefined) });
    const fails = handle("always-fails", () => {
      throw new Error("no");
    });
    const watched = await startWorker({ ledger, handlers: [...handlers, fails] });
    const { id } = await ledger.runs.enqueue(parent, undefined);
    await watched.event("succeeded", ({ job }) => job.runNumber === 2 && job.workflowRunId === id);

    expect(await ledger.runs.get(id, everywhere)).toMatchObject({
      status: "COMPLETED_WITH_ERRORS",
      steps: [{ key: "child", status: "FAILED", errorCode: "workflow.child_run_failed" }],
    });
  });
});
