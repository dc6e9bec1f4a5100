import { expect, test } from "@jest/globals";
import { sql } from "kysely";
import { createLedger } from "../../src/index.ts";
import { handle, type JobAborted } from "../../src/worker/index.ts";
import { createTestDatabase } from "../support/database.ts";
import { aborted, everywhere, gate, ledgerOn, makeWorker, startWorker, type WatchedWorker } from "./support.ts";

const database = await createTestDatabase();
const ledger = ledgerOn(database);

test("stop waits for running handlers and stores their outcomes", async () => {
  const { id } = await ledger.jobs.enqueue("finishing", {});
  const [started, finish] = [gate(), gate()];
  const { worker, events } = await startWorker({
    ledger,
    handlers: [
      handle("finishing", async () => {
        started.open();
        await finish.opened;
        return "finished";
      }),
    ],
  });
  await started.opened;
  const stopped = worker.stop();
  const { id: later } = await ledger.jobs.enqueue("finishing", {});
  finish.open();
  await stopped;
  await worker.done;

  expect(events.at(-1)).toEqual({ type: "stopped", abandoned: [] });
  expect(await ledger.jobs.get(id, everywhere)).toMatchObject({ status: "SUCCEEDED", output: "finished" });
  expect(await ledger.jobs.get(later, everywhere)).toMatchObject({ status: "PENDING", attempt: 0 });
});

test("stop gives claims back that were not started, without using an attempt", async () => {
  const [blocked, finish] = [gate(), gate()];
  await ledger.jobs.enqueue("buffered", "warm");
  const { worker, event } = await startWorker({
    ledger,
    concurrency: 1,
    prefetch: 5,
    handlers: [
      // Short at first: only then are jobs claimed ahead of free slots.
      handle("buffered", async ({ payload }) => {
        if (payload === "warm") return;
        blocked.open();
        await finish.opened;
      }),
    ],
  });
  await event("succeeded");
  const jobs = await ledger.jobs.enqueueMany(
    Array.from({ length: 4 }, (_, n) => ({ type: "buffered", payload: n, priority: 100 - n })),
  );
  await blocked.opened;
  const leased = await ledger.jobs.get(jobs[3]?.id ?? "", everywhere);
  const stopped = worker.stop();
  const handedBack = await event("handed_back");
  finish.open();
  await stopped;

  expect(leased).toMatchObject({ status: "LEASED", attempt: 1, workerId: worker.id });
  expect(handedBack.jobs.map(({ jobId }) => jobId).sort()).toEqual(
    jobs
      .slice(1)
      .map(({ id }) => id)
      .sort(),
  );
  const after = await Promise.all(jobs.map(({ id }) => ledger.jobs.get(id, everywhere)));
  expect(after.map(({ status, attempt }) => [status, attempt])).toEqual([
    ["SUCCEEDED", 1],
    ["PENDING", 0],
    ["PENDING", 0],
    ["PENDING", 0],
  ]);
});

test("after its timeout stop aborts the signals with shutdown, and what then throws is tried again", async () => {
  const { id } = await ledger.jobs.enqueue("endless", {});
  const started = gate();
  const reason = gate<JobAborted>();
  const { worker, events } = await startWorker({
    ledger,
    handlers: [
      handle("endless", ({ signal }) => {
        started.open();
        return aborted(signal).catch((error: JobAborted) => {
          reason.open(error);
          throw error;
        });
      }),
    ],
  });
  await started.opened;
  const patient = worker.stop({ timeoutMs: 60_000 });
  await worker.stop({ timeoutMs: 0 });
  await patient;

  expect(await reason.opened).toMatchObject({ kind: "shutdown", code: "worker.shutdown" });
  expect(events.map(({ type }) => type)).toEqual(["claimed", "started", "retried", "stopped"]);
  expect(await ledger.jobs.get(id, everywhere)).toMatchObject({ status: "PENDING", attempt: 1 });
});

/** What would keep the process alive. */
function timers(): number {
  return process.getActiveResourcesInfo().filter((kind) => kind === "Timeout" || kind === "Immediate").length;
}

test("a handler that does not end is left behind, and its late outcome is not stored", async () => {
  const { id } = await ledger.jobs.enqueue("immortal", {});
  const before = timers();
  const [started, finish, returned] = [gate(), gate(), gate()];
  const { worker, events } = await startWorker({
    ledger,
    handlers: [
      handle("immortal", async () => {
        started.open();
        await finish.opened;
        returned.open();
      }),
    ],
  });
  await started.opened;
  await worker.stop({ timeoutMs: 0, graceMs: 0 });

  expect(events.at(-1)).toMatchObject({ type: "stopped", abandoned: [{ jobId: id }] });
  expect(timers()).toBeLessThanOrEqual(before);
  finish.open();
  await returned.opened;
  expect(events.at(-1)).toMatchObject({ type: "stopped" });
  expect(await ledger.jobs.get(id, everywhere)).toMatchObject({ status: "LEASED", workerId: worker.id });
});

test("an error that will not pass ends the worker: it is reported, done rejects, and handlers finish first", async () => {
  const doomed = createLedger({ db: database.db, schema: "doomed" });
  const { worker, events } = await startWorker({ ledger: doomed, handlers: [handle("any", () => {})] });

  await expect(worker.done).rejects.toMatchObject({ code: "schema.missing" });
  expect(events).toMatchObject([
    { type: "error", during: "claim", fatal: true, error: { code: "schema.missing" } },
    { type: "stopped", abandoned: [] },
  ]);
  await worker.stop();
});

test("an event handler that throws ends the worker", async () => {
  await ledger.jobs.enqueue("observed", {});
  const { worker } = await startWorker({
    ledger,
    handlers: [handle("observed", () => {})],
    onEvent: ({ type }) => {
      if (type === "claimed") throw new Error("the log is full");
    },
  });

  await expect(worker.done).rejects.toThrow("the log is full");
});

test("a stopped worker sends nothing and holds no timer", async () => {
  const before = timers();
  const listening = ledgerOn(database, { listen: true });
  const { worker, event } = await startWorker({
    ledger: listening,
    reap: true,
    leaseSeconds: 1,
    handlers: [handle("last", () => {})],
  });
  await listening.jobs.enqueue("last", {}, { timeoutSeconds: 3600 });
  await event("succeeded");
  await worker.stop();

  expect(timers()).toBeLessThanOrEqual(before);
  const { statements } = await database.record(() => sql`select pg_sleep(0.2)`.execute(database.db));
  expect(statements).toHaveLength(1);
});

test("a claim that was sent before the jobs of the last one were run goes back with them", async () => {
  await ledger.jobs.enqueueMany(Array.from({ length: 6 }, (_, n) => ({ type: "ahead", payload: n })));
  let stopping: Promise<void> | undefined;
  const watched: WatchedWorker = makeWorker({
    ledger,
    concurrency: 6,
    batchSize: 2,
    handlers: [handle("ahead", () => {})],
    onEvent: ({ type }) => {
      if (type === "claimed") stopping ??= watched.worker.stop();
    },
  });
  await watched.worker.start();
  await watched.worker.done;
  await stopping;

  expect(watched.events.filter(({ type }) => type === "claimed")).toHaveLength(2);
  const { rows } = await database.pool.query("select status, attempt from runledger.job_queue where type = 'ahead'");
  expect(rows).toEqual(Array.from({ length: 6 }, () => ({ status: "PENDING", attempt: 0 })));
});
