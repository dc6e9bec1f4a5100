import { expect, test } from "@jest/globals";
import { type EnqueuedJob, isLedgerError, type Job, type JsonValue } from "../../src/index.ts";
import { handle } from "../../src/worker/index.ts";
import { createTestDatabase } from "../support/database.ts";
import { waitForBackend } from "../support/waiting.ts";
import { beginOutage, cutConnections, everywhere, gate, ledgerOn, outliveCuts, startWorker } from "./support.ts";

const database = await createTestDatabase();
const ledger = ledgerOn(database);
outliveCuts(database);

/** Longer than any test may take: only an announcement can wake the worker. */
const NEVER_MS = 3_600_000;

/** The pool may hold connections that were cut before: it learns of it by using them. */
async function enqueued(type: string, payload: JsonValue): Promise<EnqueuedJob> {
  for (;;) {
    try {
      return await ledger.jobs.enqueue(type, payload, { idempotencyKey: JSON.stringify(payload) });
    } catch (error) {
      if (!isLedgerError(error) || error.category !== "unavailable") throw error;
    }
  }
}

/** Reads with a connection that may have been cut. */
async function stored(id: string): Promise<Job> {
  for (;;) {
    try {
      return await ledger.jobs.get(id, everywhere);
    } catch (error) {
      if (!isLedgerError(error) || error.category !== "unavailable") throw error;
    }
  }
}

test("an announcement wakes a worker that would not poll", async () => {
  const listening = ledgerOn(database, { listen: true });
  const worker = await startWorker({
    ledger: listening,
    pollIntervalMs: NEVER_MS,
    handlers: [handle("announced", () => "heard")],
  });
  await waitForBackend({ client: database.pool, marker: "listen", waitEventType: "Client" });
  const { id } = await ledger.jobs.enqueue("announced", {});
  await worker.event("succeeded");

  expect(await ledger.jobs.get(id, everywhere)).toMatchObject({ output: "heard" });
});

test("an announced burst is claimed in batches, not job by job", async () => {
  const listening = ledgerOn(database, { listen: true });
  const worker = await startWorker({
    ledger: listening,
    concurrency: 50,
    pollIntervalMs: NEVER_MS,
    handlers: [handle("burst", () => {})],
  });
  await waitForBackend({ client: database.pool, marker: "listen", waitEventType: "Client" });
  await ledger.jobs.enqueueMany(Array.from({ length: 50 }, () => ({ type: "burst", payload: {} })));
  await worker.count("succeeded", 50);

  expect(worker.events.filter(({ type }) => type === "claimed")).toHaveLength(1);
});

test("a worker whose connections are cut goes on, also with listening", async () => {
  const listening = ledgerOn(database, { listen: true });
  const worker = await startWorker({
    ledger: listening,
    pollIntervalMs: 20,
    reap: { intervalMs: 20 },
    handlers: [handle("survived", ({ payload }) => payload)],
  });
  for (let round = 1; round <= 3; round += 1) {
    await enqueued("survived", round);
    await worker.count("succeeded", round);
    await cutConnections(database);
  }

  expect(worker.events.filter((event) => event.type === "error" && event.fatal)).toEqual([]);
});

test("an outcome that cannot be stored is kept and stored when the database is back", async () => {
  const { id } = await enqueued("kept", {});
  const [started, finish] = [gate(), gate()];
  const worker = await startWorker({
    ledger,
    handlers: [
      handle("kept", async () => {
        started.open();
        await finish.opened;
        return "kept";
      }),
    ],
  });
  await started.opened;
  const outage = await beginOutage(database);
  finish.open();
  await worker.event("error", ({ during }) => during === "settle");
  await outage.end();
  await worker.event("succeeded");

  expect(await ledger.jobs.get(id, everywhere)).toMatchObject({ status: "SUCCEEDED", attempt: 1, output: "kept" });
});

test("an outcome that cannot be stored while its lease lives is given up", async () => {
  const { id } = await enqueued("outlasted", {});
  const [started, finish] = [gate(), gate()];
  const worker = await startWorker({
    ledger,
    leaseSeconds: 1,
    handlers: [
      handle("outlasted", async () => {
        started.open();
        await finish.opened;
      }),
    ],
  });
  await started.opened;
  const outage = await beginOutage(database);
  finish.open();
  await worker.event("error", ({ during }) => during === "settle");
  await worker.event("lost", ({ job }) => job.jobId === id);
  await outage.end();
  await worker.worker.stop();

  expect(worker.events.filter(({ type }) => type === "succeeded")).toEqual([]);
  expect(await stored(id)).toMatchObject({ status: "LEASED", attempt: 1 });
});

test("an outcome whose answer was lost is known as stored, not as a lost lease", async () => {
  const { id } = await enqueued("answered", {});
  const [started, finish] = [gate(), gate()];
  const worker = await startWorker({
    ledger,
    handlers: [
      handle("answered", async () => {
        started.open();
        await finish.opened;
        return "stored";
      }),
    ],
  });
  await started.opened;
  // As if an earlier try had been committed and its connection cut before the answer.
  const { rows } = await database.pool.query("select run_number, attempt from runledger.job_queue where id = $1", [id]);
  await ledger.jobs.complete(
    {
      jobId: id,
      runNumber: rows[0].run_number,
      attempt: rows[0].attempt,
      workerId: worker.worker.id,
      workflowRunId: null,
    },
    { output: "stored" },
  );
  finish.open();
  await worker.event("succeeded");
});
