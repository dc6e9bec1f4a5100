/** What the functions in SQL refuse, with the codes of TypeScript, and what a refusal tells. */
import { describe, expect, test } from "@jest/globals";
import { sql } from "kysely";
import { createLedger, errorCodes, ledgerErrorOf } from "../../src/index.ts";
import { createTestDatabase } from "../support/database.ts";
import { inSql } from "./by-sql.ts";

const database = await createTestDatabase();
const { db } = database;
const ledger = createLedger({ db });

const call = (type: unknown, payload: unknown, options: unknown, of = db) =>
  sql<{
    id: string;
  }>`select * from runledger.enqueue_job(${type}::text, ${payload === undefined ? null : JSON.stringify(payload)}::text::jsonb, ${JSON.stringify(options)}::text::jsonb)`.execute(
    of,
  );

async function refusal(action: () => Promise<unknown>) {
  const error = await action().then(
    () => null,
    (thrown: unknown) => thrown,
  );
  return ledgerErrorOf(error);
}

const long = "x".repeat(513);
const secret = "s3cret";
const inputs: readonly (readonly [string, unknown, unknown, unknown])[] = [
  ["a blank type", " \t", {}, {}],
  ["a type that is null", null, {}, {}],
  ["a type that is too long", long, {}, {}],
  ["options that are no object", "t", {}, [secret]],
  ["options that are null", "t", {}, null],
  ["an option that there is not", "t", {}, { [secret]: 1 }],
  ["an option's name of TypeScript", "t", {}, { maxAttempts: 1 }],
  ["a type among the options", "t", {}, { type: secret }],
  ["a payload among the options", "t", {}, { payload: secret }],
  ["strict that is neither", "t", {}, { strict: secret }],
  ["a priority that is a text", "t", {}, { priority: "1" }],
  ["a priority with a fraction", "t", {}, { priority: 1.5 }],
  ["a priority out of range", "t", {}, { priority: 2_147_483_648 }],
  ["a priority out of range below", "t", {}, { priority: -2_147_483_648 }],
  ["no attempts", "t", {}, { max_attempts: 0 }],
  ["no time", "t", {}, { timeout_seconds: 0 }],
  ["a time without a zone", "t", {}, { run_at: "2030-01-01T00:00:00" }],
  ["a day", "t", {}, { run_at: "2030-01-01" }],
  ["a time that is a number", "t", {}, { run_at: 1 }],
  ["a time and a delay", "t", {}, { run_at: "2030-01-01T00:00:00Z", delay_seconds: 1 }],
  ["a delay that is none", "t", {}, { delay_seconds: 0 }],
  ["a delay that is a text", "t", {}, { delay_seconds: "1" }],
  ["a delay of more than a century", "t", {}, { delay_seconds: 4e9 }],
  ["an organization that is no UUID", "t", {}, { organization_id: secret }],
  ["an organization that is a number", "t", {}, { organization_id: 1 }],
  ["a blank key", "t", {}, { idempotency_key: "" }],
  ["a key that is a number", "t", {}, { idempotency_key: 1 }],
  ["a key that is too long", "t", {}, { idempotency_key: `${secret}${long}` }],
  ["tags that are a text", "t", {}, { tags: secret }],
  ["tags that are numbers", "t", {}, { tags: [1] }],
  ["a blank tag", "t", {}, { tags: ["a", " "] }],
  ["a tag that is too long", "t", {}, { tags: [long] }],
];

test.each(inputs)("%s is input.invalid, and the refusal tells nothing of it", async (_, type, payload, options) => {
  const error = await refusal(() => call(type, payload, options));
  expect(error).toMatchObject({ code: "input.invalid", sqlstate: "RL001", category: "validation" });
  const cause = error?.cause;
  expect(cause).toMatchObject({ hint: "input.invalid" });
  expect(JSON.stringify([cause, error], Object.getOwnPropertyNames(cause))).not.toContain(secret);
});

/** As TypeScript has them; what has no counterpart there is above. */
const limit = { key: "k", concurrency: 1 };
const key = { key: "k" };
const inputsOfBoth: readonly (readonly [string, object])[] = [
  ["two keys", { idempotencyKey: "k", active: key }],
  ["two other keys", { debounce: { ...key, seconds: 1 }, throttle: { ...key, seconds: 1 } }],
  ["all keys", { idempotencyKey: "k", active: key, debounce: key, throttle: key }],
  ["a time to live without its key", { idempotencyTtlSeconds: 1 }],
  ["a time to live of another key", { active: key, idempotencyTtlSeconds: 1 }],
  ["a time to live of nothing", { idempotencyKey: "k", idempotencyTtlSeconds: 0 }],
  ["a time to live that is a text", { idempotencyKey: "k", idempotencyTtlSeconds: "1" }],
  ["a time to live of more than a century", { idempotencyKey: "k", idempotencyTtlSeconds: 4e9 }],
  ["an active key that is a text", { active: secret }],
  ["an active key without a key", { active: {} }],
  ["an active key that is blank", { active: { key: " " } }],
  ["an active key that is too long", { active: { key: long } }],
  ["an active key that replaces perhaps", { active: { ...key, replace: secret } }],
  ["a debounce that is a number", { debounce: 1 }],
  ["a debounce without a key", { debounce: { seconds: 1 } }],
  ["a debounce without seconds", { debounce: key }],
  ["a debounce of no seconds", { debounce: { ...key, seconds: 0 } }],
  ["a debounce with less at most", { debounce: { ...key, seconds: 2, maxSeconds: 1 } }],
  ["a debounce with a text at most", { debounce: { ...key, seconds: 2, maxSeconds: "3" } }],
  ["a debounce and a time", { debounce: { ...key, seconds: 1 }, runAt: "2030-01-01T00:00:00Z" }],
  ["a throttle that is a text", { throttle: secret }],
  ["a throttle without a key", { throttle: { seconds: 1 } }],
  ["a throttle without seconds", { throttle: key }],
  ["a throttle of less than no seconds", { throttle: { ...key, seconds: -1 } }],
  ["a limit without a key", { limit: { concurrency: 1 } }],
  ["a limit with a key that is too long", { limit: { ...limit, key: long } }],
  ["a limit of nothing", { limit: key }],
  ["a limit of none at once", { limit: { ...key, concurrency: 0 } }],
  ["a limit of a half at once", { limit: { ...key, concurrency: 0.5 } }],
  ["a rate without starts", { limit: { ...key, rate: { periodSeconds: 1 } } }],
  ["a rate without a period", { limit: { ...key, rate: { starts: 1 } } }],
  ["a rate of no starts", { limit: { ...key, rate: { starts: 0, periodSeconds: 1 } } }],
  ["a rate of no period", { limit: { ...key, rate: { starts: 1, periodSeconds: 0 } } }],
  ["a rate beside a limit, that is wrong", { limit: { ...limit, rate: { starts: "1", periodSeconds: 1 } } }],
];

test.each(inputsOfBoth)("%s is input.invalid on both sides", async (_, options) => {
  const error = await refusal(() => call("t", {}, inSql(options)));
  expect(error).toMatchObject({ code: "input.invalid", sqlstate: "RL001" });
  expect(JSON.stringify([error?.cause, error], Object.getOwnPropertyNames(error?.cause))).not.toContain(secret);
  const own = await refusal(() => ledger.jobs.enqueue("t", {}, options));
  expect(own).toMatchObject({ code: "input.invalid" });
});

test.each([
  ["a debounce and a delay", { debounce: { key: "k", seconds: 1 }, delay_seconds: 1 }],
  ["an option of a key that there is not", { active: { key: "k", [secret]: 1 } }],
  ["an option of a limit that there is not", { limit: { key: "k", concurrency: 1, starts: 1 } }],
  ["an option of a rate in TypeScript's name", { limit: { key: "k", rate: { starts: 1, periodSeconds: 1 } } }],
  ["a rate that is a text", { limit: { key: "k", rate: secret } }],
  ["a limit that is a text", { limit: secret }],
  ["a period that is nothing in the end", { limit: { key: "k", rate: { starts: 1, period_seconds: "1e-400" } } }],
])("%s is input.invalid", async (_, options) => {
  const written = JSON.stringify(options).replace('"1e-400"', "1e-400");
  const error = await refusal(() => sql`select runledger.enqueue_job('t', '{}', ${written}::text::jsonb)`.execute(db));
  expect(error).toMatchObject({ code: "input.invalid", sqlstate: "RL001" });
  expect(JSON.stringify([error?.cause, error], Object.getOwnPropertyNames(error?.cause))).not.toContain(secret);
});

test("what is wrong with an option of an option is said with its whole name", async () => {
  const options = { limit: { key: "k", rate: { starts: 0.5, period_seconds: 1 } } };
  expect((await refusal(() => call("t", {}, options)))?.cause).toMatchObject({
    message: "limit.rate.starts must be an integer of its range",
  });
});

test("null is as good as nothing", async () => {
  const options = ["priority", "max_attempts", "timeout_seconds", "run_at", "delay_seconds", "idempotency_key"];
  options.push("idempotency_ttl_seconds", "active", "debounce", "throttle", "limit");
  const nulls = Object.fromEntries([...options, "organization_id", "tags", "strict"].map((option) => [option, null]));
  const withinObjects = [
    { active: { key: "null", replace: null } },
    { debounce: { key: "null", seconds: 1, max_seconds: null } },
    { limit: { key: "null", concurrency: 1, rate: null } },
    { limit: { key: "null", concurrency: null, rate: { starts: 1, period_seconds: 1 } } },
  ];
  for (const one of withinObjects) expect((await call("nulls", {}, one)).rows).toHaveLength(1);
  const { rows } = await call("nulls", {}, nulls);
  const { rows: stored } = await sql`
    select priority, max_attempts, timeout_seconds, organization_id, tags from runledger.job_queue where id = ${rows[0]?.id}`.execute(
    db,
  );
  expect(stored).toEqual([{ priority: 100, max_attempts: 8, timeout_seconds: 900, organization_id: null, tags: null }]);
});

describe("payloads", () => {
  test("are refused as in TypeScript", async () => {
    const tooLarge = { text: secret.repeat(200_000) };
    const reserved = [{ $runledger: secret }, [1, [{ $runledger: 1 }]]];
    const codeOf = async (payload: unknown) => (await refusal(() => call("t", payload, {})))?.code ?? null;
    const ownCodeOf = async (payload: unknown) =>
      (await refusal(() => ledger.jobs.enqueue("t", payload)))?.code ?? null;
    for (const payload of [
      undefined,
      tooLarge,
      ...reserved,
      null,
      { a: { $runledger: 1 } },
      { $runledger: 1, a: 2 },
      '{"$runledger": 1}',
    ]) {
      expect(await codeOf(payload)).toBe(await ownCodeOf(payload));
    }
    expect(await codeOf(tooLarge)).toBe("payload.too_large");
    expect(await codeOf(reserved[1])).toBe("payload.reserved");
  });
});

describe("a strict call", () => {
  test("refuses types without an enabled definition, by name", async () => {
    await sql`insert into runledger.job_definitions (type, enabled) values ('known', true), ('off', false)`.execute(db);
    await expect(call("known", {}, { strict: true })).resolves.toBeDefined();
    for (const type of ["off", "nobody's"]) {
      const error = await refusal(() => call(type, {}, { strict: true }));
      expect(error).toMatchObject({ code: "job.definition_not_found_or_disabled", sqlstate: "RL002" });
      expect(error?.cause).toMatchObject({ detail: type });
      await expect(call(type, {}, {})).resolves.toBeDefined();
    }
  });
});

describe("a batch", () => {
  const batch = (jobs: unknown, strict = false) =>
    sql<{
      id: string;
      disposition: string;
    }>`select * from runledger.enqueue_jobs(${JSON.stringify(jobs)}::text::jsonb, ${strict})`.execute(db);

  test("names the job that is wrong, and enqueues none", async () => {
    const jobs = [
      { type: "batch", payload: 1 },
      { type: "batch", payload: 2, priority: "high" },
    ];
    await expect(batch(jobs)).rejects.toMatchObject({ code: "RL001", message: "jobs[1]: priority must be an integer" });
    await expect(batch([{ type: "batch", payload: 1 }, { type: "batch" }])).rejects.toMatchObject({ code: "RL006" });
    await expect(batch([jobs[0], { type: "batch", payload: 1, delay_seconds: 0 }])).rejects.toMatchObject({
      code: "RL001",
    });
    await expect(batch([jobs[0]], true)).rejects.toMatchObject({ code: "RL002" });
    await expect(batch({})).rejects.toMatchObject({ code: "RL001" });
    await expect(batch([1])).rejects.toMatchObject({ code: "RL001" });
    const { rows } = await sql`select from runledger.job_queue where type = 'batch'`.execute(db);
    expect(rows).toEqual([]);
  });

  test("of none is none", async () => {
    expect((await batch([])).rows).toEqual([]);
    expect((await sql`select * from runledger.enqueue_jobs(null)`.execute(db)).rows).toEqual([]);
  });

  test("answers in its order, with what was there and what is new, and a key twice is one job", async () => {
    const [old] = (await batch([{ type: "mixed", payload: 0, idempotency_key: "b" }])).rows;
    const keys = ["z", null, "b", "a", "z", null];
    const { rows } = await batch(keys.map((key) => ({ type: "mixed", payload: 0, idempotency_key: key })));
    expect(rows.map(({ disposition }) => disposition)).toEqual([
      "inserted",
      "inserted",
      "existing",
      "inserted",
      "existing",
      "inserted",
    ]);
    expect(rows[2]?.id).toBe(old?.id);
    expect(rows[4]?.id).toBe(rows[0]?.id);
    expect(new Set(rows.map(({ id }) => id)).size).toBe(5);
    const again = await batch(keys.map((key) => ({ type: "mixed", payload: 0, idempotency_key: key })));
    expect(again.rows[0]).toMatchObject({ id: rows[0]?.id, disposition: "existing" });
  });
});

test("every SQLSTATE of the functions is one code, and every code is in the table", async () => {
  const { rows } = await sql<{ source: string }>`
    select prosrc as source from pg_proc where pronamespace = 'runledger'::regnamespace and prosrc like '%hint = %'`.execute(
    db,
  );
  const raised = rows.flatMap(({ source }) => [
    ...[...source.matchAll(/errcode = '(\w+)'.*?hint = '([\w.]+)'/gs)].map(([, sqlstate, hint]) => [sqlstate, hint]),
    ...[...source.matchAll(/when '([\w.]+)' then '(RL\w+)'/g)].map(([, hint, sqlstate]) => [sqlstate, hint]),
  ]);
  expect(new Set(raised.map(([sqlstate]) => sqlstate)).size).toBe(12);
  for (const [sqlstate, hint] of raised) {
    const error = ledgerErrorOf(Object.assign(new Error("raised"), { code: sqlstate }));
    expect(error?.code).toBe(hint);
    expect(Object.keys(errorCodes)).toContain(hint);
  }
});

test("an error that is none of the database has no code", () => {
  expect(ledgerErrorOf(new Error("mine"))).toBeNull();
  expect(ledgerErrorOf(undefined)).toBeNull();
});
