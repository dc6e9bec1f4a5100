/** `enqueue_job` and `enqueue_jobs`: what SQL writes is what TypeScript writes, and each finds the other's keys. */
import { describe, expect, test } from "@jest/globals";
import fc from "fast-check";
import { sql } from "kysely";
import { createLedger, type EnqueueOptions, type JobOptions } from "../../src/index.ts";
import { createTestDatabase } from "../support/database.ts";
import { bySql as enqueueBySql } from "./by-sql.ts";

const database = await createTestDatabase();
const { db } = database;
const ledger = createLedger({ db });
const everywhere = { admin: true } as const;

const bySql = (type: string, payload: unknown, options: JobOptions & EnqueueOptions = {}, of = db) =>
  enqueueBySql(of, type, payload, options);

/** The whole row but for its id and the times at which it was made. */
async function rowOf(id: string): Promise<unknown> {
  const { rows } = await sql<{ row: Record<string, unknown> }>`
    select to_jsonb(q) - 'id' - 'enqueued_at' || jsonb_build_object('run_at', case when run_at = enqueued_at then 'at once' else run_at::text end) as row
    from runledger.job_queue as q where id = ${id}`.execute(db);
  return rows[0]?.row;
}

async function keyOf(id: string): Promise<unknown> {
  const { rows } = await sql`
    select to_jsonb(k) - 'job_id' - 'created_at' - 'key' as row from runledger.job_idempotency_keys as k where job_id = ${id}`.execute(
    db,
  );
  return rows[0];
}

let calls = 0;
function nextKey(): string {
  calls += 1;
  return `key ${calls}`;
}

const name = fc
  .string({ unit: "binary", minLength: 1, maxLength: 20 })
  .filter((text) => /[!-~]/.test(text) && !text.includes("\0"));
const organization = fc.uuid();
const time = fc.date({ min: new Date("2000-01-01"), max: new Date("2200-01-01"), noInvalidDate: true });
const json = fc.jsonValue().filter((value) => !JSON.stringify(value).includes("\\u0000"));
const jobOptions: fc.Arbitrary<JobOptions> = fc.record(
  {
    priority: fc.integer({ min: -2_147_483_647, max: 2_147_483_647 }),
    maxAttempts: fc.integer({ min: 1, max: 2_147_483_647 }),
    timeoutSeconds: fc.integer({ min: 1, max: 2_147_483_647 }),
    runAt: fc.oneof(
      time,
      time.map((date) => date.toISOString().replace("Z", "123+05:30")),
    ),
    organizationId: fc.option(organization),
    tags: fc.array(name, { maxLength: 4 }),
  },
  { requiredKeys: [] },
);

describe("what is written", () => {
  test("is the same, column by column, for any options", async () => {
    await ledger.jobs.pause(["defined"]);
    await sql`insert into runledger.job_definitions (type, priority, max_attempts, timeout_seconds) values ('defined', 7, 3, 60)
      on conflict (type) do update set priority = 7, max_attempts = 3, timeout_seconds = 60`.execute(db);
    const type = fc.oneof(name, fc.constant("defined"));
    await fc.assert(
      fc.asyncProperty(type, json, jobOptions, fc.boolean(), async (of, payload, options, keyed) => {
        const withKey = () => (keyed ? { ...options, idempotencyKey: nextKey() } : options);
        const [one, other] = [await ledger.jobs.enqueue(of, payload, withKey()), await bySql(of, payload, withKey())];
        expect(await rowOf(other.id)).toEqual(await rowOf(one.id));
        expect(await keyOf(other.id)).toEqual(await keyOf(one.id));
        expect({ ...other, id: one.id }).toEqual(one);
      }),
      { numRuns: 150 },
    );
  }, 120_000);

  test("takes what nobody says from the definition, else from the library, as they are now", async () => {
    const { id } = await bySql("undefined", {});
    expect(await rowOf(id)).toMatchObject({ priority: 100, max_attempts: 8, timeout_seconds: 900, run_at: "at once" });
    expect(await rowOf((await bySql("undefined", {}, { priority: 1 })).id)).toMatchObject({ priority: 1 });
  });

  test("has ids of version 7 of this moment, rising in a batch and from call to call", async () => {
    const { rows } = await sql<{ id: string }>`
      select id from runledger.enqueue_jobs((select jsonb_agg('{"type":"many","payload":1}'::jsonb) from generate_series(1, 1000)))`.execute(
      db,
    );
    const ids = [...rows.map(({ id }) => id), (await bySql("many", 1)).id, (await bySql("many", 1)).id];
    expect([...ids].sort()).toEqual(ids);
    expect(new Set(ids).size).toBe(1002);
    for (const id of ids) {
      expect(id).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
      const ms = Number.parseInt(id.replaceAll("-", "").slice(0, 12), 16);
      expect(Math.abs(ms - Date.now())).toBeLessThan(3_600_000);
    }
  });

  test("starts after delay_seconds, which the key remembers in place of a time", async () => {
    const call = (seconds: number) =>
      sql<{ id: string; due: boolean }>`
      select e.*, (select run_at - enqueued_at = interval '90 seconds' from runledger.job_queue as q where q.id = e.id) as due
      from runledger.enqueue_job('delayed', '1', jsonb_build_object('delay_seconds', ${sql.lit(seconds)}, 'idempotency_key', 'later')) as e`.execute(
        db,
      );
    const {
      rows: [first],
    } = await call(90);
    const { rows } = await sql<{
      due: boolean;
    }>`select run_at - enqueued_at = interval '90 seconds' as due from runledger.job_queue where id = ${first?.id}`.execute(
      db,
    );
    expect(rows).toEqual([{ due: true }]);
    expect((await call(90)).rows).toMatchObject([{ id: first?.id, disposition: "existing" }]);
    await expect(call(91)).rejects.toMatchObject({ code: "RL003" });
  });

  test("is announced once a transaction, and only when something is due", async () => {
    const listener = await database.connect();
    const heard: string[] = [];
    listener.on("notification", ({ channel, payload }) => heard.push(`${channel} ${payload}`));
    await listener.query("listen runledger_jobs");
    await bySql("later", {}, { runAt: "2999-01-01T00:00:00Z" });
    await listener.query("select 1");
    expect(heard).toEqual([]);
    await db.transaction().execute(async (trx) => {
      await bySql("now", {}, {}, trx);
      await bySql("now", {}, {}, trx);
    });
    await listener.query("select 1");
    expect(heard).toEqual(["runledger_jobs "]);
    await listener.query("unlisten *");
  });
});

describe("keys", () => {
  test("of one side are found by the other, for any request", async () => {
    await fc.assert(
      fc.asyncProperty(name, json, jobOptions, fc.boolean(), async (type, payload, options, sqlFirst) => {
        const keyed = { ...options, idempotencyKey: nextKey() };
        const viaSql = () => bySql(type, payload, keyed);
        const viaLedger = () => ledger.jobs.enqueue(type, payload, keyed);
        const [first, second] = sqlFirst ? [await viaSql(), await viaLedger()] : [await viaLedger(), await viaSql()];
        expect(second).toMatchObject({ id: first.id, disposition: "existing", status: "PENDING" });
      }),
      { numRuns: 100 },
    );
  }, 120_000);

  test("with another request are a conflict on both sides, that tells neither key nor payload", async () => {
    await bySql("conflict", { secret: "s3cret" }, { idempotencyKey: "k3y" });
    await ledger.jobs.enqueue("conflict", { secret: "s3cret" }, { idempotencyKey: "k3y-2" });
    const other: (JobOptions & { payload: unknown })[] = [
      { payload: { secret: "0ther" } },
      { payload: { secret: "s3cret" }, priority: 1 },
      { payload: { secret: "s3cret" }, tags: [] },
      { payload: { secret: "s3cret" }, runAt: "2030-01-01T00:00:00Z" },
    ];
    for (const { payload, ...options } of other) {
      const error = await bySql("conflict", payload, { ...options, idempotencyKey: "k3y-2" }).catch(
        (thrown: unknown) => thrown,
      );
      expect(error).toMatchObject({ code: "RL003", hint: "job.idempotency_conflict" });
      expect(JSON.stringify(error, Object.getOwnPropertyNames(error))).not.toMatch(/k3y|s3cret|0ther/);
      await expect(
        ledger.jobs.enqueue("conflict", payload, { ...options, idempotencyKey: "k3y" }),
      ).rejects.toMatchObject({
        code: "job.idempotency_conflict",
      });
    }
  });

  test("give the job whatever has become of it", async () => {
    const { id } = await bySql("ends", {}, { idempotencyKey: "ends" });
    await ledger.jobs.cancel(id, { scope: everywhere });
    expect(await bySql("ends", {}, { idempotencyKey: "ends" })).toMatchObject({
      id,
      status: "CANCELED",
      disposition: "existing",
    });
  });
});

test("a limit is kept: of three jobs of one key one is claimed, and the next when it has ended", async () => {
  const limit = { key: "customer", concurrency: 1 };
  for (const n of [1, 2, 3]) await bySql("limited", n, { limit });
  for (const n of [1, 2, 3]) {
    const [job, ...more] = await ledger.jobs.claim({ workerId: "w", limit: 10, types: ["limited"] });
    if (job === undefined) throw new Error("a job is free");
    expect([job.payload, ...more]).toEqual([n]);
    await ledger.jobs.complete(job.lease);
  }
});
