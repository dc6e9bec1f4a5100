/** A pool that sends the ledger's statements by name: planned once for each connection, and nothing else is changed. */
import { expect, test } from "@jest/globals";
import { Kysely, PostgresDialect, sql } from "kysely";
import pg from "pg";
import { migrate } from "../../db/index.ts";
import { createLedger, prepared, type RunledgerDatabase } from "../../src/index.ts";
import { claimedOne, codeOf, globally } from "../jobs/fixtures.ts";
import { createTestDatabase } from "../support/database.ts";

const database = await createTestDatabase();
const pool = prepared(new pg.Pool({ connectionString: database.url, max: 1 }));
database.defer(() => pool.end());
const db = new Kysely<RunledgerDatabase>({ dialect: new PostgresDialect({ pool }) });
const ledger = createLedger({ db, notify: false });

async function statements(): Promise<string[]> {
  const { rows } = await sql<{ name: string }>`select name from pg_prepared_statements order by name`.execute(db);
  return rows.map(({ name }) => name);
}

test("each statement is prepared once, under its name, and those of the service are not", async () => {
  for (let n = 0; n < 8; n += 1) await ledger.jobs.enqueue("prepared", { n });
  await sql`select ${1}::int`.execute(db);
  await pool.query("select 1");

  expect(await statements()).toEqual([expect.stringMatching(/^enqueue_job:[0-9a-f]{12}$/)]);
});

test("what a job goes through is the same", async () => {
  const { id } = await ledger.jobs.enqueue("whole", { n: 1 }, { idempotencyKey: "k" });
  expect(await ledger.jobs.enqueue("whole", { n: 1 }, { idempotencyKey: "k" })).toMatchObject({
    disposition: "existing",
  });
  const job = await claimedOne(ledger, "whole");
  await db.transaction().execute(async (trx) => {
    await ledger.in(trx).jobs.progress(job.lease, { done: 1, total: 2 });
    await ledger.in(trx).jobs.complete(job.lease, { output: [1] });
  });
  expect(await ledger.jobs.get(id, globally)).toMatchObject({ status: "SUCCEEDED", output: [1] });
});

test("another schema has statements of its own", async () => {
  await migrate(database.db, { schema: "elsewhere" });
  await createLedger({ db, schema: "elsewhere", notify: false }).jobs.enqueue("prepared", {});
  await ledger.jobs.enqueue("prepared", {});

  const names = (await statements()).filter((name) => name.startsWith("enqueue_job:"));
  expect(new Set(names).size).toBe(2);
});

test("a refusal and a change of the tables leave the connection usable", async () => {
  const late = { lease: { ...(await claimedOne(await enqueued(), "late")).lease, attempt: 7 } };
  expect(await codeOf(() => ledger.jobs.complete(late.lease))).toBe("job.lease_owner_mismatch");
  const nowhere = createLedger({ db, schema: "nowhere", notify: false });
  await expect(nowhere.jobs.enqueue("lost", {})).rejects.toMatchObject({ sqlstate: "42P01" });
  await database.pool.query("alter table runledger.job_queue add column added_later text");
  await database.pool.query("create index on runledger.job_queue (added_later)");

  await ledger.jobs.enqueue("after", {});
  expect(await claimedOne(ledger, "after")).toMatchObject({ type: "after" });
});

async function enqueued() {
  await ledger.jobs.enqueue("late", {});
  return ledger;
}
