/** Steps whose jobs are worked off in slices (FEATURES F-J7): the step ends with the last of them. */
import { afterEach, expect, test } from "@jest/globals";
import { type ClaimedJob, type GraphSpec, typed, WorkflowAddition, WorkflowBuilder } from "../../src/index.ts";
import { expectInvariants } from "../invariants.ts";
import { codeOf, errorOf, failure, globally, ledgerOf, openTransaction } from "../runs/fixtures.ts";
import { createTestDatabase } from "../support/database.ts";
import { waitForBackend } from "../support/waiting.ts";

const database = await createTestDatabase();
const ledger = ledgerOf(database);

afterEach(() => expectInvariants(database));

let types = 0;

/** A run of a step that continues and one that comes after it. */
async function startSliced(build?: (graph: WorkflowBuilder, type: string) => void) {
  types += 1;
  const type = `sliced-${types}`;
  const graph = new WorkflowBuilder(type);
  if (build) build(graph, type);
  else {
    const work = graph.job("work", type, {}, { continues: true, maxAttempts: 2 });
    graph.job("after", `${type}-after`, {}, { onSuccess: [work] });
  }
  const { id } = await ledger.runs.enqueue(graph.build());
  return { id, type };
}

async function claim(type: string): Promise<ClaimedJob> {
  const [job] = await ledger.jobs.claim({ workerId: "w", limit: 1, types: [type] });
  if (job === undefined) throw new Error(`no job of type ${type} is due`);
  return job;
}

test("a step that continues ends with its last slice, and the ledger has a row for each", async () => {
  const { id, type } = await startSliced();
  for (const page of [1, 2, 3]) {
    const { lease, checkpoint } = await claim(type);
    expect([lease.runNumber, checkpoint]).toEqual([page, page === 1 ? null : page]);
    await ledger.jobs.progress(lease, { done: page, total: 4 });
    await ledger.jobs.continue(lease, { checkpoint: page + 1, output: { page } });
    expect(await ledger.runs.getStatus(id, globally.scope)).toMatchObject({ status: "RUNNING" });
  }
  await ledger.jobs.complete((await claim(type)).lease, { output: "all four" });
  await ledger.jobs.complete((await claim(`${type}-after`)).lease);

  const run = await ledger.runs.get(id, globally.scope);
  expect(run.status).toBe("SUCCEEDED");
  expect(run.steps.find(({ key }) => key === "work")).toMatchObject({ status: "SUCCEEDED", output: "all four" });
  expect(await slicesOf(type)).toEqual([
    { run_number: 1, status: "SUCCEEDED", continued: true, output: { page: 1 }, progress_done: "1" },
    { run_number: 2, status: "SUCCEEDED", continued: true, output: { page: 2 }, progress_done: "2" },
    { run_number: 3, status: "SUCCEEDED", continued: true, output: { page: 3 }, progress_done: "3" },
    { run_number: 4, status: "SUCCEEDED", continued: null, output: null, progress_done: null },
  ]);
});

test("a step is snoozed without being declared, uses no attempt, and its dependents wait", async () => {
  const { id, type } = await startSliced((graph, name) => {
    const work = graph.job("work", name, {}, { maxAttempts: 1 });
    graph.job("after", `${name}-after`, {}, { onSuccess: [work] });
  });
  await ledger.jobs.snooze((await claim(type)).lease, { seconds: 0, reason: "not yet" });
  expect(await ledger.runs.getStatus(id, globally.scope)).toMatchObject({ status: "RUNNING" });
  await ledger.jobs.complete((await claim(type)).lease);
  await ledger.jobs.complete((await claim(`${type}-after`)).lease);

  expect(await ledger.runs.getStatus(id, globally.scope)).toMatchObject({ status: "SUCCEEDED" });
});

test("a step that fails in a later slice is retried in place as the run number after all of them", async () => {
  const { id, type } = await startSliced();
  await ledger.jobs.continue((await claim(type)).lease, { checkpoint: 1 });
  await ledger.jobs.continue((await claim(type)).lease, { checkpoint: 2 });
  await ledger.jobs.fail((await claim(type)).lease, failure);
  expect(await jobRunNumber(id)).toBe(3);

  await ledger.runs.retry(id, globally);

  const { lease } = await claim(type);
  expect(lease).toMatchObject({ runNumber: 4, attempt: 1 });
  expect(await jobRunNumber(id)).toBe(4);
  await ledger.jobs.continue(lease, { checkpoint: 3 });
  await ledger.jobs.fail((await claim(type)).lease, failure);
  // The ledger's rows may be gone by then: the step knows the number itself.
  await database.pool.query("delete from runledger.job_ledger where type = $1", [type]);
  await ledger.runs.retry(id, globally);
  expect((await claim(type)).lease).toMatchObject({ runNumber: 6, attempt: 1 });
});

test("a copy of a run may continue where its source could", async () => {
  const { id, type } = await startSliced();
  await ledger.jobs.fail((await claim(type)).lease, failure);
  await ledger.runs.recover(id, { ...globally, key: "again" });

  expect(await ledger.jobs.continue((await claim(type)).lease)).toMatchObject({ status: "PENDING" });
});

test("a step that was appended may continue too", async () => {
  const { id, type } = await startSliced((graph) => graph.external("gate"));
  const addition = new WorkflowAddition();
  addition.job("added", type, {}, { continues: true });
  await ledger.runs.append(id, { ...globally, key: "k", graph: addition.build() });

  expect(await ledger.jobs.continue((await claim(type)).lease)).toMatchObject({ status: "PENDING" });
});

test("each item of a map that continues may, and a child run's own job may not", async () => {
  const { type } = await startSliced((graph, name) => {
    const list = graph.job("list", `${name}-list`, {});
    graph.map("items", name, { over: { ...list, output: [1, 2] }, continues: true });
    graph.child("child", { type: "child", input: typed(), graph: childGraph }, {});
  });
  await ledger.jobs.complete((await claim(`${type}-list`)).lease, { output: [1, 2] });
  for (const _ of [1, 2]) await ledger.jobs.continue((await claim(type)).lease);
  const child = await claim("runledger.child_run");

  expect(await codeOf(ledger.jobs.continue(child.lease))).toBe("workflow.step_continuation_not_declared");
});

test.each(["continuation", "snooze"] as const)(
  "a run's cancel that waited for a %s ends the job that it left",
  async (what) => {
    const { id, type } = await startSliced();
    const { lease } = await claim(type);
    const trx = await openTransaction(database);
    if (what === "snooze") await ledger.in(trx).jobs.snooze(lease, { seconds: 0 });
    else await ledger.in(trx).jobs.continue(lease);
    const canceling = ledger.runs.cancel(id, globally);
    await waitForBackend({ client: database.pool, marker: "lock_workflow_step_jobs_for_update" });
    await trx.commit().execute();

    expect(await canceling).toMatchObject({ canceled: true });
    expect(await ledger.jobs.claim({ workerId: "w", limit: 1, types: [type] })).toEqual([]);
  },
);

test("a continuation that waited for the run's cancel finds its lease lost", async () => {
  const { id, type } = await startSliced();
  const { lease } = await claim(type);
  const trx = await openTransaction(database);
  await ledger.in(trx).runs.cancel(id, globally);
  const continuing = codeOf(ledger.jobs.continue(lease));
  await waitForBackend({ client: database.pool, marker: "settle_attempts_with_again" });
  await trx.commit().execute();

  expect(await continuing).toBe("job.lease_owner_mismatch");
});

test("continuations and ends of one run's steps go in one batch, alone and in a caller's transaction", async () => {
  const graph = (type: string): GraphSpec => {
    const builder = new WorkflowBuilder(type);
    const steps = ["a", "b", "c", "d"].map((key) => builder.job(key, `${type}-${key}`, {}, { continues: true }));
    builder.job("end", `${type}-end`, {}, { onTerminal: steps });
    return builder.build();
  };
  for (const inTransaction of [false, true]) {
    const type = `mixed-steps-${inTransaction}`;
    const { id } = await ledger.runs.enqueue(graph(type));
    const [a, b, c, d] = await Promise.all(["a", "b", "c", "d"].map((key) => claim(`${type}-${key}`)));
    if (!(a && b && c && d)) throw new Error("four steps are due");
    const batch = [
      { lease: a.lease, success: { output: 1 } },
      { lease: b.lease, continuation: { checkpoint: 1 } },
      { lease: c.lease, failure },
      { lease: d.lease, snooze: { seconds: 0 } },
    ];
    const trx = await openTransaction(database);
    const results = await (inTransaction ? ledger.in(trx) : ledger).jobs.settle(batch);
    await trx.commit().execute();

    expect(results.map((result) => result.ok && result.status)).toEqual([
      "SUCCEEDED",
      "PENDING",
      "DEAD_LETTERED",
      "PENDING",
    ]);
    for (const key of ["b", "d"]) await ledger.jobs.complete((await claim(`${type}-${key}`)).lease);
    await ledger.jobs.complete((await claim(`${type}-end`)).lease);
    expect(await ledger.runs.getStatus(id, globally.scope)).toMatchObject({ status: "COMPLETED_WITH_ERRORS" });
  }
});

test("only READ COMMITTED will do for a step's continuation in a caller's transaction", async () => {
  const { type } = await startSliced();
  const { lease } = await claim(type);
  const trx = await database.db.startTransaction().setIsolationLevel("repeatable read").execute();

  expect(await codeOf(ledger.in(trx).jobs.continue(lease))).toBe("workflow.terminal_completion_unsupported_isolation");
  await trx.rollback().execute();
});

test("a run's request with steps that continue is not the one without", async () => {
  const graphOf = (continues: boolean) => {
    const graph = new WorkflowBuilder("keyed-sliced");
    graph.job("work", "keyed-sliced", {}, continues ? { continues } : {});
    return graph.build();
  };
  await ledger.runs.enqueue(graphOf(false), { idempotencyKey: "k" });

  expect(await codeOf(ledger.runs.enqueue(graphOf(true), { idempotencyKey: "k" }))).toBe(
    "workflow.enqueue_conflicting_retry",
  );
});

test("a gate has nothing to continue, and what is not true or false is refused", async () => {
  const graph = (step: object) => ({ type: "g", steps: [{ key: "s", dependencies: [], ...step }], resultStep: null });

  for (const step of [{ continues: true }, { job: { type: "t", payload: 1, continues: "yes" } }]) {
    expect(await errorOf(ledger.runs.enqueue(graph(step)))).toMatchObject({ code: "workflow.invalid_dag_step_shape" });
  }
});

function childGraph(): GraphSpec {
  const graph = new WorkflowBuilder("child");
  graph.job("only", "never", {});
  return graph.build();
}

async function slicesOf(type: string): Promise<unknown[]> {
  const { rows } = await database.pool.query(
    `select run_number, status, continued, output, progress_done from runledger.job_ledger
     where type = $1 order by run_number`,
    [type],
  );
  return rows;
}

async function jobRunNumber(runId: string): Promise<number> {
  const { rows } = await database.pool.query<{ number: number }>(
    "select job_run_number as number from runledger.workflow_steps where run_id = $1 and step_key = 'work'",
    [runId],
  );
  return rows[0]?.number ?? 0;
}
