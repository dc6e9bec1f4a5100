/** Asking and asserting what was enqueued. */
import { AssertionError } from "node:assert";
import { beforeEach, describe, expect, test } from "@jest/globals";
import { CamelCasePlugin } from "kysely";
import { aesGcmCodec, defineJob, type JsonValue, typed } from "../../../src/index.ts";
import { handle } from "../../../src/worker/index.ts";
import { someOrganization } from "../../runs/fixtures.ts";
import { newKit, orderInput } from "./kits.ts";

const receipt = defineJob("receipt", { input: orderInput });
const other = defineJob("other", { input: typed<number>() });

let kit: Awaited<ReturnType<typeof newKit>>;
let jobs: typeof kit.ledger.jobs;
beforeEach(async () => {
  kit = await newKit({ plugins: [new CamelCasePlugin()] });
  jobs = kit.ledger.jobs;
});

describe("enqueued", () => {
  test("answers the jobs of a definition in order, with typed payloads", async () => {
    const first = await jobs.enqueue(receipt, { orderId: "o-1", lines: [{ sku: "a" }] }, { tags: ["eu", "big"] });
    await jobs.enqueue(other, 1);
    const second = await jobs.enqueue(receipt, { orderId: "o-2" }, { organizationId: someOrganization });

    const found = await kit.enqueued(receipt);
    const orderIds: string[] = found.map(({ payload }) => payload.orderId);
    expect(orderIds).toEqual(["o-1", "o-2"]);
    expect(found[0]).toMatchObject({
      id: first.id,
      type: "receipt",
      status: "PENDING",
      tags: ["eu", "big"],
      attempt: 0,
    });
    expect(found[1]).toMatchObject({ id: second.id, organizationId: someOrganization, runNumber: 1 });
    const all = await kit.enqueued();
    const payloads: JsonValue[] = all.map(({ payload }) => payload);
    expect(payloads).toHaveLength(3);
  });

  test("filters by part of the payload, tags, organization and time", async () => {
    const runAt = new Date(Date.now() + 60_000);
    await jobs.enqueue(receipt, { orderId: "o-1", lines: [{ sku: "a" }, { sku: "b" }] }, { tags: ["eu", "big"] });
    await jobs.enqueue(receipt, { orderId: "o-2" }, { organizationId: someOrganization, runAt });
    const ids = async (filter: Parameters<typeof kit.enqueued<typeof receipt>>[1]) =>
      (await kit.enqueued(receipt, filter)).map(({ payload }) => payload.orderId);

    expect(await ids({ payload: { orderId: "o-2" } })).toEqual(["o-2"]);
    expect(await ids({ payload: { lines: [{ sku: "b" }] } })).toEqual(["o-1"]);
    expect(await ids({ payload: { lines: [{ sku: "c" }] } })).toEqual([]);
    expect(await ids({ tags: ["big"] })).toEqual(["o-1"]);
    expect(await ids({ organizationId: null })).toEqual(["o-1"]);
    expect(await ids({ organizationId: someOrganization.toUpperCase() })).toEqual(["o-2"]);
    expect(await ids({ runAt })).toEqual(["o-2"]);
    expect(await ids({ runAt: { from: new Date(), to: runAt } })).toEqual(["o-2"]);
    expect(await ids({ runAt: { to: new Date() } })).toEqual(["o-1"]);
  });

  test("has jobs that have ended only when they are asked for", async () => {
    const { id } = await jobs.enqueue("ended", { n: 1 });
    await kit.run(id, { handlers: [handle("ended", () => null)] });

    expect(await kit.enqueued("ended")).toEqual([]);
    expect(await kit.enqueued("ended", { statuses: ["SUCCEEDED", "CANCELED"] })).toMatchObject([{ id }]);
  });
});

describe("expectEnqueued", () => {
  test("answers what it expected", async () => {
    await jobs.enqueue(receipt, { orderId: "o-1" });
    await jobs.enqueue(receipt, { orderId: "o-1" });

    const found = await kit.expectEnqueued(receipt, { orderId: "o-1" });
    expect(found).toHaveLength(2);
    await kit.expectEnqueued(receipt, { orderId: "o-1" }, { count: 2 });
    await kit.expectEnqueued(receipt, { orderId: "o-2" }, { count: 0 });
    await kit.expectEnqueued("receipt");
    await kit.expectNotEnqueued(receipt, { orderId: "o-2" });
    await kit.expectNotEnqueued(other);
  });

  test("shows the nearest jobs and how they differ", async () => {
    await jobs.enqueue(receipt, { orderId: "o-7", lines: [{ sku: "a" }] }, { tags: ["eu"] });
    await jobs.enqueue(receipt, { orderId: "o-1", lines: [] });

    const error = await refused(
      kit.expectEnqueued(receipt, { orderId: "o-1", lines: [{ sku: "b" }] }, { tags: ["eu"] }),
    );
    expect(error.message.replaceAll(/[0-9a-f-]{36}/g, "<id>")).toBe(
      `Expected a job receipt with payload {"orderId":"o-1","lines":[{"sku":"b"}]} to be enqueued, found none.
  <id> PENDING {"lines":[{"sku":"a"}],"orderId":"o-7"}
    payload.orderId is "o-7", expected "o-1"
    payload.lines has no element {"sku":"b"}
  <id> PENDING {"lines":[],"orderId":"o-1"}
    tags have no "eu"
    payload.lines has no element {"sku":"b"}`,
    );
    expect(error).toMatchObject({ expected: { orderId: "o-1", lines: [{ sku: "b" }] }, operator: "enqueued" });
  });

  test("says what there is when there is nothing of that type", async () => {
    expect((await refused(kit.expectEnqueued(receipt))).message).toContain(
      "No job receipt was enqueued, nor any other.",
    );
    await jobs.enqueueMany([other.request(1), other.request(2)]);
    expect((await refused(kit.expectEnqueued(receipt))).message).toContain(
      "No job receipt was enqueued; there are 2 other.",
    );
  });

  test("counts exactly, when a count is given", async () => {
    await jobs.enqueueMany([other.request(1), other.request(1), other.request(2)]);

    const error = await refused(kit.expectEnqueued(other, 1, { count: 1 }));
    expect(error.message).toMatch(
      /^Expected 1 job other with payload 1 to be enqueued, found 2\.\n {2}\S+ PENDING 1\n/,
    );
    await refused(kit.expectNotEnqueued(other, 2));
  });
});

test("a transaction that is open is asked for what only it sees", async () => {
  await kit.db.transaction().execute(async (trx) => {
    await kit.ledger.in(trx).jobs.enqueue(receipt, { orderId: "o-1" });

    await kit.in(trx).expectEnqueued(receipt, { orderId: "o-1" }, { count: 1 });
    await kit.expectNotEnqueued(receipt);
    expect(await kit.in(trx).enqueued(receipt)).toHaveLength(1);
  });
  await kit.expectEnqueued(receipt, { orderId: "o-1" });
});

test("values are seen as they were given, encoded or redacted", async () => {
  const codec = aesGcmCodec({ keys: { k1: new Uint8Array(32) }, current: "k1" });
  const sealed = await newKit({ ledger: { values: { codec, redact: ["orderId"] } } });
  await sealed.db.transaction().execute(async (trx) => {
    await sealed.ledger.in(trx).jobs.enqueue(receipt, { orderId: "o-1" });
    await sealed.in(trx).expectEnqueued(receipt, { orderId: "o-1" });
  });

  const [job] = await sealed.enqueued(receipt);
  expect(job?.payload).toEqual({ orderId: "o-1" });
  const echo = handle(receipt, ({ payload }) => payload);
  expect(await sealed.run(job?.id ?? "", { handlers: [echo] })).toMatchObject({ output: { orderId: "o-1" } });
});

test("encoded payloads are each their own job's, also of all types, and of null", async () => {
  const codec = aesGcmCodec({ keys: { k1: new Uint8Array(32) }, current: "k1" });
  const sealed = await newKit({ ledger: { values: { codec } } });
  const numbers = Array.from({ length: 20 }, (_, n) => n);
  await sealed.ledger.jobs.enqueueMany(numbers.map((n) => other.request(n)));
  const { id } = await sealed.ledger.jobs.enqueue("null", null);
  await sealed.run(id, { handlers: [handle("null", () => null)] });

  expect((await sealed.enqueued(other)).map(({ payload }) => payload)).toEqual(numbers);
  const all = await sealed.enqueued(undefined, { statuses: ["PENDING", "SUCCEEDED"] });
  expect(all.map(({ payload }) => payload)).toEqual([...numbers, null]);
});

test("payloads are typed by the definition", () => {
  const wrong = [
    // @ts-expect-error: no such key
    () => kit.expectEnqueued(receipt, { order: "o-1" }),
    // @ts-expect-error: a number
    () => kit.enqueued(receipt, { payload: { orderId: 1 } }),
    // @ts-expect-error: deep down
    () => kit.expectNotEnqueued(receipt, { lines: [{ skew: "a" }] }),
  ];
  expect(wrong).toHaveLength(3);
});

async function refused(assertion: Promise<unknown>): Promise<AssertionError> {
  const error: unknown = await assertion.then(
    () => undefined,
    (thrown) => thrown,
  );
  expect(error).toBeInstanceOf(AssertionError);
  if (!(error instanceof AssertionError)) throw new Error("it was not refused");
  return error;
}
