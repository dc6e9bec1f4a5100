/** Two sessions and one key, each of them by SQL or by TypeScript: who comes second waits for the first, and goes by what it did. */
import { afterEach, describe, expect, test } from "@jest/globals";
import { createLedger, type EnqueuedJob, type JobOptions } from "../../src/index.ts";
import { expectInvariants, watchForDeadlocks } from "../invariants.ts";
import { createTestDatabase } from "../support/database.ts";
import { waitForBackend } from "../support/waiting.ts";
import { bySql, manyBySql } from "./by-sql.ts";

const database = await createTestDatabase();
const expectNoDeadlocks = watchForDeadlocks(database);
const { db, pool } = database;
const ledger = createLedger({ db });

afterEach(async () => {
  await expectInvariants(database);
  expectNoDeadlocks();
});

type Side = "SQL" | "TypeScript";

function enqueue(side: Side, type: string, payload: unknown, options: JobOptions, of = db) {
  if (side === "SQL") return bySql(of, type, payload, options);
  return (of.isTransaction ? ledger.in(of) : ledger).jobs.enqueue(type, payload, options);
}

const keys: readonly (readonly [string, JobOptions, EnqueuedJob["disposition"]])[] = [
  ["an active key", { active: { key: "k" } }, "existing_active"],
  ["an active key that replaces", { active: { key: "k", replace: true } }, "replaced"],
  ["a debounce key", { debounce: { key: "k", seconds: 60 } }, "replaced"],
  ["a throttle key", { throttle: { key: "k", seconds: 60 } }, "throttled"],
  ["an idempotency key for a time", { idempotencyKey: "k", idempotencyTtlSeconds: 60 }, "existing"],
];
const sides: readonly (readonly [Side, Side])[] = [
  ["SQL", "SQL"],
  ["SQL", "TypeScript"],
  ["TypeScript", "SQL"],
];
const cases = keys.flatMap(([name, options, disposition]) =>
  sides.map(([first, second]) => ({ name, options, disposition, first, second })),
);

let types = 0;
function newType(): string {
  types += 1;
  return `raced ${types}`;
}

/** The second request is made while the transaction of the first is open, which then ends. */
async function race(type: string, { options, first, second }: (typeof cases)[number], end: "commit" | "rollback") {
  const trx = await db.startTransaction().execute();
  const one = await enqueue(first, type, 1, options, trx);
  const waiting = enqueue(second, type, 1, options);
  await waitForBackend({ client: pool });
  await trx[end]().execute();
  return { one, other: await waiting };
}

async function liveJobs(type: string): Promise<number> {
  const { rowCount } = await pool.query("select from runledger.job_queue where type = $1", [type]);
  return rowCount ?? 0;
}

describe.each(cases)("$name, $first before $second", (one) => {
  test("after a commit it is the job of the first", async () => {
    const type = newType();
    const { one: first, other } = await race(type, one, "commit");
    expect(other).toEqual({ ...first, disposition: one.disposition });
    expect(await liveJobs(type)).toBe(1);
  });

  test("after a rollback it is a new one", async () => {
    const type = newType();
    const { other } = await race(type, one, "rollback");
    expect(other).toMatchObject({ disposition: "inserted" });
    expect(await liveJobs(type)).toBe(1);
  });
});

describe.each(cases.filter(({ options }) => options.throttle ?? options.idempotencyKey))(
  "$name that has expired, $first before $second",
  (one) => {
    test.each(["commit", "rollback"] as const)("is taken anew once, whatever the first ends in: %s", async (end) => {
      const type = newType();
      const old = await enqueue("SQL", type, 1, one.options);
      await pool.query("update runledger.job_idempotency_keys set expires_at = clock_timestamp() where type = $1", [
        type,
      ]);
      const { one: first, other } = await race(type, one, end);
      expect(first).toMatchObject({ disposition: "inserted" });
      expect(other.disposition).toBe(end === "commit" ? one.disposition : "inserted");
      expect(other.id === first.id).toBe(end === "commit");
      expect(other.id).not.toBe(old.id);
      expect(await liveJobs(type)).toBe(2);
    });
  },
);

describe("a job that is being claimed", () => {
  test.each([
    ["commit", { active: { key: "k", replace: true } }, "existing_active"],
    ["rollback", { active: { key: "k", replace: true } }, "replaced"],
    ["commit", { debounce: { key: "k", seconds: 60 } }, "inserted"],
    ["rollback", { debounce: { key: "k", seconds: 60 } }, "replaced"],
  ] as const)("is waited for, and after a %s of %j it is %s", async (end, options, disposition) => {
    const type = newType();
    await bySql(db, type, 1, options);
    await pool.query("update runledger.job_queue set run_at = enqueued_at where type = $1", [type]);
    const trx = await db.startTransaction().execute();
    expect(await ledger.in(trx).jobs.claim({ workerId: "w", limit: 1, types: [type] })).toHaveLength(1);
    const waiting = bySql(db, type, 2, options);
    await waitForBackend({ client: pool, marker: "enqueue_job" });
    await trx[end]().execute();
    expect(await waiting).toMatchObject({ disposition });
  });
});

describe("a batch that waits for the first of its keys or jobs has not got the next: all take them in one order", () => {
  const keyOf = (kind: string, type: string) => (key: string) => ({
    type,
    payload: 1,
    ...(kind === "idempotencyKey"
      ? { idempotencyKey: key }
      : { [kind]: kind === "active" ? { key } : { key, seconds: 60 } }),
  });

  test.each(["active", "debounce", "throttle", "idempotencyKey"])("%s keys that are free", async (kind) => {
    const type = newType();
    const request = keyOf(kind, type);
    const trx = await db.startTransaction().execute();
    await manyBySql(trx, [request("a")]);
    const waiting = manyBySql(db, [request("b"), request("a")]);
    await waitForBackend({ client: pool, marker: "enqueue_jobs" });
    expect(await manyBySql(db, [request("b")])).toMatchObject([{ disposition: "inserted" }]);
    await trx.rollback().execute();
    expect((await waiting).map(({ disposition }) => disposition)[1]).toBe("inserted");
  });

  test.each(["debounce", "throttle"])("%s keys that are held", async (kind) => {
    const type = newType();
    const request = keyOf(kind, type);
    await manyBySql(db, [request("a"), request("b")]);
    await pool.query("update runledger.job_idempotency_keys set expires_at = clock_timestamp() where type = $1", [
      type,
    ]);
    const [table, key] = kind === "debounce" ? ["job_queue", "debounce_key"] : ["job_idempotency_keys", "key"];
    const lock = (of: string, wait = "") =>
      `select from runledger.${table} where type = '${type}' and ${key} = '${of}' for update ${wait}`;
    const holder = await database.connect();
    await holder.query(`begin; ${lock("a")}`);
    const waiting = manyBySql(db, [request("b"), request("a")]);
    await waitForBackend({ client: pool, marker: "enqueue_jobs" });
    expect((await pool.query(lock("b", "nowait"))).rowCount).toBe(1);
    await holder.query("rollback");
    await waiting;
  });
});

test("batches of both sides with the same keys in any order end in no deadlock, and one job for each key", async () => {
  const type = newType();
  const requests = ["a", "b", "c", "d", "e"].flatMap((key) => [
    { type, payload: 1, active: { key } },
    { type, payload: 1, active: { key, replace: true } },
    { type, payload: 1, debounce: { key, seconds: 60 } },
    { type, payload: 1, throttle: { key, seconds: 60 } },
    { type, payload: 1, idempotencyKey: key },
  ]);
  const batches = Array.from({ length: 40 }, (_, n) =>
    requests
      .map((_, place) => requests[(place * (1 + (n % 4)) * 3 + n) % requests.length])
      .filter((one) => one !== undefined),
  );
  await Promise.all(batches.map((batch, n) => (n % 2 === 0 ? manyBySql(db, batch) : ledger.jobs.enqueueMany(batch))));
  expect(await liveJobs(type)).toBe(20);
}, 60_000);
