/** Active keys: at most one live job of a key, and the replacing of what it is about (FEATURES F-J12). */
import { afterEach, describe, expect, test } from "@jest/globals";
import { v7 } from "uuid";
import { codeOf as codeOfDriver } from "../../src/database/sqlstate.ts";
import { createLedger, defineJob, type JobRequest, type Ledger, typed } from "../../src/index.ts";
import { expectInvariants, watchForDeadlocks } from "../invariants.ts";
import { createTestDatabase } from "../support/database.ts";
import { waitForBackend } from "../support/waiting.ts";
import { claimedOne, codeOf, errorOf, expire, globally, makeDue } from "./fixtures.ts";
import { liveJobs, marker, openWith } from "./keys.ts";

const database = await createTestDatabase();
const expectNoDeadlocks = watchForDeadlocks(database);
const ledger = createLedger({ db: database.db });

afterEach(async () => {
  await expectInvariants(database);
  expectNoDeadlocks();
});

const enqueue = (type: string, payload: unknown = {}, l: Ledger = ledger) =>
  l.jobs.enqueue(type, payload, { active: { key: "k" } });
const replace = (type: string, payload: unknown, options: Partial<JobRequest> = {}, l: Ledger = ledger) =>
  l.jobs.enqueue(type, payload, { ...options, active: { key: "k", replace: true } });
const waiting = () => waitForBackend({ client: database.pool, marker });

describe("an active key", () => {
  test("gives the live job while there is one, pending or leased, whatever is asked for", async () => {
    const first = await enqueue("live", { a: 1 });
    expect(first).toMatchObject({ status: "PENDING", runNumber: 1, disposition: "inserted" });
    expect(await enqueue("live", { a: 2 })).toEqual({ ...first, disposition: "existing_active" });

    const { payload, lease } = await claimedOne(ledger, "live");
    expect(payload).toEqual({ a: 1 });
    expect(await enqueue("live", { a: 3 })).toEqual({ ...first, status: "LEASED", disposition: "existing_active" });

    await ledger.jobs.complete(lease);
    expect(await enqueue("live")).toMatchObject({ disposition: "inserted" });
  });

  const ends: readonly [string, (type: string, id: string) => Promise<unknown>][] = [
    ["success", async (type) => ledger.jobs.complete((await claimedOne(ledger, type)).lease)],
    ["failure", async (type) => ledger.jobs.fail((await claimedOne(ledger, type)).lease, dead)],
    ["cancel while pending", (_type, id) => ledger.jobs.cancel(id, { scope: globally })],
    [
      "cancel while leased",
      async (type, id) => {
        await claimedOne(ledger, type);
        await ledger.jobs.cancel(id, { scope: globally });
      },
    ],
    [
      "reaped last attempt",
      async (type, id) => {
        await claimedOne(ledger, type);
        await expire(database, [id]);
        await ledger.jobs.reap();
      },
    ],
    [
      "completion in a transaction with a body",
      async (type) => ledger.jobs.complete((await claimedOne(ledger, type)).lease, {}, async () => {}),
    ],
  ];
  const dead = { kind: "TERMINAL", code: "no", message: "no" } as const;

  test.each(ends)("is free after a job's %s, and the ledger keeps whose it was", async (name, end) => {
    const type = `ends-${name}`;
    const { id } = await ledger.jobs.enqueue(type, {}, { active: { key: "k" }, maxAttempts: 1 });

    await end(type, id);

    const { rows } = await database.pool.query("select active_key from runledger.job_ledger where id = $1", [id]);
    expect(rows).toEqual([{ active_key: "k" }]);
    expect(await enqueue(type)).toMatchObject({ disposition: "inserted" });
  });

  test("is held by a job that is tried again or was handed back", async () => {
    const first = await enqueue("held");
    await ledger.jobs.fail((await claimedOne(ledger, "held")).lease, { code: "c", message: "m" });
    expect(await enqueue("held")).toEqual({ ...first, disposition: "existing_active" });

    await makeDue(database, [first.id]);
    await ledger.jobs.handBack([(await claimedOne(ledger, "held")).lease]);
    expect(await enqueue("held")).toEqual({ ...first, disposition: "existing_active" });
  });

  test("belongs to its job type and its tenant", async () => {
    const [one, two] = [v7(), v7()];
    const scopes: Partial<JobRequest>[] = [
      {},
      { organizationId: one },
      { organizationId: two },
      { type: "scoped-other" },
      { type: "scoped-other", organizationId: one },
    ];
    const requests = scopes.map((scope, n) => ({ type: "scoped", payload: n, active: { key: "k" }, ...scope }));

    const jobs = await ledger.jobs.enqueueMany(requests);
    const again = await ledger.jobs.enqueueMany(requests);

    expect(jobs.every(({ disposition }) => disposition === "inserted")).toBe(true);
    expect(again).toEqual(jobs.map((job) => ({ ...job, disposition: "existing_active" })));
  });

  test("is none of the other kinds of keys", async () => {
    const kinds: Partial<JobRequest>[] = [
      { idempotencyKey: "k" },
      { active: { key: "k" } },
      { debounce: { key: "k", seconds: 60 } },
      { throttle: { key: "k", seconds: 60 } },
    ];

    const jobs = await ledger.jobs.enqueueMany(kinds.map((kind) => ({ type: "kinds", payload: {}, ...kind })));

    expect(jobs.map(({ disposition }) => disposition)).toEqual(Array(4).fill("inserted"));
    expect(new Set(jobs.map(({ id }) => id)).size).toBe(4);
  });

  test("is no key of a job that is a step of a run, and none of one without", async () => {
    await ledger.jobs.enqueueMany(Array.from({ length: 3 }, () => ({ type: "without", payload: {} })));

    expect(await liveJobs(database, "without")).toHaveLength(3);
  });

  test("of 512 bytes is taken and one of 513 is not", async () => {
    const key = "ü".repeat(256);

    expect((await ledger.jobs.enqueue("long", {}, { active: { key } })).disposition).toBe("inserted");
    expect(await codeOf(() => ledger.jobs.enqueue("long", {}, { active: { key: `${key}x` } }))).toBe("input.invalid");
  });

  test("a strict enqueue of an unknown type inserts and replaces nothing", async () => {
    await replace("strict", 1);

    for (const again of [enqueue, replace]) {
      const strictly = { type: "strict", payload: 2, active: { key: "k", replace: again === replace } };
      expect(await codeOf(() => ledger.jobs.enqueueMany([strictly], { strict: true }))).toBe(
        "job.definition_not_found_or_disabled",
      );
    }

    expect(await liveJobs(database, "strict")).toMatchObject([{ payload: 1 }]);
  });
});

describe("replacing", () => {
  test("gives the pending job the payload, and only the settings that are named", async () => {
    const options = { priority: 7, maxAttempts: 3, timeoutSeconds: 30, tags: ["a"], runAt: "2030-01-01T00:00:00Z" };
    const first = await ledger.jobs.enqueue("replaced", { a: 1 }, { ...options, active: { key: "k" } });

    expect(await replace("replaced", { b: 2 })).toEqual({ ...first, disposition: "replaced" });
    const { runAt, ...settings } = options;
    expect(await ledger.jobs.get(first.id, globally)).toMatchObject({
      ...settings,
      payload: { b: 2 },
      runAt: new Date(runAt),
    });

    const others = { priority: 8, maxAttempts: 4, timeoutSeconds: 31, tags: [] };
    await replace("replaced", 3, { ...others, runAt: "2031-01-01T00:00:00Z" });
    expect(await ledger.jobs.get(first.id, globally)).toMatchObject({
      ...others,
      payload: 3,
      runAt: new Date("2031-01-01T00:00:00Z"),
    });
  });

  test("leaves settings alone that only a definition in code names", async () => {
    const { id } = await ledger.jobs.enqueue("defaults", 1, { priority: 7, active: { key: "k" } });

    await replace("defaults", 2, { defaults: { priority: 1, maxAttempts: 1, timeoutSeconds: 1 } });

    expect(await ledger.jobs.get(id, globally)).toMatchObject({ priority: 7, maxAttempts: 8, timeoutSeconds: 900 });
  });

  test("is an event of the job, without what it was replaced by", async () => {
    const { id } = await enqueue("events", { secret: 1 });
    await replace("events", { secret: 2 });

    const { rows } = await database.pool.query(
      "select run_number, event, actor, details from runledger.job_events where job_id = $1",
      [id],
    );
    expect(rows).toEqual([{ run_number: 1, event: "replaced", actor: null, details: null }]);
  });

  test("takes the limit that follows from the new payload, and is claimed by it", async () => {
    const perCustomer = defineJob("limited", {
      input: typed<{ customer: string }>(),
      limit: { key: ({ customer }) => customer, concurrency: 1 },
    });
    const ask = (customer: string, key: string) =>
      ledger.jobs.enqueue(perCustomer, { customer }, { active: { key, replace: true } });
    await ask("a", "one");
    const running = await claimedOne(ledger, "limited");
    const { id } = await ask("a", "two");
    expect(await ledger.jobs.claim({ workerId: "w", limit: 1, types: ["limited"] })).toEqual([]);

    expect(await ask("b", "two")).toMatchObject({ id, disposition: "replaced" });

    expect(await claimedOne(ledger, "limited")).toMatchObject({ limitKey: "b", payload: { customer: "b" } });
    await ledger.jobs.complete(running.lease);
  });

  test("does not touch a leased job", async () => {
    const first = await enqueue("leased", 1);
    const { lease } = await claimedOne(ledger, "leased");

    expect(await replace("leased", 2)).toEqual({ ...first, status: "LEASED", disposition: "existing_active" });
    expect(await ledger.jobs.get(first.id, globally)).toMatchObject({ payload: 1 });
    await ledger.jobs.complete(lease);
  });

  test("of a job that is tried again starts it over, with an attempt left", async () => {
    const first = await ledger.jobs.enqueue("retried", 1, { active: { key: "k" }, maxAttempts: 3 });
    const { lease } = await claimedOne(ledger, "retried");
    await ledger.jobs.progress(lease, { done: 1, total: 2 });
    await ledger.jobs.checkpoint(lease, { page: 1 });
    await ledger.jobs.fail(lease, { code: "c", message: "m" });
    const { runAt } = await ledger.jobs.get(first.id, globally);

    expect(await replace("retried", 2, { maxAttempts: 1 })).toEqual({ ...first, disposition: "replaced" });

    expect(await ledger.jobs.get(first.id, globally)).toMatchObject({
      payload: 2,
      attempt: 1,
      maxAttempts: 2,
      checkpoint: null,
      progress: null,
      runAt,
    });
    await makeDue(database, [first.id]);
    expect(await claimedOne(ledger, "retried")).toMatchObject({ payload: 2, checkpoint: null, lease: { attempt: 2 } });
  });

  test("inserts where there is no live job", async () => {
    expect(await replace("none", 1)).toMatchObject({ disposition: "inserted" });
    await ledger.jobs.complete((await claimedOne(ledger, "none")).lease);
    expect(await replace("none", 2)).toMatchObject({ disposition: "inserted" });
  });
});

describe("a batch", () => {
  const batch = (type: string, active: { replace?: boolean } = {}) =>
    Array.from({ length: 1000 }, (_, n) => ({ type, payload: n, active: { key: `k-${n}`, ...active } }));

  test("of 1000 keys inserts, finds and replaces", async () => {
    const first = await ledger.jobs.enqueueMany(batch("thousand"));
    await database.pool.query(
      `with claimed as (select id from runledger.job_queue where type = 'thousand' order by id limit 500)
       update runledger.job_queue q set status = 'LEASED', attempt = 1, worker_id = 'w', leased_at = now(),
         lease_expires_at = now() + interval '1 h' from claimed c where q.id = c.id`,
    );

    const found = await ledger.jobs.enqueueMany(batch("thousand"));
    const replaced = await ledger.jobs.enqueueMany(
      batch("thousand", { replace: true })
        .map((request) => ({ ...request, payload: -request.payload }))
        .reverse(),
    );

    const status = (n: number) => (n < 500 ? "LEASED" : "PENDING");
    expect(found).toEqual(first.map((job, n) => ({ ...job, status: status(n), disposition: "existing_active" })));
    expect(replaced.reverse()).toEqual(
      first.map((job, n) => ({
        ...job,
        status: status(n),
        disposition: n < 500 ? "existing_active" : "replaced",
      })),
    );
    const payloads = (await liveJobs(database, "thousand")).map(({ payload }) => payload);
    expect(payloads).toEqual(first.map((_, n) => (n < 500 ? n : -n)));
  });

  test("may name one key several times: the first inserts, the next get its job", async () => {
    const request = { type: "twice", payload: 1, active: { key: "k" } };

    const [one, two, three] = await ledger.jobs.enqueueMany([
      request,
      { ...request, payload: 2 },
      { type: "twice", payload: 3 },
    ]);

    expect(one).toMatchObject({ disposition: "inserted" });
    expect(two).toEqual({ ...one, disposition: "existing_active" });
    expect(three).toMatchObject({ disposition: "inserted" });
    expect((await liveJobs(database, "twice")).map(({ payload }) => payload)).toEqual([1, 3]);
  });

  test("that replaces one job several times leaves the last payload", async () => {
    const request = { type: "several", active: { key: "k", replace: true } };
    const requests = [1, 2, 3, 4].map((payload) => ({ ...request, payload }));

    const jobs = await ledger.jobs.enqueueMany(requests);

    expect(jobs.map(({ disposition }) => disposition)).toEqual(["inserted", "replaced", "replaced", "replaced"]);
    expect(new Set(jobs.map(({ id }) => id)).size).toBe(1);
    expect(await liveJobs(database, "several")).toMatchObject([{ payload: 4 }]);
  });

  test("may mix all kinds of keys, and answers in the order of the requests", async () => {
    const requests: JobRequest[] = [
      { type: "mixed", payload: 0 },
      { type: "mixed", payload: 1, idempotencyKey: "k" },
      { type: "mixed", payload: 2, active: { key: "k" } },
      { type: "mixed", payload: 3, debounce: { key: "k", seconds: 60 } },
      { type: "mixed", payload: 4, throttle: { key: "k", seconds: 60 } },
      { type: "mixed", payload: 5, active: { key: "other", replace: true } },
    ];

    const first = await ledger.jobs.enqueueMany(requests);
    const second = await ledger.jobs.enqueueMany([...requests].reverse());

    expect((await liveJobs(database, "mixed")).map(({ payload }) => payload)).toEqual([0, 1, 2, 3, 4, 5, 0]);
    expect(second.reverse().map(({ disposition }) => disposition)).toEqual([
      "inserted",
      "existing",
      "existing_active",
      "replaced",
      "throttled",
      "replaced",
    ]);
    expect(second.slice(1).map(({ id }) => id)).toEqual(first.slice(1).map(({ id }) => id));
  });

  test("with a conflict inserts and replaces nothing, though the transaction goes on and commits", async () => {
    await ledger.jobs.enqueue("undone", 1, { idempotencyKey: "taken" });
    await replace("undone", 2);
    const requests: JobRequest[] = [
      { type: "undone", payload: 3, active: { key: "k", replace: true } },
      { type: "undone", payload: 4, active: { key: "new" } },
      { type: "undone", payload: 5, idempotencyKey: "taken" },
    ];

    await database.db.transaction().execute(async (trx) => {
      expect(await codeOf(() => ledger.in(trx).jobs.enqueueMany(requests))).toBe("job.idempotency_conflict");
      await ledger.in(trx).jobs.enqueue("undone", 6);
    });

    expect((await liveJobs(database, "undone")).map(({ payload }) => payload)).toEqual([1, 2, 6]);
  });
});

describe("two sessions", () => {
  test.each(["commit", "rollback"] as const)("who finds a job in the making waits, and goes by its %s", async (end) => {
    const type = `making-${end}`;
    const first = await openWith(database, ledger, (l) => enqueue(type, 1, l));

    const second = enqueue(type, 2);
    await waiting();
    await first[end]();

    expect((await second).disposition).toBe(end === "commit" ? "existing_active" : "inserted");
    expect((await second).id === first.result.id).toBe(end === "commit");
    expect(await liveJobs(database, type)).toMatchObject([{ payload: end === "commit" ? 1 : 2 }]);
  });

  test.each(["commit", "rollback"] as const)(
    "who would replace a job in the making waits, and goes by its %s",
    async (end) => {
      const type = `replaced-making-${end}`;
      const first = await openWith(database, ledger, (l) => enqueue(type, 1, l));

      const second = replace(type, 2);
      await waiting();
      await first[end]();

      expect((await second).disposition).toBe(end === "commit" ? "replaced" : "inserted");
      expect(await liveJobs(database, type)).toMatchObject([{ payload: 2 }]);
    },
  );

  test.each(["commit", "rollback"] as const)(
    "who finds a job that is about to end waits, and goes by its %s",
    async (end) => {
      const type = `ending-${end}`;
      const { id } = await enqueue(type, 1);
      const { lease } = await claimedOne(ledger, type);
      const first = await openWith(database, ledger, (l) => l.jobs.complete(lease));

      const second = enqueue(type, 2);
      await waiting();
      await first[end]();

      expect(await second).toMatchObject(
        end === "commit" ? { disposition: "inserted" } : { id, disposition: "existing_active", status: "LEASED" },
      );
      expect(await liveJobs(database, type)).toHaveLength(1);
    },
  );

  test.each(["commit", "rollback"] as const)(
    "who would replace a job that is being claimed waits, and goes by the claim's %s",
    async (end) => {
      const type = `claiming-${end}`;
      const { id } = await enqueue(type, 1);
      const first = await openWith(database, ledger, (l) => claimedOne(l, type));

      const second = replace(type, 2);
      await waiting();
      await first[end]();

      const [disposition, status] = end === "commit" ? ["existing_active", "LEASED"] : ["replaced", "PENDING"];
      expect(await second).toEqual({ id, runNumber: 1, status, disposition });
      expect(await liveJobs(database, type)).toMatchObject([{ id, status, payload: end === "commit" ? 1 : 2 }]);
    },
  );

  test("who would replace a job that was claimed and handed back meanwhile replaces it", async () => {
    const { id } = await enqueue("handed-back", 1);
    const first = await openWith(database, ledger, async (l) => {
      await l.jobs.handBack([(await claimedOne(l, "handed-back")).lease]);
    });

    const second = replace("handed-back", 2);
    await waiting();
    await first.commit();

    expect(await second).toEqual({ id, runNumber: 1, status: "PENDING", disposition: "replaced" });
    expect(await liveJobs(database, "handed-back")).toMatchObject([{ id, payload: 2, active_key: "k" }]);
  });

  test("a job that is being replaced is passed over by a claim, and claimed with the new payload after it", async () => {
    await enqueue("replacing", 1);
    const first = await openWith(database, ledger, (l) => replace("replacing", 2, {}, l));

    expect(await ledger.jobs.claim({ workerId: "w", limit: 1, types: ["replacing"] })).toEqual([]);
    await first.commit();

    expect((await claimedOne(ledger, "replacing")).payload).toBe(2);
  });

  test("a job that ends between the two looks leaves its key to the request", async () => {
    const { id } = await enqueue("between", 1);
    const { lease } = await claimedOne(ledger, "between");
    const inserted = await openWith(database, ledger, async (l) => {
      // The insert finds the key taken, the look-up finds nobody: as when the job ends in between.
      await endsAfterFirstLook("between", lease.jobId);
      return enqueue("between", 2, l);
    });

    expect(inserted.result).toMatchObject({ disposition: "inserted" });
    expect(inserted.result.id).not.toBe(id);
    await inserted.rollback();
    await database.pool.query("drop function public.ends cascade");
  });

  test("50 requests at once: one inserts, the others get its job", async () => {
    const jobs = await Promise.all(Array.from({ length: 50 }, (_, n) => enqueue("stampede", n)));

    expect(jobs.filter(({ disposition }) => disposition === "inserted")).toHaveLength(1);
    expect(new Set(jobs.map(({ id }) => id)).size).toBe(1);
    expect(await liveJobs(database, "stampede")).toHaveLength(1);
  });

  test("50 that replace at once: one inserts, all others replace", async () => {
    const jobs = await Promise.all(Array.from({ length: 50 }, (_, n) => replace("stampede-replaced", n)));

    expect(jobs.filter(({ disposition }) => disposition === "inserted")).toHaveLength(1);
    expect(jobs.filter(({ disposition }) => disposition === "replaced")).toHaveLength(49);
    expect(await liveJobs(database, "stampede-replaced")).toHaveLength(1);
  });

  test.each<[string, (key: string) => Partial<JobRequest>]>([
    ["active", (key) => ({ active: { key } })],
    ["debounce", (key) => ({ debounce: { key, seconds: 60 } })],
  ])("batches take %s keys in the order of these, whatever that of their requests", async (kind, keyed) => {
    const type = `crossing-${kind}`;
    const requests = (...keys: string[]) => keys.map((key) => ({ type, payload: key, ...keyed(key) }));
    const holder = await openWith(database, ledger, (l) => l.jobs.enqueueMany(requests("b")));
    // It has a, waits for b and will want c. Who had c and waited for a would close the circle.
    const first = ledger.jobs.enqueueMany(requests("a", "b", "c"));
    await waiting();
    const second = ledger.jobs.enqueueMany(requests("c", "a"));
    await waitForBackend({ client: database.pool, marker, count: 2 });
    await holder.rollback();

    expect((await first).map(({ disposition }) => disposition)).toEqual(["inserted", "inserted", "inserted"]);
    expect((await second).map(({ id }) => id)).toEqual([(await first)[2]?.id, (await first)[0]?.id]);
  });

  test("batches that share keys in opposite order neither deadlock nor insert twice", async () => {
    const requests = Array.from({ length: 200 }, (_, n) => ({
      type: `opposite-${n % 3}`,
      payload: n,
      active: { key: `k-${n}`, replace: n % 5 === 0 },
    }));
    const orders = [requests, [...requests].reverse(), [...requests].sort(() => Math.random() - 0.5)];

    const { statements, result } = await database.record(() =>
      Promise.all(Array.from({ length: 12 }, (_, n) => ledger.jobs.enqueueMany(orders[n % 3] ?? []))),
    );

    expect(result.flat().filter(({ disposition }) => disposition === "inserted")).toHaveLength(200);
    expect(new Set(result.flat().map(({ id }) => id)).size).toBe(200);
    // Once each, and once more to replace what was inserted meanwhile; not one of them was begun anew.
    expect(statements.filter((text) => text.startsWith("begin") || text.startsWith("start"))).toHaveLength(12);
  });

  test("enqueuers and workers at the same few keys are not in each other's way", async () => {
    const keys = ["a", "b", "c", "d"];
    const enqueuer = async (seed: number) => {
      for (let n = 0; n < 40; n += 1) {
        const active = { key: keys[(n + seed) % keys.length] ?? "a", replace: (n + seed) % 3 === 0 };
        await ledger.jobs.enqueue("churn", n, { active });
      }
    };
    let open = true;
    const worker = async () => {
      while (open) {
        const jobs = await ledger.jobs.claim({ workerId: "w", limit: 2, types: ["churn"] });
        await ledger.jobs.settle(jobs.map(({ lease }) => ({ lease, success: {} })));
      }
    };
    const workers = [worker(), worker()];
    await Promise.all([0, 1, 2, 3, 4].map(enqueuer));
    open = false;
    await Promise.all(workers);

    const live = (await liveJobs(database, "churn")).map((job) => job.active_key);
    expect(live).toEqual([...new Set(live)]);
  });

  test("the wait for who holds a key is bounded", async () => {
    const impatient = createLedger({ db: database.db, lockWaitMs: 50 });
    const first = await openWith(database, ledger, (l) => enqueue("bounded", 1, l));

    expect(await codeOf(() => enqueue("bounded", 2, impatient))).toBe("db.lock_timeout");
    const second = await openWith(database, impatient, (l) => codeOf(() => enqueue("bounded", 2, l)));

    expect(second.result).toBe("db.lock_timeout");
    await second.rollback();
    await first.rollback();
  });
});

describe("in a caller's transaction", () => {
  test("a key is taken with its commit, and free after its rollback", async () => {
    const undone = await openWith(database, ledger, (l) => enqueue("mine", 1, l));
    await undone.rollback();
    expect(await liveJobs(database, "mine")).toEqual([]);

    const kept = await openWith(database, ledger, async (l) => [
      await enqueue("mine", 2, l),
      await enqueue("mine", 3, l),
    ]);
    await kept.commit();
    const [one, two] = kept.result;
    expect(two).toEqual({ ...one, disposition: "existing_active" });
    expect(await liveJobs(database, "mine")).toMatchObject([{ payload: 2 }]);
  });

  test("a job that it ended itself leaves the key to it", async () => {
    const { id } = await enqueue("self", 1);
    const again = await openWith(database, ledger, async (l) => {
      await l.jobs.cancel(id, { scope: globally });
      return enqueue("self", 2, l);
    });
    await again.commit();

    expect(again.result).toMatchObject({ disposition: "inserted" });
    expect(await liveJobs(database, "self")).toMatchObject([{ payload: 2 }]);
  });

  test("what is replaced is replaced with its commit only", async () => {
    await enqueue("replaced-mine", 1);
    const undone = await openWith(database, ledger, (l) => replace("replaced-mine", 2, {}, l));
    await undone.rollback();

    expect(await liveJobs(database, "replaced-mine")).toMatchObject([{ payload: 1 }]);
  });
});

test("a job that lives again under a key that is taken says so", async () => {
  const first = await enqueue("again", 1);
  await ledger.jobs.cancel(first.id, { scope: globally });
  await enqueue("again", 2);

  // As whoever puts an ended job back into the queue.
  const requeue = database.pool.query(
    `insert into runledger.job_queue (id, run_number, type, priority, run_at, max_attempts, timeout_seconds, payload, active_key)
     select id, 2, type, priority, now(), max_attempts, timeout_seconds, payload, active_key
     from runledger.job_ledger where id = $1`,
    [first.id],
  );

  expect(codeOfDriver(await errorOf(requeue))).toBe("job.active_key_taken");
});

/** Ends the job when the insert of a type has found its key taken. */
async function endsAfterFirstLook(type: string, jobId: string): Promise<void> {
  await database.pool.query(`
    create function public.ends() returns trigger language plpgsql as $$
    begin
      delete from runledger.job_queue where id = '${jobId}' and type = '${type}';
      return null;
    end $$;
    create trigger ends after insert on runledger.job_queue
      for each statement when (pg_trigger_depth() = 0) execute function public.ends()`);
}
