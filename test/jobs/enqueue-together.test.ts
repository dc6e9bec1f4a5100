/** Jobs that are enqueued one by one at the same moment share statements, and nothing else. */
import { afterEach, expect, test } from "@jest/globals";
import { createLedger } from "../../src/index.ts";
import { createTestDatabase } from "../support/database.ts";
import { until } from "../support/waiting.ts";
import { globally } from "./fixtures.ts";

const database = await createTestDatabase({ max: 12 });
const ledger = createLedger({ db: database.db, notify: false });

afterEach(() => database.pool.query("truncate runledger.job_queue"));

async function stored(): Promise<unknown[]> {
  const { rows } = await database.pool.query("select payload from runledger.job_queue order by id");
  return rows.map(({ payload }) => payload);
}

const numbers = (count: number) => Array.from({ length: count }, (_, n) => n);

test("each call is answered for its own job, by few statements", async () => {
  const { result, statements } = await database.record(() =>
    Promise.all(numbers(100).map((n) => ledger.jobs.enqueue("together", n))),
  );

  expect(statements.length).toBeLessThan(10);
  expect((await stored()).sort()).toEqual(numbers(100).sort());
  for (const n of [0, 1, 2, 50, 99]) {
    expect(await ledger.jobs.get(result[n]?.id ?? "", globally)).toMatchObject({ payload: n });
  }
});

test("one that the database refuses is refused alone", async () => {
  await database.pool.query(`alter table runledger.job_queue add constraint not_seven check (payload <> '7')`);
  const calls = await Promise.allSettled(numbers(20).map((n) => ledger.jobs.enqueue("refused", n)));
  await database.pool.query("alter table runledger.job_queue drop constraint not_seven");

  const failed = calls.flatMap((call, n) => (call.status === "rejected" ? [[n, call.reason]] : []));
  expect(failed).toEqual([[7, expect.objectContaining({ code: "db.constraint_violated", constraint: "not_seven" })]]);
  expect(await stored()).toHaveLength(19);
});

test("those that wait for a lock do not keep the ones after them", async () => {
  await database.pool.query(`
    create function hold() returns trigger language plpgsql as 'begin perform pg_advisory_xact_lock(5); return new; end';
    create trigger hold before insert on runledger.job_queue for each row when (new.type = 'held') execute function hold()`);
  const holder = await database.connect();
  await holder.query("select pg_advisory_lock(5)");
  const held = numbers(4).map((n) => ledger.jobs.enqueue("held", n));
  const ungranted = `select count(*)::int as n from pg_locks
    where locktype = 'advisory' and objid = 5 and not granted
      and database = (select oid from pg_database where datname = current_database())`;
  // The first two go alone, the others together after them.
  await until(async () => (await holder.query(ungranted)).rows[0].n === 3);

  await ledger.jobs.enqueue("free", "free");
  expect(await stored()).toEqual(["free"]);

  await holder.query("select pg_advisory_unlock(5)");
  await Promise.all(held);
  expect(await stored()).toHaveLength(5);
});

test("what is strict, or in a transaction, stands for itself", async () => {
  const strictly = () => Promise.allSettled(numbers(3).map((n) => ledger.jobs.enqueue("unknown", n, { strict: true })));
  const { result, statements } = await database.record(strictly);
  expect(result.map(({ status }) => status)).toEqual(["rejected", "rejected", "rejected"]);
  expect(statements).toHaveLength(3);

  const back = new Error("back");
  const rolledBack = database.db.transaction().execute(async (trx) => {
    await Promise.all(numbers(3).map((n) => ledger.in(trx).jobs.enqueue("inside", n)));
    throw back;
  });
  const [outside] = await Promise.all([ledger.jobs.enqueue("outside", "outside"), rolledBack.catch(() => {})]);
  expect(outside.status).toBe("PENDING");
  expect(await stored()).toEqual(["outside"]);
});
