/** Runs with a map step or a child run, whose items and children a test can end. */
import { CHILD_RUN_JOB, defineWorkflow, type Ledger, WorkflowBuilder } from "../../src/index.ts";
import type { TestDatabase } from "../support/database.ts";
import { TestRun } from "./fixtures.ts";

let runs = 0;

/**
 * `setup` and `list`, then `ship` over what `list` puts out and after the end of `setup`, then `report`. Each job's type is
 * `<type>.<key>`, and that of all items `<type>.ship`.
 */
export async function startMapRun(
  database: TestDatabase,
  ledger: Ledger,
  onItemFailure: "cancel" | "continue" = "cancel",
): Promise<TestRun> {
  runs += 1;
  const type = `map-${runs}`;
  const graph = new WorkflowBuilder(type);
  const setup = graph.job("setup", `${type}.setup`, {}, { maxAttempts: 1 });
  const list = graph.job("list", `${type}.list`, {}, { maxAttempts: 1 });
  const over = { key: list.key, output: [] as unknown[] };
  const ship = graph.map("ship", `${type}.ship`, { over, onTerminal: [setup], onItemFailure, maxAttempts: 1 });
  graph.result(graph.job("report", `${type}.report`, {}, { onSuccess: [ship] }));
  const { id } = await ledger.runs.enqueue(graph.build());
  return new TestRun(database, ledger, id, type);
}

/** Ends as many items as there are outcomes, in their order: with an output, or by failing. */
export async function endItems(ledger: Ledger, run: TestRun, ...outputs: readonly unknown[]): Promise<void> {
  const limit = outputs.length;
  const jobs = await ledger.jobs.claim({ workerId: "w", limit, types: [`${run.type}.ship`] });
  const ordered = jobs.sort((a, b) => (a.lease.jobId < b.lease.jobId ? -1 : 1));
  if (ordered.length !== limit) throw new Error(`${ordered.length} items could be claimed`);
  for (const [n, { lease }] of ordered.entries()) {
    const output = outputs[n];
    if (output === failed)
      await ledger.jobs.fail(lease, { kind: "TERMINAL", code: "test.failed", message: "It failed." });
    else await ledger.jobs.complete(lease, { output });
  }
}

export const failed = Symbol("failed");

/** `before`, then `child`, which is a run with the one step `work`, then `after`. */
export async function startParentRun(database: TestDatabase, ledger: Ledger): Promise<TestRun> {
  runs += 1;
  const type = `parent-${runs}`;
  const child = defineWorkflow(`${type}-child`, {
    build: (graph) => graph.job("work", `${type}-child.work`, {}, { maxAttempts: 1 }),
  });
  const graph = new WorkflowBuilder(type);
  const before = graph.job("before", `${type}.before`, {}, { maxAttempts: 1 });
  const waited = graph.child("child", child, {}, { onSuccess: [before], maxAttempts: 1 });
  graph.result(graph.job("after", `${type}.after`, {}, { onSuccess: [waited] }));
  const { id } = await ledger.runs.enqueue(graph.build());
  return new TestRun(database, ledger, id, type);
}

/** What a worker does with the jobs of child steps; answers with the last child. */
export async function advanceChildren(ledger: Ledger): Promise<string> {
  let childRunId = "";
  for (const job of await ledger.jobs.claim({ workerId: "w", limit: 10, types: [CHILD_RUN_JOB] })) {
    ({ childRunId } = await ledger.runs.advanceChild(job));
  }
  return childRunId;
}

/** The latest child of a parent run. */
export async function childOf(database: TestDatabase, ledger: Ledger, parent: TestRun): Promise<TestRun> {
  const id = await advanceChildren(ledger);
  return new TestRun(database, ledger, id, `${parent.type}-child`);
}
