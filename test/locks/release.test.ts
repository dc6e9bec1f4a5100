/** The release lock between sessions: modes, order, the bounded wait and what ends it (LOCKS.md §1). */
import { expect, test } from "@jest/globals";
import { sql } from "kysely";
import { v7 } from "uuid";
import { createLedger, WorkflowBuilder } from "../../src/index.ts";
import { runReleaseKey, sortedRunReleaseKeys } from "../../src/locks/key.ts";
import {
  lockRunReleaseExclusiveAfterJobs,
  lockRunReleaseShared,
  tryLockRunReleaseShared,
} from "../../src/locks/release.ts";
import { claimedOne, codeOf, errorOf, executorOf, globally } from "../jobs/fixtures.ts";
import { createTestDatabase } from "../support/database.ts";
import { waitForBackend } from "../support/waiting.ts";

const database = await createTestDatabase();
database.pool.on("connect", (client) => client.on("error", () => {}));

type Trx = Awaited<ReturnType<typeof begin>>;

const WAITING_SHARED = "/* runledger:lock_workflow_run_release_shared */";
const WAITING_EXCLUSIVE = "/* runledger:lock_workflow_run_release */";

// Stands in front of the server's function and writes down the setting that is in force when it is called.
await database.pool.query(`
  create schema spy;
  create function spy.pg_advisory_xact_lock_shared(key bigint) returns void language plpgsql as $$
  begin
    perform set_config('spy.lock_timeout', current_setting('lock_timeout'), true);
    perform pg_catalog.pg_advisory_xact_lock_shared(key);
  end $$`);

test("two shared holders do not wait for each other", async () => {
  const id = v7();
  const [one, two] = [await begin(), await begin()];

  await lockRunReleaseShared(executorOf(one), [id]);
  await lockRunReleaseShared(executorOf(two), [id]);
  await tryLockRunReleaseShared(executorOf(one), [id]);

  await rollback(one, two);
});

test("an exclusive holder keeps out every other, and lets them in when it ends", async () => {
  const id = v7();
  const holder = await holding(id);
  const [shared, exclusive] = [await begin(), await begin()];

  const sharing = lockRunReleaseShared(executorOf(shared), [id]);
  await waitForBackend({ client: database.pool, marker: WAITING_SHARED });
  const excluding = lockRunReleaseExclusiveAfterJobs(executorOf(exclusive), [id]);
  await waitForBackend({ client: database.pool, marker: WAITING_EXCLUSIVE });
  expect(await codeOf(() => tried(id))).toBe("workflow.release_conflict");

  await rollback(holder);
  await sharing;
  await rollback(shared);
  await excluding;
  await rollback(exclusive);
});

test("a shared holder keeps out an exclusive one", async () => {
  const id = v7();
  const [holder, exclusive] = [await begin(), await begin()];
  await lockRunReleaseShared(executorOf(holder), [id]);

  const excluding = lockRunReleaseExclusiveAfterJobs(executorOf(exclusive), [id]);
  await waitForBackend({ client: database.pool, marker: WAITING_EXCLUSIVE });

  await rollback(holder);
  await excluding;
  await rollback(exclusive);
});

test("the locks of other runs are free meanwhile", async () => {
  const holder = await holding(v7());

  await expect(tried(v7())).resolves.toBeUndefined();
  await rollback(holder);
});

test("a try never waits: it is refused at once, by one statement, and the transaction lives on", async () => {
  const id = v7();
  const holder = await holding(id);
  const trx = await begin();

  const { result, statements } = await database.record(() =>
    errorOf(tryLockRunReleaseShared(executorOf(trx), [v7(), id, v7()])),
  );

  expect(result).toMatchObject({ code: "workflow.release_conflict", retryable: true, sqlstate: undefined });
  expect(statements).toHaveLength(1);
  await sql`select 1`.execute(trx);
  await rollback(trx, holder);
});

test("no runs are no statement", async () => {
  const trx = await begin();
  const { statements } = await database.record(async () => {
    await lockRunReleaseShared(executorOf(trx), []);
    await tryLockRunReleaseShared(executorOf(trx), []);
  });

  expect(statements).toEqual([]);
  await rollback(trx);
});

test("several runs are locked in ascending key order, each once: who waits for one holds only smaller keys", async () => {
  const ids = Array.from({ length: 9 }, () => v7());
  const keys = sortedRunReleaseKeys(ids);
  const holder = await holding(ids.find((id) => String(runReleaseKey(id)) === keys[4]) ?? "");
  const trx = await begin();

  const locking = lockRunReleaseShared(executorOf(trx), [...ids, ...ids].reverse());
  const { pid } = await waitForBackend({ client: database.pool, marker: WAITING_SHARED });

  expect(await advisoryKeys(pid, true)).toEqual(keys.slice(0, 4));
  expect(await advisoryKeys(pid, false)).toEqual([keys[4]]);
  await rollback(holder);
  await locking;
  expect(await advisoryKeys(pid, true)).toEqual(keys);
  await rollback(trx);
});

test("the bounded lock is three round trips, the others one", async () => {
  const trx = await begin();
  const count = async (action: () => Promise<void>) => (await database.record(action)).statements.length;

  expect(await count(() => lockRunReleaseShared(executorOf(trx), [v7(), v7()]))).toBe(3);
  expect(await count(() => tryLockRunReleaseShared(executorOf(trx), [v7(), v7()]))).toBe(1);
  expect(await count(() => lockRunReleaseExclusiveAfterJobs(executorOf(trx), [v7()]))).toBe(1);
  await rollback(trx);
});

// The caller's setting, the ledger's bound in milliseconds, what is in force during the wait.
const caps: readonly [string, number, string][] = [
  ["0", 5000, "5s"],
  ["1ms", 5000, "1ms"],
  ["2s", 5000, "2s"],
  ["4999ms", 5000, "4999ms"],
  ["5s", 5000, "5s"],
  ["5000ms", 5000, "5s"],
  ["5001ms", 5000, "5s"],
  ["1min", 5000, "5s"],
  ["1h", 5000, "5s"],
  ["10d", 5000, "5s"],
  ["2147483647", 5000, "5s"],
  ["0", 250, "250ms"],
  ["2s", 250, "250ms"],
  ["200ms", 250, "200ms"],
  ["1h", 250, "250ms"],
  ["0", 60_000, "1min"],
  ["5s", 60_000, "5s"],
  ["5001ms", 60_000, "5001ms"],
  ["1min", 60_000, "1min"],
  ["1h", 60_000, "1min"],
];

test.each(caps)(
  "lock_timeout %s under a bound of %i ms is %s during the wait, and then as it was",
  async (given, bound, during) => {
    const trx = await begin();
    await sql`select set_config('lock_timeout', ${given}, true), set_config('search_path', 'spy, pg_catalog', true)`.execute(
      trx,
    );
    const before = await show(trx, "lock_timeout");

    await lockRunReleaseShared(executorOf(trx, bound), [v7()]);

    expect(await show(trx, "spy.lock_timeout")).toBe(during);
    expect(await show(trx, "lock_timeout")).toBe(before);
    await rollback(trx);
  },
);

test("the wait ends at the ledger's bound with workflow.release_conflict, sqlstate 55P03 and the driver's error", async () => {
  const id = v7();
  const holder = await holding(id);
  const trx = await begin();

  const error = await errorOf(lockRunReleaseShared(executorOf(trx, 20), [id]));

  expect(error).toMatchObject({ code: "workflow.release_conflict", retryable: true, sqlstate: "55P03" });
  expect(error).toHaveProperty("cause.code", "55P03");
  expect(JSON.stringify(error)).not.toContain("55P03");
  await rollback(trx, holder);
});

test("a stricter lock_timeout of the caller's ends the wait", async () => {
  const id = v7();
  const holder = await holding(id);
  const trx = await begin();
  await sql`set local lock_timeout = '15ms'`.execute(trx);

  expect(await errorOf(lockRunReleaseShared(executorOf(trx, 2_000_000_000), [id]))).toMatchObject({
    code: "workflow.release_conflict",
    sqlstate: "55P03",
  });
  await rollback(trx, holder);
});

test("a stricter statement_timeout of the caller's ends the wait with sqlstate 57014", async () => {
  const id = v7();
  const holder = await holding(id);
  const trx = await begin();
  await sql`set local statement_timeout = '20ms'`.execute(trx);

  const error = await errorOf(lockRunReleaseShared(executorOf(trx), [id]));

  expect(error).toMatchObject({ code: "workflow.release_conflict", retryable: true, sqlstate: "57014" });
  expect(error).toHaveProperty("cause.code", "57014");
  await rollback(trx, holder);
});

test("other errors of the wait keep their ordinary codes", async () => {
  const dead = await begin();
  await errorOf(sql`select 1/0`.execute(dead));
  expect(await codeOf(() => lockRunReleaseShared(executorOf(dead), [v7()]))).toBe("db.transaction_aborted");
  await rollback(dead);

  const id = v7();
  const [holder, trx] = [await holding(id), await begin()];
  const locking = codeOf(() => lockRunReleaseShared(executorOf(trx), [id]));
  const { pid } = await waitForBackend({ client: database.pool, marker: WAITING_SHARED });
  await database.pool.query("select pg_terminate_backend($1)", [pid]);
  expect(await locking).toBe("db.unavailable");
  await errorOf(trx.rollback().execute());
  await rollback(holder);
});

test("a deadlock during the wait is db.deadlock, not a conflict of the run", async () => {
  const [a, b] = [v7(), v7()];
  const [one, two] = [await holding(a), await holding(b)];
  for (const trx of [one, two]) await sql`set local deadlock_timeout = '10ms'`.execute(trx);
  const locked = async (trx: Trx, id: string) => {
    const code = await codeOf(() => lockRunReleaseShared(executorOf(trx), [id]));
    await rollback(trx);
    return code;
  };

  const codes = await Promise.all([locked(one, b), locked(two, a)]);

  expect(codes).toContain("db.deadlock");
  expect(codes).toContainEqual({ resolved: undefined });
});

test("a completion that gave up leaves the job leased, its dependents untouched and the pool as it was", async () => {
  const ledger = createLedger({ db: database.db, lockWaitMs: 20 });
  const graph = new WorkflowBuilder("gave-up");
  const first = graph.job("first", "gave-up", {});
  graph.job("second", "gave-up", {}, { onSuccess: [first] });
  const { id } = await ledger.runs.enqueue(graph.build());
  const job = await claimedOne(ledger, "gave-up");
  const holder = await holding(id);

  const error = await errorOf(ledger.jobs.complete(job.lease));

  expect(error).toMatchObject({ code: "workflow.release_conflict", sqlstate: "55P03" });
  expect((await ledger.jobs.get(job.lease.jobId, globally)).status).toBe("LEASED");
  expect((await ledger.runs.get(id, globally)).steps.map(({ status }) => status)).toEqual(["RUNNING", "BLOCKED"]);
  await rollback(holder);
  await expectCleanPool();
  await expect(ledger.jobs.complete(job.lease)).resolves.toMatchObject({ status: "SUCCEEDED" });
});

test.each(["granted", "given up"])("a pooled connection is clean after a wait that was %s", async (end) => {
  const id = v7();
  const [holder, trx] = [await holding(id), await begin()];
  const { rows } = await sql<{ pid: number }>`select pg_backend_pid() as pid`.execute(trx);
  // The caller's own setting is local too: put back any other way, it would outlive the transaction.
  await sql`set local lock_timeout = '1h'`.execute(trx);

  const locking = codeOf(() => lockRunReleaseShared(executorOf(trx, end === "granted" ? 5000 : 20), [id]));
  if (end === "granted") {
    await waitForBackend({ client: database.pool, marker: WAITING_SHARED });
    await rollback(holder);
    expect(await locking).toEqual({ resolved: undefined });
    await trx.commit().execute();
  } else {
    expect(await locking).toBe("workflow.release_conflict");
    await rollback(trx, holder);
  }

  await expectCleanPool(rows[0]?.pid);
});

function begin() {
  return database.db.startTransaction().execute();
}

async function holding(id: string): Promise<Trx> {
  const trx = await begin();
  await lockRunReleaseExclusiveAfterJobs(executorOf(trx), [id]);
  return trx;
}

async function rollback(...transactions: Trx[]): Promise<void> {
  for (const trx of transactions) await trx.rollback().execute();
}

function tried(id: string): Promise<void> {
  return database.db.transaction().execute((trx) => tryLockRunReleaseShared(executorOf(trx), [id]));
}

async function show(trx: Trx, setting: string): Promise<string | undefined> {
  const { rows } = await sql<{ value: string }>`select current_setting(${setting}) as value`.execute(trx);
  return rows[0]?.value;
}

async function advisoryKeys(pid: number, granted: boolean): Promise<string[]> {
  const { rows } = await database.pool.query<{ key: string }>(
    `select ((classid::bigint << 32) | objid::bigint)::text as key from pg_locks
     where locktype = 'advisory' and pid = $1 and granted = $2 order by (classid::bigint << 32) | objid::bigint`,
    [pid, granted],
  );
  return rows.map(({ key }) => key);
}

/** Every idle connection of the pool is asked; the given one must be among them. */
async function expectCleanPool(pid?: number): Promise<void> {
  const clients = await Promise.all(Array.from({ length: database.pool.idleCount }, () => database.pool.connect()));
  try {
    const seen: { pid: number; value: string; locks: number }[] = [];
    for (const client of clients) {
      const { rows } = await client.query(
        `select pg_backend_pid() as pid, current_setting('lock_timeout') as value,
           (select count(*)::int from pg_locks where pid = pg_backend_pid() and locktype = 'advisory') as locks`,
      );
      seen.push(rows[0]);
    }
    expect(seen.map(({ value, locks }) => ({ value, locks }))).toEqual(seen.map(() => ({ value: "0", locks: 0 })));
    if (pid !== undefined) expect(seen.map((row) => row.pid)).toContain(pid);
  } finally {
    for (const client of clients) client.release();
  }
}
