/** Claim (FEATURES F-J4): the order, what stays, and never the same job twice. */
import { beforeEach, expect, test } from "@jest/globals";
import fc from "fast-check";
import { type ClaimedJob, createLedger, type JobRequest } from "../../src/index.ts";
import { createTestDatabase } from "../support/database.ts";
import { globally } from "./fixtures.ts";

const database = await createTestDatabase({ max: 34 });
const ledger = createLedger({ db: database.db, notify: false });

beforeEach(() => database.pool.query("truncate runledger.job_queue, runledger.job_definitions"));

const past = (minutes: number) => new Date(Date.now() - minutes * 60_000);

test("a claim is a lease: one attempt more, a worker, an end", async () => {
  const { id } = await ledger.jobs.enqueue("leased", { a: 1 }, { tags: ["t"], priority: 3 });

  const [job] = await ledger.jobs.claim({ workerId: "me", limit: 1, leaseSeconds: 120 });

  expect(job).toMatchObject({
    lease: { jobId: id, runNumber: 1, attempt: 1, workerId: "me", workflowRunId: null },
    type: "leased",
    payload: { a: 1 },
    checkpoint: null,
    priority: 3,
    tags: ["t"],
    workflowStepId: null,
  });
  const { rows } = await database.pool.query(
    `select status, attempt, worker_id, extract(epoch from lease_expires_at - leased_at)::float as seconds
     from runledger.job_queue where id = $1`,
    [id],
  );
  expect(rows).toMatchObject([{ status: "LEASED", attempt: 1, worker_id: "me" }]);
  expect(rows[0].seconds).toBeCloseTo(120, 1);
});

test("the order is priority, then run-at, then id, across types and priorities", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(
        fc.record({
          type: fc.integer({ min: 0, max: 3 }),
          priority: fc.integer({ min: -1, max: 2 }),
          minutes: fc.integer({ min: 1, max: 3 }),
        }),
        { minLength: 1, maxLength: 40 },
      ),
      fc.integer({ min: 1, max: 15 }),
      fc.boolean(),
      async (specs, limit, named) => {
        await database.pool.query("truncate runledger.job_queue");
        const requests = specs.map(({ type, priority, minutes }) => ({
          type: `t${type}`,
          priority,
          runAt: past(minutes),
          payload: {},
        }));
        await ledger.jobs.enqueueMany(requests);
        const { rows } = await database.pool.query<{ id: string }>(
          "select id from runledger.job_queue order by priority desc, run_at, id",
        );

        const types = named ? { types: ["t0", "t1", "t2", "t3", "t1"] } : {};
        const claimed: string[] = [];
        for (;;) {
          const jobs = await ledger.jobs.claim({ workerId: "w", limit, ...types });
          if (jobs.length === 0) break;
          claimed.push(...jobs.map(({ lease }) => lease.jobId));
        }

        expect(claimed).toEqual(rows.map(({ id }) => id));
      },
    ),
    { numRuns: 25 },
  );
});

test("a job of the future is not claimed, and hides none that is due", async () => {
  await ledger.jobs.enqueueMany([
    { type: "a", payload: "future", priority: 200, runAt: new Date(Date.now() + 3_600_000) },
    { type: "a", payload: "future", priority: 100, runAt: new Date(Date.now() + 3_600_000) },
    { type: "a", payload: "low", priority: 1 },
    { type: "a", payload: "middle", priority: 100 },
    { type: "b", payload: "future", priority: 300, runAt: new Date(Date.now() + 3_600_000) },
    { type: "b", payload: "other", priority: 50 },
  ]);

  expect((await ledger.jobs.claim({ workerId: "w", limit: 10 })).map(({ payload }) => payload)).toEqual([
    "middle",
    "other",
    "low",
  ]);
  expect(await ledger.jobs.claim({ workerId: "w", limit: 10 })).toEqual([]);
});

test("a run-at without a number, written by hand, keeps no job from being claimed", async () => {
  const { id } = await ledger.jobs.enqueue("odd", "of old");
  await ledger.jobs.enqueue("odd", "of today");
  await database.pool.query("update runledger.job_queue set run_at = '-infinity' where id = $1", [id]);

  const jobs = await ledger.jobs.claim({ workerId: "w", limit: 2 });
  expect(jobs.map(({ payload }) => payload)).toEqual(["of old", "of today"]);
});

test("only the types that were asked for are claimed; none are asked for by an empty list", async () => {
  await ledger.jobs.enqueueMany(["a", "b", "c"].map((type) => ({ type, payload: {} })));

  expect(await ledger.jobs.claim({ workerId: "w", limit: 10, types: [] })).toEqual([]);
  expect(
    (await ledger.jobs.claim({ workerId: "w", limit: 10, types: ["c", "a", "x"] })).map(({ type }) => type),
  ).toEqual(["a", "c"]);
  expect((await ledger.jobs.claim({ workerId: "w", limit: 10 })).map(({ type }) => type)).toEqual(["b"]);
});

test("paused types keep their jobs, with or without a list of types, and do not hold up others", async () => {
  await ledger.jobs.pause(["paused"]);
  await ledger.jobs.enqueueMany([
    ...Array.from({ length: 20 }, () => ({ type: "paused", payload: {}, priority: 999 })),
    { type: "runs", payload: {} },
  ]);

  expect(
    (await ledger.jobs.claim({ workerId: "w", limit: 5, types: ["paused", "runs"] })).map(({ type }) => type),
  ).toEqual(["runs"]);
  expect(await ledger.jobs.claim({ workerId: "w", limit: 5 })).toEqual([]);
});

test("an empty queue is an empty claim, in one round trip", async () => {
  const { result, statements } = await database.record(() => ledger.jobs.claim({ workerId: "w", limit: 5 }));

  expect(result).toEqual([]);
  expect(statements).toHaveLength(1);
});

test("an attempt counts up with every claim", async () => {
  await ledger.jobs.enqueue("again", {});
  const attempts: number[] = [];
  for (let n = 0; n < 3; n += 1) {
    const [job] = await ledger.jobs.claim({ workerId: "w", limit: 1 });
    if (!job) throw new Error("nothing was claimed");
    attempts.push(job.lease.attempt);
    await ledger.jobs.fail(job.lease, { code: "c", message: "m" });
    await database.pool.query("update runledger.job_queue set run_at = now()");
  }

  expect(attempts).toEqual([1, 2, 3]);
});

const lanes: readonly [string, (n: number) => Partial<JobRequest>, number][] = [
  ["one lane", () => ({}), 10],
  ["one lane, by one", () => ({}), 1],
  ["twelve lanes of types and priorities", (n) => ({ type: `t${n % 4}`, priority: n % 3 }), 10],
  ["a lane that is short before one that is long", (n) => ({ priority: n < 200 ? 10 : 1 }), 25],
];

test.each(lanes)(
  "32 claimers on 10 000 jobs in %s claim each exactly once and leave none",
  async (_name, lane, limit) => {
    const count = limit === 1 ? 1000 : 10_000;
    await ledger.jobs.enqueueMany(Array.from({ length: count }, (_, n) => ({ type: "crowd", payload: n, ...lane(n) })));
    await database.pool.query("analyze runledger.job_queue");

    const claims = await Promise.all(Array.from({ length: 32 }, (_, worker) => drained(`w${worker}`, limit)));

    const claimed = claims.flat();
    expect(claimed).toHaveLength(count);
    expect(new Set(claimed.map(({ lease }) => lease.jobId)).size).toBe(count);
    const { rows } = await database.pool.query(
      "select status, attempt, count(*)::int as n from runledger.job_queue group by status, attempt",
    );
    expect(rows).toEqual([{ status: "LEASED", attempt: 1, n: count }]);
    const owners = await database.pool.query<{ id: string; worker_id: string }>(
      "select id, worker_id from runledger.job_queue",
    );
    const owner = new Map(owners.rows.map((row) => [row.id, row.worker_id]));
    expect(claimed.filter(({ lease }) => owner.get(lease.jobId) !== lease.workerId)).toEqual([]);
  },
);

test.each([1, 3])("rows that another session holds are passed over in a single lane: limit %i", async (limit) => {
  await ledger.jobs.enqueueMany(Array.from({ length: 10 }, (_, n) => ({ type: "held", payload: n })));

  await withHeldRows("payload::int < 5", async () => {
    const jobs = await ledger.jobs.claim({ workerId: "w", limit });
    expect(jobs.map(({ payload }) => payload)).toEqual([5, 6, 7].slice(0, limit));
  });
});

test.each([1, 2, 3, 5])("rows that another session holds do not keep those of other lanes: limit %i", async (limit) => {
  await ledger.jobs.enqueueMany([
    ...Array.from({ length: 5 }, () => ({ type: "a", payload: "held", priority: 100 })),
    ...Array.from({ length: 5 }, () => ({ type: "a", payload: "free", priority: 50 })),
    ...Array.from({ length: 5 }, () => ({ type: "b", payload: "free", priority: 10 })),
  ]);

  await withHeldRows(`payload = '"held"'`, async () => {
    const jobs = await ledger.jobs.claim({ workerId: "w", limit });
    expect(jobs.length).toBeGreaterThan(0);
    expect(jobs.every(({ payload }) => payload === "free")).toBe(true);
    const { length } = await drained("w", limit);
    expect(length + jobs.length).toBe(10);
  });
});

test("a claim locks no more rows than it claims", async () => {
  await ledger.jobs.enqueueMany([
    ...Array.from({ length: 20 }, (_, n) => ({ type: "a", payload: n, priority: n % 2 })),
    ...Array.from({ length: 20 }, (_, n) => ({ type: "b", payload: n, priority: n % 3 })),
  ]);
  const trx = await database.db.startTransaction().execute();

  const claimed = await ledger.in(trx).jobs.claim({ workerId: "w", limit: 7 });

  const { rowCount } = await database.pool.query("select from runledger.job_queue for update skip locked");
  expect(claimed).toHaveLength(7);
  expect(rowCount).toBe(33);
  await trx.rollback().execute();
});

test("a claim in a transaction that is rolled back never was", async () => {
  const { id } = await ledger.jobs.enqueue("rolled-back", {});
  const trx = await database.db.startTransaction().execute();
  expect(await ledger.in(trx).jobs.claim({ workerId: "w", limit: 1 })).toHaveLength(1);
  await trx.rollback().execute();

  expect(await ledger.jobs.get(id, globally)).toMatchObject({ status: "PENDING", attempt: 0, workerId: null });
});

async function drained(workerId: string, limit: number): Promise<ClaimedJob[]> {
  const claimed: ClaimedJob[] = [];
  for (;;) {
    const jobs = await ledger.jobs.claim({ workerId, limit });
    if (jobs.length === 0) return claimed;
    claimed.push(...jobs);
  }
}

async function withHeldRows(which: string, action: () => Promise<void>): Promise<void> {
  const holder = await database.connect();
  await holder.query("begin");
  await holder.query(`select from runledger.job_queue where ${which} for update`);
  try {
    await action();
  } finally {
    await holder.query("rollback");
    await holder.end();
  }
}
