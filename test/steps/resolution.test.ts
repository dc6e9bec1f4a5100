/** What follows when a step ends: releases, cancelled dependents, the run's status (FEATURES F-W3, F-W4). */
import { afterEach, describe, expect, test } from "@jest/globals";
import type { ClaimedJob, GraphSpec, SettleResult } from "../../src/index.ts";
import { runReleaseKey } from "../../src/locks/key.ts";
import { expectInvariants, watchForDeadlocks } from "../invariants.ts";
import {
  codeOf,
  countOf,
  errorOf,
  failure,
  globally,
  holding,
  ledgerOf,
  openTransaction,
  raw,
  TestRun,
  unknownId,
} from "../runs/fixtures.ts";
import { createTestDatabase } from "../support/database.ts";

const database = await createTestDatabase();
const expectNoDeadlocks = watchForDeadlocks(database);
const ledger = ledgerOf(database);

afterEach(async () => {
  await expectInvariants(database);
  expectNoDeadlocks();
});

const DEPENDENCY_UNSATISFIED = "workflow.dependency_unsatisfied";
const start = (steps: Record<string, string[]>) => TestRun.start(database, ledger, steps);

describe("a step that succeeded", () => {
  test("releases the dependents that waited for it alone, of either kind", async () => {
    const run = await start({ a: [], other: [], on: ["a"], any: ["a?"], both: ["a", "other"], gate: ["a"] });
    await run.succeed("a", { n: 1 });

    expect(await run.statuses()).toEqual({
      a: "SUCCEEDED",
      other: "ENQUEUED",
      on: "ENQUEUED",
      any: "ENQUEUED",
      both: "BLOCKED",
      gate: "WAITING_FOR_EXTERNAL",
    });
    expect(await run.liveJobs()).toEqual(["any", "on", "other"]);
    expect(await run.row("a")).toMatchObject({ output: { n: 1 } });
    expect(await run.row("both")).toMatchObject({ pending_count: 1, unsatisfied_count: 0 });
  });

  test("in a diamond releases the last step once, after both sides", async () => {
    const run = await start({ top: [], left: ["top"], right: ["top"], bottom: ["left", "right"] });
    await run.succeed("top");
    await run.succeed("left");
    expect(await run.statuses()).toMatchObject({ bottom: "BLOCKED" });
    await run.succeed("right");
    expect(await run.liveJobs()).toEqual(["bottom"]);
    await run.succeed("bottom");

    expect((await run.state()).run).toBe("SUCCEEDED");
  });

  test("keeps the job's end in the ledger and the output with the step, once", async () => {
    const run = await start({ a: [] });
    const { lease } = await run.claim("a");
    await ledger.jobs.complete(lease, { output: { big: true } });

    expect(await ledger.jobs.get(lease.jobId, globally.scope)).toMatchObject({ status: "SUCCEEDED", output: null });
    const view = await ledger.runs.get(run.id, globally.scope);
    expect(view.steps).toMatchObject([{ status: "SUCCEEDED", output: { big: true }, errorCode: null }]);
    expect(view.steps[0]?.startedAt).toBeInstanceOf(Date);
    expect(view.endedAt).toBeInstanceOf(Date);
  });

  test("is RUNNING to readers while its job is leased, though nothing was written", async () => {
    const run = await start({ a: [], b: ["a"] });
    const { lease } = await run.claim("a");

    expect(await run.statuses()).toEqual({ a: "ENQUEUED", b: "BLOCKED" });
    const { steps } = await ledger.runs.get(run.id, globally.scope);
    expect(steps).toMatchObject([
      { key: "a", status: "RUNNING" },
      { key: "b", status: "BLOCKED" },
    ]);
    expect(steps[0]?.startedAt).toBeInstanceOf(Date);
    await ledger.jobs.handBack([lease]);
    expect((await ledger.runs.get(run.id, globally.scope)).steps[0]).toMatchObject({
      status: "ENQUEUED",
      startedAt: null,
    });
  });
});

describe("a step that failed", () => {
  test("cancels those that need its success and releases those that need its end", async () => {
    const run = await start({
      a: [],
      on: ["a"],
      any: ["a?"],
      deep: ["on"],
      deepAny: ["on?"],
      gate: ["a"],
      gateAny: ["a?"],
    });
    await run.fail("a");

    expect(await run.statuses()).toEqual({
      a: "FAILED",
      on: "CANCELED",
      any: "ENQUEUED",
      deep: "CANCELED",
      deepAny: "ENQUEUED",
      gate: "CANCELED",
      gateAny: "WAITING_FOR_EXTERNAL",
    });
    expect(await run.row("a")).toMatchObject({ error_code: "test.failed", error_message: "It failed.", output: null });
    expect(await run.row("on")).toMatchObject({ error_code: DEPENDENCY_UNSATISFIED, unsatisfied_count: 1 });
    expect(await run.row("deep")).toMatchObject({ error_code: DEPENDENCY_UNSATISFIED, unsatisfied_count: 1 });
  });

  test("leaves a dependent that waits for others BLOCKED, and unsatisfied until they have ended", async () => {
    const run = await start({ bad: [], slow: [], both: ["bad", "slow"], after: ["both?"] });
    await run.fail("bad");
    expect(await run.row("both")).toMatchObject({ status: "BLOCKED", pending_count: 1, unsatisfied_count: 1 });
    await run.succeed("slow");

    expect(await run.statuses()).toMatchObject({ both: "CANCELED", after: "ENQUEUED" });
  });

  test("and a sibling that succeeded first: the dependent is cancelled just the same", async () => {
    const run = await start({ bad: [], good: [], both: ["bad", "good"], mixed: ["bad?", "good"] });
    await run.succeed("good");
    await run.fail("bad");

    expect(await run.statuses()).toMatchObject({ both: "CANCELED", mixed: "ENQUEUED" });
  });

  test("in a diamond cancels the last step once, and counts each unsatisfied edge", async () => {
    const run = await start({ top: [], left: ["top"], right: ["top"], bottom: ["left", "right"], end: ["bottom?"] });
    await run.fail("top");

    expect(await run.statuses()).toMatchObject({
      left: "CANCELED",
      right: "CANCELED",
      bottom: "CANCELED",
      end: "ENQUEUED",
    });
    expect(await run.row("bottom")).toMatchObject({ pending_count: 0, unsatisfied_count: 2 });
  });

  test("is not failed while attempts are left: nothing follows from a retry", async () => {
    const { id } = await ledger.runs.enqueue({
      type: "tries",
      resultStep: null,
      steps: [
        { key: "a", dependencies: [], job: { type: "tries.a", payload: null, maxAttempts: 2 } },
        { key: "any", dependencies: [{ key: "a", kind: "ON_TERMINAL" }], job: { type: "tries.any", payload: null } },
      ],
    });
    const run = new TestRun(database, ledger, id, "tries");
    const again = { code: "again", message: "again" };
    expect(await ledger.jobs.fail((await run.claim("a")).lease, again)).toMatchObject({ status: "PENDING" });
    expect(await run.statuses()).toEqual({ a: "ENQUEUED", any: "BLOCKED" });

    await database.pool.query("update runledger.job_queue set run_at = now() where workflow_run_id = $1", [id]);
    expect(await ledger.jobs.fail((await run.claim("a")).lease, again)).toMatchObject({ status: "DEAD_LETTERED" });
    expect(await run.statuses()).toEqual({ a: "FAILED", any: "ENQUEUED" });
    const { rows } = await database.pool.query(
      "select attempt, failure_kind from runledger.job_attempts where job_id = $1 order by attempt",
      [(await run.row("a")).job_id],
    );
    expect(rows).toEqual([
      { attempt: 1, failure_kind: "RETRYABLE" },
      { attempt: 2, failure_kind: "RETRYABLE" },
    ]);
  });

  test("by a lease that expired with the last attempt is dead-lettered by the reaper, dependents and all", async () => {
    const run = await start({ a: [], on: ["a"], any: ["a?"] });
    const { lease } = await run.claim("a");
    await expire(run);

    expect(await ledger.jobs.reap()).toEqual({ returned: 0, deadLettered: 1, setAside: [] });
    expect(await run.statuses()).toEqual({ a: "FAILED", on: "CANCELED", any: "ENQUEUED" });
    expect(await run.row("a")).toMatchObject({ error_code: "job.lease_expired" });
    expect(await codeOf(ledger.jobs.complete(lease))).toBe("job.lease_owner_mismatch");
  });
});

describe("the run's status", () => {
  const cases: [string, Record<string, string[]>, (run: TestRun) => Promise<unknown>, string, number[]][] = [
    ["RUNNING while a step is open, whatever waits", { a: [], gate: [] }, async () => {}, "RUNNING", [1, 1, 0]],
    [
      "WAITING_FOR_EXTERNAL when only gates are left",
      { a: [], gate: [] },
      (r) => r.succeed("a"),
      "WAITING_FOR_EXTERNAL",
      [0, 1, 0],
    ],
    [
      "WAITING_FOR_EXTERNAL although a step failed",
      { a: [], gate: [] },
      (r) => r.fail("a"),
      "WAITING_FOR_EXTERNAL",
      [0, 1, 1],
    ],
    [
      "SUCCEEDED when every step has",
      { a: [], b: ["a"] },
      async (r) => [await r.succeed("a"), await r.succeed("b")],
      "SUCCEEDED",
      [0, 0, 0],
    ],
    [
      "COMPLETED_WITH_ERRORS when one failed",
      { a: [], b: [] },
      async (r) => [await r.fail("a"), await r.succeed("b")],
      "COMPLETED_WITH_ERRORS",
      [0, 0, 1],
    ],
    [
      "COMPLETED_WITH_ERRORS when dependents were cancelled",
      { a: [], b: ["a"], c: ["b"] },
      (r) => r.fail("a"),
      "COMPLETED_WITH_ERRORS",
      [0, 0, 3],
    ],
    ["CANCELED for good", { a: [], b: ["a"] }, (r) => ledger.runs.cancel(r.id, globally), "CANCELED", [0, 0, 2]],
  ];
  test.each(cases)("is %s", async (_, steps, act, status, [openCount, waitingCount, erroredCount]) => {
    const run = await start(steps);
    await act(run);

    expect(await ledger.runs.getStatus(run.id, globally.scope)).toMatchObject({
      status,
      openCount,
      waitingCount,
      erroredCount,
    });
  });
});

describe("a cascade takes a number of statements that does not depend on the graph", () => {
  test("a chain of a thousand whose first fails", async () => {
    const [short, long] = [await start(chain(3)), await start(chain(1000))];

    const few = await failing(short);
    const many = await failing(long);

    expect(many).toEqual(few);
    expect(await ledger.runs.getStatus(long.id, globally.scope)).toMatchObject({
      status: "COMPLETED_WITH_ERRORS",
      erroredCount: 1000,
    });
  });

  test("a thousand dependents of one step, released and cancelled", async () => {
    const dependents = (count: number) => ({
      s0: [],
      ...keyed(count, (n) => [`d${n}`, n % 2 === 0 ? ["s0"] : ["s0?"]]),
    });
    const [narrow, wide] = [await start(dependents(2)), await start(dependents(1000))];

    expect(await failing(wide)).toEqual(await failing(narrow));
    expect(await ledger.runs.getStatus(wide.id, globally.scope)).toMatchObject({ openCount: 500, erroredCount: 501 });
    expect(await countOf(database, "runledger.job_queue where workflow_run_id = $1", [wide.id])).toBe(500);
  });

  test("a thousand prerequisites of one step, completed in batches and one that failed", async () => {
    const { id } = await ledger.runs.enqueue(fanIn(1000));
    const claimed = await ledger.jobs.claim({ workerId: "w", limit: 1000, types: ["fan-in"] });
    expect(claimed).toHaveLength(1000);

    for (let from = 0; from < 1000; from += 250) {
      const results = await ledger.jobs.settle(
        claimed
          .slice(from, from + 250)
          .map(({ lease }, n) => (from + n === 600 ? { lease, failure } : { lease, success: {} })),
      );
      expect(results.every(({ ok }) => ok)).toBe(true);
    }

    expect(await ledger.runs.getStatus(id, globally.scope)).toMatchObject({ openCount: 1, erroredCount: 2 });
    const [join] = await ledger.jobs.claim({ workerId: "w", limit: 1, types: ["fan-in"] });
    expect(join?.payload).toBe("any");
  });
});

describe("a batch", () => {
  test("of many runs gives each job its own answer, a lost lease among them", async () => {
    const runs = await Promise.all(Array.from({ length: 6 }, () => start({ a: [], on: ["a"], any: ["a?"] })));
    const jobs: ClaimedJob[] = [];
    for (const run of runs) jobs.push(await run.claim("a"));
    await ledger.jobs.enqueue("plain", {});
    const [plain] = await ledger.jobs.claim({ workerId: "w", limit: 1, types: ["plain"] });
    if (plain === undefined) throw new Error("no plain job");

    const results = await ledger.jobs.settle([
      ...jobs.map(({ lease }, n) => {
        if (n === 1) return { lease: { ...lease, attempt: 2 }, success: {} };
        if (n === 2) return { lease: { ...lease, workerId: "somebody else" }, failure };
        return n % 2 === 0 ? { lease, success: { output: n } } : { lease, failure };
      }),
      { lease: plain.lease, success: {} },
      { lease: { ...plain.lease, jobId: unknownId }, failure },
    ]);

    expect(results.map(shown)).toEqual([
      "SUCCEEDED",
      "job.lease_owner_mismatch",
      "job.lease_owner_mismatch",
      "DEAD_LETTERED",
      "SUCCEEDED",
      "DEAD_LETTERED",
      "SUCCEEDED",
      "job.lease_owner_mismatch",
    ]);
    const statuses = await Promise.all(runs.map((run) => run.statuses()));
    expect(statuses.map(({ on }) => on)).toEqual([
      "ENQUEUED",
      "BLOCKED",
      "BLOCKED",
      "CANCELED",
      "ENQUEUED",
      "CANCELED",
    ]);
    expect((await runs[4]?.row("a"))?.output).toBe(4);
  });

  test("settles a job once, by the first item that names it, however its id is written", async () => {
    const run = await start({ a: [], on: ["a"], b: [] });
    const [a, b] = await run.claimAll("a", "b");
    const shouted = { ...a.lease, jobId: a.lease.jobId.toUpperCase() };

    const results = await ledger.jobs.settle([
      { lease: a.lease, success: {} },
      { lease: shouted, failure },
      { lease: b.lease, failure },
      { lease: b.lease, success: {} },
    ]);

    expect(results.map(shown)).toEqual([
      "SUCCEEDED",
      "job.lease_owner_mismatch",
      "DEAD_LETTERED",
      "job.lease_owner_mismatch",
    ]);
    expect(await run.statuses()).toEqual({ a: "SUCCEEDED", on: "ENQUEUED", b: "FAILED" });
  });

  test("in which one run is being cancelled settles the others, and leaves that run's jobs LEASED", async () => {
    const [free, canceling] = [await start({ a: [], b: [], on: ["a"] }), await start({ a: [], b: [], on: ["a", "b"] })];
    const jobs = [...(await free.claimAll("a", "b")), ...(await canceling.claimAll("a", "b"))];
    const before = await canceling.state();
    const holder = await holding(database, ["select pg_advisory_xact_lock($1)", [String(runReleaseKey(canceling.id))]]);

    const results = await ledgerOf(database, { lockWaitMs: 40 }).jobs.settle(
      jobs.map(({ lease }, n) => (n % 2 === 0 ? { lease, success: {} } : { lease, failure })),
    );

    const conflict = "workflow.release_conflict";
    expect(results.map(shown)).toEqual(["SUCCEEDED", "DEAD_LETTERED", conflict, conflict]);
    expect(await free.statuses()).toEqual({ a: "SUCCEEDED", b: "FAILED", on: "ENQUEUED" });
    expect(await canceling.state()).toEqual(before);
    expect(await ledger.jobs.heartbeat(jobs.slice(2).map(({ lease }) => lease))).toMatchObject([
      { state: "EXTENDED" },
      { state: "EXTENDED" },
    ]);
    await holder.query("rollback");
  });

  test("that ends both prerequisites of a step decides on both", async () => {
    const good = await start({ a: [], b: [], both: ["a", "b"] });
    const bad = await start({ a: [], b: [], both: ["a", "b"], any: ["a?", "b?"] });
    const leases = [...(await good.claimAll("a", "b")), ...(await bad.claimAll("a", "b"))].map(({ lease }) => lease);

    await ledger.jobs.settle(leases.map((lease, n) => (n === 3 ? { lease, failure } : { lease, success: {} })));

    expect(await good.statuses()).toMatchObject({ both: "ENQUEUED" });
    expect(await bad.statuses()).toMatchObject({ both: "CANCELED", any: "ENQUEUED" });
    expect(await good.liveJobs()).toEqual(["both"]);
  });

  test("of nothing is nothing, and of a lease that has expired lost", async () => {
    expect(await ledger.jobs.settle([])).toEqual([]);
    const run = await start({ a: [], on: ["a"] });
    const { lease } = await run.claim("a");
    await expire(run);

    expect(await codeOf(ledger.jobs.complete(lease))).toBe("job.lease_owner_mismatch");
    expect(await codeOf(ledger.jobs.fail(lease, failure))).toBe("job.lease_owner_mismatch");
    expect(await run.statuses()).toEqual({ a: "ENQUEUED", on: "BLOCKED" });
  });

  test("with a lease that names another run than the job's finds it lost", async () => {
    const [run, other] = [await start({ a: [], on: ["a"] }), await start({ a: [] })];
    const { lease } = await run.claim("a");

    for (const settlement of [{ success: {} }, { failure }]) {
      const [result] = await ledger.jobs.settle([
        { lease: { ...lease, workflowRunId: other.id }, ...settlement } as never,
      ]);
      expect(result && shown(result)).toBe("job.lease_owner_mismatch");
    }
    expect(await run.statuses()).toEqual({ a: "ENQUEUED", on: "BLOCKED" });
  });
});

describe("in a caller's transaction", () => {
  test("a completion is there with the commit, dependents included, or not at all", async () => {
    const run = await start({ a: [], on: ["a"], bad: [], sad: ["bad"] });
    const [a, bad] = await run.claimAll("a", "bad");
    const before = await run.state();
    const dropped = await openTransaction(database);
    await ledger.in(dropped).jobs.complete(a.lease);
    await ledger.in(dropped).jobs.fail(bad.lease, failure);
    await dropped.rollback().execute();
    expect(await run.state()).toEqual(before);

    const kept = await openTransaction(database);
    await ledger.in(kept).jobs.complete(a.lease);
    await ledger.in(kept).jobs.fail(bad.lease, failure);
    expect(await run.state()).toEqual(before);
    await kept.commit().execute();
    expect(await run.statuses()).toEqual({ a: "SUCCEEDED", on: "ENQUEUED", bad: "FAILED", sad: "CANCELED" });
  });

  test("lock_timeout is as it was before", async () => {
    const run = await start({ a: [], on: ["a"], bad: [], sad: ["bad"] });
    const [a, bad] = await run.claimAll("a", "bad");

    await database.db.transaction().execute(async (trx) => {
      await raw(trx, "set local lock_timeout = '61s'");
      await ledger.in(trx).jobs.complete(a.lease);
      expect(await raw(trx, "show lock_timeout")).toEqual([{ lock_timeout: "61s" }]);
      await ledger.in(trx).jobs.fail(bad.lease, failure);
      expect(await raw(trx, "show lock_timeout")).toEqual([{ lock_timeout: "61s" }]);
    });
  });

  test.each(["repeatable read", "serializable"] as const)(
    "at %s it fails before any other statement",
    async (level) => {
      const run = await start({ a: [] });
      const { lease } = await run.claim("a");
      for (const end of ["complete", "fail"] as const) {
        const { result, statements } = await database.record(() =>
          database.db
            .transaction()
            .setIsolationLevel(level)
            .execute((trx) => codeOf(ledger.in(trx).jobs[end](lease, failure))),
        );
        expect(result).toBe("workflow.terminal_completion_unsupported_isolation");
        expect(statements.filter((text) => text.includes("runledger:"))).toHaveLength(1);
      }
    },
  );
});

test("a job of a run is not cancelled alone: its run is the unit", async () => {
  const run = await start({ a: [], b: ["a"], c: [] });
  const { lease } = await run.claim("a");
  const { job_id: pending } = await run.row("c");

  for (const id of [lease.jobId, pending]) {
    expect(await errorOf(ledger.jobs.cancel(id, globally))).toMatchObject({
      code: "job.workflow_requeue_not_supported",
      category: "conflict",
    });
  }
  await ledger.jobs.complete(lease);
  expect(await codeOf(ledger.jobs.cancel(lease.jobId, globally))).toBe("job.workflow_requeue_not_supported");
  expect(await run.statuses()).toEqual({ a: "SUCCEEDED", b: "ENQUEUED", c: "ENQUEUED" });
});

function shown(result: SettleResult): string {
  return result.ok ? result.status : result.error.code;
}

function keyed(count: number, entry: (n: number) => [string, string[]]): Record<string, string[]> {
  return Object.fromEntries(Array.from({ length: count }, (_, n) => entry(n)));
}

function chain(length: number): Record<string, string[]> {
  return keyed(length, (n) => [`s${n}`, n === 0 ? [] : [`s${n - 1}`]]);
}

/** Steps of one job type: `size` roots, one step that needs all of them, and one that needs their ends. */
function fanIn(size: number): GraphSpec {
  const roots = Array.from({ length: size }, (_, n) => `s${n}`);
  const join = (key: string, kind: "ON_SUCCESS" | "ON_TERMINAL") => ({
    key,
    dependencies: roots.map((root) => ({ key: root, kind })),
    job: { type: "fan-in", payload: key },
  });
  return {
    type: "fan-in",
    resultStep: null,
    steps: [
      ...roots.map((key) => ({ key, dependencies: [], job: { type: "fan-in", payload: key } })),
      join("all", "ON_SUCCESS"),
      join("any", "ON_TERMINAL"),
    ],
  };
}

/** Fails the first step and gives back what was sent for it. */
async function failing(run: TestRun): Promise<readonly string[]> {
  const { lease } = await run.claim("s0");
  return (await database.record(() => ledger.jobs.fail(lease, failure))).statements;
}

async function expire(run: TestRun): Promise<void> {
  await database.pool.query(
    "update runledger.job_queue set lease_expires_at = now() - interval '1 second' where workflow_run_id = $1 and status = 'LEASED'",
    [run.id],
  );
}
