/** Announcing after the commit: nobody who enqueues waits for anybody's flush, and nothing that is due goes unannounced. */
import { expect, test } from "@jest/globals";
import { Kysely, PostgresDialect } from "kysely";
import pg from "pg";
import { announcing } from "../../src/database/announce.ts";
import { createExecutor } from "../../src/database/executor.ts";
import { createLedger } from "../../src/index.ts";
import { handle } from "../../src/worker/index.ts";
import { createTestDatabase } from "../support/database.ts";
import { until } from "../support/waiting.ts";
import { ledgerOn, startWorker } from "../worker/support.ts";

const database = await createTestDatabase();
const ledger = ledgerOn(database, { listen: true });
/** Longer than any test may take: who asks for jobs again was told. */
const NEVER_MS = 3_600_000;

async function listening() {
  const client = await database.connect();
  const heard: string[] = [];
  client.on("notification", ({ channel }) => heard.push(channel));
  await client.query("listen runledger_jobs");
  return { client, heard };
}

test("many jobs that are enqueued side by side are announced together", async () => {
  const { heard } = await listening();
  await Promise.all(Array.from({ length: 300 }, () => ledger.jobs.enqueue("together", {})));
  await until(() => heard.length > 0);

  expect(heard.length).toBeLessThan(150);
});

test("a job that is enqueued while another is announced is announced too", async () => {
  const worker = await startWorker({
    ledger,
    pollIntervalMs: NEVER_MS,
    schedule: false,
    handlers: [handle("each", () => {})],
  });
  await until(() => ledger.hearsJobs);
  for (let n = 1; n <= 50; n += 1) {
    await ledger.jobs.enqueue("each", { n });
    // Most of them come while the one before is being told.
    if (n % 10 === 0) await worker.count("succeeded", n);
  }
  await worker.count("succeeded", 50);
});

test("what comes up while something is announced is told together after it, each run by its id", async () => {
  const client = await database.connect();
  const heard: string[] = [];
  client.on("notification", ({ channel, payload }) => heard.push(`${channel} ${payload}`.trim()));
  await client.query("listen runledger_jobs; listen runledger_runs");
  const executor = createExecutor(database.db, "runledger", { notify: true, lockWaitMs: 5000 });

  // The first one is left to the statement.
  expect(announcing(executor).notify).toBe(true);
  announcing(executor).after({ jobs: true });
  for (const run of ["a", "b", "a"]) announcing(executor).after({ jobs: true, runs: [run] });
  await until(() => heard.length === 4);

  expect(heard.sort()).toEqual(["runledger_jobs", "runledger_jobs", "runledger_runs a", "runledger_runs b"]);
});

test("in a caller's transaction the statement announces by itself, once the transaction has committed", async () => {
  const { client, heard } = await listening();
  const trx = await database.db.startTransaction().execute();
  await ledger.in(trx).jobs.enqueue("inside", {});
  await client.query("select 1");
  expect(heard).toEqual([]);

  await trx.commit().execute();
  await until(() => heard.length > 0);
  expect(heard).toEqual(["runledger_jobs"]);
});

test("outside of one, of many transactions that write only the first notifies", async () => {
  const sent: { readonly sql: string; readonly parameters: readonly unknown[] }[] = [];
  const db = new Kysely<unknown>({
    dialect: new PostgresDialect({ pool: database.pool }),
    log: ({ query: { sql, parameters } }) => {
      sent.push({ sql, parameters });
    },
  });
  const logged = createLedger({ db });
  const flagsOf = async (action: () => Promise<unknown>) => {
    sent.length = 0;
    await action();
    const writing = sent.filter(({ sql }) => sql.includes("insert into") && sql.includes("pg_notify"));
    return writing.map(({ parameters }) => parameters.includes(true));
  };
  const inTransaction = () => db.transaction().execute((trx) => logged.in(trx).jobs.enqueue("flagged", {}));

  expect(await flagsOf(inTransaction)).toEqual([true]);
  expect(await flagsOf(inTransaction)).toEqual([true]);
  const many = () =>
    Promise.all([
      logged.jobs.enqueue("flagged", {}),
      logged.jobs.enqueueMany([1, 2].map((payload) => ({ type: "flagged", payload }))),
      logged.jobs.enqueue("flagged", {}, { idempotencyKey: "once" }),
    ]);
  expect((await flagsOf(many)).sort()).toEqual([false, false, true]);
});

test("an announcement that finds the pool ended disturbs nobody", async () => {
  const pool = new pg.Pool({ connectionString: database.url, max: 1 });
  const db = new Kysely<unknown>({ dialect: new PostgresDialect({ pool }) });
  await createLedger({ db }).jobs.enqueue("last", {});
  await db.destroy();
  await database.pool.query("select pg_sleep(0.05)");
});
