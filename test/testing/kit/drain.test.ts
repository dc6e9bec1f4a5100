/** Draining until nothing is due. */
import { beforeEach, describe, expect, test } from "@jest/globals";
import { defineJob, defineSchedule, defineWorkflow, typed } from "../../../src/index.ts";
import { Continue, handle, Snooze } from "../../../src/worker/index.ts";
import { everywhere, newKit } from "./kits.ts";

const double = defineJob("double", { input: typed<number>(), output: typed<number>() });
const fails = defineJob("fails", { input: typed<string>(), maxAttempts: 3 });
const handlers = [
  handle(double, ({ payload }) => payload * 2),
  handle(fails, ({ payload }) => {
    throw Object.assign(new Error(payload), { code: "test.failed" });
  }),
];

let kit: Awaited<ReturnType<typeof newKit>>;
beforeEach(async () => {
  kit = await newKit();
});

test("runs what is due in the order of claims, one after the other", async () => {
  const seen: number[] = [];
  const noting = handle(double, async ({ payload }) => {
    seen.push(payload);
    await new Promise(setImmediate);
    seen.push(-payload);
    return 0;
  });
  await kit.ledger.jobs.enqueueMany([
    double.request(1),
    double.request(2, { priority: 200 }),
    double.request(3, { runAt: new Date(Date.now() - 60_000) }),
  ]);

  expect(await kit.drain({ handlers: [noting] })).toEqual({
    succeeded: 3,
    snoozed: 0,
    continued: 0,
    retried: 0,
    failed: 0,
    canceled: 0,
    lost: 0,
    failures: [],
    left: [],
    setAside: [],
  });
  expect(seen).toEqual([2, -2, 3, -3, 1, -1]);
});

test("runs a job slice by slice, and leaves a snoozed one for later: neither has failed", async () => {
  const slices = handle("slices", ({ checkpoint }) => {
    if (checkpoint === 3) return "all";
    throw new Continue({ checkpoint: Number(checkpoint ?? 0) + 1 });
  });
  const snoozes = handle("snoozes", () => {
    throw new Snooze({ seconds: 60 });
  });
  await kit.ledger.jobs.enqueueMany(["slices", "snoozes"].map((type) => ({ type, payload: null })));

  expect(await kit.drain({ handlers: [slices, snoozes] })).toMatchObject({
    succeeded: 1,
    snoozed: 1,
    continued: 3,
    failures: [],
    left: [{ type: "snoozes", status: "PENDING", attempt: 0 }],
  });
});

test("runs what jobs enqueue, the steps of a run and of its child runs", async () => {
  const child = defineWorkflow("child", {
    input: typed<number>(),
    build: (graph, n) => graph.job("double", double, n),
  });
  const parent = defineWorkflow("parent", {
    input: typed<number>(),
    build(graph, n) {
      const doubled = graph.child("child", child, n);
      return graph.job("sum", sum, {}, { onSuccess: [doubled] });
    },
  });
  const sum = defineJob("sum", { prerequisites: typed<{ child: number }>(), output: typed<number>() });
  const starts = handle("starts", () => kit.ledger.runs.enqueue(parent, 21));
  const adds = handle(sum, ({ prerequisites }) => prerequisites.child + 1);
  await kit.ledger.jobs.enqueue("starts", null);

  const drained = await kit.drain({ handlers: [...handlers, starts, adds] });

  expect(drained).toMatchObject({ failures: [], left: [] });
  const [last] = await kit.enqueued("starts", { statuses: ["SUCCEEDED"] });
  const { output } = await kit.ledger.jobs.get(last?.id ?? "", everywhere);
  expect(await kit.ledger.runs.getResult(Object(output).id, { scope: everywhere, workflow: parent })).toBe(43);
});

describe("a handler that fails", () => {
  test("does not stop the others; its retry is left for later", async () => {
    const failing = await kit.ledger.jobs.enqueue(fails, "no luck");
    await kit.ledger.jobs.enqueue(double, 1);

    const drained = await kit.drain({ handlers });

    expect(drained).toMatchObject({ succeeded: 1, retried: 1, failed: 0 });
    expect(drained.failures).toMatchObject([
      { jobId: failing.id, type: "fails", attempt: 1, outcome: "retried", failure: { code: "test.failed" } },
    ]);
    expect(drained.failures[0]?.error).toMatchObject({ message: "no luck" });
    expect(drained.left).toMatchObject([{ id: failing.id, type: "fails", status: "PENDING", attempt: 1 }]);
    expect(drained.left[0]?.runAt.getTime()).toBeGreaterThan(Date.now() - 1000);
  });

  test("fails to its end when time advances to the retries", async () => {
    await kit.ledger.jobs.enqueue(fails, "no luck");
    await kit.ledger.jobs.enqueue(double, 1, { runAt: new Date(Date.now() + 30 * 86_400_000) });

    expect(await kit.drain({ handlers, includeFuture: true })).toMatchObject({
      succeeded: 1,
      retried: 2,
      failed: 1,
      left: [],
    });
  });
});

test("what it may not run is left: other types, paused ones, what is leased", async () => {
  const { jobs } = kit.ledger;
  await jobs.enqueue("other", null);
  await jobs.sync([double, fails]);
  await jobs.enqueue(double, 1);
  await jobs.claim({ workerId: "somebody", limit: 1, types: ["double"] });
  await jobs.enqueue(fails, "");
  await jobs.pause(["fails"]);

  const { succeeded, left } = await kit.drain({ handlers, includeFuture: true });

  expect(succeeded).toBe(0);
  expect(left.map(({ type, status }) => `${type} ${status}`).sort()).toEqual([
    "double LEASED",
    "fails PENDING",
    "other PENDING",
  ]);
});

test("gates and deadlines past their time fire, and expired leases are settled", async () => {
  const { ledger } = kit;
  const gated = defineWorkflow("gated", {
    build(graph) {
      const gate = graph.external("approve", { expires: { afterSeconds: 3600, outcome: "SUCCEEDED" } });
      return graph.job("double", double, 2, { onSuccess: [gate] });
    },
  });
  const { id } = await ledger.runs.enqueue(gated, undefined);
  const late = await ledger.runs.enqueue(gated, undefined, { deadlineSeconds: 1800 });
  const job = await ledger.jobs.enqueue(double, 3);
  await ledger.jobs.claim({ workerId: "killed", limit: 1 });
  expect(await kit.drain({ handlers })).toMatchObject({ succeeded: 0, left: [{ id: job.id }] });

  await kit.advance({ hours: 1 });

  // The lease that was lost counts as an attempt, with a backoff.
  expect(await kit.drain({ handlers, includeFuture: true })).toMatchObject({ succeeded: 2, left: [] });
  expect(await ledger.runs.getStatus(id, everywhere)).toMatchObject({ status: "SUCCEEDED" });
  expect(await ledger.runs.getStatus(late.id, everywhere)).toMatchObject({ status: "CANCELED" });
  expect(await ledger.jobs.get(job.id, everywhere)).toMatchObject({ status: "SUCCEEDED", attempt: 2 });
});

test("schedules fire, those of workflows when these are given", async () => {
  const { ledger } = kit;
  const nightly = defineWorkflow("nightly", {
    input: typed<number>(),
    build: (graph, n) => graph.job("double", double, n),
  });
  await ledger.schedules.sync([
    defineSchedule("daily-job", { cron: "0 4 * * *", job: double, payload: 1 }),
    defineSchedule("daily-run", { cron: "0 4 * * *", workflow: nightly, input: 2 }),
  ]);
  expect(await kit.drain({ handlers })).toMatchObject({ succeeded: 0 });

  await kit.advance({ days: 1 });
  expect(await kit.drain({ handlers })).toMatchObject({ succeeded: 1, setAside: [] });
  expect(await kit.drain({ handlers, workflows: [nightly] })).toMatchObject({ succeeded: 1, left: [] });
  await kit.advance({ days: 1 });
  expect(await kit.drain({ handlers, workflows: [nightly] })).toMatchObject({ succeeded: 2, left: [] });
});

test("what a sweep cannot deal with is said", async () => {
  const { ledger } = kit;
  const moody = defineWorkflow("moody", {
    build() {
      throw new Error("not today");
    },
  });
  await ledger.schedules.sync([defineSchedule("moody", { cron: "0 4 * * *", workflow: moody, input: null })]);
  await kit.advance({ days: 1 });

  const { setAside } = await kit.drain({ handlers, workflows: [moody] });
  expect(setAside).toMatchObject([{ code: "schedule.build_failed" }]);
});

test("a handler that enqueues its own job is stopped with a clear error", async () => {
  const endless = handle("endless", () => kit.ledger.jobs.enqueue("endless", null));
  await kit.ledger.jobs.enqueue("endless", null);

  await expect(kit.drain({ handlers: [endless], maxJobs: 20 })).rejects.toThrow(
    /more than 20 attempts \(21 succeeded\).*enqueue a job like its own/,
  );
});

test("handlers run beside each other when it is asked for", async () => {
  let arrived = 0;
  let open = () => {};
  const both = new Promise<void>((resolve) => {
    open = resolve;
  });
  const meeting = handle("meeting", async () => {
    arrived += 1;
    if (arrived === 2) open();
    await both;
  });
  await kit.ledger.jobs.enqueueMany([1, 2].map((payload) => ({ type: "meeting", payload })));

  expect(await kit.drain({ handlers: [meeting], concurrency: 2 })).toMatchObject({ succeeded: 2 });
});

test("a job that is cancelled under its handler counts as that", async () => {
  const canceling = handle(double, async ({ lease }) => {
    await kit.ledger.jobs.cancel(lease.jobId, { scope: everywhere });
    return 0;
  });
  await kit.ledger.jobs.enqueue(double, 1);

  expect(await kit.drain({ handlers: [canceling] })).toMatchObject({ canceled: 1, succeeded: 0, left: [] });
});
