/**
 * Limits under concurrency (FEATURES F-J11): a claim is two statements, and others commit before, between and after
 * them. Whatever they do, no key is forgotten, none has more than its limit, and nobody waits for anybody.
 */
import { afterEach, beforeEach, expect, test } from "@jest/globals";
import { Kysely, PostgresDialect, sql } from "kysely";
import { inTransaction } from "../../src/database/transaction.ts";
import { type ClaimedJob, createLedger, defineJob, type Ledger } from "../../src/index.ts";
import { holdOfTypes } from "../../src/jobs/limit-holds.ts";
import { claimHeldOfTypes } from "../../src/jobs/limited-rows.ts";
import type { JobLimit } from "../../src/jobs/limits.ts";
import { expectInvariants, watchForDeadlocks } from "../invariants.ts";
import { createTestDatabase } from "../support/database.ts";
import { backendGone, backendPid } from "../support/waiting.ts";
import { codeOf, executorOf, failure, success } from "./fixtures.ts";

const database = await createTestDatabase({ max: 34 });
const expectNoDeadlock = watchForDeadlocks(database);
const ledger = createLedger({ db: database.db, notify: false, lockWaitMs: 1000 });
const one = { key: "k", concurrency: 1 } as const;
const types = ["a"];
/** The same for all, so that their wakes differ in nothing. */
const runAt = new Date(Date.now() - 1000);

beforeEach(() =>
  database.pool.query(
    "truncate runledger.job_queue, runledger.job_ledger, runledger.job_limits, runledger.job_limit_wakes",
  ),
);
afterEach(async () => {
  await expectInvariants(database);
  expectNoDeadlock();
});

const claim = (limit = 10, from: Ledger = ledger) => from.jobs.claim({ workerId: "w", limit, types });
const payloads = (jobs: readonly ClaimedJob[]) => jobs.map(({ payload }) => payload);
const enqueueOne = (payload: unknown, limit: JobLimit = one, to: Ledger = ledger) =>
  to.jobs.enqueue("a", payload, { limit, runAt });

/** A claim with something done between its two statements; answers how many jobs it got. */
function claimWith(between: () => Promise<unknown>, limit = 10): Promise<number> {
  return inTransaction(executorOf(database.db), async (trx) => {
    const keys = await holdOfTypes.execute(trx, { limit, types });
    await between();
    const held = keys.flatMap(({ tenant, key }) => (tenant === null || key === null ? [] : [{ tenant, key }]));
    const rows = await claimHeldOfTypes.execute(trx, {
      workerId: "w",
      limit,
      leaseSeconds: 60,
      types,
      tenants: held.map(({ tenant }) => tenant),
      keys: held.map(({ key }) => key),
      notify: false,
    });
    return rows.filter(({ id }) => id !== null).length;
  });
}

/** A transaction of another session: what it does is seen when it ends. */
async function apart(action: (other: Ledger) => Promise<unknown>): Promise<{ commit(): Promise<void> }> {
  const trx = await database.db.startTransaction().execute();
  await action(ledger.in(trx));
  return {
    commit: async () => {
      await trx.commit().execute();
    },
  };
}

/** Takes live jobs away without an end, and out of their count. */
async function discard(...statuses: readonly string[]): Promise<void> {
  await database.pool.query(
    `with gone as (delete from runledger.job_queue where status::text = any($1) returning type, organization_id)
     insert into runledger.status_count_deltas (subject, type, organization_id, status, delta)
     select 'job', type, organization_id, 'LIVE', -count(*) from gone group by type, organization_id`,
    [statuses],
  );
}

test("a job enqueued before a claim, and committed while it runs or after it, is claimed in its turn", async () => {
  for (const when of ["between", "after"]) {
    await enqueueOne("first");
    const other = await apart((l) => enqueueOne("second", one, l));

    const count = await claimWith(() => (when === "between" ? other.commit() : Promise.resolve()));
    if (when === "after") await other.commit();

    expect(count).toBe(1);
    expect(await claim()).toEqual([]);
    await discard("LEASED");
    expect(payloads(await claim())).toEqual(["second"]);
    await discard("PENDING", "LEASED");
  }
});

test("a job committed after a claim of its key is not forgotten where the key has room", async () => {
  const roomy = { key: "k", concurrency: 5 };
  await enqueueOne("first", roomy);
  const other = await apart((l) => enqueueOne("second", roomy, l));

  expect(payloads(await claim())).toEqual(["first"]);
  await other.commit();

  expect(payloads(await claim())).toEqual(["second"]);
});

test("a slot that comes free while a claim runs is taken by it, and by the next one when it comes free after", async () => {
  for (const when of ["between", "after"]) {
    await enqueueOne("running");
    const [running] = await claim();
    if (running === undefined) throw new Error("a slot was free");
    await enqueueOne("waiting");
    const other = await apart((l) => l.jobs.complete(running.lease));

    const count = await claimWith(() => (when === "between" ? other.commit() : Promise.resolve()));
    if (when === "after") await other.commit();

    expect(count).toBe(when === "between" ? 1 : 0);
    expect(await claim()).toHaveLength(when === "between" ? 0 : 1);
    await discard("PENDING", "LEASED");
  }
});

test("a row that another session holds leaves its slot to the next, and is claimed when it is free", async () => {
  await enqueueOne("cancelled", { key: "k", concurrency: 2 });
  await enqueueOne("next", { key: "k", concurrency: 2 });
  const trx = await database.db.startTransaction().execute();
  await sql`select from runledger.job_queue where payload = '"cancelled"' for update`.execute(trx);

  expect(payloads(await claim())).toEqual(["next"]);
  await trx.rollback().execute();
  expect(payloads(await claim())).toEqual(["cancelled"]);
});

test("a key that another session looks at is passed over without waiting, and looked at when that is over", async () => {
  await enqueueOne("held");
  await claimWith(async () => {
    await enqueueOne("other", { key: "other", concurrency: 1 });
    expect(payloads(await claim())).toEqual(["other"]);
    await enqueueOne("later");
    expect(await claim()).toEqual([]);
  });

  expect(await claim()).toEqual([]);
  await discard("LEASED");
  expect(payloads(await claim())).toEqual(["later"]);
});

test("the first looks at a new key do not wait for each other", async () => {
  await enqueueOne("only");
  const counts = [await claimWith(async () => expect(await claimWith(async () => {})).toBe(0))];

  expect(counts).toEqual([1]);
});

test("a claim whose session is killed before its commit leaves everything as it was", async () => {
  await enqueueOne("only");
  const client = await database.connect();
  const pid = await backendPid(client);
  const sent = await statementsOf(async (trx) => trx.jobs.claim({ workerId: "w", limit: 1, types }));
  await client.query("begin");
  for (const query of sent) await client.query(query.sql, [...query.parameters]);
  expect(await claim()).toEqual([]);

  await database.pool.query("select pg_terminate_backend($1)", [pid]);
  await backendGone(database.pool, pid);

  expect(payloads(await claim())).toEqual(["only"]);
});

test("a claim in a transaction that is rolled back never was, and its key is looked at again", async () => {
  await enqueueOne("only", { key: "k", concurrency: 1 });
  const trx = await database.db.startTransaction().execute();
  expect(await claim(1, ledger.in(trx))).toHaveLength(1);
  await trx.rollback().execute();

  expect(await claim()).toHaveLength(1);
});

test("in a caller's transaction limits need READ COMMITTED, and nothing is written before that is known", async () => {
  const trx = await database.db.startTransaction().setIsolationLevel("repeatable read").execute();
  expect(await claim(1, ledger.in(trx))).toEqual([]);
  await trx.rollback().execute();
  await enqueueOne("only");
  const second = await database.db.startTransaction().setIsolationLevel("repeatable read").execute();

  expect(await codeOf(() => claim(1, ledger.in(second)))).toBe("job.claim_unsupported_isolation");
  await second.commit().execute();
  expect(await claim()).toHaveLength(1);
});

test.each([1, 3])("12 claimers on 12 keys of %i at once: never more, and all jobs are done", async (concurrency) => {
  const count = 240;
  await ledger.jobs.sync([defineJob("a", { backoff: { initialSeconds: 0, maxSeconds: 0 } })]);
  await ledger.jobs.enqueueMany(
    Array.from({ length: count }, (_, n) => ({
      type: "a",
      payload: n,
      limit: { key: `key-${n % 12}`, concurrency },
      priority: n % 3,
    })),
  );
  const most: number[] = [];
  let left = count;
  const work = async (worker: number) => {
    while (left > 0) {
      const jobs = await ledger.jobs.claim({ workerId: `w${worker}`, limit: 1 + (worker % 7), types });
      const { rows } = await database.pool.query<{ n: number }>(
        "select count(*)::int as n from runledger.job_queue where status = 'LEASED' group by limit_key",
      );
      most.push(...rows.map(({ n }) => n));
      const again = ({ lease }: ClaimedJob) => worker % 4 === 0 && lease.attempt === 1;
      left -= jobs.filter((job) => !again(job)).length;
      await ledger.jobs.settle(jobs.map((job) => (again(job) ? failure(job.lease) : success(job.lease))));
    }
  };
  await Promise.all(Array.from({ length: 12 }, (_, worker) => work(worker)));

  expect(Math.max(...most)).toBe(concurrency);
  const { rowCount } = await database.pool.query("select from runledger.job_queue");
  expect(rowCount).toBe(0);
});

interface Sent {
  readonly sql: string;
  readonly parameters: readonly unknown[];
}

/** What a call sends in a caller's transaction, which is rolled back. */
async function statementsOf(call: (trx: Ledger) => Promise<unknown>): Promise<Sent[]> {
  const sent: Sent[] = [];
  const db = new Kysely<unknown>({
    dialect: new PostgresDialect({ pool: database.pool }),
    log: ({ query }) => {
      sent.push({ sql: query.sql, parameters: query.parameters });
    },
  });
  const trx = await db.startTransaction().execute();
  await call(createLedger({ db, notify: false }).in(trx));
  await trx.rollback().execute();
  return sent.filter((query) => query.sql.startsWith("/* runledger:"));
}
