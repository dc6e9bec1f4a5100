/** Throttle: at most one job of a key in each window of time (FEATURES F-J12). */
import { afterEach, describe, expect, test } from "@jest/globals";
import { v7 } from "uuid";
import { createLedger, type JobRequest, type Ledger } from "../../src/index.ts";
import { expectInvariants } from "../invariants.ts";
import { createTestDatabase } from "../support/database.ts";
import { waitForBackend } from "../support/waiting.ts";
import { claimedOne, globally } from "./fixtures.ts";
import { liveJobs, openWith } from "./keys.ts";

const database = await createTestDatabase();
const ledger = createLedger({ db: database.db });

afterEach(() => expectInvariants(database));

const throttle = (type: string, payload: unknown, l: Ledger = ledger) =>
  l.jobs.enqueue(type, payload, { throttle: { key: "k", seconds: 60 } });

/** Moves the windows of a type back in time, as if the seconds had passed. */
async function age(type: string, seconds: number): Promise<void> {
  await database.pool.query(
    "update runledger.job_idempotency_keys set expires_at = expires_at - make_interval(secs => $2) where type = $1",
    [type, seconds],
  );
}

describe("throttle", () => {
  test("gives the window's job, whatever is asked for, until the window has passed", async () => {
    const first = await throttle("window", { a: 1 });
    expect(first).toMatchObject({ disposition: "inserted" });
    await age("window", 59);
    expect(await throttle("window", { b: 2 })).toEqual({ ...first, disposition: "throttled" });
    expect(
      await ledger.jobs.enqueue("window", 3, {
        throttle: { key: "k", seconds: 1 },
        runAt: "2030-01-01T00:00:00Z",
        priority: 1,
      }),
    ).toEqual({ ...first, disposition: "throttled" });

    await age("window", 1);
    const next = await throttle("window", { b: 2 });

    expect(next).toMatchObject({ disposition: "inserted" });
    expect((await liveJobs(database, "window")).map(({ payload }) => payload)).toEqual([{ a: 1 }, { b: 2 }]);
    expect(await throttle("window", 4)).toEqual({ ...next, disposition: "throttled" });
  });

  test("is measured from the enqueue of the window's job: requests in it do not put its end off", async () => {
    await throttle("fixed", 1);
    await age("fixed", 30);
    await throttle("fixed", 2);

    const { rows } = await database.pool.query(
      `select round(extract(epoch from expires_at - clock_timestamp()))::int as rest
       from runledger.job_idempotency_keys where type = 'fixed'`,
    );
    expect(rows).toEqual([{ rest: 30 }]);
  });

  test("gives the job in whatever status, and does not wait for its end", async () => {
    const first = await throttle("statuses", 1);
    const { lease } = await claimedOne(ledger, "statuses");
    expect(await throttle("statuses", 2)).toEqual({ ...first, status: "LEASED", disposition: "throttled" });
    await ledger.jobs.complete(lease);
    expect(await throttle("statuses", 3)).toEqual({ ...first, status: "SUCCEEDED", disposition: "throttled" });

    await age("statuses", 60);
    const second = await throttle("statuses", 4);
    await ledger.jobs.cancel(second.id, { scope: globally });
    expect(await throttle("statuses", 5)).toEqual({ ...second, status: "CANCELED", disposition: "throttled" });
  });

  test("is for one type and tenant", async () => {
    const requests: JobRequest[] = [{}, { organizationId: v7() }, { type: "scoped-other" }].map((scope, n) => ({
      type: "scoped",
      payload: n,
      throttle: { key: "k", seconds: 60 },
      ...scope,
    }));

    const jobs = await ledger.jobs.enqueueMany(requests);
    const again = await ledger.jobs.enqueueMany(requests);

    expect(jobs.map(({ disposition }) => disposition)).toEqual(Array(3).fill("inserted"));
    expect(again).toEqual(jobs.map((job) => ({ ...job, disposition: "throttled" })));
  });

  test("in a batch of 1000 for 10 keys makes 10 jobs, each of the first request", async () => {
    const requests = Array.from({ length: 1000 }, (_, n) => ({
      type: "thousand",
      payload: n,
      throttle: { key: `k-${n % 10}`, seconds: 60 },
    }));

    const jobs = await ledger.jobs.enqueueMany(requests);

    expect(jobs.filter(({ disposition }) => disposition === "inserted")).toHaveLength(10);
    const payloads = (await liveJobs(database, "thousand")).map(({ payload }) => payload);
    expect(payloads).toEqual(Array.from({ length: 10 }, (_, n) => n));
  });

  test("a window without an end cannot be stored", async () => {
    await throttle("endless", 1);
    const endless = database.pool.query(
      "update runledger.job_idempotency_keys set expires_at = null where type = 'endless'",
    );

    await expect(endless).rejects.toMatchObject({ constraint: "job_idempotency_keys_window_ends" });
  });
});

describe("two sessions", () => {
  test.each([
    ["commit", "of a new key"],
    ["rollback", "of a new key"],
    ["commit", "of a window that has passed"],
    ["rollback", "of a window that has passed"],
  ] as const)("the second request goes by the %s of the first, %s", async (end, which) => {
    const type = `${end} ${which}`;
    if (which !== "of a new key") {
      await throttle(type, 0);
      await age(type, 60);
    }
    const first = await openWith(database, ledger, (l) => throttle(type, 1, l));
    expect(first.result.disposition).toBe("inserted");

    const second = throttle(type, 2);
    await waitForBackend({ client: database.pool, marker: "runledger:enqueue_keyed_jobs" });
    await first[end]();

    expect((await second).disposition).toBe(end === "commit" ? "throttled" : "inserted");
    expect((await second).id === first.result.id).toBe(end === "commit");
  });

  test("50 requests at once make one job", async () => {
    const jobs = await Promise.all(Array.from({ length: 50 }, (_, n) => throttle("stampede", n)));

    expect(jobs.filter(({ disposition }) => disposition === "inserted")).toHaveLength(1);
    expect(await liveJobs(database, "stampede")).toHaveLength(1);
  });
});
