/** With a codec, what travels in payloads, outputs, checkpoints and fields of logs is encoded in every table, and only there. */
import { randomBytes } from "node:crypto";
import { afterEach, describe, expect, test } from "@jest/globals";
import {
  aesGcmCodec,
  CHILD_RUN_JOB,
  defineJob,
  defineWorkflow,
  type Ledger,
  typed,
  WorkflowAddition,
  WorkflowBuilder,
} from "../../src/index.ts";
import { expectInvariants } from "../invariants.ts";
import { claimedOne, codeOf, failure, leased } from "../jobs/fixtures.ts";
import { globally, TestRun } from "../runs/fixtures.ts";
import { gatesAreDue } from "../runs/timed.ts";
import { createTestDatabase } from "../support/database.ts";
import { codec, everythingIn, ledgerWith, remoteCodec, rotated, sealedBy, stored } from "./support.ts";

const database = await createTestDatabase();
const sealed = ledgerWith(database, { codec });
const plain = ledgerWith(database, {});
const revealed = { values: "revealed" } as const;
const everywhere = { admin: true } as const;

afterEach(() => expectInvariants(database));

const lister = defineJob("list", { output: typed<unknown[]>() });

/** Takes a value through every way into the database, and reads it wherever it comes out. */
async function everyWay(ledger: Ledger, type: string, canary: string): Promise<unknown[]> {
  const value = (n: number) => ({ canary: `${canary}-${n}` });
  const seen: unknown[] = [];

  await ledger.jobs.enqueue(`${type}.job`, value(1), { idempotencyKey: "k" });
  const active = { key: `${canary.slice(-1)}`, replace: true };
  for (const n of [1, 2]) await ledger.jobs.enqueue(`${type}.many`, value(n), { active });
  const job = await claimedOne(ledger, `${type}.job`);
  await ledger.jobs.checkpoint(job.lease, value(3));
  await ledger.jobs.log(job.lease, [{ level: "info", message: "m", fields: value(4) }]);
  const live = await ledger.jobs.get(job.lease.jobId, everywhere, revealed);
  await ledger.jobs.complete(job.lease, { output: value(5) });
  const ended = await ledger.jobs.get(job.lease.jobId, everywhere, revealed);
  const many = await claimedOne(ledger, `${type}.many`);
  await ledger.jobs.settle([failure(many.lease, "TERMINAL")]);
  seen.push(job.payload, live.checkpoint, ended.payload, ended.output, many.payload);
  const listed = await ledger.jobs.list({ scope: everywhere, type: `${type}.job`, payload: true, ...revealed });
  const logged = await ledger.jobs.logs(job.lease.jobId, everywhere, revealed);
  seen.push(
    listed.jobs.map(({ payload }) => payload),
    logged.lines.map(({ fields }) => fields),
  );

  const child = defineWorkflow(`${type}.child`, {
    input: typed<unknown>(),
    build: (graph, input) => graph.job("c", `${type}.c`, input),
  });
  const graph = new WorkflowBuilder(type);
  const list = graph.job("list", { ...lister, type: `${type}.list` }, value(6));
  const gate = graph.external("gate", { expires: { afterSeconds: 60, outcome: "SUCCEEDED", output: value(7) } });
  const open = graph.external("open");
  const early = graph.external("early", { onSuccess: [open] });
  const each = graph.map("each", `${type}.each`, { over: list });
  const of = graph.child("of", child, value(8));
  graph.result(graph.job("end", `${type}.end`, {}, { onSuccess: [each, gate, early, of] }));
  const { id } = await ledger.runs.enqueue(graph.build(), { idempotencyKey: "k" });
  const run = new TestRun(database, ledger, id, type);
  const gateOf = (key: string, output: unknown, keep = false) =>
    ledger.steps.complete(id, key, { ...globally, output, keep });
  const addition = new WorkflowAddition();
  addition.job("added", `${type}.added`, value(9));
  await ledger.runs.append(id, { ...globally, key: "k", graph: addition.build() });
  await gateOf("early", value(10), true);
  await gateOf("open", [value(11)]);
  await gatesAreDue(database, run);
  await ledger.runs.fireTimers();

  const listing = await run.claim("list");
  const more = new WorkflowAddition();
  more.job("more", `${type}.more`, value(12));
  await ledger.jobs.complete(listing.lease, {
    output: [value(13), [value(14)], "text", null],
    append: { key: "more", graph: more.build() },
  });
  const items = await ledger.jobs.claim({ workerId: "items", limit: 9, types: [`${type}.each`] });
  for (const { lease, payload } of items) await ledger.jobs.complete(lease, { output: [payload, value(15)] });
  seen.push(
    listing.payload,
    items.map(({ payload }) => payload),
  );
  seen.push((await run.claim("more")).payload, (await run.claim("added")).payload);

  await ledger.runs.advanceChild(await claimedOne(ledger, CHILD_RUN_JOB));
  const childJob = await claimedOne(ledger, `${type}.c`);
  await ledger.jobs.complete(childJob.lease, { output: value(16) });
  await ledger.runs.advanceChild(await claimedOne(ledger, CHILD_RUN_JOB));
  const end = await run.claim("end");
  const found = await ledger.steps.prerequisites([end]);
  await ledger.jobs.complete(end.lease, { output: [value(17)] });
  for (const key of ["more", "added"]) await ledger.jobs.complete(await leaseOf(key), {});
  seen.push(childJob.payload, found.get(end.lease.jobId)?.outputs);

  seen.push(await ledger.runs.getResult(id, globally));
  const { steps } = await ledger.runs.get(id, globally.scope, revealed);
  seen.push(Object.fromEntries(steps.map(({ key, output }) => [key, output])));
  return seen;

  async function leaseOf(key: string) {
    const { rows } = await database.pool.query(
      `select id as "jobId", run_number as "runNumber", attempt, worker_id as "workerId", workflow_run_id as "workflowRunId"
       from runledger.job_queue where workflow_run_id = $1 and type = $2`,
      [id, `${type}.${key}`],
    );
    return rows[0];
  }
}

describe("every way in and out", () => {
  test("gives back what was given, and leaves nothing plain in any table", async () => {
    const open = await everyWay(plain, "plain", "CANARY-A");
    expect((await everythingIn(database)).match(/CANARY-A-\d+/g)?.length).toBeGreaterThan(30);
    const places = new Set((await everythingIn(database)).match(/CANARY-A-\d+/g));

    const closed = await everyWay(sealed, "sealed", "CANARY-B");

    expect(places.size).toBe(17);
    expect(await everythingIn(database)).not.toContain("CANARY-B");
    expect(JSON.stringify(closed)).toBe(JSON.stringify(open).replaceAll("CANARY-A", "CANARY-B"));
  });

  test("does so with a codec that answers later", async () => {
    const remote = remoteCodec();
    const ledger = ledgerWith(database, { codec: remote.codec });
    const [first] = await everyWay(ledger, "remote", "CANARY-C");

    expect(first).toEqual({ canary: "CANARY-C-1" });
    expect(await everythingIn(database)).not.toContain("CANARY-C");
    expect(remote.state.calls).toBeGreaterThan(30);
  });
});

describe("what is stored", () => {
  const payloadOf = (id: string) => stored(database, "select payload from runledger.job_queue where id = $1", id);

  test("is an object with one field, an array element by element", async () => {
    const [object, array, text, empty] = await sealed.jobs.enqueueMany(
      [{ a: 1 }, [1, [2, 3], { b: 4 }], "text", []].map((payload) => ({ type: "stored", payload })),
    );

    expect(await payloadOf(object?.id ?? "")).toEqual(sealedBy("k1"));
    expect(await payloadOf(array?.id ?? "")).toEqual([sealedBy("k1"), sealedBy("k1"), sealedBy("k1")]);
    expect(await payloadOf(text?.id ?? "")).toEqual(sealedBy("k1"));
    expect(await payloadOf(empty?.id ?? "")).toEqual([]);
    const jobs = await sealed.jobs.claim({ workerId: "w", limit: 4, types: ["stored"] });
    expect(jobs.map(({ payload }) => payload)).toEqual([{ a: 1 }, [1, [2, 3], { b: 4 }], "text", []]);
  });

  test("is read beside plain rows from before", async () => {
    const before = await plain.jobs.enqueue("mixed", { n: 1 });
    const after = await sealed.jobs.enqueue("mixed", { n: 2 });

    expect(await payloadOf(before.id)).toEqual({ n: 1 });
    const jobs = await sealed.jobs.claim({ workerId: "w", limit: 2, types: ["mixed"] });
    expect(jobs.map(({ payload }) => payload)).toEqual([{ n: 1 }, { n: 2 }]);
    expect((await sealed.jobs.get(after.id, everywhere)).payload).toEqual({ n: 2 });
  });

  test("is read after a rotation, and new values are under the new key", async () => {
    const old = await sealed.jobs.enqueue("rotated", { n: 1 });
    const next = ledgerWith(database, { codec: rotated });
    const fresh = await next.jobs.enqueue("rotated", { n: 2 });

    expect([await payloadOf(old.id), await payloadOf(fresh.id)]).toEqual([sealedBy("k1"), sealedBy("k2")]);
    const jobs = await next.jobs.claim({ workerId: "w", limit: 2, types: ["rotated"] });
    expect(jobs.map(({ payload }) => payload)).toEqual([{ n: 1 }, { n: 2 }]);
  });

  test.each([
    ["as the value", { $runledger: "x" }],
    ["in a list", [1, { $runledger: 1 }]],
    ["in a list of a list", [[{ $runledger: {} }]]],
  ])("cannot be feigned, %s", async (_where, payload) => {
    expect(await codeOf(() => plain.jobs.enqueue("feigned", payload))).toBe("payload.reserved");
    expect(await codeOf(() => sealed.jobs.enqueue("feigned", payload))).toBe("payload.reserved");
  });

  test.each([
    ["beside others", { $runledger: "x", more: 1 }],
    ["further down", { in: { $runledger: "x" } }],
    ["in a text", '{"$runledger":"x"}'],
    ["in a list's object", [{ in: { $runledger: "x" } }, '[{"$runledger":1}]']],
  ])("is not mistaken for a field of that name %s", async (_where, payload) => {
    for (const ledger of [plain, sealed]) {
      await ledger.jobs.enqueue("named", payload);
      expect((await claimedOne(ledger, "named")).payload).toEqual(payload);
    }
  });

  test("costs a call of the codec for each value and no round trip", async () => {
    const remote = remoteCodec();
    const ledger = ledgerWith(database, { codec: remote.codec });
    const requests = Array.from({ length: 50 }, (_, n) => ({ type: "counted", payload: { n } }));
    const enqueued = await database.record(() => ledger.jobs.enqueueMany(requests));
    const claimed = await database.record(() => ledger.jobs.claim({ workerId: "w", limit: 50, types: ["counted"] }));

    expect([enqueued.statements.length, claimed.statements.length, remote.state.calls]).toEqual([1, 1, 100]);
    expect(claimed.result.map(({ payload }) => payload)).toEqual(requests.map(({ payload }) => payload));
  });
});

describe("a value that does not decode", () => {
  const strange = ledgerWith(database, { codec: aesGcmCodec({ keys: { k1: randomBytes(32) }, current: "k1" }) });
  const undecodable = expect.objectContaining({ code: "payload.undecodable", category: "internal", retryable: false });

  test("does not lose the other jobs of the claim, and throws where it is read", async () => {
    await sealed.jobs.enqueueMany([1, 2].map((payload) => ({ type: "partly", payload })));
    await strange.jobs.enqueue("partly", 3);
    const jobs = await sealed.jobs.claim({ workerId: "w", limit: 9, types: ["partly"] });

    expect(jobs.map((job) => job.undecodable?.code ?? job.payload)).toEqual([1, 2, "payload.undecodable"]);
    expect(() => jobs[2]?.payload).toThrow(undecodable);
    expect(() => jobs[2]?.checkpoint).toThrow(undecodable);
    expect(jobs[2]?.undecodable?.cause).toHaveProperty("message");
    expect(await sealed.jobs.handBack(jobs.map(({ lease }) => lease))).toHaveLength(3);
  });

  test("because of its checkpoint is as bad", async () => {
    const { lease } = await leased(sealed, "checkpointed");
    await strange.jobs.checkpoint(lease, { n: 1 });
    await sealed.jobs.handBack([lease]);
    const job = await claimedOne(sealed, "checkpointed");

    expect(job.undecodable).toEqual(undecodable);
  });

  test("without a codec is not passed on either", async () => {
    const { id } = await sealed.jobs.enqueue("uncoded", { n: 1 });
    const list = await sealed.jobs.enqueue("uncoded", [1]);
    const jobs = await plain.jobs.claim({ workerId: "w", limit: 2, types: ["uncoded"] });

    expect(jobs.map((job) => job.undecodable)).toEqual([undecodable, undecodable]);
    for (const job of [id, list.id]) {
      expect(await codeOf(() => plain.jobs.get(job, everywhere))).toBe("payload.undecodable");
    }
  });

  test("is refused by reads, but for one that omits the values", async () => {
    const run = await TestRun.start(database, strange, { a: [], b: ["a"] }, { result: "a" });
    await run.succeed("a", { n: 1 });
    const claimed = await run.claim("b");
    const found = await sealed.steps.prerequisites([claimed]);
    const outputs = found.get(claimed.lease.jobId);
    await strange.jobs.complete(claimed.lease, {});

    expect(await codeOf(() => sealed.jobs.get(claimed.lease.jobId, everywhere))).toBe("payload.undecodable");
    expect(await codeOf(() => sealed.runs.get(run.id, globally.scope))).toBe("payload.undecodable");
    expect(await codeOf(() => sealed.runs.getResult(run.id, globally))).toBe("payload.undecodable");
    expect(outputs?.undecodable).toEqual(undecodable);
    expect(() => outputs?.outputs.a).toThrow(undecodable);
    const omitted = { values: "omitted" } as const;
    expect(await sealed.jobs.get(claimed.lease.jobId, everywhere, omitted)).toMatchObject({ payload: null });
    expect((await sealed.runs.get(run.id, globally.scope, omitted)).steps.map(({ output }) => output)).toEqual([
      null,
      null,
    ]);
  });

  test.each([
    ["what is no text", { $runledger: 5 }],
    ["what is no text in a list", [{ $runledger: null }]],
    ["what decodes to no JSON", { $runledger: String(codec.encode("{", { kind: "payload" })) }],
  ])("may be %s", async (_what, payload) => {
    const { id } = await plain.jobs.enqueue("broken", 1);
    await database.pool.query("update runledger.job_queue set payload = $2 where id = $1", [
      id,
      JSON.stringify(payload),
    ]);

    expect(await codeOf(() => sealed.jobs.get(id, everywhere))).toBe("payload.undecodable");
    await claimedOne(sealed, "broken");
  });
});

describe("a codec that fails", () => {
  const failing = (error: unknown) => ({
    ...codec,
    encode: () => {
      throw error;
    },
  });

  test.each([
    ["an error", failing(new Error("no")), "payload.unencodable"],
    ["an error that says that it may pass", failing({ retryable: true }), "payload.codec_unavailable"],
    ["no text", { ...codec, encode: (): string => JSON.parse("5") }, "payload.unencodable"],
    ["text that cannot be stored", { ...codec, encode: () => "a\0" }, "payload.unencodable"],
  ])("with %s writes nothing", async (_what, broken, code) => {
    const ledger = ledgerWith(database, { codec: broken });
    const { result, statements } = await database.record(() => codeOf(() => ledger.jobs.enqueue("failing", {})));

    expect([result, statements]).toEqual([code, []]);
  });

  test("may be away for a while: that is retryable", async () => {
    const remote = remoteCodec();
    const ledger = ledgerWith(database, { codec: remote.codec });
    await ledger.jobs.enqueue("away", 1);
    remote.state.away = true;
    const job = await claimedOne(ledger, "away");
    await ledger.jobs.handBack([job.lease]);
    remote.state.away = false;

    expect(job.undecodable).toMatchObject({ code: "payload.codec_unavailable", retryable: true });
    expect((await claimedOne(ledger, "away")).payload).toBe(1);
  });

  test("is refused when it lacks a part", () => {
    const { digest: _digest, ...half } = codec;
    const values = JSON.parse("{}");

    expect(() => ledgerWith(database, { ...values, codec: half })).toThrow(
      expect.objectContaining({ code: "config.invalid" }),
    );
  });
});
