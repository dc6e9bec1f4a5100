/** Concurrency and rate limits per key (FEATURES F-J11): how many run, what waits, and what frees a slot. */
import { beforeEach, expect, test } from "@jest/globals";
import { type ClaimedJob, createLedger } from "../../src/index.ts";
import { createTestDatabase } from "../support/database.ts";

const database = await createTestDatabase();
const ledger = createLedger({ db: database.db, notify: false });

beforeEach(() =>
  database.pool.query(
    "truncate runledger.job_queue, runledger.job_definitions, runledger.job_limits, runledger.job_limit_wakes",
  ),
);

const claim = (limit = 10, types?: string[]) =>
  ledger.jobs.claim({ workerId: "w", limit, ...(types === undefined ? {} : { types }) });
const payloads = (jobs: readonly ClaimedJob[]) => jobs.map(({ payload }) => payload);

test("no more jobs of a key are leased than its limit, and the others use no attempt", async () => {
  const limit = { key: "k", concurrency: 2 };
  await ledger.jobs.enqueueMany(Array.from({ length: 5 }, (_, n) => ({ type: "a", payload: n, limit })));

  const running = await claim();
  expect(payloads(running)).toEqual([0, 1]);
  expect(await claim()).toEqual([]);

  for (const { lease } of running.slice(1)) await ledger.jobs.complete(lease);
  const next = await claim();
  expect(next).toMatchObject([{ payload: 2, limitKey: "k", lease: { attempt: 1 } }]);
});
