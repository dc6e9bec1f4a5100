/** Idempotency keys with a time to live (FEATURES F-J3). */
import { afterEach, describe, expect, test } from "@jest/globals";
import { v7 } from "uuid";
import { createLedger, type JobRequest } from "../../src/index.ts";
import { expectInvariants } from "../invariants.ts";
import { createTestDatabase } from "../support/database.ts";
import { waitForBackend } from "../support/waiting.ts";
import { claimedOne, codeOf } from "./fixtures.ts";

const database = await createTestDatabase();
const ledger = createLedger({ db: database.db });
const marker = "runledger:enqueue_keyed_jobs";

afterEach(() => expectInvariants(database));

const keyed = (type: string, payload: unknown = {}, ttl = 60) =>
  ledger.jobs.enqueue(type, payload, { idempotencyKey: "k", idempotencyTtlSeconds: ttl });

/** Moves the keys of a type back in time, as if the seconds had passed. */
async function age(type: string, seconds: number): Promise<void> {
  await database.pool.query(
    "update runledger.job_idempotency_keys set expires_at = expires_at - make_interval(secs => $2) where type = $1",
    [type, seconds],
  );
}

async function keysOf(type: string) {
  const { rows } = await database.pool.query(
    `select key, job_id, round(extract(epoch from expires_at - created_at))::int as ttl
     from runledger.job_idempotency_keys where type = $1 order by key`,
    [type],
  );
  return rows;
}

describe("a key with a time to live", () => {
  test("gives its job until the time has passed, and then a new one", async () => {
    const first = await keyed("ages");
    await age("ages", 59);
    expect(await keyed("ages")).toEqual({ ...first, disposition: "existing" });

    await age("ages", 1);
    const second = await keyed("ages");

    expect(second).toMatchObject({ disposition: "inserted" });
    expect(second.id).not.toBe(first.id);
    expect(await keysOf("ages")).toEqual([{ key: "k", job_id: second.id, ttl: 60 }]);
    expect(await keyed("ages")).toEqual({ ...second, disposition: "existing" });
  });

  test("is counted from the moment of the enqueue, not from the begin of its transaction", async () => {
    await database.db.transaction().execute(async (trx) => {
      await ledger.in(trx).jobs.enqueue("late", {}, { idempotencyKey: "k", idempotencyTtlSeconds: 60 });
    });

    const { rows } = await database.pool.query(
      "select expires_at > created_at + interval '60 s' as late from runledger.job_idempotency_keys where type = 'late'",
    );
    expect(rows).toEqual([{ late: true }]);
  });

  test("keeps the first time, and another time is not another request", async () => {
    const first = await keyed("ttl", {}, 60);

    expect(await keyed("ttl", {}, 7200)).toEqual({ ...first, disposition: "existing" });
    expect(await ledger.jobs.enqueue("ttl", {}, { idempotencyKey: "k" })).toMatchObject({ disposition: "existing" });
    expect(await keysOf("ttl")).toMatchObject([{ ttl: 60 }]);
  });

  test("compares requests while it lives, and not after", async () => {
    await keyed("compares", { a: 1 });
    expect(await codeOf(() => keyed("compares", { a: 2 }))).toBe("job.idempotency_conflict");

    await age("compares", 60);
    expect(await keyed("compares", { a: 2 })).toMatchObject({ disposition: "inserted" });
  });

  test("without one it lives for ever", async () => {
    await ledger.jobs.enqueue("for-ever", {}, { idempotencyKey: "k" });

    expect(await keysOf("for-ever")).toMatchObject([{ ttl: null }]);
  });

  test("that has expired is free for one without a time too", async () => {
    await keyed("renewed");
    await age("renewed", 60);
    await ledger.jobs.enqueue("renewed", {}, { idempotencyKey: "k" });

    expect(await keysOf("renewed")).toMatchObject([{ ttl: null }]);
  });

  test("frees its key only in its own type and tenant", async () => {
    const organizationId = v7();
    const scopes: Partial<JobRequest>[] = [{}, { organizationId }, { type: "apart-too" }];
    const requests = scopes.map((scope) => ({
      type: "apart",
      payload: {},
      idempotencyKey: "k",
      idempotencyTtlSeconds: 60,
      ...scope,
    }));
    await ledger.jobs.enqueueMany(requests);
    await database.pool.query(
      "update runledger.job_idempotency_keys set expires_at = now() where type = 'apart' and organization_id is not null",
    );

    const again = await ledger.jobs.enqueueMany(requests);

    expect(again.map(({ disposition }) => disposition)).toEqual(["existing", "inserted", "existing"]);
  });
});

describe("a batch", () => {
  const batch = (type: string) =>
    Array.from({ length: 1000 }, (_, n) => ({
      type,
      payload: n,
      idempotencyKey: `k-${n}`,
      ...(n % 2 === 0 ? { idempotencyTtlSeconds: 60 } : {}),
    }));

  test("of 1000 takes the keys that have expired and finds the others", async () => {
    const first = await ledger.jobs.enqueueMany(batch("thousand"));
    await age("thousand", 60);

    const second = await ledger.jobs.enqueueMany(batch("thousand").reverse());

    for (const [n, job] of second.reverse().entries()) {
      expect(job.disposition).toBe(n % 2 === 0 ? "inserted" : "existing");
      expect(job.id === first[n]?.id).toBe(n % 2 === 1);
    }
    expect(await keysOf("thousand")).toHaveLength(1000);
  });

  test("that names an expired key twice takes it once", async () => {
    const request = { type: "twice", payload: {}, idempotencyKey: "k", idempotencyTtlSeconds: 60 };
    await ledger.jobs.enqueueMany([request]);
    await age("twice", 60);

    const [one, two] = await ledger.jobs.enqueueMany([request, request]);

    expect(one?.disposition).toBe("inserted");
    expect(two).toEqual({ ...one, disposition: "existing" });
  });

  test("that conflicts leaves an expired key as it was, though the transaction goes on", async () => {
    await keyed("kept");
    await age("kept", 60);
    await ledger.jobs.enqueue("kept", { a: 1 }, { idempotencyKey: "other" });
    const before = await keysOf("kept");

    await database.db.transaction().execute(async (trx) => {
      const requests = [
        { type: "kept", payload: {}, idempotencyKey: "k" },
        { type: "kept", payload: { a: 2 }, idempotencyKey: "other" },
      ];
      expect(await codeOf(() => ledger.in(trx).jobs.enqueueMany(requests))).toBe("job.idempotency_conflict");
    });

    expect(await keysOf("kept")).toEqual(before);
  });
});

describe("two sessions at one expired key", () => {
  test.each(["commit", "rollback"] as const)("the second waits, and goes by the first one's %s", async (end) => {
    const type = `raced-${end}`;
    await keyed(type);
    await age(type, 60);
    const trx = await database.db.startTransaction().execute();
    const first = await ledger.in(trx).jobs.enqueue(type, {}, { idempotencyKey: "k", idempotencyTtlSeconds: 60 });
    expect(first.disposition).toBe("inserted");

    const second = keyed(type);
    await waitForBackend({ client: database.pool, marker });
    await trx[end]().execute();

    expect((await second).disposition).toBe(end === "commit" ? "existing" : "inserted");
    expect((await second).id === first.id).toBe(end === "commit");
    expect(await keysOf(type)).toHaveLength(1);
  });

  test("of 30 at once one inserts and the others get its job", async () => {
    await keyed("stampede");
    await age("stampede", 60);

    const jobs = await Promise.all(Array.from({ length: 30 }, () => keyed("stampede")));

    expect(jobs.filter(({ disposition }) => disposition === "inserted")).toHaveLength(1);
    expect(new Set(jobs.map(({ id }) => id)).size).toBe(1);
  });

  test("batches in opposite order neither deadlock nor insert twice", async () => {
    const requests = Array.from({ length: 200 }, (_, n) => ({
      type: `opposite-${n % 3}`,
      payload: n,
      idempotencyKey: `k-${n}`,
      idempotencyTtlSeconds: 60,
    }));
    await ledger.jobs.enqueueMany(requests);
    for (const type of ["opposite-0", "opposite-1", "opposite-2"]) await age(type, 60);

    const { statements, result } = await database.record(() =>
      Promise.all(
        Array.from({ length: 8 }, (_, n) => ledger.jobs.enqueueMany(n % 2 === 0 ? requests : [...requests].reverse())),
      ),
    );

    expect(result.flat().filter(({ disposition }) => disposition === "inserted")).toHaveLength(200);
    expect(statements.filter((text) => text.includes(marker))).toHaveLength(8);
  });
});

test("a key that lives is not locked by who finds it", async () => {
  await keyed("unlocked");
  const trx = await database.db.startTransaction().execute();
  await ledger.in(trx).jobs.enqueue("unlocked", {}, { idempotencyKey: "k" });

  const { rows } = await database.pool.query(
    "select key from runledger.job_idempotency_keys where type = 'unlocked' for update nowait",
  );

  expect(rows).toHaveLength(1);
  await trx.rollback().execute();
});

test("a key that is pruned just before it is looked for is free", async () => {
  await keyed("pruned");
  // The first look finds the key, the second does not: as when somebody deletes it in between.
  await database.pool.query(`
    create function public.prune() returns trigger language plpgsql as $$
    begin
      delete from runledger.job_idempotency_keys where type = 'pruned';
      return null;
    end $$;
    create trigger prune after insert on runledger.job_idempotency_keys
      for each statement when (pg_trigger_depth() = 0) execute function public.prune()`);

  const trx = await database.db.startTransaction().execute();
  const job = await ledger.in(trx).jobs.enqueue("pruned", {}, { idempotencyKey: "k" });
  await trx.rollback().execute();
  await database.pool.query("drop function public.prune cascade");

  expect(job.disposition).toBe("inserted");
  expect((await claimedOne(ledger, "pruned")).lease.jobId).not.toBe(job.id);
});
