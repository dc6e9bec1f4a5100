/** A run that has not ended in its time is cancelled (FEATURES F-W12). */
import { afterEach, describe, expect, test } from "@jest/globals";
import { expectInvariants, watchForDeadlocks } from "../invariants.ts";
import { createTestDatabase } from "../support/database.ts";
import { waitForBackend } from "../support/waiting.ts";
import {
  codeOf,
  globally,
  graphOf,
  holding,
  ledgerOf,
  openTransaction,
  someOrganization,
  TestRun,
} from "./fixtures.ts";
import { deadlineIsPast } from "./timed.ts";

const database = await createTestDatabase();
const expectNoDeadlocks = watchForDeadlocks(database);
const ledger = ledgerOf(database);

afterEach(async () => {
  await expectInvariants(database);
  expectNoDeadlocks();
});

const graph = { a: [], b: ["a"], gate: [] };
const start = (options = {}) => TestRun.start(database, ledger, graph, { deadlineSeconds: 3600, ...options });
const late = async (options = {}) => {
  const run = await start(options);
  await deadlineIsPast(database, run);
  return run;
};
const canceledSteps = { a: "CANCELED", b: "CANCELED", gate: "CANCELED" };
const nothing = { expiredGates: [], canceledRuns: [], setAside: [], nextAt: null, nextInMs: null };

describe("a run past its deadline", () => {
  test("is cancelled with the reason, its jobs too, in any organization", async () => {
    const runs = [await late(), await late({ organizationId: someOrganization })];
    await runs[0]?.claim("a");

    const fired = await ledger.runs.fireTimers();

    expect(fired).toMatchObject({ expiredGates: [], setAside: [], nextAt: null });
    expect([...fired.canceledRuns].sort()).toEqual(runs.map(({ id }) => id).sort());
    for (const run of runs) {
      expect(await run.state()).toEqual({ run: "CANCELED", steps: canceledSteps });
      expect(await run.liveJobs()).toEqual([]);
      expect(await ledger.runs.get(run.id, { admin: true })).toMatchObject({
        canceledReason: "workflow.deadline_exceeded",
      });
    }
    expect(await ledger.runs.fireTimers()).toEqual(nothing);
  });

  test("is cancelled once, however many look at the same time", async () => {
    const run = await late();
    const fired = await Promise.all(Array.from({ length: 6 }, () => ledger.runs.fireTimers()));

    expect(fired.flatMap(({ canceledRuns }) => canceledRuns)).toEqual([run.id]);
  });

  test("that ended in time is left as it is", async () => {
    const run = await start();
    await run.succeed("a");
    await run.succeed("b");
    await ledger.steps.complete(run.id, "gate", globally);
    await deadlineIsPast(database, run);

    expect(await ledger.runs.fireTimers()).toEqual(nothing);
    expect((await run.state()).run).toBe("SUCCEEDED");
  });

  test("that cannot be cancelled does not stop the others, and is cancelled when it can", async () => {
    const [first, held, last] = [await late(), await late(), await late()];
    const session = await holding(database, [
      "select from runledger.workflow_steps where run_id = $1 for update",
      [held.id],
    ]);

    const fired = await ledger.runs.fireTimers();

    expect([...fired.canceledRuns].sort()).toEqual([first.id, last.id].sort());
    expect(fired.setAside).toMatchObject([{ runId: held.id, stepKey: null, error: { code: "db.lock_timeout" } }]);
    await session.query("rollback");
    expect((await ledger.runs.fireTimers()).canceledRuns).toEqual([held.id]);
  });

  test("that ends while the cancel waits for it has ended", async () => {
    const run = await TestRun.start(database, ledger, { gate: [] }, { deadlineSeconds: 3600 });
    await deadlineIsPast(database, run);
    const completing = await openTransaction(database);
    await ledger.in(completing).steps.complete(run.id, "gate", globally);

    const fired = database.db.transaction().execute((trx) => ledger.in(trx).runs.fireTimers());
    await waitForBackend({ client: database.pool, marker: "lock_workflow_run_release" });
    await completing.commit().execute();

    expect(await fired).toMatchObject({ canceledRuns: [], setAside: [] });
    expect((await run.state()).run).toBe("SUCCEEDED");
  });
});

describe("a deadline", () => {
  test("is so many seconds after the enqueue, by the database's clock", async () => {
    const run = await start({ deadlineSeconds: 90.5 });
    const { rows } = await database.pool.query(
      "select extract(epoch from deadline_at - created_at)::float8 as seconds from runledger.workflow_runs where id = $1",
      [run.id],
    );

    expect(rows).toEqual([{ seconds: 90.5 }]);
  });

  test("that is no time is refused before anything is sent", async () => {
    for (const deadlineSeconds of [0, -1, Number.NaN, Number.POSITIVE_INFINITY, "60" as never]) {
      const { result, statements } = await database.record(() =>
        codeOf(ledger.runs.enqueue(graphOf("deadline", graph), { deadlineSeconds })),
      );
      expect(result).toBe("input.invalid");
      expect(statements).toEqual([]);
    }
  });

  test("belongs to what an idempotency key remembers", async () => {
    const key = { idempotencyKey: "with a deadline" };
    const { id } = await ledger.runs.enqueue(graphOf("deadline", graph), { ...key, deadlineSeconds: 60 });

    expect(await ledger.runs.enqueue(graphOf("deadline", graph), { ...key, deadlineSeconds: 60 })).toMatchObject({
      id,
      disposition: "existing",
    });
    expect(await codeOf(ledger.runs.enqueue(graphOf("deadline", graph), { ...key, deadlineSeconds: 61 }))).toBe(
      "workflow.enqueue_conflicting_retry",
    );
  });
});
