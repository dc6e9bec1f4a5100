/** Own transactions: their level, their retries, and what an ignored failure comes to (LOCKS.md §4, §5). */
import { beforeEach, expect, test } from "@jest/globals";
import { Kysely, PostgresDialect, sql } from "kysely";
import pg from "pg";
import type { Executor } from "../../src/database/executor.ts";
import { reading } from "../../src/database/statement.ts";
import { inTransaction, rollbackToSavepoint, savepoint } from "../../src/database/transaction.ts";
import { createLedger } from "../../src/index.ts";
import { codeOf, executorOf, globally } from "../jobs/fixtures.ts";
import { createTestDatabase } from "../support/database.ts";

const database = await createTestDatabase();
const ledger = createLedger({ db: database.db });

// Sequences count rolled back tries too.
await database.pool.query(`
  create sequence public.tries;
  create function public.raise_until(sqlstate text, tries bigint) returns bigint language plpgsql as $$
  declare n bigint := nextval('public.tries');
  begin
    if n < tries then raise exception 'on purpose' using errcode = sqlstate; end if;
    return n;
  end $$;
  create function public.raise_in_trigger() returns trigger language plpgsql as $$
  begin perform public.raise_until(new.payload->>'sqlstate', (new.payload->>'tries')::bigint); return new; end $$;
  create trigger raises before insert on runledger.job_queue for each row when (new.type = 'raises')
  execute function public.raise_in_trigger()`);

const raising = reading(
  "test_raise_until",
  { sqlstate: "text", tries: "int8" },
  (_db, p) => sql<{ n: string }>`select public.raise_until(${p.sqlstate}, ${p.tries}) as n`,
);

const raiseUntil = (executor: Executor, sqlstate: string, tries: number) =>
  raising.execute(executor, { sqlstate, tries: String(tries) });

beforeEach(() => database.pool.query("alter sequence public.tries restart"));

test.each([
  ["40001", 5, "db.serialization_conflict"],
  ["40P01", 5, "db.deadlock"],
  ["55P03", 2, "db.lock_timeout"],
  ["57014", 1, "db.query_canceled"],
  ["23505", 1, "db.constraint_violated"],
  ["P0001", 1, "db.error"],
])("a transaction of the ledger's own that ends in %s is tried %i times in all", async (sqlstate, tries, code) => {
  const failing = codeOf(() => inTransaction(executorOf(database.db), (trx) => raiseUntil(trx, sqlstate, 1000)));

  expect(await failing).toBe(code);
  expect(await triesMade()).toBe(tries);
});

test.each([
  ["40001", 5],
  ["40P01", 5],
  ["55P03", 2],
])("a transaction that gets through %s on its last try commits", async (sqlstate, tries) => {
  await inTransaction(executorOf(database.db), (trx) => raiseUntil(trx, sqlstate, tries));

  expect(await triesMade()).toBe(tries);
});

test.each([
  ["40001", 5],
  ["40P01", 5],
  ["55P03", 2],
  ["23505", 1],
])("a statement that is its own transaction is tried as often: %s", async (sqlstate, tries) => {
  const { disposition } = await ledger.jobs.enqueue("raises", { sqlstate, tries });

  expect(disposition).toBe("inserted");
  expect(await triesMade()).toBe(tries);
  await database.pool.query("alter sequence public.tries restart");
  expect(await codeOf(() => ledger.jobs.enqueue("raises", { sqlstate, tries: tries + 1 }))).toMatch(/^db\./);
  expect(await triesMade()).toBe(tries);
});

test.each(["40001", "40P01", "55P03"])("nothing is retried in the caller's transaction: %s", async (sqlstate) => {
  await expect(
    database.db.transaction().execute((trx) => ledger.in(trx).jobs.enqueue("raises", { sqlstate, tries: 9 })),
  ).rejects.toMatchObject({ sqlstate, retryable: true });

  expect(await triesMade()).toBe(1);
});

test("a failed statement that the body ignores is db.transaction_aborted, never a success", async () => {
  const ignoring = codeOf(() =>
    inTransaction(executorOf(database.db), async (trx) => {
      await raiseUntil(trx, "23505", 9).catch(() => {});
      return "done";
    }),
  );

  expect(await ignoring).toBe("db.transaction_aborted");
});

test("a failed statement that was taken back to a savepoint is none", async () => {
  const result = await inTransaction(executorOf(database.db), async (trx) => {
    await savepoint(trx);
    await raiseUntil(trx, "23505", 9).catch(() => {});
    await rollbackToSavepoint(trx);
    return "done";
  });

  expect(result).toBe("done");
});

test("a statement after a failed one in the caller's transaction is db.transaction_aborted", async () => {
  const trx = await database.db.startTransaction().execute();
  await codeOf(() => ledger.in(trx).jobs.enqueue("raises", { sqlstate: "23505", tries: 9 }));

  expect(await codeOf(() => ledger.in(trx).jobs.enqueue("job", {}))).toBe("db.transaction_aborted");
  expect(await codeOf(() => ledger.in(trx).runs.cancel(crypto.randomUUID(), { scope: globally }))).toBe(
    "db.transaction_aborted",
  );
  await trx.rollback().execute();
});

test("an error of the body itself comes out as it is, and nothing is committed", async () => {
  const own = new RangeError("the body's own");

  await expect(
    inTransaction(executorOf(database.db), async (trx) => {
      await sql`insert into runledger.job_definitions (type) values ('never')`.execute(trx.handle);
      throw own;
    }),
  ).rejects.toBe(own);
  const { rowCount } = await database.pool.query("select from runledger.job_definitions where type = 'never'");
  expect(rowCount).toBe(0);
});

test("a transaction of the ledger's own is READ COMMITTED whatever the session's default", async () => {
  const db = withDefaultLevel("serializable");

  const level = await inTransaction(executorOf(db), async ({ handle }) => {
    const { rows } = await sql<{ transaction_isolation: string }>`show transaction_isolation`.execute(handle);
    return rows[0]?.transaction_isolation;
  });

  expect(level).toBe("read committed");
});

test("identical concurrent enqueues come out right in sessions that default to serializable", async () => {
  const serializable = createLedger({ db: withDefaultLevel("serializable") });

  const jobs = await Promise.all(
    Array.from({ length: 10 }, () => serializable.jobs.enqueue("serial", { a: 1 }, { idempotencyKey: "serial" })),
  );

  expect(new Set(jobs.map(({ id }) => id)).size).toBe(1);
  expect(jobs.filter(({ disposition }) => disposition === "inserted")).toHaveLength(1);
});

function withDefaultLevel(level: string): Kysely<unknown> {
  const options = `-c default_transaction_isolation=${level}`;
  const pool = new pg.Pool({ connectionString: database.url, max: 10, options });
  database.defer(() => pool.end());
  return new Kysely<unknown>({ dialect: new PostgresDialect({ pool }) });
}

async function triesMade(): Promise<number> {
  const { rows } = await database.pool.query("select last_value::int as n from public.tries");
  return rows[0].n;
}
