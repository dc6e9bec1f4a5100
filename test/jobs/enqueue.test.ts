/** Enqueue without keys (FEATURES F-J2). */
import { expect, test } from "@jest/globals";
import fc from "fast-check";
import { sql } from "kysely";
import { v7 } from "uuid";
import { createLedger, defineJob } from "../../src/index.ts";
import { createTestDatabase } from "../support/database.ts";
import { claimedOne, codeOf, globally } from "./fixtures.ts";

const database = await createTestDatabase();
const ledger = createLedger({ db: database.db });

test("one job: what was asked for is what is stored", async () => {
  const organizationId = v7();
  const tags = ["red", 'with "quotes"', "back\\slash", "comma,brace}", "NULL", "ünïcode"];

  const enqueued = await ledger.jobs.enqueue(
    "one",
    { a: [1, null, "x"] },
    {
      priority: -5,
      maxAttempts: 3,
      timeoutSeconds: 30,
      runAt: new Date("2030-01-02T03:04:05.678Z"),
      organizationId,
      tags,
    },
  );

  expect(enqueued).toEqual({ id: expect.any(String), status: "PENDING", runNumber: 1, disposition: "inserted" });
  expect(await ledger.jobs.get(enqueued.id, { organization: organizationId })).toMatchObject({
    type: "one",
    status: "PENDING",
    payload: { a: [1, null, "x"] },
    priority: -5,
    maxAttempts: 3,
    timeoutSeconds: 30,
    runAt: new Date("2030-01-02T03:04:05.678Z"),
    organizationId,
    tags,
    attempt: 0,
    runNumber: 1,
  });
});

test("a job without a run-at is due at the time of the database", async () => {
  const { id } = await ledger.jobs.enqueue("now", {});

  const { rows } = await database.pool.query(
    "select run_at = enqueued_at as at_once from runledger.job_queue where id = $1",
    [id],
  );
  expect(rows).toEqual([{ at_once: true }]);
});

test("any JSON comes back as it went", async () => {
  // JSON.stringify knows no -0, and jsonb no other order of keys.
  const json = fc.jsonValue().map((value) => JSON.parse(JSON.stringify(value)));
  await fc.assert(
    fc.asyncProperty(fc.array(json, { minLength: 1, maxLength: 20 }), async (payloads) => {
      const storable = payloads.filter((payload) => !/\\u0000|\\ud[89a-f]/i.test(JSON.stringify(payload)));
      if (storable.length === 0) return;
      const jobs = await ledger.jobs.enqueueMany(storable.map((payload) => ({ type: "json", payload })));
      const { rows } = await database.pool.query(
        "select payload::text as payload from runledger.job_queue where id = any($1) order by id",
        [jobs.map(({ id }) => id)],
      );
      expect(rows.map(({ payload }) => JSON.parse(payload))).toEqual(storable);
    }),
    { numRuns: 30 },
  );
});

test.each([null, 0, false, "", "text", '{"not":"parsed"}', [], {}, [[]], { __proto__x: 1 }])(
  "the payload %j reaches the worker as it is",
  async (payload) => {
    await ledger.jobs.enqueue("bare", payload);

    const { payload: claimed, lease } = await claimedOne(ledger, "bare");

    expect(claimed).toEqual(payload);
    await ledger.jobs.complete(lease, { output: payload });
    expect((await ledger.jobs.get(lease.jobId, globally)).output).toEqual(payload);
  },
);

test("many jobs come back in the order of the requests, with ids that ascend in it", async () => {
  const jobs = await ledger.jobs.enqueueMany(
    Array.from({ length: 500 }, (_, n) => ({
      type: "ordered",
      payload: n,
      ...(n % 2 === 0 ? { tags: [`t${n}`] } : {}),
    })),
  );

  expect(jobs.map(({ id }) => id)).toEqual(jobs.map(({ id }) => id).sort());
  const { rows } = await database.pool.query(
    "select payload, tags from runledger.job_queue where type = 'ordered' order by id",
  );
  expect(rows).toEqual(Array.from({ length: 500 }, (_, n) => ({ payload: n, tags: n % 2 === 0 ? [`t${n}`] : null })));
});

test("nothing to enqueue is no statement", async () => {
  const { result, statements } = await database.record(() => ledger.jobs.enqueueMany([]));

  expect([result, statements]).toEqual([[], []]);
});

test("100 000 jobs in one call are one statement", async () => {
  const requests = Array.from({ length: 100_000 }, (_, n) => ({ type: "big-batch", payload: { n } }));

  const { result, statements } = await database.record(() => ledger.jobs.enqueueMany(requests));

  expect(result).toHaveLength(100_000);
  expect(statements).toHaveLength(1);
  const { rows } = await database.pool.query(
    `select count(*)::int as jobs, count(distinct payload->>'n')::int as payloads
     from runledger.job_queue where type = 'big-batch'`,
  );
  expect(rows).toEqual([{ jobs: 100_000, payloads: 100_000 }]);
});

test("jobs of the caller's transaction come and go with it", async () => {
  const count = async () =>
    (await database.pool.query("select count(*)::int as n from runledger.job_queue where type = 'in-trx'")).rows[0].n;
  const rolledBack = database.db.transaction().execute(async (trx) => {
    await ledger.in(trx).jobs.enqueue("in-trx", {});
    await ledger.in(trx).jobs.enqueueMany([{ type: "in-trx", payload: {}, idempotencyKey: "in-trx" }]);
    expect(await ledger.jobs.claim({ workerId: "w", limit: 1, types: ["in-trx"] })).toEqual([]);
    throw new RangeError("no");
  });
  await expect(rolledBack).rejects.toThrow(RangeError);
  expect(await count()).toBe(0);

  await database.db.transaction().execute(async (trx) => {
    await ledger.in(trx).jobs.enqueueMany([{ type: "in-trx", payload: {}, idempotencyKey: "in-trx" }]);
  });
  expect(await count()).toBe(1);
});

test("the ledger never ends the caller's transaction", async () => {
  const { statements } = await database.record(() =>
    database.db.transaction().execute(async (trx) => {
      const bound = ledger.in(trx);
      await bound.jobs.enqueueMany([1, 2].map((n) => ({ type: "caller", payload: n, idempotencyKey: `caller-${n}` })));
      const [job] = await bound.jobs.claim({ workerId: "w", limit: 1, types: ["caller"] });
      if (job) await bound.jobs.complete(job.lease);
    }),
  );

  expect(statements.filter((text) => /^(begin|commit|rollback$|start)/i.test(text))).toEqual(["begin", "commit"]);
});

test("ledger.in() takes a transaction and nothing else", async () => {
  expect(await codeOf(async () => ledger.in(database.db))).toBe("input.invalid");
});

test("times keep their microseconds and their zone", async () => {
  const times = ["2030-01-01T00:00:00.123456Z", "2030-01-01 02:00:00.123456+02", "2029-12-31T18:30:00.123456-05:30"];

  const jobs = await ledger.jobs.enqueueMany(times.map((runAt) => ({ type: "times", payload: {}, runAt })));

  const { rows } = await database.pool.query(
    "select distinct (run_at at time zone 'utc')::text as at from runledger.job_queue where id = any($1)",
    [jobs.map(({ id }) => id)],
  );
  expect(rows).toEqual([{ at: "2030-01-01 00:00:00.123456" }]);
});

test.each(["2030-02-03", "2030-02", "Sun Feb 03 2030 02:00:00 GMT+0200"])(
  "the time %s means what JavaScript says, in a session of any time zone",
  async (runAt) => {
    await database.db.transaction().execute(async (trx) => {
      await sql`set local time zone 'Asia/Tokyo'`.execute(trx);
      const { id } = await ledger.in(trx).jobs.enqueue("days", {}, { runAt });

      expect((await ledger.in(trx).jobs.get(id, globally)).runAt).toEqual(new Date(runAt));
    });
  },
);

test("a schema of the definition reads the payload, and its refusal names paths, not values", async () => {
  const { z } = await import("zod");
  const strict = defineJob("checked", { input: z.object({ email: z.email() }) });

  const error = await ledger.jobs.enqueue(strict, { email: "s3cret" }).catch((thrown: unknown) => thrown);

  expect(error).toMatchObject({ code: "payload.invalid", details: { paths: ["email"] } });
  expect(JSON.stringify(error)).not.toContain("s3cret");
  await expect(ledger.jobs.enqueue(strict, { email: "a@example.com" })).resolves.toMatchObject({ status: "PENDING" });
});

test("the payload is stored as it was given: the schema reads it again for the handler", async () => {
  const { z } = await import("zod");
  const reading = defineJob("read", { input: z.object({ n: z.coerce.number(), name: z.string().default("nobody") }) });

  const { id } = await ledger.jobs.enqueue(reading, { n: "12" });

  expect((await ledger.jobs.get(id, globally)).payload).toEqual({ n: "12" });
});
