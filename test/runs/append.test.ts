/** Append adds steps to a live run: from outside while a gate is open, or with the end of a running step (FEATURES F-W7). */
import { afterEach, describe, expect, test } from "@jest/globals";
import { type AdditionSpec, defineJob, typed, WorkflowAddition } from "../../src/index.ts";
import { runReleaseKey } from "../../src/locks/key.ts";
import { expectInvariants } from "../invariants.ts";
import { createTestDatabase } from "../support/database.ts";
import { blockingPids, waitForBackend } from "../support/waiting.ts";
import {
  codeOf,
  countOf,
  failure,
  globally,
  holding,
  ledgerOf,
  openTransaction,
  otherOrganization,
  someOrganization,
  TestRun,
  unknownId,
} from "./fixtures.ts";

const database = await createTestDatabase();
const ledger = ledgerOf(database);

afterEach(() => expectInvariants(database));

type Needs = Readonly<Record<string, readonly string[]>>;

/** Steps as in `graphOf`; `run.type` gives the job types, so that they can be claimed by key. */
function additionOf(run: TestRun, steps: Needs): AdditionSpec {
  return {
    steps: Object.entries(steps).map(([key, needs]) => {
      const dependencies = needs.map((need) =>
        need.endsWith("?")
          ? { key: need.slice(0, -1), kind: "ON_TERMINAL" as const }
          : { key: need, kind: "ON_SUCCESS" as const },
      );
      if (key.startsWith("gate")) return { key, dependencies };
      return { key, dependencies, job: { type: `${run.type}.${key}`, payload: { key }, maxAttempts: 1 } };
    }),
  };
}

const append = (run: TestRun, key: string, steps: Needs, gate?: string) =>
  ledger.runs.append(run.id, {
    key,
    graph: additionOf(run, steps),
    ...globally,
    ...(gate === undefined ? {} : { gate }),
  });

describe("from outside, while a gate is open", () => {
  test("steps are added that depend on old and new ones, and run", async () => {
    const run = await TestRun.start(database, ledger, { a: [], gate: [] });
    await run.succeed("a", 1);
    const answer = await append(run, "more", { b: ["a"], c: ["b", "gate"], d: [] });

    expect(answer).toMatchObject({ runId: run.id, disposition: "applied" });
    expect(Object.fromEntries(answer.steps.map(({ key, status }) => [key, status]))).toEqual({
      b: "ENQUEUED",
      c: "BLOCKED",
      d: "ENQUEUED",
    });
    await run.succeed("b", 2);
    await run.succeed("d");
    await ledger.steps.complete(run.id, "gate", { ...globally, output: 3 });
    const c = await run.claim("c");
    expect((await ledger.steps.prerequisites([c])).get(c.lease.jobId)?.outputs).toEqual({ b: 2, gate: 3 });
    await ledger.jobs.complete(c.lease);
    expect((await run.state()).run).toBe("SUCCEEDED");
    expect(await ledger.runs.getStatus(run.id, globally.scope)).toMatchObject({ stepCount: 5, openCount: 0 });
  });

  test("a new step finds its old prerequisites as they are: failed ones cancel it, ended ones count", async () => {
    const run = await TestRun.start(database, ledger, { bad: [], good: [], open: [], gate: [] });
    await run.fail("bad");
    await run.succeed("good");
    await append(run, "k", {
      cancelled: ["bad", "open"],
      unsatisfied: ["bad"],
      below: ["unsatisfied"],
      after: ["unsatisfied?", "bad?"],
      waits: ["good", "open"],
    });

    expect(await run.statuses()).toMatchObject({
      cancelled: "BLOCKED",
      unsatisfied: "CANCELED",
      below: "CANCELED",
      after: "ENQUEUED",
      waits: "BLOCKED",
    });
    expect(await run.row("unsatisfied")).toMatchObject({ error_code: "workflow.dependency_unsatisfied" });
    await run.succeed("open");
    expect(await run.statuses()).toMatchObject({ cancelled: "CANCELED", waits: "ENQUEUED" });
  });

  test("gates and maps can be added; a map over an old step's array expands at once", async () => {
    const run = await TestRun.start(database, ledger, { list: [], gate: [] });
    await run.succeed("list", [1, 2]);
    const addition = new WorkflowAddition();
    const listed = addition.existing("list", typed<number[]>());
    const each = addition.map("each", defineJob(`${run.type}.each`, { output: typed<number>() }), { over: listed });
    addition.external("gate2", { onSuccess: [each] });
    const empty = addition.map("none", `${run.type}.none`, { over: addition.existing("list") as never });
    expect(empty.key).toBe("none");
    await ledger.runs.append(run.id, { key: "k", graph: addition.build(), ...globally });

    expect(await run.liveJobs()).toEqual(["each", "each", "none", "none"]);
    await run.succeed("each", 10);
    await run.succeed("each", 20);
    expect((await run.row("each")).output).toEqual([10, 20]);
    expect(await run.statuses()).toMatchObject({ gate2: "WAITING_FOR_EXTERNAL" });
  });

  test("the same key and steps again change nothing, even after the run has ended", async () => {
    const run = await TestRun.start(database, ledger, { gate: [] });
    const first = await append(run, "once", { b: [] });
    const again = await append(run, "once", { b: [] });
    await run.succeed("b");
    await ledger.steps.complete(run.id, "gate", globally);
    expect((await run.state()).run).toBe("SUCCEEDED");
    const late = await append(run, "once", { b: [] });

    expect(again).toEqual({ ...first, disposition: "already_applied" });
    expect(late).toEqual(again);
    expect(await codeOf(append(run, "once", { b: ["gate"] }))).toBe("workflow.append_conflicting_retry");
  });

  test("two identical calls at once add the steps once", async () => {
    const run = await TestRun.start(database, ledger, { gate: [], gate2: [] });
    const answers = await Promise.all(Array.from({ length: 8 }, () => append(run, "k", { b: [], c: ["b"] })));

    expect(answers.filter(({ disposition }) => disposition === "applied")).toHaveLength(1);
    expect(await countOf(database, "runledger.workflow_steps where run_id = $1", [run.id])).toBe(4);
  });

  test.each<[string, Needs, string]>([
    ["a dependency that does not exist", { b: ["nobody"] }, "workflow.append_unknown_dependency"],
    ["a key that exists", { a: [] }, "workflow.append_duplicate_step_key"],
    ["no steps", {}, "workflow.invalid_dag_no_steps"],
    ["a cycle", { b: ["c"], c: ["b"] }, "workflow.invalid_dag_cycle"],
    ["a step on itself", { b: ["b"] }, "workflow.invalid_dag_self_dependency"],
    ["a blank key", { " ": [] }, "workflow.invalid_dag_blank_step_key"],
  ])("%s is refused with nothing written", async (_, steps, code) => {
    const run = await TestRun.start(database, ledger, { a: [], gate: [] });

    expect(await codeOf(append(run, "k", steps))).toBe(code);
    expect(Object.keys(await run.statuses()).sort()).toEqual(["a", "gate"]);
    expect(await countOf(database, "runledger.workflow_run_mutations where run_id = $1", [run.id])).toBe(0);
  });

  test("a run without an open gate, an ended one, an unknown one, and another tenant's are refused", async () => {
    const running = await TestRun.start(database, ledger, { a: [], gate: ["a"] });
    expect(await codeOf(append(running, "k", { b: [] }))).toBe("workflow.append_no_open_gate");
    expect(await codeOf(append(running, "k", { b: [] }, "gate"))).toBe("workflow.append_no_open_gate");
    await ledger.runs.cancel(running.id, globally);
    expect(await codeOf(append(running, "k", { b: [] }))).toBe("workflow.append_run_ended");
    const graph = additionOf(running, { b: [] });
    expect(await codeOf(ledger.runs.append(unknownId, { key: "k", graph, ...globally }))).toBe(
      "workflow.run_not_found",
    );
    const theirs = await TestRun.start(database, ledger, { gate: [] }, { organizationId: someOrganization });
    for (const scope of [{ global: true } as const, { organization: otherOrganization }]) {
      expect(await codeOf(ledger.runs.append(theirs.id, { key: "k", graph, scope }))).toBe("workflow.run_not_found");
    }
    await ledger.runs.append(theirs.id, { key: "k", graph, scope: { organization: someOrganization } });
    expect((await theirs.row("b")).organization_id).toBe(someOrganization);
    expect(await codeOf(ledger.runs.append(theirs.id, { key: " ", graph, ...globally }))).toBe("input.invalid");
    expect(await codeOf(ledger.runs.append(theirs.id, { key: "k", graph } as never))).toBe("scope.required");
  });

  test("at another isolation level it is refused before anything else", async () => {
    const run = await TestRun.start(database, ledger, { gate: [] });
    const code = await codeOf(
      database.db
        .transaction()
        .setIsolationLevel("repeatable read")
        .execute((trx) =>
          ledger.in(trx).runs.append(run.id, { key: "k", graph: additionOf(run, { b: [] }), ...globally }),
        ),
    );

    expect(code).toBe("workflow.append_unsupported_isolation");
  });

  test("in a caller's transaction that is rolled back nothing was added", async () => {
    const run = await TestRun.start(database, ledger, { gate: [] });
    const trx = await openTransaction(database);
    await ledger.in(trx).runs.append(run.id, { key: "k", graph: additionOf(run, { b: ["gate"] }), ...globally });
    await trx.rollback().execute();

    expect(await run.statuses()).toEqual({ gate: "WAITING_FOR_EXTERNAL" });
    expect((await append(run, "k", { b: ["gate"] })).disposition).toBe("applied");
  });

  test("behind a cancel that holds the gate it waits, and finds the run ended", async () => {
    const run = await TestRun.start(database, ledger, { gate: [] });
    const trx = await openTransaction(database);
    await ledger.in(trx).runs.cancel(run.id, globally);
    const caller = await openTransaction(database);
    const adding = codeOf(
      ledger.in(caller).runs.append(run.id, { key: "k", graph: additionOf(run, { b: [] }), ...globally }),
    );
    // The gate's row is held by the cancel: the append waits for it, and finds the run ended afterwards.
    await waitForBackend({ client: database.pool, marker: "lock_workflow_step_closure_for_update" });
    await trx.commit().execute();

    expect(await adding).toBe("workflow.append_run_ended");
    await caller.commit().execute();
    expect(await run.statuses()).toEqual({ gate: "CANCELED" });
  });

  test("a conflict over the release lock gives the rows back at once", async () => {
    const run = await TestRun.start(database, ledger, { gate: [] });
    const session = await holding(database, [
      "select pg_advisory_xact_lock($1::bigint)",
      [String(runReleaseKey(run.id))],
    ]);
    const caller = await openTransaction(database);
    const code = await codeOf(
      ledger.in(caller).runs.append(run.id, { key: "k", graph: additionOf(run, { b: [] }), ...globally }),
    );
    expect(code).toBe("workflow.release_conflict");
    await session.query("select id from runledger.workflow_steps where run_id = $1 for update nowait", [run.id]);
    await session.query("rollback");
    await caller.commit().execute();
    expect(await run.statuses()).toEqual({ gate: "WAITING_FOR_EXTERNAL" });
  });

  test("a completion of the gate that waits for an append releases what was added to it", async () => {
    const run = await TestRun.start(database, ledger, { gate: [] });
    const trx = await openTransaction(database);
    await ledger.in(trx).runs.append(run.id, { key: "k", graph: additionOf(run, { b: ["gate"] }), ...globally });
    const completing = ledger.steps.complete(run.id, "gate", globally);
    const waiting = await waitForBackend({ client: database.pool, marker: "lock_workflow_step_closure_for_update" });
    expect(await blockingPids(database.pool, waiting.pid)).toHaveLength(1);
    await trx.commit().execute();

    expect(await completing).toMatchObject({ status: "SUCCEEDED", completed: true });
    expect(await run.statuses()).toEqual({ gate: "SUCCEEDED", b: "ENQUEUED" });
  });

  test("a completion of the one prerequisite that waits for an append counts the new dependent", async () => {
    const run = await TestRun.start(database, ledger, { a: [], gate: [] });
    const { lease } = await run.claim("a");
    const trx = await openTransaction(database);
    await ledger.in(trx).runs.append(run.id, { key: "k", graph: additionOf(run, { b: ["a"] }), ...globally });
    const completing = ledger.jobs.complete(lease);
    await waitForBackend({ client: database.pool, marker: "complete_step_jobs" });
    await trx.commit().execute();

    expect((await completing).status).toBe("SUCCEEDED");
    expect(await run.statuses()).toMatchObject({ a: "SUCCEEDED", b: "ENQUEUED" });
  });
});

describe("with the end of a running step", () => {
  test("steps are added in the same commit, a join among them: dynamic fan-out", async () => {
    const run = await TestRun.start(database, ledger, { plan: [] });
    const { lease } = await run.claim("plan");
    const graph = additionOf(run, { x: ["plan"], y: ["plan"], join: ["x", "y"] });
    await ledger.jobs.complete(lease, { output: "planned", append: { key: "fan-out", graph } });

    expect(await run.state()).toEqual({
      run: "RUNNING",
      steps: { plan: "SUCCEEDED", x: "ENQUEUED", y: "ENQUEUED", join: "BLOCKED" },
    });
    await run.succeed("x", 1);
    await run.succeed("y", 2);
    const join = await run.claim("join");
    expect((await ledger.steps.prerequisites([join])).get(join.lease.jobId)?.outputs).toEqual({ x: 1, y: 2 });
  });

  test("a run whose last step adds another does not end in between", async () => {
    const run = await TestRun.start(database, ledger, { last: [] });
    const { lease } = await run.claim("last");
    await ledger.jobs.complete(lease, { append: { key: "k", graph: additionOf(run, { more: [] }) } });

    expect((await run.state()).run).toBe("RUNNING");
    expect((await ledger.runs.get(run.id, globally.scope)).endedAt).toBeNull();
  });

  test("several additions may build on each other", async () => {
    const run = await TestRun.start(database, ledger, { a: [] });
    const { lease } = await run.claim("a");
    await ledger.jobs.complete(lease, {
      append: [
        { key: "one", graph: additionOf(run, { b: ["a"] }) },
        { key: "two", graph: additionOf(run, { c: ["b", "a"] }) },
      ],
    });

    expect(await run.statuses()).toEqual({ a: "SUCCEEDED", b: "ENQUEUED", c: "BLOCKED" });
    await run.succeed("b");
    expect(await run.statuses()).toMatchObject({ c: "ENQUEUED" });
  });

  test("items that all add under one key add once", async () => {
    const run = await TestRun.start(database, ledger, { a: [], b: [], c: [] });
    const jobs = await run.claimAll("a", "b", "c");
    const graph = additionOf(run, { end: ["a", "b", "c"] });
    const results = await ledger.jobs.settle(
      jobs.map(({ lease }) => ({ lease, success: { append: { key: "end", graph } } })),
    );

    expect(results.map(({ ok }) => ok)).toEqual([true, true, true]);
    expect(await run.statuses()).toEqual({ a: "SUCCEEDED", b: "SUCCEEDED", c: "SUCCEEDED", end: "ENQUEUED" });
  });

  test("an addition that does not fit spoils its own item only", async () => {
    const run = await TestRun.start(database, ledger, { a: [], b: [], c: [] });
    const other = await TestRun.start(database, ledger, { a: [] });
    const [a, b, c] = await run.claimAll("a", "b", "c");
    const elsewhere = await other.claim("a");
    const results = await ledger.jobs.settle([
      { lease: a.lease, success: { append: { key: "bad", graph: additionOf(run, { x: ["nobody"] }) } } },
      { lease: b.lease, success: { append: { key: "good", graph: additionOf(run, { y: ["a"] }) } } },
      { lease: c.lease, failure },
      { lease: elsewhere.lease, success: {} },
    ]);

    expect(results.map((result) => (result.ok ? result.status : result.error.code))).toEqual([
      "workflow.append_unknown_dependency",
      "SUCCEEDED",
      "DEAD_LETTERED",
      "SUCCEEDED",
    ]);
    expect(await run.statuses()).toEqual({ a: "ENQUEUED", b: "SUCCEEDED", c: "FAILED", y: "BLOCKED" });
  });

  test("in a caller's transaction an addition that does not fit takes the whole batch back", async () => {
    const run = await TestRun.start(database, ledger, { a: [] });
    const { id } = await ledger.jobs.enqueue("append.beside", {});
    const [beside] = await ledger.jobs.claim({ workerId: "w", limit: 1, types: ["append.beside"] });
    const { lease } = await run.claim("a");
    const trx = await openTransaction(database);
    const append = { key: "bad", graph: additionOf(run, { x: ["nobody"] }) };
    const items = [
      { lease: beside?.lease as never, success: {} },
      { lease, success: { append } },
    ];
    expect(await codeOf(ledger.in(trx).jobs.settle(items))).toBe("workflow.append_unknown_dependency");
    await trx.commit().execute();

    expect((await ledger.jobs.get(id, globally.scope)).status).toBe("LEASED");
    expect(await run.statuses()).toEqual({ a: "ENQUEUED" });
  });

  test("with a lost lease nothing is added", async () => {
    const run = await TestRun.start(database, ledger, { a: [] });
    const { lease } = await run.claim("a");
    await ledger.jobs.handBack([lease]);
    const graph = additionOf(run, { b: [] });

    expect(await codeOf(ledger.jobs.complete(lease, { append: { key: "k", graph } }))).toBe("job.lease_owner_mismatch");
    expect(await run.statuses()).toEqual({ a: "ENQUEUED" });
  });

  test("a job outside of runs, and steps that are no graph, are refused before anything is written", async () => {
    const { id } = await ledger.jobs.enqueue("append.alone", {});
    const [job] = await ledger.jobs.claim({ workerId: "w", limit: 1, types: ["append.alone"] });
    const graph: AdditionSpec = { steps: [{ key: "b", dependencies: [] }] };
    expect(await codeOf(ledger.jobs.complete(job?.lease as never, { append: { key: "k", graph } }))).toBe(
      "workflow.append_not_a_step",
    );
    expect((await ledger.jobs.get(id, globally.scope)).status).toBe("LEASED");
    const run = await TestRun.start(database, ledger, { a: [] });
    const { lease } = await run.claim("a");
    const wrong: AdditionSpec = { steps: [] };
    expect(await codeOf(ledger.jobs.complete(lease, { append: { key: "k", graph: wrong } }))).toBe(
      "workflow.invalid_dag_no_steps",
    );
  });

  test("3 000 steps and a join are added in as many statements as two", async () => {
    const statements = [];
    for (const width of [3000, 2]) {
      const run = await TestRun.start(database, ledger, { plan: [] });
      const { lease } = await run.claim("plan");
      const items = Array.from({ length: width }, (_, n) => `s${n}`);
      const steps = Object.fromEntries(items.map((key) => [key, ["plan"]]));
      const graph = additionOf(run, { ...steps, join: items });
      const { statements: sent } = await database.record(() =>
        ledger.jobs.complete(lease, { append: { key: "k", graph } }),
      );
      statements.push(sent.length);
      expect(await countOf(database, "runledger.job_queue where workflow_run_id = $1", [run.id])).toBe(width);
      await ledger.runs.cancel(run.id, globally);
    }
    expect(statements[0]).toBe(statements[1]);
  });
});
