/** Concurrency and rate limits per key (FEATURES F-J11): how many run, what waits, and what frees a slot. */
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, expect, test } from "@jest/globals";
import fc from "fast-check";
import { type ClaimedJob, createLedger, defineJob, type JobRequest, typed, WorkflowBuilder } from "../../src/index.ts";
import { sweepLimits } from "../../src/jobs/limit-sweep.ts";
import { expectInvariants } from "../invariants.ts";
import { createTestDatabase } from "../support/database.ts";
import { claimedOne, codeOf, executorOf, expire, globally, makeDue } from "./fixtures.ts";

const database = await createTestDatabase();
const ledger = createLedger({ db: database.db, notify: false });
const one = { key: "k", concurrency: 1 } as const;

beforeEach(() =>
  database.pool.query(
    `truncate runledger.job_queue, runledger.job_ledger, runledger.job_definitions, runledger.job_limits,
       runledger.job_limit_wakes, runledger.job_idempotency_keys, runledger.workflow_runs cascade`,
  ),
);
afterEach(() => expectInvariants(database));

const claim = (limit = 10, types?: readonly string[]) =>
  ledger.jobs.claim({ workerId: "w", limit, ...(types === undefined ? {} : { types }) });
const payloads = (jobs: readonly ClaimedJob[]) => jobs.map(({ payload }) => payload);
const enqueueLimited = (count: number, request: Partial<JobRequest> = {}) =>
  ledger.jobs.enqueueMany(Array.from({ length: count }, (_, n) => ({ type: "a", payload: n, limit: one, ...request })));

test("no more jobs of a key are leased than its limit, and the others use no attempt", async () => {
  await enqueueLimited(5, { limit: { key: "k", concurrency: 2 } });

  const running = await claim();
  expect(payloads(running)).toEqual([0, 1]);
  expect(await claim()).toEqual([]);

  for (const { lease } of running.slice(1)) await ledger.jobs.complete(lease);
  expect(await claim()).toMatchObject([{ payload: 2, limitKey: "k", lease: { attempt: 1 } }]);
});

test("keys count apart, and so do organizations and the global tenant with the same key", async () => {
  const organizations = ["0190a5f0-7b1c-7e3a-9f00-000000000001", "0190a5f0-7b1c-7e3a-9f00-000000000002", null];
  for (const organizationId of organizations) await enqueueLimited(2, { organizationId });
  await enqueueLimited(2, { limit: { key: "other", concurrency: 1 } });

  const claimed = await claim();
  expect(claimed.map((job) => [job.organizationId, job.limitKey, job.payload])).toEqual([
    ...organizations.map((id) => [id, "k", 0]),
    [null, "other", 0],
  ]);
});

test("jobs of two types with one key count together", async () => {
  await enqueueLimited(1, { type: "a" });
  await enqueueLimited(1, { type: "b" });

  expect((await claim()).map(({ type }) => type)).toEqual(["a"]);
  expect(await claim(10, ["b"])).toEqual([]);
});

test("jobs of a key that is full stand in nobody's way", async () => {
  await enqueueLimited(50, { priority: 1000 });
  await ledger.jobs.enqueueMany(Array.from({ length: 5 }, (_, n) => ({ type: "free", payload: n })));
  await enqueueLimited(1, { limit: { key: "small", concurrency: 1 } });

  const claimed = await claim(7);
  expect(claimed.map(({ type, limitKey }) => [type, limitKey])).toEqual([
    ["a", "k"],
    ...Array.from({ length: 5 }, () => ["free", null]),
    ["a", "small"],
  ]);
});

const endings: readonly [string, (job: ClaimedJob) => Promise<unknown>][] = [
  ["succeeds", ({ lease }) => ledger.jobs.complete(lease)],
  ["succeeds with writes of its own", ({ lease }) => ledger.jobs.complete(lease, {}, async () => {})],
  ["fails and is to be tried again", ({ lease }) => ledger.jobs.fail(lease, { code: "c", message: "m" })],
  ["is dead-lettered", ({ lease }) => ledger.jobs.fail(lease, { kind: "TERMINAL", code: "c", message: "m" })],
  ["times out", ({ lease }) => ledger.jobs.fail(lease, { kind: "TIMEOUT", code: "c", message: "m" })],
  ["is cancelled", ({ lease }) => ledger.jobs.cancel(lease.jobId, { scope: globally })],
  [
    "is left by a worker that was killed, and reaped",
    async ({ lease }) => {
      await expire(database, [lease.jobId]);
      await ledger.jobs.reap();
    },
  ],
];

test.each(endings)("the slot is free again when a job %s", async (_name, end) => {
  await enqueueLimited(2);
  const [running] = await claim();
  if (running === undefined) throw new Error("a slot was free");
  expect(await claim()).toEqual([]);

  await end(running);

  expect(payloads(await claim())).toEqual([1]);
});

test("the slot is free again when a job is handed back, which then comes first", async () => {
  await enqueueLimited(2);
  const [running] = await claim();
  if (running === undefined) throw new Error("a slot was free");

  await ledger.jobs.handBack([running.lease]);

  expect(await claim()).toMatchObject([{ payload: 0, lease: { attempt: 1 } }]);
});

test("a retry waits for its time, then for its key", async () => {
  await enqueueLimited(2);
  const [first] = await claim();
  if (first === undefined) throw new Error("a slot was free");
  const notBefore = new Date(Date.now() + 3_600_000);
  await ledger.jobs.fail(first.lease, { code: "c", message: "m", notBefore });

  const [second] = await claim();
  expect(second).toMatchObject({ payload: 1 });
  await makeDue(database, [first.lease.jobId]);
  expect(await claim()).toEqual([]);
  if (second !== undefined) await ledger.jobs.complete(second.lease);
  expect(await claim()).toMatchObject([{ payload: 0, lease: { attempt: 2 } }]);
});

test("a job of the future is not started before, and keeps no other of its key", async () => {
  await enqueueLimited(1, { payload: "future", priority: 500, runAt: new Date(Date.now() + 3_600_000) });
  await enqueueLimited(1, { payload: "now" });

  const [now] = await claim();
  expect(now?.payload).toBe("now");
  if (now !== undefined) await ledger.jobs.complete(now.lease);
  expect(await claim()).toEqual([]);
  await database.pool.query("update runledger.job_queue set run_at = now() where status = 'PENDING'");
  expect(payloads(await claim())).toEqual(["future"]);
});

test("a job of the future starts when its time has come, however often its key was looked at before", async () => {
  await enqueueLimited(3);
  await enqueueLimited(1, { payload: "later", runAt: new Date(Date.now() + 1500) });

  const seen: unknown[] = [];
  while (seen.length < 4) {
    const jobs = await claim();
    for (const { lease } of jobs) await ledger.jobs.complete(lease);
    seen.push(...payloads(jobs));
    if (jobs.length === 0) await sleep(20);
  }

  expect(seen).toEqual([0, 1, 2, "later"]);
});

test("a claim for other types leaves the key to those that take its jobs", async () => {
  await enqueueLimited(1, { type: "a" });
  await enqueueLimited(1, { type: "b" });
  const [a] = await claim(10, ["a"]);
  expect(await claim(10, ["b"])).toEqual([]);

  if (a !== undefined) await ledger.jobs.complete(a.lease);
  expect(await claim(10, ["a", "c"])).toEqual([]);
  expect(await claim(10, ["c"])).toEqual([]);
  expect((await claim(10, ["b"])).map(({ type }) => type)).toEqual(["b"]);
});

test("who looks at a freed key in vain tells those who take its jobs, once", async () => {
  const announced = createLedger({ db: database.db });
  await enqueueLimited(1, { type: "a" });
  await enqueueLimited(1, { type: "b" });
  const [a] = await claim(1, ["a"]);
  const listener = await database.connect();
  let told = 0;
  listener.on("notification", () => {
    told += 1;
  });
  await listener.query("listen runledger_jobs");
  if (a !== undefined) await ledger.jobs.complete(a.lease);

  for (const _ of [1, 2, 3]) await announced.jobs.claim({ workerId: "w", limit: 1, types: ["a"] });

  await listener.query("select 1");
  expect(told).toBe(1);
});

test("a paused type keeps its jobs and not its key; once resumed they start", async () => {
  await enqueueLimited(1, { type: "paused", priority: 500 });
  await enqueueLimited(2, { type: "a" });
  await ledger.jobs.pause(["paused"]);

  for (const n of [0, 1]) {
    const [job] = await claim();
    expect(job).toMatchObject({ type: "a", payload: n });
    if (job !== undefined) await ledger.jobs.complete(job.lease);
  }
  expect(await claim()).toEqual([]);
  await ledger.jobs.resume(["paused"]);
  expect((await claim()).map(({ type }) => type)).toEqual(["paused"]);
});

test("what a claim had no room for starts with the next", async () => {
  await enqueueLimited(5, { limit: { key: "k", concurrency: 4 } });

  expect(payloads(await claim(1))).toEqual([0]);
  expect(payloads(await claim(2))).toEqual([1, 2]);
  expect(payloads(await claim(2))).toEqual([3]);
  expect(await claim(1)).toEqual([]);
});

test("a claim goes on to other keys when the first ones have nothing for it", async () => {
  await enqueueLimited(300, { priority: 500 });
  for (let n = 0; n < 120; n += 1) await enqueueLimited(1, { limit: { key: `key-${n}`, concurrency: 1 } });

  expect(await claim(121)).toHaveLength(121);
});

test("priority, run-at and id order jobs with and without limits", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(
        fc.record({
          type: fc.integer({ min: 0, max: 2 }),
          priority: fc.integer({ min: -1, max: 1 }),
          minutes: fc.integer({ min: 1, max: 3 }),
          key: fc.option(fc.integer({ min: 0, max: 3 })),
        }),
        { minLength: 1, maxLength: 30 },
      ),
      fc.integer({ min: 1, max: 12 }),
      fc.boolean(),
      async (specs, limit, named) => {
        await database.pool.query("truncate runledger.job_queue, runledger.job_limits, runledger.job_limit_wakes");
        await ledger.jobs.enqueueMany(
          specs.map(({ type, priority, minutes, key }) => ({
            type: `t${type}`,
            priority,
            runAt: new Date(Date.now() - minutes * 60_000),
            payload: {},
            ...(key === null ? {} : { limit: { key: `key-${key}`, concurrency: 100 } }),
          })),
        );
        const { rows } = await database.pool.query<{ id: string }>(
          "select id from runledger.job_queue order by priority desc, run_at, id",
        );

        const claimed: string[] = [];
        for (;;) {
          const jobs = await claim(limit, named ? ["t0", "t1", "t2"] : undefined);
          if (jobs.length === 0) break;
          claimed.push(...jobs.map(({ lease }) => lease.jobId));
        }

        expect(claimed).toEqual(rows.map(({ id }) => id));
      },
    ),
    { numRuns: 25 },
  );
});

test("a freed key with a job of low rank does not pass one of high rank", async () => {
  await enqueueLimited(2, { priority: 1 });
  const [running] = await claim();
  await enqueueLimited(1, { priority: 9, payload: "high", limit: { key: "other", concurrency: 1 } });
  if (running !== undefined) await ledger.jobs.complete(running.lease);

  expect(payloads(await claim(1))).toEqual(["high"]);
  expect(payloads(await claim(1))).toEqual([1]);
});

test("the settings of a key are those of the job enqueued last, for all of its jobs", async () => {
  await enqueueLimited(6, { limit: { key: "k", concurrency: 1 } });
  expect(await claim()).toHaveLength(1);

  await enqueueLimited(1, { limit: { key: "k", concurrency: 4 } });
  expect(await claim()).toHaveLength(3);
  await enqueueLimited(1, { limit: { key: "k", concurrency: 2 } });
  expect(await claim()).toEqual([]);
  const { rows } = await database.pool.query("select concurrency from runledger.job_limits");
  expect(rows).toEqual([{ concurrency: 2 }]);
});

test("a retry of an older job does not bring its settings back", async () => {
  await enqueueLimited(1, { payload: "old" });
  const [old] = await claim();
  await enqueueLimited(3, { payload: "new", limit: { key: "k", concurrency: 2 } });
  expect(await claim()).toHaveLength(1);
  if (old !== undefined) await ledger.jobs.handBack([old.lease]);

  expect(payloads(await claim())).toEqual(["old"]);
  expect(await claim()).toEqual([]);
  const { rows } = await database.pool.query("select concurrency from runledger.job_limits");
  expect(rows).toEqual([{ concurrency: 2 }]);
});

const mostStartsInPeriod = `
  select coalesce(max(starts), 0)::int as most from (
    select count(*) over (order by leased_at range between $1::interval preceding and current row) as starts
    from runledger.job_ledger
  ) as windows`;

test("a rate is never exceeded in any stretch of its period, and is used up", async () => {
  const rate = { starts: 6, periodSeconds: 0.5 };
  await enqueueLimited(30, { limit: { key: "k", rate } });

  let done = 0;
  while (done < 30) {
    const jobs = await claim(1 + (done % 4));
    for (const { lease } of jobs) await ledger.jobs.complete(lease);
    done += jobs.length;
    if (jobs.length === 0) await sleep(7);
  }

  // An interval of the period has both its ends in it, one more microsecond than the rate is about.
  const { rows } = await database.pool.query(mostStartsInPeriod, ["0.499999 s"]);
  expect(rows).toEqual([{ most: 6 }]);
});

test("a rate counts what was started, ended or not, and frees a start when its period is over", async () => {
  await enqueueLimited(4, { limit: { key: "k", rate: { starts: 2, periodSeconds: 3600 } } });
  for (const { lease } of await claim()) await ledger.jobs.complete(lease);
  expect(await claim()).toEqual([]);
  const { rows } = await database.pool.query(
    `select type, (select min(ends) from unnest(bucket_ends) as ends) + interval '3600 s' = due_at as "whenFree"
     from runledger.job_limit_wakes join runledger.job_limits using (tenant, key)`,
  );
  expect(rows).toEqual([{ type: "", whenFree: true }]);

  await timePasses("3500 s");
  expect(await claim()).toEqual([]);
  await timePasses("200 s");
  expect(payloads(await claim())).toEqual([2, 3]);
  expect(await claim()).toEqual([]);
});

test("looking at a key whose rate is used up leaves one wake, however often", async () => {
  await enqueueLimited(3, { limit: { key: "k", rate: { starts: 1, periodSeconds: 3600 } } });
  await claim();
  for (const _ of [1, 2, 3]) {
    await enqueueLimited(1, { limit: { key: "k", rate: { starts: 1, periodSeconds: 3600 } } });
    expect(await claim()).toEqual([]);
  }

  const { rows } = await database.pool.query("select type from runledger.job_limit_wakes");
  expect(rows).toEqual([{ type: "" }]);
});

test("with both, a job needs a slot and a start", async () => {
  await enqueueLimited(6, { limit: { key: "k", concurrency: 2, rate: { starts: 3, periodSeconds: 3600 } } });
  const first = await claim();
  expect(first).toHaveLength(2);
  for (const { lease } of first) await ledger.jobs.complete(lease);
  const second = await claim();
  expect(second).toHaveLength(1);
  expect(await claim()).toEqual([]);
  await timePasses("4000 s");
  expect(await claim()).toHaveLength(1);
});

test("a definition makes keys from payloads, and a request can name another or other settings", async () => {
  const call = defineJob("call", {
    input: typed<{ host: string }>(),
    limit: { key: ({ host }) => `host:${host}`, concurrency: 1 },
  });
  await ledger.jobs.enqueueMany([
    call.request({ host: "a" }),
    call.request({ host: "a" }),
    call.request({ host: "b" }),
    call.request({ host: "a" }, { limit: { key: "mine" } }),
  ]);
  await ledger.jobs.enqueue(call, { host: "c" }, { limit: { concurrency: 7 } });

  expect((await claim()).map(({ limitKey }) => limitKey)).toEqual(["host:a", "host:b", "mine", "host:c"]);
  const { rows } = await database.pool.query("select key, concurrency, starts from runledger.job_limits order by key");
  expect(rows).toEqual([
    { key: "host:a", concurrency: 1, starts: null },
    { key: "host:b", concurrency: 1, starts: null },
    { key: "host:c", concurrency: 7, starts: null },
    { key: "mine", concurrency: 1, starts: null },
  ]);
});

test("an idempotency key remembers a requested limit, and not a definition's", async () => {
  const byDefinition = (concurrency: number) => defineJob("job", { limit: { key: "k", concurrency } });
  const first = await ledger.jobs.enqueue(byDefinition(1), {}, { idempotencyKey: "defined" });
  expect(await ledger.jobs.enqueue(byDefinition(2), {}, { idempotencyKey: "defined" })).toMatchObject({
    id: first.id,
    disposition: "existing",
  });
  const requested = (concurrency: number) =>
    ledger.jobs.enqueue("job", {}, { idempotencyKey: "requested", limit: { key: "k", concurrency } });
  await requested(1);
  expect(await requested(1)).toMatchObject({ disposition: "existing" });
  expect(await codeOf(() => requested(2))).toBe("job.idempotency_conflict");
});

const wrong: readonly [string, unknown][] = [
  ["no settings", { key: "k" }],
  ["no key", { concurrency: 1 }],
  ["a blank key", { key: " ", concurrency: 1 }],
  ["a long key", { key: "k".repeat(513), concurrency: 1 }],
  ["no concurrency at all", { key: "k", concurrency: 0 }],
  ["a fraction", { key: "k", concurrency: 1.5 }],
  ["no starts", { key: "k", rate: { periodSeconds: 1 } }],
  ["no period", { key: "k", rate: { starts: 1 } }],
  ["a period of nothing", { key: "k", rate: { starts: 1, periodSeconds: 0 } }],
];

test.each(wrong)("a limit with %s is refused before anything is written", async (_name, limit) => {
  const request = { type: "a", payload: 1, limit } as JobRequest;
  expect(await codeOf(() => ledger.jobs.enqueueMany([{ type: "a", payload: 1 }, request]))).toBe("input.invalid");
  const { rowCount } = await database.pool.query("select from runledger.job_queue");
  expect(rowCount).toBe(0);
});

test("steps have limits, their own or their job's, also when they are released later, mapped or retried", async () => {
  const page = defineJob("page", {
    input: typed<string>(),
    limit: { key: (url) => `page:${url}`, concurrency: 1 },
    maxAttempts: 1,
  });
  const graph = new WorkflowBuilder("limits");
  const list = graph.job("list", defineJob("list", { output: typed<string[]>() }), {}, { limit: one });
  const first = graph.job("first", page, "x", { onSuccess: [list] });
  graph.map("pages", page, { over: list, limit: { key: "pages", concurrency: 2 } });
  await enqueueLimited(1);
  const { id } = await ledger.runs.enqueue(graph.build());

  const { lease } = await claimedOne(ledger, "a");
  expect(await claim()).toEqual([]);
  await ledger.jobs.complete(lease);
  const listed = await claimedOne(ledger, "list");
  await ledger.jobs.complete(listed.lease, { output: ["1", "2", "3"] });

  const pages = await claim();
  expect(pages.map(({ limitKey }) => limitKey).sort()).toEqual(["page:x", "pages", "pages"]);
  for (const job of pages) await ledger.jobs.fail(job.lease, { kind: "TERMINAL", code: "c", message: "m" });
  for (const job of await claim()) await ledger.jobs.fail(job.lease, { kind: "TERMINAL", code: "c", message: "m" });
  await ledger.runs.retry(id, { scope: globally, steps: [first.key] });
  expect((await claim()).map(({ limitKey }) => limitKey)).toEqual(["page:x"]);

  await ledger.runs.cancel(id, { scope: globally });
  await ledger.runs.recover(id, { scope: globally, key: "again" });
  expect((await claim()).map(({ limitKey }) => limitKey).sort()).toEqual(["page:x", "pages", "pages"]);
});

test("a map step cannot take its key from the payloads of its items", async () => {
  const page = defineJob("page", { input: typed<string>(), limit: { key: (url) => url, concurrency: 1 } });
  const graph = new WorkflowBuilder("limits");
  graph.map("pages", page, { over: graph.job("list", defineJob("list", { output: typed<string[]>() }), {}) });

  expect(await codeOf(() => ledger.runs.enqueue(graph.build()))).toBe("input.invalid");
});

test("the steps of a child run have their limits", async () => {
  const page = defineJob("page", { input: typed<string>(), limit: { key: (url) => `page:${url}`, concurrency: 1 } });
  const graph = new WorkflowBuilder("parent");
  const child = {
    type: "child",
    input: undefined,
    graph: () => {
      const inner = new WorkflowBuilder("child");
      inner.job("page", page, "x");
      return inner.build();
    },
  };
  graph.child("child", child, undefined);
  await ledger.runs.enqueue(graph.build());

  await ledger.runs.advanceChild(await claimedOne(ledger, "runledger.child_run"));
  expect((await claim()).map(({ limitKey }) => limitKey)).toEqual(["page:x"]);
});

test("the ledger keeps the key of a job, and reads show it", async () => {
  await enqueueLimited(1);
  const { lease } = await claimedOne(ledger, "a");
  expect(await ledger.jobs.get(lease.jobId, globally)).toMatchObject({ limitKey: "k", status: "LEASED" });
  await ledger.jobs.complete(lease);

  expect(await ledger.jobs.get(lease.jobId, globally)).toMatchObject({ limitKey: "k", status: "SUCCEEDED" });
});

test("a sweep deletes keys that nobody uses, and none that has a job or a start that counts", async () => {
  const keys = (key: string, limit = {}) => ({ limit: { key, concurrency: 1, ...limit } });
  await enqueueLimited(1, keys("idle"));
  await enqueueLimited(1, keys("rated", { rate: { starts: 5, periodSeconds: 3600 } }));
  await enqueueLimited(1, keys("running"));
  await enqueueLimited(2, keys("waiting"));
  const waiting: string[] = [];
  for (const { lease, limitKey } of await claim()) {
    if (limitKey !== "running") await ledger.jobs.complete(lease);
    waiting.push(limitKey ?? "");
  }
  expect(waiting.sort()).toEqual(["idle", "rated", "running", "waiting"]);

  expect(await sweepLimits(executorOf(database.db))).toEqual({ deleted: 1, woken: 0 });
  const { rows } = await database.pool.query("select key from runledger.job_limits order by key");
  expect(rows.map(({ key }) => key)).toEqual(["rated", "running", "waiting"]);
  await enqueueLimited(1, keys("idle"));
  expect((await claim()).map(({ limitKey }) => limitKey).sort()).toEqual(["idle", "waiting"]);
});

test("a sweep wakes a key whose wakes were lost, for each type of its due jobs", async () => {
  await enqueueLimited(2, { type: "a" });
  await enqueueLimited(2, { type: "b" });
  await database.pool.query("delete from runledger.job_limit_wakes");
  expect(await claim()).toEqual([]);

  expect(await sweepLimits(executorOf(database.db))).toEqual({ deleted: 0, woken: 2 });
  expect(await sweepLimits(executorOf(database.db))).toEqual({ deleted: 0, woken: 0 });
  expect(payloads(await claim(10, ["b"]))).toEqual([0]);
});

/** As if it had: all that is written in times moves into the past. */
async function timePasses(time: string): Promise<void> {
  await database.pool.query(
    `update runledger.job_limits set wake_at = wake_at - $1::interval,
       bucket_ends = array(select ends - $1::interval from unnest(bucket_ends) with ordinality as b(ends, n) order by n)`,
    [time],
  );
  await database.pool.query("update runledger.job_limit_wakes set due_at = due_at - $1::interval", [time]);
}
