/** The catalogue and what an enqueue takes from it (FEATURES F-J1). */
import { beforeEach, expect, test } from "@jest/globals";
import { createLedger, defineJob } from "../../src/index.ts";
import { createTestDatabase } from "../support/database.ts";
import { codeOf, globally } from "./fixtures.ts";

const database = await createTestDatabase();
const ledger = createLedger({ db: database.db });

beforeEach(() => database.pool.query("truncate runledger.job_definitions, runledger.job_queue"));

test("a first sync writes every definition, with the library's defaults where it says nothing", async () => {
  const written = await ledger.jobs.sync([
    defineJob("b", { version: 3, maxAttempts: 5, timeoutSeconds: 60, priority: -1, backoff: { factor: 3, jitter: 0 } }),
    defineJob("a"),
  ]);

  expect(written).toEqual({ written: ["a", "b"], disabled: [] });
  expect(await definitions()).toMatchObject([
    { type: "a", version: 1, max_attempts: 8, timeout_seconds: 900, priority: 100, enabled: true, paused: false },
    { type: "b", version: 3, max_attempts: 5, timeout_seconds: 60, priority: -1, backoff_factor: 3, backoff_jitter: 0 },
  ]);
});

test("a second sync writes only what differs", async () => {
  await ledger.jobs.sync([defineJob("same"), defineJob("differs")]);
  const before = await definitions();

  const { written } = await ledger.jobs.sync([
    defineJob("same"),
    defineJob("differs", { priority: 7 }),
    defineJob("new"),
  ]);

  expect(written).toEqual(["differs", "new"]);
  const after = await definitions();
  expect(after.find(({ type }) => type === "same")).toEqual(before.find(({ type }) => type === "same"));
});

test.each([
  ["version", { version: 2 }],
  ["priority", { priority: 5 }],
  ["maxAttempts", { maxAttempts: 5 }],
  ["timeoutSeconds", { timeoutSeconds: 5 }],
  ["backoff.initialSeconds", { backoff: { initialSeconds: 5 } }],
  ["backoff.factor", { backoff: { factor: 5 } }],
  ["backoff.maxSeconds", { backoff: { maxSeconds: 5 } }],
  ["backoff.jitter", { backoff: { jitter: 0.1 } }],
  ["backoff.byCode", { backoff: { byCode: { "net.down": { initialSeconds: 5 }, busy: { factor: 1 } } } }],
])("a change of %s alone is written", async (_what, change) => {
  await ledger.jobs.sync([defineJob("job")]);

  expect((await ledger.jobs.sync([defineJob("job", change)])).written).toEqual(["job"]);
  expect((await ledger.jobs.sync([defineJob("job", change)])).written).toEqual([]);
});

test("a backoff of a code has the type's settings where it says nothing, and goes when it is not declared any more", async () => {
  const backoff = { initialSeconds: 2, jitter: 0, byCode: { busy: { maxSeconds: 60 } } };
  await ledger.jobs.sync([defineJob("job", { backoff })]);

  expect(await definitions()).toMatchObject([
    { backoff_by_code: { busy: { initialSeconds: 2, factor: 2, maxSeconds: 60, jitter: 0 } } },
  ]);
  await ledger.jobs.sync([defineJob("job", { backoff: { initialSeconds: 2, jitter: 0 } })]);
  expect(await definitions()).toMatchObject([{ backoff_by_code: null }]);
});

test("an additive sync leaves alone what it does not hold", async () => {
  await ledger.jobs.sync([defineJob("old")]);

  expect(await ledger.jobs.sync([defineJob("new")])).toEqual({ written: ["new"], disabled: [] });
  expect((await definitions()).every(({ enabled }) => enabled)).toBe(true);
});

test("an exact sync disables what its catalogue wrote and no longer holds, and nothing of another's", async () => {
  await ledger.jobs.sync([defineJob("mine-old"), defineJob("mine")], { catalogue: "mine" });
  await ledger.jobs.sync([defineJob("theirs")], { catalogue: "theirs" });
  await database.pool.query("insert into runledger.job_definitions (type) values ('by-hand')");

  const synced = await ledger.jobs.sync([defineJob("mine")], { mode: "exact", catalogue: "mine" });

  expect(synced).toEqual({ written: [], disabled: ["mine-old"] });
  expect((await definitions()).filter(({ enabled }) => !enabled).map(({ type }) => type)).toEqual(["mine-old"]);
});

test("an exact sync of nothing disables all of its catalogue; the next enables again", async () => {
  await ledger.jobs.sync([defineJob("a"), defineJob("b")]);

  expect(await ledger.jobs.sync([], { mode: "exact" })).toEqual({ written: [], disabled: ["a", "b"] });
  expect(await ledger.jobs.sync([], { mode: "exact" })).toEqual({ written: [], disabled: [] });
  expect(await ledger.jobs.sync([defineJob("a")])).toEqual({ written: ["a"], disabled: [] });
  expect((await definitions()).map(({ enabled }) => enabled)).toEqual([true, false]);
});

test.each(["additive", "exact"] as const)("an operator's pause is kept by an %s sync", async (mode) => {
  await ledger.jobs.sync([defineJob("paused"), defineJob("gone")]);
  await ledger.jobs.pause(["paused", "gone"]);

  await ledger.jobs.sync([defineJob("paused", { priority: 1 })], { mode });
  await ledger.jobs.sync([defineJob("paused"), defineJob("gone", { version: 2 })], { mode });

  expect((await definitions()).map(({ paused }) => paused)).toEqual([true, true]);
  await ledger.jobs.resume(["paused", "gone"]);
  expect((await definitions()).map(({ paused }) => paused)).toEqual([false, false]);
});

test("a pause comes before the definition is known", async () => {
  await ledger.jobs.pause(["later"]);

  expect((await ledger.jobs.sync([defineJob("later")])).written).toEqual(["later"]);
  expect(await definitions()).toMatchObject([{ type: "later", paused: true, enabled: true }]);
});

test("a disabled or paused type accepts jobs and does not start them; it loses none", async () => {
  await ledger.jobs.sync([defineJob("disabled"), defineJob("paused")]);
  await ledger.jobs.sync([defineJob("paused")], { mode: "exact" });
  await ledger.jobs.pause(["paused"]);
  await ledger.jobs.enqueueMany(["disabled", "paused"].map((type) => ({ type, payload: {} })));

  expect(await ledger.jobs.claim({ workerId: "w", limit: 10 })).toEqual([]);
  expect(await ledger.jobs.claim({ workerId: "w", limit: 10, types: ["disabled", "paused"] })).toEqual([]);
  await ledger.jobs.sync([defineJob("disabled")]);
  await ledger.jobs.resume(["paused"]);
  expect(await ledger.jobs.claim({ workerId: "w", limit: 10 })).toHaveLength(2);
});

test("a type that nobody has defined is accepted and waits until a worker asks for it", async () => {
  const { id } = await ledger.jobs.enqueue("unheard-of", {});

  expect(await ledger.jobs.get(id, globally)).toMatchObject({ maxAttempts: 8, timeoutSeconds: 900, priority: 100 });
  expect(await ledger.jobs.claim({ workerId: "w", limit: 1, types: ["known"] })).toEqual([]);
  expect(await ledger.jobs.claim({ workerId: "w", limit: 1, types: ["unheard-of"] })).toHaveLength(1);
});

test("a strict enqueue refuses unknown and disabled types, names them, and inserts nothing of the batch", async () => {
  await ledger.jobs.sync([defineJob("known"), defineJob("disabled")]);
  await ledger.jobs.sync([defineJob("known")], { mode: "exact" });
  const batch = ["known", "disabled", "unknown", "unknown"].map((type) => ({ type, payload: {} }));

  await expect(ledger.jobs.enqueueMany(batch, { strict: true })).rejects.toMatchObject({
    code: "job.definition_not_found_or_disabled",
    details: { types: expect.arrayContaining(["disabled", "unknown"]) },
  });
  const keyed = batch.map((request, n) => ({ ...request, idempotencyKey: `k${n}` }));
  expect(await codeOf(() => ledger.jobs.enqueueMany(keyed, { strict: true }))).toBe(
    "job.definition_not_found_or_disabled",
  );
  const mixed = batch.map((request, n) => (n === 0 ? { ...request, idempotencyKey: "k" } : request));
  expect(await codeOf(() => ledger.jobs.enqueueMany(mixed, { strict: true }))).toBe(
    "job.definition_not_found_or_disabled",
  );

  const { rows } = await database.pool.query(
    "select (select count(*) from runledger.job_queue)::int as jobs, (select count(*) from runledger.job_idempotency_keys)::int as keys",
  );
  expect(rows).toEqual([{ jobs: 0, keys: 0 }]);
});

test("a strict enqueue takes a paused type: a pause is not a refusal", async () => {
  await ledger.jobs.sync([defineJob("known")]);
  await ledger.jobs.pause(["known"]);

  expect((await ledger.jobs.enqueue("known", {}, { strict: true })).disposition).toBe("inserted");
});

test("settings come from the request, else the code's definition, else the database's, else the library", async () => {
  await ledger.jobs.sync([defineJob("known", { priority: 1, maxAttempts: 2, timeoutSeconds: 3 })]);
  const inCode = defineJob("known", { priority: 10, maxAttempts: 20 });
  const settingsOf = async (id: string) => {
    const { priority, maxAttempts, timeoutSeconds } = await ledger.jobs.get(id, globally);
    return [priority, maxAttempts, timeoutSeconds];
  };

  const [fromCode, fromDatabase, fromRequest, fromLibrary] = [
    await ledger.jobs.enqueue(inCode, {}),
    await ledger.jobs.enqueue("known", {}),
    await ledger.jobs.enqueue(inCode, {}, { priority: 0, timeoutSeconds: 7 }),
    await ledger.jobs.enqueue("unknown", {}),
  ];

  expect(await settingsOf(fromCode.id)).toEqual([10, 20, 3]);
  expect(await settingsOf(fromDatabase.id)).toEqual([1, 2, 3]);
  expect(await settingsOf(fromRequest.id)).toEqual([0, 20, 7]);
  expect(await settingsOf(fromLibrary.id)).toEqual([100, 8, 900]);
});

test("one catalogue synced by many processes at once ends as one", async () => {
  const catalogue = Array.from({ length: 50 }, (_, n) => defineJob(`type-${n}`));

  const synced = await Promise.all(
    Array.from({ length: 8 }, (_, n) =>
      ledger.jobs.sync(n % 2 === 0 ? catalogue : [...catalogue].reverse(), { mode: "exact" }),
    ),
  );

  expect(synced.flatMap(({ written }) => written).sort()).toEqual(catalogue.map(({ type }) => type).sort());
  expect(synced.flatMap(({ disabled }) => disabled)).toEqual([]);
});

test.each([
  ["a type defined twice", [defineJob("a"), defineJob("a")]],
  ["a blank type", [defineJob(" ")]],
  ["version 0", [defineJob("a", { version: 0 })]],
  ["version 1.5", [defineJob("a", { version: 1.5 })]],
  ["no attempts", [defineJob("a", { maxAttempts: 0 })]],
  ["a timeout of 0", [defineJob("a", { timeoutSeconds: 0 })]],
  ["a priority that is no integer", [defineJob("a", { priority: 0.5 })]],
  ["a backoff of less than nothing", [defineJob("a", { backoff: { initialSeconds: -1 } })]],
  ["a backoff that shrinks", [defineJob("a", { backoff: { factor: 0.5 } })]],
  ["a backoff that is NaN", [defineJob("a", { backoff: { initialSeconds: Number.NaN } })]],
  ["an endless backoff", [defineJob("a", { backoff: { maxSeconds: Number.POSITIVE_INFINITY } })]],
  ["a backoff whose end is before its start", [defineJob("a", { backoff: { initialSeconds: 10, maxSeconds: 1 } })]],
  ["a jitter of more than all", [defineJob("a", { backoff: { jitter: 1.1 } })]],
  ["a backoff of a code that shrinks", [defineJob("a", { backoff: { byCode: { busy: { factor: 0.5 } } } })]],
  [
    "a backoff of a code whose start is after the type's end",
    [defineJob("a", { backoff: { maxSeconds: 10, byCode: { busy: { initialSeconds: 11 } } } })],
  ],
  ["a backoff of a blank code", [defineJob("a", { backoff: { byCode: { " ": {} } } })]],
])("%s is input.invalid", async (_what, catalogue) => {
  expect(await codeOf(() => ledger.jobs.sync(catalogue))).toBe("input.invalid");
  expect(await definitions()).toEqual([]);
});

async function definitions() {
  const { rows } = await database.pool.query("select * from runledger.job_definitions order by type");
  return rows;
}
