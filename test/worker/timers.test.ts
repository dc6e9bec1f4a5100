/** A worker that reaps fires timers too: gates expire and deadlines pass while it is up (FEATURES F-W6, F-W12). */
import { afterEach, expect, test } from "@jest/globals";
import { handle } from "../../src/worker/index.ts";
import { expectInvariants } from "../invariants.ts";
import { globally, holding, TestRun } from "../runs/fixtures.ts";
import { deadlineIsPast, gatesAreDue, startExpiring } from "../runs/timed.ts";
import { createTestDatabase } from "../support/database.ts";
import { beginOutage, ledgerOn, outliveCuts, startWorker } from "./support.ts";

const database = await createTestDatabase();
const ledger = ledgerOn(database);
outliveCuts(database);

afterEach(() => expectInvariants(database));

/** Longer than any test may take: only what the worker knows of the next timer can wake it. */
const NEVER_MS = 3_600_000;
const handlers = [handle("nothing", () => {})];
const soon = (afterSeconds: number) =>
  startExpiring(database, ledger, { gate: [], on: ["gate"] }, { afterSeconds, outcome: "SUCCEEDED", output: 1 });

test("a gate expires in time, though the worker looks by itself only once an hour", async () => {
  // After the first look, which comes within a second.
  const runs = [await soon(2), await soon(1.5), await soon(NEVER_MS)];
  const worker = await startWorker({ ledger, handlers, reap: { intervalMs: NEVER_MS } });

  for (const run of runs.slice(0, 2)) {
    expect(await worker.event("gate_expired", ({ runId }) => runId === run.id)).toEqual({
      type: "gate_expired",
      runId: run.id,
      stepKey: "gate",
      status: "SUCCEEDED",
    });
    expect(await run.statuses()).toEqual({ gate: "SUCCEEDED", on: "ENQUEUED" });
  }
  expect(await runs[2]?.statuses()).toMatchObject({ gate: "WAITING_FOR_EXTERNAL" });
  await worker.worker.stop();
  await Promise.all(runs.map(({ id }) => ledger.runs.cancel(id, globally)));
});

test("a deadline passes in time, and the handler of the run's job is told", async () => {
  const run = await TestRun.start(database, ledger, { slow: [] }, { deadlineSeconds: 1.5 });
  const reasons: unknown[] = [];
  const slow = handle(
    `${run.type}.slow`,
    ({ signal }) =>
      new Promise((_resolve, reject) => {
        signal.addEventListener("abort", () => {
          reasons.push(signal.reason);
          reject(signal.reason);
        });
      }),
  );
  const worker = await startWorker({ ledger, handlers: [slow], leaseSeconds: 1, reap: { intervalMs: NEVER_MS } });

  expect(await worker.event("deadline_exceeded")).toEqual({ type: "deadline_exceeded", runId: run.id });
  await worker.event("canceled");
  expect(reasons).toMatchObject([{ kind: "cancel" }]);
  expect((await run.state()).run).toBe("CANCELED");
});

test("what begins after a look fires at the next one", async () => {
  const worker = await startWorker({ ledger, handlers, reap: { intervalMs: 20 } });
  const gate = await soon(3600);
  const run = await TestRun.start(database, ledger, { a: [] }, { deadlineSeconds: 3600 });
  await gatesAreDue(database, gate);
  await deadlineIsPast(database, run);

  await worker.event("gate_expired", ({ runId }) => runId === gate.id);
  await worker.event("deadline_exceeded", ({ runId }) => runId === run.id);
});

test("a worker without the role fires nothing", async () => {
  const [run, other] = [await soon(3600), await soon(3600)];
  await gatesAreDue(database, run, other);
  const { statements } = await database.record(async () => {
    const worker = await startWorker({ ledger, handlers, reap: false });
    await ledger.jobs.enqueue("nothing", {});
    await worker.event("succeeded");
    await worker.worker.stop();
  });

  expect(statements.filter((text) => text.includes("look_at_timers"))).toEqual([]);
  expect((await ledger.runs.fireTimers()).expiredGates).toHaveLength(2);
});

test("what is in the way is told of, and does not keep the others or the worker from their work", async () => {
  const [held, free] = [await soon(3600), await soon(3600)];
  await gatesAreDue(database, held, free);
  const session = await holding(database, [
    "select from runledger.workflow_steps where run_id = $1 for update",
    [held.id],
  ]);
  const worker = await startWorker({
    ledger: ledgerOn(database, { lockWaitMs: 20 }),
    handlers,
    reap: { intervalMs: 20 },
  });

  await worker.event("gate_expired", ({ runId }) => runId === free.id);
  expect(await worker.event("timer_set_aside")).toMatchObject({
    runId: held.id,
    stepKey: "gate",
    error: { code: "db.lock_timeout" },
  });
  await session.query("rollback");
  await worker.event("gate_expired", ({ runId }) => runId === held.id);
});

test("a look that fails for want of the database is told as an error of timers, and made again", async () => {
  const worker = await startWorker({ ledger, handlers, reap: { intervalMs: 20 } });
  const outage = await beginOutage(database);
  expect(await worker.event("error", ({ during }) => during === "timers")).toMatchObject({ fatal: false });
  await outage.end();

  const run = await soon(3600);
  await gatesAreDue(database, run);
  await worker.event("gate_expired", ({ runId }) => runId === run.id);
});
