import { expect, test } from "@jest/globals";
import { sql } from "kysely";
import { createTestDatabase } from "../support/database.ts";
import { backendPid, blockingPids, waitForBackend } from "../support/waiting.ts";

const database = await createTestDatabase();

test("a test database carries the migrated schema", async () => {
  const jobs = await database.db.selectFrom("runledger.job_queue").selectAll().execute();

  expect(jobs).toEqual([]);
});

test("a recording holds each statement of a transaction in order", async () => {
  const { result, statements } = await database.record(() =>
    database.db.transaction().execute(async (trx) => (await sql<{ one: number }>`select 1 as one`.execute(trx)).rows),
  );

  expect(result).toEqual([{ one: 1 }]);
  expect(statements.map((text) => text.toLowerCase())).toEqual(["begin", "select 1 as one", "commit"]);
});

test("a backend that waits for a lock is seen, with the one that holds it", async () => {
  const holder = await database.connect();
  const waiter = await database.connect();
  const waiterPid = await backendPid(waiter);
  await holder.query("begin");
  await holder.query("select pg_advisory_xact_lock(1)");

  const waiting = waiter.query("select /* second */ pg_advisory_xact_lock(1)");
  const seen = await waitForBackend({ client: database.pool, marker: "/* second */" });

  expect(seen.pid).toBe(waiterPid);
  expect(await blockingPids(database.pool, waiterPid)).toEqual([await backendPid(holder)]);
  await holder.query("rollback");
  await waiting;
});

test("waiting for a backend that never waits fails and shows the activity", async () => {
  const waiting = waitForBackend({ client: database.pool, marker: "nobody", deadlineMs: 50 });

  await expect(waiting).rejects.toThrow(/running "nobody" waiting for Lock was not seen/);
});
