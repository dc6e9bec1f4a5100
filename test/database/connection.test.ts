/** Lost connections: what is certain is said, and what is not is said to be unknown. */
import { createServer } from "node:net";
import { expect, test } from "@jest/globals";
import { Kysely, PostgresDialect, sql } from "kysely";
import pg from "pg";
import { inTransaction } from "../../src/database/transaction.ts";
import { createLedger, isLedgerError, type Ledger } from "../../src/index.ts";
import { errorOf, executorOf, globally, unknownId } from "../jobs/fixtures.ts";
import { createTestDatabase } from "../support/database.ts";
import { listening, startProxy } from "../support/proxy.ts";
import { backendGone, waitForBackend } from "../support/waiting.ts";

const database = await createTestDatabase();
// A connection that breaks while it is checked out says so once more, by an event.
database.pool.on("connect", (client) => client.on("error", () => {}));
const ledger = createLedger({ db: database.db });

// A commit waits for advisory lock 42 when the transaction has enqueued a job of type `slow-commit`.
await database.pool.query(`
  create function public.wait_at_commit() returns trigger language plpgsql as $$
  begin perform pg_advisory_xact_lock(42); return null; end $$;
  create constraint trigger slow_commit after insert on runledger.job_queue deferrable initially deferred
  for each row when (new.type = 'slow-commit') execute function public.wait_at_commit()`);

test("a server that refuses connections is db.unavailable, for a write too", async () => {
  const lost = ledgerAt(`postgres://nobody@127.0.0.1:${await unusedPort()}/none`);

  await expect(lost.jobs.enqueue("job", {})).rejects.toMatchObject({ code: "db.unavailable", retryable: true });
  await expect(lost.jobs.get(unknownId, globally)).rejects.toMatchObject({ code: "db.unavailable" });
  await expect(lost.runs.cancel(unknownId, { scope: globally })).rejects.toMatchObject({ code: "db.unavailable" });
});

test("a server that never answers a connection is db.unavailable: nothing was sent", async () => {
  const server = createServer((socket) => database.defer(() => socket.destroy()));
  const silent = await listening(server);
  database.defer(() => server.close());
  const lost = ledgerAt(`postgres://nobody@127.0.0.1:${silent}/none`, { connectionTimeoutMillis: 30 });

  await expect(lost.jobs.enqueue("job", {})).rejects.toMatchObject({ code: "db.unavailable" });
});

test("a pool that was closed is db.unavailable", async () => {
  const pool = new pg.Pool({ connectionString: database.url });
  const db = new Kysely<unknown>({ dialect: new PostgresDialect({ pool }) });
  await pool.end();

  await expect(createLedger({ db }).jobs.enqueue("job", {})).rejects.toMatchObject({ code: "db.unavailable" });
});

test("a Kysely that was destroyed is db.unavailable", async () => {
  const db = new Kysely<unknown>({
    dialect: new PostgresDialect({ pool: new pg.Pool({ connectionString: database.url }) }),
  });
  const closed = createLedger({ db });
  await closed.jobs.enqueue("closed", {});
  await db.destroy();

  await expect(closed.jobs.enqueue("closed", {})).rejects.toMatchObject({ code: "db.unavailable" });
});

test("a write that is cut while it waits is db.commit_unconfirmed, and is not repeated by itself", async () => {
  const { id } = await ledger.jobs.enqueue("job", {});
  const holder = await database.connect();
  await holder.query("begin");
  await holder.query("select from runledger.job_queue where id = $1 for update", [id]);

  const { statements, result } = await database.record(async () => {
    const canceling = errorOf(ledger.jobs.cancel(id, { scope: globally }));
    await terminateWaiting("runledger:cancel_job");
    return canceling;
  });

  expect(result).toMatchObject({ code: "db.commit_unconfirmed", retryable: false });
  expect(statements.filter((text) => text.includes("runledger:cancel_job"))).toHaveLength(1);
  await holder.query("rollback");
});

test("a statement that is cut in a transaction of the ledger's own is db.unavailable: nothing was committed", async () => {
  const holder = await database.connect();
  await holder.query("begin");
  await holder.query("lock table runledger.job_idempotency_keys");

  const enqueueing = errorOf(ledger.jobs.enqueueMany(keyed("cut")));
  await terminateWaiting("runledger:enqueue_keyed_jobs");
  const error = await enqueueing;

  await holder.query("rollback");
  expect(error).toMatchObject({ code: "db.unavailable", retryable: true });
  expect(await countOf("cut")).toBe(0);
});

test("a statement that is cut in the caller's transaction is db.unavailable, and so is the next", async () => {
  const holder = await database.connect();
  const { id } = await ledger.jobs.enqueue("job", {});
  await holder.query("begin");
  await holder.query("select from runledger.job_queue where id = $1 for update", [id]);
  const trx = await database.db.startTransaction().execute();

  const canceling = errorOf(ledger.in(trx).jobs.cancel(id, { scope: globally }));
  await terminateWaiting("runledger:cancel_job");

  expect(await canceling).toMatchObject({ code: "db.unavailable" });
  expect(await errorOf(ledger.in(trx).jobs.enqueue("job", {}))).toMatchObject({ code: "db.unavailable" });
  await errorOf(trx.rollback().execute());
  await holder.query("rollback");
});

test("a commit during which the server ends the session is db.commit_unconfirmed", async () => {
  const holder = await holding42();

  const enqueueing = errorOf(ledger.jobs.enqueueMany(keyed("slow-commit")));
  await terminateWaiting("commit");

  expect(await enqueueing).toMatchObject({ code: "db.commit_unconfirmed", retryable: false });
  expect(isLedgerError(await enqueueing)).toBe(true);
  await holder.query("rollback");
});

test("a commit whose answer is lost is db.commit_unconfirmed although it did commit", async () => {
  const proxy = await startProxy(database);
  const behind = ledgerAt(proxy.url);
  const holder = await holding42();

  const enqueueing = errorOf(behind.jobs.enqueueMany(keyed("slow-commit", "proxy")));
  const { pid } = await waitForBackend({ client: database.pool, marker: "commit" });
  proxy.cut();
  expect(await enqueueing).toMatchObject({ code: "db.commit_unconfirmed" });
  await holder.query("rollback");
  await backendGone(database.pool, pid);

  expect(await countOf("slow-commit")).toBe(2);
});

test("what the body threw is thrown, also when the connection is lost by then", async () => {
  const error = await errorOf(
    inTransaction(executorOf(database.db), async ({ handle }) => {
      const { rows } = await sql<{ pid: number }>`select pg_backend_pid() as pid`.execute(handle);
      await database.pool.query("select pg_terminate_backend($1)", [rows[0]?.pid]);
      await backendGone(database.pool, rows[0]?.pid ?? 0);
      throw new RangeError("the body's own");
    }),
  );

  expect(error).toBeInstanceOf(RangeError);
});

test("a pool whose idle connections were all terminated serves the next call", async () => {
  await database.pool.query(
    "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()",
  );

  const error = await errorOf(ledger.jobs.enqueue("after", {}).then(() => Promise.reject(new Error("enqueued"))));

  // Either the pool noticed, or this one call met a dead connection: then the next does not.
  if (isLedgerError(error)) expect(error.category).toBe("unavailable");
  await ledger.jobs.enqueue("after", {});
});

function ledgerAt(connectionString: string, config: pg.PoolConfig = {}): Ledger {
  const pool = new pg.Pool({ connectionString, max: 1, ...config });
  pool.on("error", () => {});
  pool.on("connect", (client) => client.on("error", () => {}));
  database.defer(() => pool.end());
  return createLedger({ db: new Kysely<unknown>({ dialect: new PostgresDialect({ pool }) }) });
}

function keyed(type: string, prefix: string = type) {
  return ["a", "b"].map((key) => ({ type, payload: {}, idempotencyKey: `${prefix}-${key}` }));
}

async function countOf(type: string): Promise<number> {
  const { rows } = await database.pool.query("select count(*)::int as count from runledger.job_queue where type = $1", [
    type,
  ]);
  return rows[0].count;
}

async function holding42() {
  const holder = await database.connect();
  await holder.query("begin");
  await holder.query("select pg_advisory_xact_lock(42)");
  return holder;
}

async function terminateWaiting(marker: string): Promise<void> {
  const { pid } = await waitForBackend({ client: database.pool, marker });
  await database.pool.query("select pg_terminate_backend($1)", [pid]);
}

async function unusedPort(): Promise<number> {
  const server = createServer();
  const port = await listening(server);
  await new Promise((resolve) => server.close(resolve));
  return port;
}
