/** What a worker makes of values that do not decode, or that cannot be stored. */
import { randomBytes } from "node:crypto";
import { expect, test } from "@jest/globals";
import { aesGcmCodec, type ValueCodec } from "../../src/index.ts";
import { handle } from "../../src/worker/index.ts";
import { TestRun } from "../runs/fixtures.ts";
import { createTestDatabase } from "../support/database.ts";
import { codec, ledgerWith, remoteCodec } from "../values/support.ts";
import { everywhere, startWorker } from "./support.ts";

const database = await createTestDatabase();
const sealed = ledgerWith(database, { codec });
const strange = ledgerWith(database, { codec: aesGcmCodec({ keys: { k1: randomBytes(32) }, current: "k1" }) });
const omitted = { values: "omitted" } as const;
const undecodable = { status: "DEAD_LETTERED", failureKind: "TERMINAL", errorCode: "payload.undecodable" };

test("a payload that does not decode ends its job as TERMINAL without its handler, and the others run", async () => {
  const { id } = await strange.jobs.enqueue("partly", { n: 1 });
  await sealed.jobs.enqueueMany([2, 3].map((n) => ({ type: "partly", payload: { n } })));
  const seen: unknown[] = [];
  const handlers = [handle("partly", ({ payload }) => void seen.push(payload))];
  const watched = await startWorker({ ledger: sealed, handlers });
  await Promise.all([watched.event("failed"), watched.count("succeeded", 2)]);

  expect(seen).toEqual([{ n: 2 }, { n: 3 }]);
  expect(await sealed.jobs.get(id, everywhere, omitted)).toMatchObject(undecodable);
  const { error, fatal } = await watched.event("error");
  expect([error, fatal]).toEqual([expect.objectContaining({ code: "payload.undecodable" }), false]);
  expect(error).toHaveProperty("cause.message");
});

test("a prerequisite's output that does not decode ends the step that needs it", async () => {
  const run = await TestRun.start(database, strange, { a: [], b: ["a"] });
  await run.succeed("a", { n: 1 });
  await database.pool.query("update runledger.job_queue set payload = '{}' where workflow_run_id = $1", [run.id]);
  const watched = await startWorker({ ledger: sealed, handlers: [handle(`${run.type}.b`, () => "never")] });
  const { failure } = await watched.event("failed");

  expect(failure).toMatchObject({ kind: "TERMINAL", code: "payload.undecodable" });
  expect(await run.statuses()).toEqual({ a: "SUCCEEDED", b: "FAILED" });
});

test("while the codec is away jobs are tried again, not buried", async () => {
  const remote = remoteCodec();
  const ledger = ledgerWith(database, { codec: remote.codec });
  const { id } = await ledger.jobs.enqueue("away", { n: 1 });
  remote.state.away = true;
  const watched = await startWorker({ ledger, handlers: [handle("away", ({ payload }) => payload)] });
  const { failure } = await watched.event("retried");
  remote.state.away = false;
  await database.pool.query("update runledger.job_queue set run_at = now() where id = $1", [id]);
  await watched.event("succeeded");

  expect(failure).toMatchObject({ kind: "RETRYABLE", code: "payload.codec_unavailable" });
  expect((await ledger.jobs.get(id, everywhere)).output).toEqual({ n: 1 });
});

test("an output that the codec cannot encode for now is stored when it can", async () => {
  const remote = remoteCodec();
  const ledger = ledgerWith(database, { codec: remote.codec });
  const { id } = await ledger.jobs.enqueue("later", { n: 1 });
  const handlers = [
    handle("later", () => {
      remote.state.away = true;
      return { done: true };
    }),
  ];
  const watched = await startWorker({ ledger, handlers });
  const { error } = await watched.event("error");
  remote.state.away = false;
  await watched.event("succeeded");

  expect(error).toMatchObject({ code: "payload.codec_unavailable" });
  expect((await ledger.jobs.get(id, everywhere)).output).toEqual({ done: true });
});

const unencodable: ValueCodec = {
  ...codec,
  encode: (text, context) => {
    if (context.kind === "output") throw new Error("no");
    return codec.encode(text, context);
  },
};

test.each([
  ["too large", ledgerWith(database, { maxBytes: 50 }), "payload.too_large"],
  ["that the codec refuses", ledgerWith(database, { codec: unencodable }), "payload.unencodable"],
])("an output %s ends the job as PANICKED with the code, and the others are stored", async (_what, ledger, code) => {
  const type = `refused-${code}`;
  const ids = (await ledger.jobs.enqueueMany([0, 1, 2].map((payload) => ({ type, payload })))).map(({ id }) => id);
  const handlers = [handle(type, ({ payload }) => (payload === 1 ? "x".repeat(100) : undefined))];
  const watched = await startWorker({ ledger, handlers });
  await Promise.all([watched.event("failed"), watched.count("succeeded", 2)]);

  const statuses = await Promise.all(ids.map((id) => ledger.jobs.get(id, everywhere)));
  expect(statuses.map(({ status, failureKind, errorCode }) => [status, failureKind, errorCode])).toEqual([
    ["SUCCEEDED", null, null],
    ["DEAD_LETTERED", "PANICKED", code],
    ["SUCCEEDED", null, null],
  ]);
});

test("a handler that saves or logs too much is told, and may go on", async () => {
  const ledger = ledgerWith(database, { maxBytes: 50 });
  const { id } = await ledger.jobs.enqueue("told", {});
  const codes: unknown[] = [];
  const large = "x".repeat(100);
  const handlers = [
    handle("told", async ({ saveCheckpoint, log }) => {
      for (const call of [() => saveCheckpoint(large), () => log("info", large, large)]) {
        await call().catch(({ code }) => codes.push(code));
      }
    }),
  ];
  const watched = await startWorker({ ledger, handlers });
  await watched.event("succeeded");

  expect(codes).toEqual(["payload.too_large", "payload.too_large"]);
  expect(await ledger.jobs.get(id, everywhere)).toMatchObject({ status: "SUCCEEDED", checkpoint: null });
});
