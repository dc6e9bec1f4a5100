/** A worker that completes a step goes on with what this releases, without a claim of its own. */
import { afterEach, expect, test } from "@jest/globals";
import type pg from "pg";
import { handle } from "../../src/worker/index.ts";
import { expectInvariants } from "../invariants.ts";
import { graphOf } from "../runs/fixtures.ts";
import { createTestDatabase } from "../support/database.ts";
import { backendGone, waitForBackend } from "../support/waiting.ts";
import { everywhere, gate, ledgerOn, outliveCuts, startWorker } from "./support.ts";

const database = await createTestDatabase();
const ledger = ledgerOn(database);
const NEVER_MS = 3_600_000;
outliveCuts(database);

/** Transactions that hold something. */
const open = new Set<pg.PoolClient>();
afterEach(async () => {
  await Promise.all([...open].map(rolledBack));
  await expectInvariants(database);
});

const chain = (type: string, keys: readonly string[]) =>
  graphOf(type, Object.fromEntries(keys.map((key, n) => [key, keys.slice(Math.max(0, n - 1), n)])), keys.at(-1));

test("each step of a chain is claimed with the end of the one before it", async () => {
  const keys = ["a", "b", "c", "d", "e"];
  const { id } = await ledger.runs.enqueue(chain("once", keys));
  const { statements, result: worker } = await database.record(async () => {
    const watched = await startWorker({
      ledger,
      // A claim that is under way has asked for one slot, and leaves one.
      concurrency: 2,
      batchSize: 1,
      prefetch: 0,
      handlers: keys.map((key) => handle(`once.${key}`, ({ prerequisites }) => prerequisites)),
    });
    await watched.count("succeeded", keys.length);
    return watched;
  });

  expect(worker.events.map(({ type }) => type)).toEqual(keys.flatMap(() => ["claimed", "started", "succeeded"]));
  expect(statements.filter((text) => text.includes("complete_step_jobs_eagerly"))).toHaveLength(keys.length);
  expect(await ledger.runs.getResult(id, { scope: everywhere })).toEqual({ d: { c: { b: { a: {} } } } });
});

test("the room that a completion asked for is not given to a claim", async () => {
  const { id } = await ledger.runs.enqueue(chain("room", ["a", "b"]));
  const { release } = await holdRun(id);
  const finish = gate();
  const worker = await startWorker({
    ledger,
    concurrency: 2,
    prefetch: 0,
    handlers: [handle("room.a", () => {}), handle("room.b", () => {}), handle("other", () => finish.opened)],
  });
  await waitForBackend({ client: database.pool, marker: "complete_step_jobs_eagerly" });
  await ledger.jobs.enqueueMany([
    { type: "other", payload: 1 },
    { type: "other", payload: 2 },
  ]);
  await worker.event("started", ({ job }) => job.type === "other");

  const claims = worker.events.flatMap((event) => (event.type === "claimed" ? [event.jobs.length] : []));
  expect(claims).toEqual([1, 1]);
  finish.open();
  await release();
  await worker.count("succeeded", 4);
});

test("a worker that stops meanwhile gives back what it gets", async () => {
  const { id } = await ledger.runs.enqueue(chain("stopped", ["a", "b"]));
  const { release } = await holdRun(id);
  const { worker, events } = await startWorker({
    ledger,
    handlers: [handle("stopped.a", () => {}), handle("stopped.b", () => {})],
  });
  await waitForBackend({ client: database.pool, marker: "complete_step_jobs_eagerly" });
  const stopped = worker.stop();
  await release();
  await stopped;

  expect(events.map(({ type }) => type)).toEqual([
    "claimed",
    "started",
    "succeeded",
    "claimed",
    "handed_back",
    "stopped",
  ]);
  const { jobs } = await ledger.jobs.list({ scope: everywhere, type: "stopped.b" });
  expect(jobs).toMatchObject([{ status: "PENDING", attempt: 0 }]);
});

test("a job whose prerequisites cannot be loaded is started when they can", async () => {
  const { id } = await ledger.runs.enqueue(chain("cut", ["a", "b"]));
  const { release } = await holdRun(id);
  const worker = await startWorker({
    ledger,
    pollIntervalMs: NEVER_MS,
    handlers: [handle("cut.a", () => 1), handle("cut.b", ({ prerequisites }) => prerequisites)],
  });
  await waitForBackend({ client: database.pool, marker: "complete_step_jobs_eagerly" });
  // It gets its lock when the completion is over, before the prerequisites are asked for.
  const locker = await begun();
  const locked = locker.query("lock table runledger.workflow_step_dependencies");
  await waitForBackend({ client: database.pool, marker: "lock table" });
  await release();
  await locked;
  const { pid } = await waitForBackend({ client: database.pool, marker: "step_prerequisites" });
  await database.pool.query("select pg_terminate_backend($1)", [pid]);
  await backendGone(database.pool, pid);
  await waitForBackend({ client: database.pool, marker: "step_prerequisites" });
  await rolledBack(locker);
  await worker.event("succeeded", ({ job }) => job.type === "cut.b");

  expect(worker.events.filter(({ type }) => type === "claimed")).toHaveLength(2);
  // The next one may come upon the broken connection too, before the pool has noticed.
  const errors = worker.events.filter(({ type }) => type === "error");
  expect(errors.length).toBeGreaterThan(0);
  for (const error of errors) expect(error).toMatchObject({ during: "claim", fatal: false });
  const { jobs } = await ledger.jobs.list({ scope: everywhere, type: "cut.b" });
  expect(jobs).toMatchObject([{ status: "SUCCEEDED", attempt: 1 }]);
});

/** Holds the run's row, for which every completion of a step waits. */
async function holdRun(id: string): Promise<{ release(): Promise<void> }> {
  const client = await begun();
  await client.query("select from runledger.workflow_runs where id = $1 for update", [id]);
  return { release: () => rolledBack(client) };
}

async function begun(): Promise<pg.PoolClient> {
  const client = await database.pool.connect();
  open.add(client);
  await client.query("begin");
  return client;
}

async function rolledBack(client: pg.PoolClient): Promise<void> {
  open.delete(client);
  await client.query("rollback");
  client.release();
}
