/** What a job keeps that lives again, and whom it meets: settings, limits, keys of live jobs, encoded values (FEATURES F-J9, F-J12). */
import { afterEach, describe, expect, test } from "@jest/globals";
import { v7 } from "uuid";
import { createLedger, type JobRequest, type Ledger } from "../../src/index.ts";
import { expectInvariants, watchForDeadlocks } from "../invariants.ts";
import { createTestDatabase } from "../support/database.ts";
import { waitForBackend } from "../support/waiting.ts";
import { codec, everythingIn, ledgerWith, sealedBy, stored } from "../values/support.ts";
import { claimedOne, codeOf, errorOf, everythingOf, globally } from "./fixtures.ts";
import { marker, openWith } from "./keys.ts";

const database = await createTestDatabase();
const expectNoDeadlocks = watchForDeadlocks(database);
const ledger = createLedger({ db: database.db });
const admin = { admin: true } as const;
const terminal = { kind: "TERMINAL", code: "c", message: "m" } as const;

afterEach(async () => {
  await expectInvariants(database);
  expectNoDeadlocks();
});

/** A way to live again. */
interface Way {
  /** The statement that does it. */
  readonly marker: string;
  /** Ends a claimed job so that it can. */
  readonly end: (job: Awaited<ReturnType<typeof claimedOne>>) => Promise<unknown>;
  readonly again: (id: string, options?: { readonly payload?: unknown }, l?: Ledger) => Promise<{ id: string }>;
  /** All that are of a type. */
  readonly all: (type: string, l?: Ledger) => Promise<{ done: number; failed: readonly { jobId: string }[] }>;
}

const requeue: Way = {
  marker: "runledger:requeue_jobs",
  end: ({ lease }) => ledger.jobs.fail(lease, terminal),
  again: (id, options = {}, l = ledger) =>
    l.jobs.requeue(id, { scope: admin, expected: { status: "DEAD_LETTERED", runNumber: 1 }, ...options }),
  all: async (type, l = ledger) => {
    const { requeued, failed } = await l.jobs.requeueMany({ scope: admin, filter: { type, status: "DEAD_LETTERED" } });
    return { done: requeued, failed };
  },
};

const replay: Way = {
  marker: "runledger:replay_jobs",
  end: ({ lease }) => ledger.jobs.complete(lease),
  again: (id, options = {}, l = ledger) => l.jobs.replay(id, { scope: admin, key: v7(), ...options }),
  all: async (type, l = ledger) => {
    const { replayed, failed } = await l.jobs.replayMany({ scope: admin, filter: { type }, key: v7() });
    return { done: replayed, failed };
  },
};

describe.each([
  ["requeue", requeue],
  ["replay", replay],
])("a %s", (name, way) => {
  const typeOf = (what: string) => `${name}-${what}`;

  /** A job that has ended. */
  async function ended(type: string, options: Partial<JobRequest> = {}, l = ledger): Promise<string> {
    const { id } = await l.jobs.enqueue(type, options.payload ?? {}, options);
    await way.end(await claimedOne(ledger, type));
    return id;
  }

  const withKey = (type: string, key = "k") => ended(type, { active: { key } });

  test("keeps whatever is the job's: settings, tags, limit, tick, active key, tenant", async () => {
    const type = typeOf("settings");
    const intendedAt = new Date("2030-01-01T00:00:00Z");
    const request: JobRequest = {
      type,
      payload: { in: 1 },
      priority: 7,
      maxAttempts: 3,
      timeoutSeconds: 30,
      tags: ["a", "b"],
      organizationId: v7(),
      limit: { key: "api", concurrency: 2, rate: { starts: 5, periodSeconds: 60 } },
      schedule: { name: "nightly", intendedAt },
      active: { key: "k" },
    };
    await ledger.jobs.enqueueMany([request]);
    const [before] = await settingsOf(type);
    const job = await claimedOne(ledger, type);
    await way.end(job);
    await way.again(job.lease.jobId);

    expect(await settingsOf(type)).toEqual([before]);
    expect(Object.values(before ?? {})).not.toContain(null);
    expect(await claimedOne(ledger, type)).toMatchObject({
      payload: { in: 1 },
      limitKey: "api",
      schedule: { name: "nightly", intendedAt },
    });
  });

  test("waits for a slot of its limit like any other", async () => {
    const type = typeOf("limited");
    const limit = { key: type, concurrency: 1 };
    const id = await ended(type, { limit });
    await ledger.jobs.enqueue(type, {}, { limit });
    const other = await claimedOne(ledger, type);
    await way.again(id);

    expect(await ledger.jobs.claim({ workerId: "w", limit: 5, types: [type] })).toEqual([]);
    await ledger.jobs.complete(other.lease);
    expect(await claimedOne(ledger, type)).toMatchObject({ limitKey: type });
  });

  test("of a job that was debounced is debounced no more", async () => {
    const type = typeOf("debounced");
    const debounce = { key: "k", seconds: 60 };
    const { id } = await ledger.jobs.enqueue(type, 1, { debounce });
    await database.pool.query("update runledger.job_queue set run_at = now() where id = $1", [id]);
    await way.end(await claimedOne(ledger, type));
    await ledger.jobs.enqueue(type, 2, { debounce });
    await way.again(id);

    expect(await ledger.jobs.enqueue(type, 3, { debounce })).toMatchObject({ disposition: "replaced" });
    expect((await settingsOf(type)).map(({ payload }) => payload).sort()).toEqual([1, 3]);
  });

  test("holds the active key again, while it lives", async () => {
    const type = typeOf("holds");
    const again = await way.again(await withKey(type));

    expect(await ledger.jobs.enqueue(type, {}, { active: { key: "k" } })).toMatchObject({
      id: again.id,
      disposition: "existing_active",
    });
    await ledger.jobs.complete((await claimedOne(ledger, type)).lease);
    expect(await ledger.jobs.enqueue(type, {}, { active: { key: "k" } })).toMatchObject({ disposition: "inserted" });
  });

  test("of a job whose active key another live one has is refused, until that has ended; nothing is written", async () => {
    const type = typeOf("taken");
    const secret = "key-of-mine";
    const id = await withKey(type, secret);
    await ledger.jobs.enqueue(type, {}, { active: { key: secret } });
    const before = [await everythingOf(database, id), await replaysOf(id)];

    const error = await errorOf(way.again(id));
    expect(error).toMatchObject({ code: "job.active_key_taken", category: "conflict", retryable: false });
    expect(JSON.stringify(error) + String(error)).not.toContain(secret);
    expect([await everythingOf(database, id), await replaysOf(id)]).toEqual(before);
    await ledger.jobs.complete((await claimedOne(ledger, type)).lease);
    expect(await way.again(id)).toMatchObject({ status: "PENDING" });
  });

  test("that is refused for its key leaves a caller's transaction able to go on", async () => {
    const type = typeOf("goes-on");
    const id = await withKey(type);
    await ledger.jobs.enqueue(type, {}, { active: { key: "k" } });
    const trx = await openWith(database, ledger, async (l) => [
      await codeOf(() => way.again(id, {}, l)),
      await l.jobs.enqueue(type, "after"),
    ]);
    await trx.commit();

    expect(trx.result).toMatchObject(["job.active_key_taken", { disposition: "inserted" }]);
  });

  test("is not in the way of the same key in another tenant or of another type", async () => {
    const type = typeOf("elsewhere");
    const id = await withKey(type);
    const active = { key: "k" };
    await ledger.jobs.enqueue(type, {}, { active, organizationId: v7() });
    await ledger.jobs.enqueue(`${type}-other`, {}, { active });

    expect(await way.again(id)).toMatchObject({ status: "PENDING" });
  });

  test("of many takes the first of a key, names the others, and all that have none: in one statement", async () => {
    const type = typeOf("many");
    const ids: string[] = [];
    for (const key of ["a", "b", "a", null, null, "c", "b", "a"]) {
      ids.push(await ended(type, key === null ? {} : { active: { key } }));
    }
    await ledger.jobs.enqueue(`${type}-holder`, {}, { active: { key: "c" } });
    const holder = await ledger.jobs.enqueue(type, {}, { active: { key: "c" } });
    const others = [ids[2], ids[5], ids[6], ids[7]].map((jobId) => ({
      jobId,
      error: expect.objectContaining({ code: "job.active_key_taken" }),
    }));

    const inTransaction = await openWith(database, ledger, (l) => way.all(type, l));
    await inTransaction.rollback();
    expect(inTransaction.result).toEqual({ done: 4, failed: others });

    const { statements, result } = await database.record(() => way.all(type));
    expect(result).toEqual({ done: 4, failed: others });
    expect(statements.filter((text) => text.includes(way.marker))).toHaveLength(1);
    const live = await settingsOf(type);
    expect(live.map(({ active_key }) => active_key).sort()).toEqual(["a", "b", "c", null, null]);
    await ledger.jobs.cancel(holder.id, { scope: globally });
  });

  test.each(["commit", "rollback"] as const)(
    "waits for another of the same active key at the same moment, and goes by its %s",
    async (end) => {
      const type = typeOf(`race-${end}`);
      const [one, two] = [await withKey(type), await withKey(type)];
      const first = await openWith(database, ledger, (l) => way.again(one, {}, l));

      const second = codeOf(() => way.again(two));
      await waitForBackend({ client: database.pool, marker: way.marker });
      await first[end]();

      const taken = "job.active_key_taken";
      expect(await second).toEqual(
        end === "commit" ? taken : { resolved: expect.objectContaining({ id: expect.any(String) }) },
      );
      expect(await settingsOf(type)).toHaveLength(1);
      if (end === "commit") expect([await eventsOf(two), await replaysOf(two)]).toEqual([0, 0]);
    },
  );

  test("of many beside one of the same active key does all the others", async () => {
    const type = typeOf("race-many");
    const one = await withKey(type);
    const ids = [await withKey(type), await ended(type), await ended(type)];
    const first = await openWith(database, ledger, (l) => way.again(one, {}, l));

    const second = way.all(type);
    await waitForBackend({ client: database.pool, marker: way.marker });
    await first.commit();

    const codes = (await second).failed.map(({ jobId }) => jobId);
    // The one that the first has made live again cannot be requeued twice, but replayed under another key.
    expect(codes).toEqual(way === requeue ? [ids[0]] : [one, ids[0]]);
    expect(await second).toMatchObject({ done: 2 });
  });

  test("is waited for by a request with the active key, which gets its job", async () => {
    const type = typeOf("requested");
    const id = await withKey(type);
    const first = await openWith(database, ledger, (l) => way.again(id, {}, l));

    const second = ledger.jobs.enqueue(type, {}, { active: { key: "k" } });
    await waitForBackend({ client: database.pool, marker });
    await first.commit();

    expect(await second).toMatchObject({ id: first.result.id, disposition: "existing_active" });
  });

  test("of many takes active keys in the order of an enqueue: neither waits for the other in a circle", async () => {
    const type = typeOf("circle");
    // In the order of their ids the last key comes first.
    for (const key of ["c", "a"]) await withKey(type, key);
    const active = (key: string) => ({ type, payload: {}, active: { key } });
    const holder = await openWith(database, ledger, (l) => l.jobs.enqueueMany([active("b")]));
    const requests = ledger.jobs.enqueueMany(["a", "b", "c"].map(active));
    await waitForBackend({ client: database.pool, marker });
    const again = way.all(type);
    await waitForBackend({ client: database.pool, marker: way.marker });
    await holder.rollback();

    expect((await requests).map(({ disposition }) => disposition)).toEqual(["inserted", "inserted", "inserted"]);
    expect(await again).toMatchObject({ done: 0, failed: [{}, {}] });
  });

  test("of an encoded payload gives it to the handler decoded, and it is nowhere in plain", async () => {
    const type = typeOf("encoded");
    const encoding = ledgerWith(database, { codec });
    const payload = { card: "4711-plain" };
    const id = await ended(type, { payload }, encoding);
    const first = await encoding.jobs.get(id, admin);
    expect(first.payload).toEqual(payload);
    const again = await way.again(id, {}, encoding);

    expect(await payloadOf(again.id)).toEqual(sealedBy("k1"));
    expect(await claimedOne(encoding, type)).toMatchObject({ payload, undecodable: null });
    expect(await everythingIn(database)).not.toContain("4711-plain");
  });

  test("that corrects the payload encodes it, checks its size, and leaves it nowhere in plain", async () => {
    const type = typeOf("corrected");
    const encoding = ledgerWith(database, { codec, maxBytes: 100 });
    const id = await ended(type, { payload: { card: 1 } }, encoding);
    const before = await everythingIn(database);

    const large = { card: "0815-plain".repeat(20) };
    const error = await errorOf(way.again(id, { payload: large }, encoding));
    expect(error).toMatchObject({ code: "payload.too_large" });
    expect(JSON.stringify(error) + String(error)).not.toContain("0815-plain");
    expect(await everythingIn(database)).toBe(before);

    const payload = { card: "0815-plain" };
    const again = await way.again(id, { payload }, encoding);
    expect(await payloadOf(again.id)).toEqual(sealedBy("k1"));
    expect(await claimedOne(encoding, type)).toMatchObject({ payload, undecodable: null });
    expect(await everythingIn(database)).not.toContain("0815-plain");
  });
});

test("a replay whose key gave the live job of the active key gives that again", async () => {
  await ledger.jobs.enqueue("guarded", {}, { active: { key: "k" } });
  const { lease } = await claimedOne(ledger, "guarded");
  await ledger.jobs.complete(lease);
  const again = () => ledger.jobs.replay(lease.jobId, { scope: globally, key: "replay" });
  const first = await again();

  expect(await again()).toEqual({ ...first, disposition: "existing" });
});

test("a cancelled job that was debounced is requeued without its key, beside the one that has it now", async () => {
  const debounce = { key: "k", seconds: 60 };
  const { id } = await ledger.jobs.enqueue("canceled-debounced", 1, { debounce });
  await ledger.jobs.cancel(id, { scope: globally });
  const next = await ledger.jobs.enqueue("canceled-debounced", 2, { debounce });
  await ledger.jobs.requeue(id, { scope: globally, expected: { status: "CANCELED", runNumber: 1 } });

  expect(await ledger.jobs.enqueue("canceled-debounced", 3, { debounce })).toMatchObject({
    id: next.id,
    disposition: "replaced",
  });
});

/** What each run of a job has of its own. */
const ofRun =
  `id run_number status run_at attempt worker_id leased_at lease_expires_at enqueued_at progress_done progress_total
  checkpoint source_job_id source_run_number workflow_run_id workflow_step_id debounce_key`.split(/\s+/);

/** All other columns of the live jobs of a type: whatever is added to a job is among them. */
async function settingsOf(type: string): Promise<Record<string, unknown>[]> {
  const { rows } = await database.pool.query<Record<string, unknown>>(
    "select * from runledger.job_queue where type = $1 order by id",
    [type],
  );
  return rows.map((row) => Object.fromEntries(Object.entries(row).filter(([column]) => !ofRun.includes(column))));
}

function payloadOf(id: string): Promise<unknown> {
  return stored(database, "select payload from runledger.job_queue where id = $1", id);
}

async function replaysOf(id: string): Promise<number> {
  const { rowCount } = await database.pool.query("select from runledger.job_replays where source_job_id = $1", [id]);
  return rowCount ?? 0;
}

async function eventsOf(id: string): Promise<number> {
  const { rowCount } = await database.pool.query("select from runledger.job_events where job_id = $1", [id]);
  return rowCount ?? 0;
}
