/** What is due is found by one cheap look, which also says when to look again (FEATURES F-W6, F-W12). */
import { afterEach, describe, expect, test } from "@jest/globals";
import { expectInvariants } from "../invariants.ts";
import { createTestDatabase } from "../support/database.ts";
import { planOf } from "../support/explain.ts";
import { codeOf, graphOf, ledgerOf, TestRun } from "./fixtures.ts";
import { deadlineIsPast, gatesAreDue, startExpiring } from "./timed.ts";

const database = await createTestDatabase({ max: 4 });
const ledger = ledgerOf(database);

afterEach(async () => {
  await expectInvariants(database);
  await database.pool.query("truncate runledger.workflow_runs, runledger.job_queue cascade");
});

const inSeconds = async (run: TestRun, seconds: number) => {
  const at = [run.id, seconds];
  await database.pool.query(
    "update runledger.workflow_steps set expires_at = now() + make_interval(secs => $2) where run_id = $1 and open_since is not null",
    at,
  );
};
const gate = () => startExpiring(database, ledger, { gate: [] });
const withDeadline = (deadlineSeconds: number) => TestRun.start(database, ledger, { gateway: [] }, { deadlineSeconds });

describe("the next time", () => {
  test("is null when nothing has a time", async () => {
    await TestRun.start(database, ledger, { gate: [], a: [] });

    expect(await ledger.runs.fireTimers()).toEqual({
      expiredGates: [],
      canceledRuns: [],
      setAside: [],
      nextAt: null,
      nextInMs: null,
    });
  });

  test.each([
    [100, 200, 100],
    [300, 200, 200],
    [100, null, 100],
    [null, 200, 200],
  ])("is the earlier one: a gate in %p s and a deadline in %p s", async (gateSeconds, deadlineSeconds, expected) => {
    if (gateSeconds !== null) await inSeconds(await gate(), gateSeconds);
    await inSeconds(await gate(), 400);
    if (deadlineSeconds !== null) await withDeadline(deadlineSeconds);
    await withDeadline(500);

    const { nextAt, nextInMs } = await ledger.runs.fireTimers();

    const { rows } = await database.pool.query(
      `select least(
         (select min(expires_at) from runledger.workflow_steps),
         (select min(deadline_at) from runledger.workflow_runs)
       ) as at`,
    );
    expect(nextAt).toEqual(rows[0].at);
    expect(nextInMs).toBeLessThanOrEqual(expected * 1000);
    expect(nextInMs).toBeGreaterThan((expected - 60) * 1000);
  });

  test("is past when more is due than the limit lets through, whichever of the two it is", async () => {
    const [first, second] = [await withDeadline(50), await withDeadline(50)];
    await deadlineIsPast(database, first, second);
    const [gates, more] = [await gate(), await gate()];
    await gatesAreDue(database, gates, more);

    const fired = await ledger.runs.fireTimers({ limit: 1 });
    expect(fired).toMatchObject({ expiredGates: { length: 1 }, canceledRuns: { length: 1 } });
    expect(fired.nextInMs).toBeLessThanOrEqual(0);
    expect(await ledger.runs.fireTimers({ limit: 1 })).toMatchObject({
      expiredGates: { length: 1 },
      canceledRuns: { length: 1 },
      nextAt: null,
    });
  });

  test("does not count what is set aside: who looks again at once would find it in the way again", async () => {
    const run = await gate();
    await gatesAreDue(database, run);
    await database.pool.query(
      "update runledger.workflow_runs set waiting_count = 0, open_count = 1, status = 'RUNNING' where id = $1",
      [run.id],
    );

    expect(await ledger.runs.fireTimers()).toMatchObject({ setAside: { length: 1 }, nextAt: null });
    await database.pool.query(
      "update runledger.workflow_runs set waiting_count = 1, open_count = 0, status = 'WAITING_FOR_EXTERNAL' where id = $1",
      [run.id],
    );
  });
});

test("in a caller's transaction gates wait while deadlines are due, and are what is next", async () => {
  const late = await withDeadline(60);
  await deadlineIsPast(database, late);
  const gated = await gate();
  await gatesAreDue(database, gated);
  const fire = () => database.db.transaction().execute((trx) => ledger.in(trx).runs.fireTimers());
  const first = await fire();
  const second = await fire();

  expect(first).toMatchObject({ expiredGates: [], canceledRuns: [late.id], nextAt: expect.any(Date) });
  expect(first.nextInMs).toBeLessThan(0);
  expect(second).toMatchObject({ expiredGates: [{ runId: gated.id }], canceledRuns: [], nextAt: null });
});

describe("refused", () => {
  test.each([0, -1, 1.5, 10_001, "10" as never])("is a limit of %p, before anything is sent", async (limit) => {
    const { result, statements } = await database.record(() => codeOf(ledger.runs.fireTimers({ limit })));

    expect(result).toBe("input.invalid");
    expect(statements).toEqual([]);
  });

  test.each(["repeatable read", "serializable"] as const)("is a transaction at %s", async (level) => {
    const { result, statements } = await database.record(() =>
      database.db
        .transaction()
        .setIsolationLevel(level)
        .execute((trx) => codeOf(ledger.in(trx).runs.fireTimers())),
    );

    expect(result).toBe("workflow.fire_timers_unsupported_isolation");
    expect(statements.filter((text) => text.includes("runledger:"))).toHaveLength(1);
  });
});

test("looking costs one statement, and reads a few pages of two indexes however many timers wait", async () => {
  const one = graphOf("waiting", { gate: [], a: [] });
  const timed = one.steps.map((step) =>
    step.key === "gate" ? { ...step, expires: { afterSeconds: 3600, outcome: "FAILED" as const } } : step,
  );
  await ledger.runs.enqueueMany(Array(4000).fill({ graph: one }));
  await ledger.runs.enqueueMany(Array(4000).fill({ graph: { ...one, steps: timed }, deadlineSeconds: 3600 }));
  await database.pool.query("vacuum (analyze) runledger.workflow_steps, runledger.workflow_runs");

  const { result, statements } = await database.record(() => ledger.runs.fireTimers());
  expect(result).toMatchObject({ expiredGates: [], canceledRuns: [], setAside: [] });
  expect(statements).toHaveLength(1);

  for (const mode of ["force_generic_plan", "force_custom_plan"] as const) {
    const { scans, buffers } = await planOf(database, mode, (l) => l.runs.fireTimers());
    expect(scans).toEqual([
      "Index Only Scan workflow_runs_deadline",
      "Index Only Scan workflow_steps_expiring_gates",
      "Index Scan workflow_runs_deadline",
      "Index Scan workflow_steps_expiring_gates",
    ]);
    expect(buffers).toBeLessThan(20);
  }
});
