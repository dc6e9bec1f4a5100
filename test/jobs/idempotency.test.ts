/** Enqueue with keys (FEATURES F-J3). */
import { expect, test } from "@jest/globals";
import fc from "fast-check";
import { v7 } from "uuid";
import { createLedger, defineJob, type JobRequest } from "../../src/index.ts";
import { createTestDatabase } from "../support/database.ts";
import { waitForBackend } from "../support/waiting.ts";
import { claimedOne, codeOf, errorOf, expire, globally } from "./fixtures.ts";

const database = await createTestDatabase();
const ledger = createLedger({ db: database.db });

const at = "2030-01-02T03:04:05.123456Z";

// A first request, a second of the same key, and whether they ask for the same.
const pairs: readonly [string, Partial<JobRequest>, Partial<JobRequest>, boolean][] = [
  ["nothing", {}, {}, true],
  ["the order of keys", { payload: { a: 1, b: { c: 2, d: 3 } } }, { payload: { b: { d: 3, c: 2 }, a: 1 } }, true],
  ["how a number is written", { payload: [1, 100, 0.1] }, { payload: JSON.parse("[1.0, 1e2, 1.00e-1]") }, true],
  ["an undefined field", { payload: { a: 1, b: undefined } }, { payload: { a: 1 } }, true],
  ["how a time is written", { runAt: at }, { runAt: "2030-01-02 04:04:05.123456+01" }, true],
  ["a Date for a string", { runAt: new Date("2030-01-02T03:04:05.123Z") }, { runAt: "2030-01-02T03:04:05.123Z" }, true],
  ["the defaults in code", { defaults: { priority: 1, maxAttempts: 3 } }, { defaults: { priority: 2 } }, true],
  ["a value of the payload", { payload: { a: 1 } }, { payload: { a: 2 } }, false],
  ["a key of the payload", { payload: { a: 1 } }, { payload: { a: 1, b: null } }, false],
  ["the order of an array", { payload: [1, 2] }, { payload: [2, 1] }, false],
  ["a number for its text", { payload: [1] }, { payload: ["1"] }, false],
  ["a microsecond", { runAt: at }, { runAt: "2030-01-02T03:04:05.123457Z" }, false],
  ["a run-at that is left out", { runAt: at }, {}, false],
  ["a run-at that is added", {}, { runAt: at }, false],
  ["the priority", { priority: 1 }, { priority: 2 }, false],
  ["a priority that is left out", { priority: 100 }, {}, false],
  ["the attempts", { maxAttempts: 1 }, { maxAttempts: 2 }, false],
  ["the timeout", { timeoutSeconds: 1 }, { timeoutSeconds: 2 }, false],
  ["the tags", { tags: ["a"] }, { tags: ["b"] }, false],
  ["the order of tags", { tags: ["a", "b"] }, { tags: ["b", "a"] }, false],
];

const expectations = pairs.map(([what, first, second, same]) => {
  return [what, same ? "the existing job" : "job.idempotency_conflict", first, second, same] as const;
});

test.each(expectations)("a second request that differs in %s gets %s", async (_what, _result, first, second, same) => {
  const idempotencyKey = v7();
  const [inserted] = await ledger.jobs.enqueueMany([{ type: "pair", payload: {}, ...first, idempotencyKey }]);

  const again = () => ledger.jobs.enqueueMany([{ type: "pair", payload: {}, ...second, idempotencyKey }]);

  if (same) expect(await again()).toEqual([{ ...inserted, disposition: "existing" }]);
  else expect(await codeOf(again)).toBe("job.idempotency_conflict");
});

test("payloads are the same exactly when PostgreSQL holds their jsonb equal", async () => {
  // Small values, so that equal ones come up; without what jsonb refuses.
  const leaf = fc.constantFrom<unknown>(0, 1, -1, 0.1, 1e2, "", "1", "a", true, false, null);
  const value = fc.letrec((tie) => ({
    node: fc.oneof(
      { maxDepth: 2 },
      leaf,
      fc.array(tie("node"), { maxLength: 2 }),
      fc.dictionary(fc.constantFrom("a", "b"), tie("node"), { maxKeys: 2 }),
    ),
  })).node;
  await fc.assert(
    fc.asyncProperty(value, value, async (one, two) => {
      const idempotencyKey = v7();
      const { rows } = await database.pool.query("select $1::jsonb = $2::jsonb as same", [
        JSON.stringify(one),
        JSON.stringify(two),
      ]);
      await ledger.jobs.enqueue("property", one, { idempotencyKey });
      const code = await codeOf(() => ledger.jobs.enqueue("property", two, { idempotencyKey }));
      expect(code === "job.idempotency_conflict").toBe(!rows[0].same);
    }),
    { numRuns: 60 },
  );
});

test("1 and 1.0 are the same to jsonb, and so to a key", async () => {
  const first = await ledger.jobs.enqueue("numbers", { n: 1 }, { idempotencyKey: "k" });
  // As a client writes it whose language keeps the zeros.
  await database.pool.query(
    "update runledger.job_idempotency_keys set requested = jsonb_set(requested, '{payload,n}', '1.00') where job_id = $1",
    [first.id],
  );

  expect(await ledger.jobs.enqueue("numbers", { n: 1 }, { idempotencyKey: "k" })).toEqual({
    ...first,
    disposition: "existing",
  });
});

test("a changed definition in the database does not turn a retry into a conflict", async () => {
  await ledger.jobs.sync([defineJob("redefined", { priority: 1 })]);
  const first = await ledger.jobs.enqueue("redefined", {}, { idempotencyKey: "k" });
  await ledger.jobs.sync([defineJob("redefined", { priority: 2, version: 2, maxAttempts: 1 })]);

  expect(await ledger.jobs.enqueue("redefined", {}, { idempotencyKey: "k" })).toEqual({
    ...first,
    disposition: "existing",
  });
});

test("a key belongs to its job type and its tenant", async () => {
  const [one, two] = [v7(), v7()];
  const scopes = [
    { type: "scoped" },
    { type: "scoped", organizationId: one },
    { type: "scoped", organizationId: two },
    { type: "scoped-other" },
    { type: "scoped-other", organizationId: one },
  ];

  const jobs = await ledger.jobs.enqueueMany(scopes.map((scope, n) => ({ ...scope, payload: n, idempotencyKey: "k" })));
  const again = await ledger.jobs.enqueueMany(
    scopes.map((scope, n) => ({ ...scope, payload: n, idempotencyKey: "k" })),
  );

  expect(new Set(jobs.map(({ id }) => id)).size).toBe(scopes.length);
  expect(again.map(({ id }) => id)).toEqual(jobs.map(({ id }) => id));
});

test("no organization can pose as the global tenant", async () => {
  await ledger.jobs.enqueue("tenants", {}, { idempotencyKey: "k" });

  expect(
    await codeOf(() => ledger.jobs.enqueue("tenants", {}, { idempotencyKey: "k", organizationId: "global" })),
  ).toBe("input.invalid");
});

test("the existing job is found in every status, and long after in the ledger", async () => {
  const enqueue = () => ledger.jobs.enqueue("everywhere", { a: 1 }, { idempotencyKey: "k", maxAttempts: 2 });
  const { id } = await enqueue();
  const expectStatus = async (status: string) =>
    expect(await enqueue()).toEqual({ id, status, runNumber: 1, disposition: "existing" });

  await expectStatus("PENDING");
  const job = await claimedOne(ledger, "everywhere");
  await expectStatus("LEASED");
  await ledger.jobs.complete(job.lease);
  await expectStatus("SUCCEEDED");
});

test.each(["CANCELED", "DEAD_LETTERED"])("the existing job is found when it was %s", async (status) => {
  const enqueue = () => ledger.jobs.enqueue(`ended-${status}`, {}, { idempotencyKey: "k", maxAttempts: 1 });
  const { id } = await enqueue();

  if (status === "CANCELED") await ledger.jobs.cancel(id, { scope: globally });
  else {
    await claimedOne(ledger, `ended-${status}`);
    await expire(database, [id]);
    await ledger.jobs.reap();
  }

  expect(await enqueue()).toEqual({ id, status, runNumber: 1, disposition: "existing" });
});

test("the latest run of several is reported", async () => {
  const { id } = await ledger.jobs.enqueue("runs", {}, { idempotencyKey: "k" });
  await ledger.jobs.cancel(id, { scope: globally });
  await database.pool.query(
    `insert into runledger.job_queue (id, run_number, type, priority, run_at, max_attempts, timeout_seconds, payload)
     select id, 2, type, priority, now(), max_attempts, timeout_seconds, payload from runledger.job_ledger where id = $1`,
    [id],
  );

  expect(await ledger.jobs.enqueue("runs", {}, { idempotencyKey: "k" })).toEqual({
    id,
    status: "PENDING",
    runNumber: 2,
    disposition: "existing",
  });
});

test("50 identical enqueues at once: one inserts, the others get its job", async () => {
  const jobs = await Promise.all(
    Array.from({ length: 50 }, () => ledger.jobs.enqueue("stampede", { a: 1 }, { idempotencyKey: "k" })),
  );

  expect(jobs.filter(({ disposition }) => disposition === "inserted")).toHaveLength(1);
  expect(new Set(jobs.map(({ id }) => id)).size).toBe(1);
  const { rows } = await database.pool.query(
    "select count(*)::int as n from runledger.job_queue where type = 'stampede'",
  );
  expect(rows).toEqual([{ n: 1 }]);
});

test.each(["commit", "rollback"] as const)("who finds a key in the making waits, and goes by its %s", async (end) => {
  const trx = await database.db.startTransaction().execute();
  const first = await ledger.in(trx).jobs.enqueue(`making-${end}`, {}, { idempotencyKey: "k" });

  const second = ledger.jobs.enqueue(`making-${end}`, {}, { idempotencyKey: "k" });
  await waitForBackend({ client: database.pool, marker: "runledger:enqueue_keyed_jobs" });
  await trx[end]().execute();

  expect((await second).disposition).toBe(end === "commit" ? "existing" : "inserted");
  expect((await second).id === first.id).toBe(end === "commit");
});

test("batches that share keys in opposite order neither deadlock nor insert twice", async () => {
  const requests = Array.from({ length: 200 }, (_, n) => ({
    type: `opposite-${n % 3}`,
    payload: n,
    idempotencyKey: `k-${n}`,
    organizationId: n % 2 === 0 ? null : "0190a5f0-7b1c-7e3a-9f00-0123456789ab",
  }));
  const orders = [requests, [...requests].reverse(), [...requests].sort(() => Math.random() - 0.5)];

  const { statements, result } = await database.record(() =>
    Promise.all(Array.from({ length: 12 }, (_, n) => ledger.jobs.enqueueMany(orders[n % 3] ?? []))),
  );

  expect(result.flat().filter(({ disposition }) => disposition === "inserted")).toHaveLength(200);
  expect(new Set(result.flat().map(({ id }) => id)).size).toBe(200);
  // Not one of them was tried again.
  expect(statements.filter((text) => text.includes("runledger:enqueue_keyed_jobs"))).toHaveLength(12);
});

test("a batch takes its keys in their own order, not in that of the requests", async () => {
  const keys = ["k1", "k2", "k3", "k4", "k5"];
  const holder = await database.db.startTransaction().execute();
  await ledger.in(holder).jobs.enqueue("in-order", {}, { idempotencyKey: "k3" });

  const batch = ledger.jobs.enqueueMany(
    [...keys].reverse().map((idempotencyKey) => ({ type: "in-order", payload: {}, idempotencyKey })),
  );
  await waitForBackend({ client: database.pool, marker: "runledger:enqueue_keyed_jobs" });

  // A key that another session is about to take makes who wants it wait: this one for no more than a moment.
  const impatient = await database.connect();
  await impatient.query("set lock_timeout = '20ms'");
  const taken: string[] = [];
  for (const key of keys) {
    await impatient.query("begin");
    const insert =
      "insert into runledger.job_idempotency_keys (type, key, job_id, requested) values ('in-order', $1, $2, '{}')";
    await impatient.query(insert, [key, v7()]).catch(() => taken.push(key));
    await impatient.query("rollback");
  }
  expect(taken).toEqual(["k1", "k2", "k3"]);
  await holder.commit().execute();
  expect((await batch).map(({ disposition }) => disposition)).toEqual([
    "inserted",
    "inserted",
    "existing",
    "inserted",
    "inserted",
  ]);
});

test("a batch may name one key twice: the second request gets the first one's job", async () => {
  const request = { type: "twice", payload: { a: 1 }, idempotencyKey: "k" };

  const [one, two, three] = await ledger.jobs.enqueueMany([request, { ...request }, { type: "twice", payload: 3 }]);

  expect(one?.disposition).toBe("inserted");
  expect(two).toEqual({ ...one, disposition: "existing" });
  expect(three).toMatchObject({ disposition: "inserted" });
});

test("a conflict in a batch inserts nothing of it", async () => {
  await ledger.jobs.enqueue("batch", { a: 1 }, { idempotencyKey: "taken" });

  const error = await errorOf(ledger.jobs.enqueueMany(conflicting));

  expect(error).toMatchObject({ code: "job.idempotency_conflict", category: "conflict", retryable: false });
  expect(await countsOfBatch()).toEqual({ jobs: 1, keys: 1 });
});

test("a conflict in a batch inserts nothing of it either when the caller's transaction goes on and commits", async () => {
  await database.db.transaction().execute(async (trx) => {
    expect(await codeOf(() => ledger.in(trx).jobs.enqueueMany(conflicting))).toBe("job.idempotency_conflict");
    await ledger.in(trx).jobs.enqueue("went-on", {});
  });

  expect(await countsOfBatch()).toEqual({ jobs: 1, keys: 1 });
  const { rows } = await database.pool.query(
    "select count(*)::int as n from runledger.job_queue where type = 'went-on'",
  );
  expect(rows).toEqual([{ n: 1 }]);
});

test("a key of 512 bytes is taken and one of 513 is not", async () => {
  const key = "ü".repeat(256);

  expect((await ledger.jobs.enqueue("long", {}, { idempotencyKey: key })).disposition).toBe("inserted");
  expect(await codeOf(() => ledger.jobs.enqueue("long", {}, { idempotencyKey: `${key}x` }))).toBe("input.invalid");
});

const conflicting: readonly JobRequest[] = [
  { type: "batch", payload: { a: 1 }, idempotencyKey: "new" },
  { type: "batch", payload: { a: 2 }, idempotencyKey: "taken" },
  { type: "batch", payload: {} },
];

async function countsOfBatch() {
  const { rows } = await database.pool.query(
    `select (select count(*) from runledger.job_queue where type = 'batch')::int as jobs,
       (select count(*) from runledger.job_idempotency_keys where type = 'batch')::int as keys`,
  );
  return rows[0];
}
