/** Running one job inline. */
import { expect, test } from "@jest/globals";
import { defineJob, defineWorkflow, typed } from "../../../src/index.ts";
import { handle, TerminalError } from "../../../src/worker/index.ts";
import { everywhere, newKit, orderInput } from "./kits.ts";

const kit = await newKit();
const { ledger } = kit;
const ship = defineJob("ship", { input: orderInput, output: typed<{ parcel: string }>(), maxAttempts: 2 });
const handlers = [handle(ship, ({ payload }) => ({ parcel: `for ${payload.orderId}` }))];

test("a job is claimed, run and settled, and its output answered", async () => {
  const job = await ledger.jobs.enqueue(ship, { orderId: "o-1" });

  expect(await kit.run(job, { handlers })).toMatchObject({
    outcome: "succeeded",
    status: "SUCCEEDED",
    output: { parcel: "for o-1" },
    failure: null,
    error: undefined,
  });
  expect(await ledger.jobs.get(job.id, everywhere)).toMatchObject({ status: "SUCCEEDED", attempt: 1 });
});

test("only the given job is run, whatever comes before it in the queue", async () => {
  const [first, wanted, last] = await ledger.jobs.enqueueMany([
    ship.request({ orderId: "first" }, { priority: 1_000_000 }),
    ship.request({ orderId: "wanted" }, { runAt: new Date(Date.now() + 3_600_000), priority: -5 }),
    ship.request({ orderId: "last" }),
  ]);
  const seen: unknown[] = [];
  const watching = handle(ship, ({ payload, job }) => {
    seen.push([payload.orderId, job.priority, job.runAt > new Date()]);
    return { parcel: "" };
  });

  expect(await kit.run(wanted?.id ?? "", { handlers: [watching] })).toMatchObject({ status: "SUCCEEDED" });
  expect(seen).toEqual([["wanted", -5, true]]);
  for (const other of [first, last]) {
    expect(await ledger.jobs.get(other?.id ?? "", everywhere)).toMatchObject({ status: "PENDING", attempt: 0 });
  }
  const ended = await ledger.jobs.get(wanted?.id ?? "", everywhere);
  expect(ended.priority).toBe(-5);
  expect(ended.runAt.getTime()).toBeGreaterThan(Date.now());
});

test("a failure is stored and answered with the very error, and a retry need not be waited for", async () => {
  const boom = Object.assign(new Error("no truck"), { code: "truck.missing" });
  const failing = [
    handle(ship, () => {
      throw boom;
    }),
  ];
  const job = await ledger.jobs.enqueue(ship, { orderId: "o-2" });

  const first = await kit.run(job, { handlers: failing });
  expect(first).toMatchObject({ outcome: "retried", status: "PENDING", output: null });
  expect(first.failure).toMatchObject({ kind: "RETRYABLE", code: "truck.missing", message: "no truck" });
  expect(first.error).toBe(boom);
  expect(await kit.run(job, { handlers: failing })).toMatchObject({ outcome: "failed", status: "DEAD_LETTERED" });
});

test("with rethrow the handler's error comes out, after it was stored", async () => {
  const job = await ledger.jobs.enqueue(ship, { orderId: "o-3" });
  const refusal = new TerminalError("address.unknown", "Nobody lives there.");
  const failing = handle(ship, () => Promise.reject(refusal));

  await expect(kit.run(job, { handlers: [failing], rethrow: true })).rejects.toBe(refusal);
  expect(await ledger.jobs.get(job.id, everywhere)).toMatchObject({
    status: "DEAD_LETTERED",
    errorCode: "address.unknown",
  });
});

test("a payload that does not fit its definition fails as in a worker", async () => {
  const strict = defineJob("strict", {
    input: {
      "~standard": { version: 1, vendor: "test", validate: () => ({ issues: [{ message: "", path: ["n"] }] }) },
    },
  });
  const job = await ledger.jobs.enqueue("strict", { n: "one" });

  const { failure } = await kit.run(job, { handlers: [handle(strict, () => null)] });
  expect(failure).toMatchObject({ kind: "TERMINAL", code: "payload.invalid" });
});

test("a step gets its prerequisites, and its output is the step's", async () => {
  const pack = defineJob("pack", { input: orderInput, output: typed<number>() });
  const weigh = defineJob("weigh", { prerequisites: typed<{ pack: number }>(), output: typed<string>() });
  const parcel = defineWorkflow("parcel", {
    input: orderInput,
    build(graph, input) {
      const packed = graph.job("pack", pack, input);
      return graph.job("weigh", weigh, {}, { onSuccess: [packed] });
    },
  });
  const stepHandlers = [handle(pack, () => 3), handle(weigh, ({ prerequisites }) => `${prerequisites.pack} kg`)];
  const { id } = await ledger.runs.enqueue(parcel, { orderId: "o-4" });

  const [first] = await kit.expectEnqueued(pack, { orderId: "o-4" }, { count: 1 });
  await kit.run(first ?? "", { handlers: stepHandlers });
  const [second] = await kit.expectEnqueued(weigh);
  expect(await kit.run(second ?? "", { handlers: stepHandlers })).toMatchObject({ output: "3 kg" });
  expect(await ledger.runs.getStatus(id, everywhere)).toMatchObject({ status: "SUCCEEDED" });
});

test("what cannot be run is said", async () => {
  const job = await ledger.jobs.enqueue(ship, { orderId: "o-5" });
  await ledger.jobs.pause(["ship"]);
  await expect(kit.run(job, { handlers })).rejects.toThrow(/is held back: paused/);
  await ledger.jobs.resume(["ship"]);
  await kit.run(job, { handlers });

  await expect(kit.run(job, { handlers })).rejects.toThrow(/cannot be run: it is SUCCEEDED, not PENDING/);
  await expect(kit.run("0190a5f0-7b1c-7e3a-9f00-0123456789ab", { handlers })).rejects.toMatchObject({
    code: "job.not_found",
  });
  const other = await ledger.jobs.enqueue("unknown", {});
  await expect(kit.run(other, { handlers })).rejects.toMatchObject({ code: "worker.no_handler" });
  expect(await ledger.jobs.get(other.id, everywhere)).toMatchObject({ status: "PENDING", attempt: 0 });
});
