/** The functions in SQL among other transactions: triggers, races with TypeScript for a key, waits, isolation, tenants. */
import { afterEach, describe, expect, test } from "@jest/globals";
import { sql } from "kysely";
import { createLedger, type EnqueuedJob, type JobOptions } from "../../src/index.ts";
import { expectInvariants } from "../invariants.ts";
import { createTestDatabase } from "../support/database.ts";
import { waitForBackend } from "../support/waiting.ts";
import { createLogins } from "../tenancy/logins.ts";
import { bySql } from "./by-sql.ts";

const database = await createTestDatabase();
const { db, pool } = database;
const ledger = createLedger({ db });
const logins = await createLogins(database);
const everywhere = { admin: true } as const;

afterEach(() => expectInvariants(database));

const keyed = (key: string, payload = "{}") =>
  `select * from runledger.enqueue_job('raced', '${payload}', '{"idempotency_key": "${key}"}')`;

describe("a trigger", () => {
  const count = async (type: string) =>
    (await pool.query("select count(*)::int as n from runledger.job_queue where type = $1", [type])).rows[0].n;
  const inOrder = async (type: string) => {
    const { rows } = await pool.query(
      "select (payload ->> 'order')::int as n from runledger.job_queue where type = $1 order by run_at, id",
      [type],
    );
    return rows.map(({ n }) => n);
  };
  const numbersTo = (last: number) => Array.from({ length: last }, (_, n) => n + 1);

  test("enqueues for each row of an insert of two thousand, with it or not at all", async () => {
    await pool.query(`
      create table public.orders (id int primary key);
      create function public.order_placed() returns trigger language plpgsql as $$
      begin
        perform runledger.enqueue_job('send-receipt', jsonb_build_object('order', new.id),
          jsonb_build_object('idempotency_key', 'order ' || new.id, 'tags', array['orders']));
        return null;
      end $$;
      create trigger order_placed after insert on public.orders for each row execute function public.order_placed()`);

    await pool.query("begin; insert into public.orders select generate_series(1, 100); rollback");
    expect(await count("send-receipt")).toBe(0);
    await pool.query("insert into public.orders select generate_series(1, 2000)");
    expect(await inOrder("send-receipt")).toEqual(numbersTo(2_000));
    expect(
      await ledger.jobs.enqueue("send-receipt", { order: 7 }, { idempotencyKey: "order 7", tags: ["orders"] }),
    ).toMatchObject({ disposition: "existing" });
    const twice = pool.query("insert into public.orders values (2001), (2001)");
    await expect(twice).rejects.toMatchObject({ code: "23505" });
    expect(await count("send-receipt")).toBe(2_000);
  }, 60_000);

  test("for the whole statement enqueues ten thousand at once", async () => {
    await pool.query(`
      create table public.parcels (id int primary key);
      create function public.parcels_sent() returns trigger language plpgsql as $$
      begin
        perform runledger.enqueue_jobs((
          select jsonb_agg(jsonb_build_object('type', 'track', 'payload', jsonb_build_object('order', id)) order by id) from sent
        ));
        return null;
      end $$;
      create trigger parcels_sent after insert on public.parcels referencing new table as sent
        for each statement execute function public.parcels_sent()`);

    await pool.query("insert into public.parcels select generate_series(1, 10000)");
    expect(await inOrder("track")).toEqual(numbersTo(10_000));
    await pool.query("insert into public.parcels select 1 where false");
    expect(await count("track")).toBe(10_000);
  }, 60_000);
});

describe("a race for a key", () => {
  test("with TypeScript: who comes second gets the job of the first", async () => {
    const session = await database.connect();
    await session.query("begin");
    const { rows } = await session.query(keyed("a"));
    const second = ledger.jobs.enqueue("raced", {}, { idempotencyKey: "a" });
    await waitForBackend({ client: pool, marker: "enqueue_keyed_jobs" });
    await session.query("commit");
    expect(await second).toMatchObject({ id: rows[0].id, disposition: "existing" });
  });

  test("the other way: SQL waits for TypeScript's transaction, and takes the key when that is rolled back", async () => {
    for (const end of ["commit", "rollback"] as const) {
      const key = `b ${end}`;
      const trx = await db.startTransaction().execute();
      const first = await ledger.in(trx).jobs.enqueue("raced", {}, { idempotencyKey: key });
      const second = pool.query(keyed(key));
      await waitForBackend({ client: pool, marker: "enqueue_job" });
      await trx[end]().execute();
      const { rows } = await second;
      const expected = end === "commit" ? { id: first.id, disposition: "existing" } : { disposition: "inserted" };
      expect(rows).toMatchObject([expected]);
    }
  });

  test.each([
    ["job_idempotency_keys", "insert", '"idempotency_key": "c"'],
    ["job_idempotency_keys", "insert", '"throttle": {"key": "c", "seconds": 60}'],
    ["job_queue", "insert", '"active": {"key": "c"}'],
    ["job_queue", "update", '"debounce": {"key": "c", "seconds": 60}'],
  ])(
    "is waited for at most 5 s, or as long as the caller would, whose setting is as it was afterwards: %s %s",
    async (table, event, key) => {
      const asked = `select * from runledger.enqueue_job('waits', '{}', '{${key}}')`;
      if (event === "update") await pool.query(asked);
      await pool.query(`
      create table public.seen (wait text);
      create function public.see() returns trigger language plpgsql as $$
      begin insert into public.seen values (current_setting('lock_timeout')); return null; end $$;
      create trigger see after ${event} on runledger.${table} for each row execute function public.see()`);
      const session = await database.connect();
      for (const [own, during] of [
        ["200ms", "200ms"],
        ["5s", "5s"],
        ["1h", "5s"],
        ["0", "5s"],
      ]) {
        await session.query(`begin; set local lock_timeout = '${own}'`);
        await session.query(asked);
        const { rows } = await session.query("select wait, current_setting('lock_timeout') as after from public.seen");
        expect(rows).toEqual([{ wait: during, after: own }]);
        await session.query("rollback");
      }
      await pool.query(`drop trigger see on runledger.${table}; drop function public.see; drop table public.seen`);
    },
  );

  test("that is not decided in time is the caller's error, and can be tried again", async () => {
    const holder = await database.connect();
    await holder.query("begin");
    await holder.query(keyed("d"));
    const session = await database.connect();
    await session.query("begin; set local lock_timeout = '100ms'");
    await expect(session.query(keyed("d"))).rejects.toMatchObject({ code: "55P03" });
    await session.query("rollback");
    await holder.query("rollback");
    expect((await session.query(keyed("d"))).rows).toMatchObject([{ disposition: "inserted" }]);
  });
});

test.each([
  ["idempotency_key", '"k"', "RL004", "job.enqueue_idempotency_unsupported_isolation"],
  ["active", '{"key": "k"}', "RL009", "job.enqueue_active_key_unsupported_isolation"],
  ["debounce", '{"key": "k", "seconds": 1}', "RL010", "job.enqueue_debounce_unsupported_isolation"],
  ["throttle", '{"key": "k", "seconds": 1}', "RL011", "job.enqueue_throttle_unsupported_isolation"],
])("%s needs READ COMMITTED, and says so before anything is written", async (option, value, code, hint) => {
  for (const level of ["repeatable read", "serializable"] as const) {
    await db
      .transaction()
      .setIsolationLevel(level)
      .execute(async (trx) => {
        await sql`savepoint mine`.execute(trx);
        const keyed = sql`select * from runledger.enqueue_job('level', '{}', jsonb_build_object(${option}::text, ${value}::jsonb))`;
        await expect(keyed.execute(trx)).rejects.toMatchObject({ code, hint });
        await sql`rollback to savepoint mine`.execute(trx);
        await sql`select * from runledger.enqueue_job('level')`.execute(trx);
      });
  }
});

test("behind row-level security it is the tenant's, and of no other", async () => {
  const organization = "00000000-0000-7000-8000-00000000000a";
  const tenant = { organization };
  const call = (of: string | null) =>
    sql<{ id: string; disposition: string }>`
      select * from runledger.enqueue_job('tenants', '{}', jsonb_build_object('organization_id', ${of}::text, 'idempotency_key', 'k'))`;
  const enqueuer = logins.as("enqueuer");
  const { rows } = await enqueuer.ledger.inTenant(tenant, (_, trx) => call(organization).execute(trx));
  expect(rows).toMatchObject([{ disposition: "inserted" }]);
  expect((await enqueuer.ledger.inTenant(tenant, (_, trx) => call(organization).execute(trx))).rows).toMatchObject([
    { id: rows[0]?.id, disposition: "existing" },
  ]);
  for (const other of [null, "00000000-0000-7000-8000-00000000000b"]) {
    await expect(enqueuer.ledger.inTenant(tenant, (_, trx) => call(other).execute(trx))).rejects.toMatchObject({
      code: "42501",
    });
  }
  await expect(call(organization).execute(enqueuer.db)).rejects.toMatchObject({ code: "42501" });
  await expect(
    logins.as("reader").ledger.inTenant(tenant, (_, trx) => call(organization).execute(trx)),
  ).rejects.toMatchObject({
    code: "42501",
  });
  expect(await ledger.jobs.get(rows[0]?.id ?? "", everywhere)).toMatchObject({ organizationId: organization });
});

test("behind row-level security an enqueuer has every option in its own tenant", async () => {
  const organizationId = "00000000-0000-7000-8000-00000000000c";
  const enqueuer = logins.as("enqueuer");
  const ask = (options: JobOptions) =>
    enqueuer.ledger.inTenant({ organization: organizationId }, (_, trx) =>
      bySql(trx, "own", {}, { organizationId, ...options }),
    );
  const limit = { key: "own", concurrency: 1, rate: { starts: 1, periodSeconds: 1 } };
  const asked: readonly (readonly [JobOptions, EnqueuedJob["disposition"]])[] = [
    [{ limit }, "inserted"],
    [{ active: { key: "k" } }, "existing_active"],
    [
      { active: { key: "k", replace: true }, priority: 7, maxAttempts: 2, timeoutSeconds: 5, tags: ["a"], limit },
      "replaced",
    ],
    [{ debounce: { key: "k", seconds: 60 } }, "replaced"],
    [{ throttle: { key: "k", seconds: 60 } }, "throttled"],
    [{ idempotencyKey: "k", idempotencyTtlSeconds: 60 }, "existing"],
  ];
  for (const [options, disposition] of asked) {
    await ask(options);
    expect(await ask(options)).toMatchObject({ disposition });
  }
  await pool.query("update runledger.job_idempotency_keys set expires_at = clock_timestamp() where type = 'own'");
  for (const [options] of asked.slice(-2)) expect(await ask(options)).toMatchObject({ disposition: "inserted" });
});
