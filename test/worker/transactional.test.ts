/** A handler that completes its job itself, in one commit with what it writes. */
import { beforeAll, beforeEach, expect, test } from "@jest/globals";
import { type Kysely, sql } from "kysely";
import { createLedger, type RunledgerDatabase, WorkflowBuilder } from "../../src/index.ts";
import { handle } from "../../src/worker/index.ts";
import { createTestDatabase } from "../support/database.ts";
import { everywhere, gate, startWorker, type WatchedWorker } from "./support.ts";

const database = await createTestDatabase();
const ledger = createLedger({ db: database.db, notify: false });

beforeAll(() => database.pool.query("create table public.effects (value text not null)"));
beforeEach(() => database.pool.query("truncate public.effects"));

test("a handler completes its job with a body, or in a transaction of its own: it succeeded once", async () => {
  const { id } = await ledger.jobs.enqueue("with-body", {});
  const other = await ledger.jobs.enqueue("by-hand", {});
  const worker = await startWorker({
    ledger,
    handlers: [
      handle("with-body", ({ lease }) =>
        ledger.jobs.complete(lease, { output: "with body" }, (trx) => write(trx, "with body")),
      ),
      handle("by-hand", ({ lease }) =>
        database.db.transaction().execute(async (trx) => {
          await write(trx, "by hand");
          await ledger.in(trx).jobs.complete(lease, { output: "by hand" });
        }),
      ),
    ],
  });
  await worker.count("succeeded", 2);

  expect(await ledger.jobs.get(id, everywhere)).toMatchObject({ status: "SUCCEEDED", output: "with body" });
  expect(await ledger.jobs.get(other.id, everywhere)).toMatchObject({ status: "SUCCEEDED", output: "by hand" });
  expect(await effects()).toEqual(["by hand", "with body"]);
  expect(storyOf(worker).sort()).toEqual(["started", "started", "succeeded", "succeeded"]);
});

test("what a handler throws after that changes nothing", async () => {
  await ledger.jobs.enqueue("then-throw", {});
  const worker = await startWorker({
    ledger,
    handlers: [
      handle("then-throw", async ({ lease }) => {
        await ledger.jobs.complete(lease, {}, (trx) => write(trx, "once"));
        throw new Error("too late");
      }),
    ],
  });
  await worker.event("succeeded");

  expect(await effects()).toEqual(["once"]);
  expect(storyOf(worker)).toEqual(["started", "succeeded"]);
});

test("a handler that goes on after that is neither lost nor told to stop", async () => {
  await ledger.jobs.enqueue("go-on", {});
  const done = gate();
  const signals: AbortSignal[] = [];
  const worker = await startWorker({
    ledger,
    leaseSeconds: 1,
    handlers: [
      handle("go-on", async ({ lease, signal }) => {
        signals.push(signal);
        await ledger.jobs.complete(lease, {}, (trx) => write(trx, "before"));
        await done.opened;
      }),
    ],
  });
  // The heart says so: the handler has not returned.
  await worker.event("succeeded");
  const again = await ledger.jobs.enqueue("go-on", {});
  await worker.count("succeeded", 2);
  done.open();
  await worker.worker.stop();

  expect((await ledger.jobs.get(again.id, everywhere)).status).toBe("SUCCEEDED");
  expect(signals.map(({ aborted }) => aborted)).toEqual([false, false]);
  expect(storyOf(worker).sort()).toEqual(["started", "started", "succeeded", "succeeded"]);
});

test("the steps that it released start at once, without an announcement", async () => {
  const graph = new WorkflowBuilder("handed-on");
  const first = graph.job("first", "handed-on.first", {});
  graph.result(graph.job("second", "handed-on.second", {}, { onSuccess: [first] }));
  const run = await ledger.runs.enqueue(graph.build());
  const worker = await startWorker({
    ledger,
    // Longer than the test may take.
    pollIntervalMs: 3_600_000,
    handlers: ["first", "second"].map((step) =>
      handle(`handed-on.${step}`, ({ lease }) =>
        ledger.jobs.complete(lease, { output: step }, (trx) => write(trx, step)),
      ),
    ),
  });
  await worker.count("succeeded", 2);

  expect(await ledger.runs.getResult(run.id, { scope: everywhere })).toBe("second");
  expect(await effects()).toEqual(["first", "second"]);
});

test("what fails in its transaction is a failure of the attempt, with nothing kept", async () => {
  const { id } = await ledger.jobs.enqueue("refused-once", {});
  const worker = await startWorker({
    ledger,
    handlers: [
      handle("refused-once", ({ attempt, lease }) =>
        ledger.jobs.complete(lease, {}, async (trx) => {
          await write(trx, `attempt ${attempt}`);
          if (attempt === 1) await sql`select 1 / 0`.execute(trx);
        }),
      ),
    ],
  });
  const { failure } = await worker.event("retried");
  await database.pool.query("update runledger.job_queue set run_at = now() where id = $1", [id]);
  await worker.event("succeeded");

  expect(failure).toMatchObject({ code: "22012" });
  expect(await effects()).toEqual(["attempt 2"]);
});

async function write(trx: Kysely<RunledgerDatabase>, value: string): Promise<void> {
  await sql`insert into public.effects values (${value})`.execute(trx);
}

async function effects(): Promise<string[]> {
  const { rows } = await database.pool.query<{ value: string }>("select value from public.effects order by value");
  return rows.map(({ value }) => value);
}

/** What happened to attempts, and what went wrong. */
function storyOf({ events }: WatchedWorker): string[] {
  return events.map(({ type }) => type).filter((type) => type !== "claimed" && type !== "stopped");
}
