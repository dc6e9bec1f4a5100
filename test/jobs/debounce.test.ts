/** Debounce: requests that come soon after one another become one job, with the payload of the last (FEATURES F-J12). */
import { afterEach, describe, expect, test } from "@jest/globals";
import { v7 } from "uuid";
import { createLedger, type JobRequest, type Ledger } from "../../src/index.ts";
import { expectInvariants, watchForDeadlocks } from "../invariants.ts";
import { createTestDatabase } from "../support/database.ts";
import { until, waitForBackend } from "../support/waiting.ts";
import { claimedOne, codeOf, globally, makeDue } from "./fixtures.ts";
import { liveJobs, marker, openWith } from "./keys.ts";

const database = await createTestDatabase();
const expectNoDeadlocks = watchForDeadlocks(database);
const ledger = createLedger({ db: database.db });

afterEach(async () => {
  await expectInvariants(database);
  expectNoDeadlocks();
});

const debounce = (type: string, payload: unknown, times: Times = {}, l: Ledger = ledger) =>
  l.jobs.enqueue(type, payload, { debounce: { key: "k", seconds: 60, ...times } });
interface Times {
  readonly seconds?: number;
  readonly maxSeconds?: number;
}
const waiting = () => waitForBackend({ client: database.pool, marker });

/** Moves a job back in time, as if the seconds had passed. */
async function age(type: string, seconds: number): Promise<void> {
  await database.pool.query(
    `update runledger.job_queue set run_at = run_at - make_interval(secs => $2),
       enqueued_at = enqueued_at - make_interval(secs => $2) where type = $1`,
    [type, seconds],
  );
}

/** In how many seconds the pending job of a type starts, to the second. */
async function startsIn(type: string): Promise<number> {
  const { rows } = await database.pool.query(
    "select round(extract(epoch from run_at - clock_timestamp()))::int as seconds from runledger.job_queue where type = $1",
    [type],
  );
  return rows[0].seconds;
}

describe("debounce", () => {
  test("gives the pending job the newest payload, and puts its start off", async () => {
    const first = await debounce("calm", 1);
    expect(first).toMatchObject({ status: "PENDING", disposition: "inserted" });
    await age("calm", 40);
    expect(await startsIn("calm")).toBe(20);

    expect(await debounce("calm", 2)).toEqual({ ...first, disposition: "replaced" });

    expect(await startsIn("calm")).toBe(60);
    expect(await liveJobs(database, "calm")).toMatchObject([{ id: first.id, payload: 2, debounce_key: "k" }]);
  });

  test("starts as long after the last request as that says, sooner too", async () => {
    await debounce("sooner", 1, { seconds: 60 });
    await debounce("sooner", 2, { seconds: 5 });

    expect(await startsIn("sooner")).toBe(5);
  });

  test("starts at most the longest wait after the first request", async () => {
    await debounce("bounded", 1, { maxSeconds: 100 });
    await age("bounded", 50);
    await debounce("bounded", 2, { maxSeconds: 100 });
    expect(await startsIn("bounded")).toBe(50);

    await age("bounded", 49);
    await debounce("bounded", 3, { maxSeconds: 100 });
    expect(await startsIn("bounded")).toBe(1);

    await age("bounded", 10);
    await debounce("bounded", 4, { maxSeconds: 100 });
    expect(await startsIn("bounded")).toBe(-9);
    expect((await claimedOne(ledger, "bounded")).payload).toBe(4);
  });

  test("takes the settings that a request names, and writes no event", async () => {
    const { id } = await debounce("settings", 1);

    await ledger.jobs.enqueue("settings", 2, { debounce: { key: "k", seconds: 60 }, priority: 7, tags: ["late"] });

    expect(await ledger.jobs.get(id, globally)).toMatchObject({ payload: 2, priority: 7, tags: ["late"] });
    const { rows } = await database.pool.query("select from runledger.job_events where job_id = $1", [id]);
    expect(rows).toEqual([]);
  });

  test("is for one type and tenant", async () => {
    const requests: JobRequest[] = [{}, { organizationId: v7() }, { type: "scoped-other" }].map((scope, n) => ({
      type: "scoped",
      payload: n,
      debounce: { key: "k", seconds: 60 },
      ...scope,
    }));

    const jobs = await ledger.jobs.enqueueMany(requests);
    const again = await ledger.jobs.enqueueMany(requests);

    expect(jobs.map(({ disposition }) => disposition)).toEqual(Array(3).fill("inserted"));
    expect(again).toEqual(jobs.map((job) => ({ ...job, disposition: "replaced" })));
  });

  test("in a batch of 1000 for 10 keys makes 10 jobs, each with the last payload", async () => {
    const requests = Array.from({ length: 1000 }, (_, n) => ({
      type: "thousand",
      payload: n,
      debounce: { key: `k-${n % 10}`, seconds: 60 },
    }));

    const jobs = await ledger.jobs.enqueueMany(requests);

    expect(jobs.filter(({ disposition }) => disposition === "inserted")).toHaveLength(10);
    expect(jobs.filter(({ disposition }) => disposition === "replaced")).toHaveLength(990);
    const payloads = (await liveJobs(database, "thousand")).map(({ payload }) => payload);
    expect(payloads).toEqual(Array.from({ length: 10 }, (_, n) => 990 + n));
  });
});

describe("a debounced job that has been claimed", () => {
  const claimDue = async (type: string, l: Ledger = ledger) => {
    await age(type, 61);
    return claimedOne(l, type);
  };

  test("runs with what it has: the next request is a job of its own, that waits and takes those after it", async () => {
    const first = await debounce("running", 1);
    const running = await claimDue("running");
    expect(running.payload).toBe(1);

    const second = await debounce("running", 2);
    const third = await debounce("running", 3);

    expect(second).toMatchObject({ disposition: "inserted" });
    expect(third).toEqual({ ...second, disposition: "replaced" });
    expect(await liveJobs(database, "running")).toMatchObject([
      { id: first.id, status: "LEASED", payload: 1, debounce_key: null },
      { id: second.id, status: "PENDING", payload: 3, debounce_key: "k" },
    ]);
    await ledger.jobs.complete(running.lease);
    expect((await claimDue("running")).payload).toBe(3);
  });

  test("is tried again with what it had, beside the one of the next requests", async () => {
    const first = await debounce("again", 1);
    const { lease } = await claimDue("again");
    const second = await debounce("again", 2);
    await ledger.jobs.fail(lease, { code: "c", message: "m" });

    expect(await debounce("again", 3)).toEqual({ ...second, disposition: "replaced" });
    expect(await liveJobs(database, "again")).toMatchObject([
      { id: first.id, payload: 1 },
      { id: second.id, payload: 3 },
    ]);
    await makeDue(database, [first.id]);
    expect((await claimedOne(ledger, "again")).payload).toBe(1);
  });

  test("is debounced no more when the claim is handed back", async () => {
    const first = await debounce("back", 1);
    await ledger.jobs.handBack([(await claimDue("back")).lease]);

    expect(await debounce("back", 2)).toMatchObject({ disposition: "inserted" });
    expect(await liveJobs(database, "back")).toMatchObject([{ id: first.id, payload: 1 }, { payload: 2 }]);
  });

  test("that is cancelled before it is claimed leaves its key", async () => {
    const { id } = await debounce("canceled", 1);
    await ledger.jobs.cancel(id, { scope: globally });

    expect(await debounce("canceled", 2)).toMatchObject({ disposition: "inserted" });
  });

  test("by its limit has no key any more either", async () => {
    const limit = { key: "limited", concurrency: 1 };
    const request = (payload: number) =>
      ledger.jobs.enqueue("limited", payload, { limit, debounce: { key: "k", seconds: 60 } });
    await request(1);
    await request(2);
    await age("limited", 61);

    const { payload, lease } = await claimedOne(ledger, "limited");
    expect(payload).toBe(2);
    expect(await request(3)).toMatchObject({ disposition: "inserted" });
    await age("limited", 61);
    expect(await ledger.jobs.claim({ workerId: "w", limit: 1, types: ["limited"] })).toEqual([]);
    await ledger.jobs.complete(lease);
    expect((await claimedOne(ledger, "limited")).payload).toBe(3);
  });

  test("by whatever statement, cannot keep its key", async () => {
    await debounce("by-hand", 1);
    const leased = database.pool.query(
      `update runledger.job_queue set status = 'LEASED', worker_id = 'w', attempt = 1, leased_at = now(),
         lease_expires_at = now() where type = 'by-hand'`,
    );

    await expect(leased).rejects.toMatchObject({ constraint: "job_queue_debounced_is_pending" });
  });
});

describe("two sessions", () => {
  test.each(["commit", "rollback"] as const)("a request while a claim is under way goes by its %s", async (end) => {
    const type = `claiming-${end}`;
    const first = await debounce(type, 1);
    await age(type, 61);
    const claim = await openWith(database, ledger, (l) => claimedOne(l, type));

    const second = debounce(type, 2);
    await waiting();
    await claim[end]();

    expect((await second).disposition).toBe(end === "commit" ? "inserted" : "replaced");
    expect((await second).id === first.id).toBe(end === "rollback");
    // Nothing of the newest request is lost.
    const last = (await liveJobs(database, type)).at(-1);
    expect(last).toMatchObject({ id: (await second).id, status: "PENDING", payload: 2 });
  });

  test("a request that waited for a claim which was handed back is a job of its own", async () => {
    const first = await debounce("handed-back", 1);
    await age("handed-back", 61);
    const claim = await openWith(database, ledger, async (l) => {
      await l.jobs.handBack([(await claimedOne(l, "handed-back")).lease]);
    });

    const second = debounce("handed-back", 2);
    await waiting();
    await claim.commit();

    expect(await second).toMatchObject({ disposition: "inserted" });
    expect(await liveJobs(database, "handed-back")).toMatchObject([
      { id: first.id, payload: 1, debounce_key: null },
      { payload: 2, debounce_key: "k" },
    ]);
  });

  test("a claim passes a job over whose payload is being replaced, though it is due", async () => {
    await debounce("replacing", 1);
    await age("replacing", 61);
    const request = await openWith(database, ledger, (l) => debounce("replacing", 2, {}, l));

    expect(await ledger.jobs.claim({ workerId: "w", limit: 1, types: ["replacing"] })).toEqual([]);
    await request.commit();

    expect(await ledger.jobs.claim({ workerId: "w", limit: 1, types: ["replacing"] })).toEqual([]);
    expect(await startsIn("replacing")).toBe(60);
  });

  test.each(["commit", "rollback"] as const)(
    "the second of two first requests goes by the %s of the other",
    async (end) => {
      const type = `first-${end}`;
      const first = await openWith(database, ledger, (l) => debounce(type, 1, {}, l));

      const second = debounce(type, 2);
      await waiting();
      await first[end]();

      expect((await second).disposition).toBe(end === "commit" ? "replaced" : "inserted");
      expect(await liveJobs(database, type)).toMatchObject([{ payload: 2 }]);
    },
  );

  test("50 requests at once make one job", async () => {
    const jobs = await Promise.all(Array.from({ length: 50 }, (_, n) => debounce("stampede", n)));

    expect(jobs.filter(({ disposition }) => disposition === "inserted")).toHaveLength(1);
    expect(await liveJobs(database, "stampede")).toHaveLength(1);
  });

  test("no request is lost while workers claim: the last payload of each key is run last", async () => {
    const keys = ["a", "b", "c"];
    const ran = new Map<unknown, unknown>();
    let open = true;
    const worker = async () => {
      while (open) {
        for (const { payload, lease } of await ledger.jobs.claim({ workerId: "w", limit: 1, types: ["lost"] })) {
          const [key, n] = payload as [string, number];
          ran.set(key, n);
          await ledger.jobs.complete(lease);
        }
        if (finished && (await liveJobs(database, "lost")).length === 0) open = false;
      }
    };
    let finished = false;
    const working = worker();
    await Promise.all(
      keys.map(async (key) => {
        for (let n = 1; n <= 60; n += 1)
          await ledger.jobs.enqueue("lost", [key, n], { debounce: { key, seconds: 0.001 } });
      }),
    );
    finished = true;
    await working;

    expect(Object.fromEntries(ran)).toEqual({ a: 60, b: 60, c: 60 });
  });
});

test("a debounced job that is due at once is announced", async () => {
  const listener = await database.connect();
  const heard: string[] = [];
  listener.on("notification", ({ channel }) => heard.push(channel));
  await listener.query("listen runledger_jobs");
  await debounce("announced", 1, { maxSeconds: 60 });
  await age("announced", 61);

  await debounce("announced", 2, { maxSeconds: 60 });
  await until(() => heard.length > 0);

  expect(heard).toEqual(["runledger_jobs"]);
});

test("what says when the job starts cannot be said twice", async () => {
  const runAt = "2030-01-01T00:00:00Z";
  const refused = () => ledger.jobs.enqueue("refused", 1, { runAt, debounce: { key: "k", seconds: 1 } });

  expect(await codeOf(refused)).toBe("input.invalid");
});
