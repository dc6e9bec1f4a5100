import { expect, test } from "@jest/globals";
import { z } from "zod";
import { defineJob, typed, WorkflowBuilder } from "../../src/index.ts";
import { handle, RetryableError, TerminalError } from "../../src/worker/index.ts";
import { createTestDatabase } from "../support/database.ts";
import { aborted, everywhere, gate, ledgerOn, makeWorker, startWorker } from "./support.ts";

const database = await createTestDatabase();
const ledger = ledgerOn(database);

test("a handler's return value is the job's output", async () => {
  const double = defineJob("double", { input: typed<{ n: number }>(), output: typed<{ twice: number }>() });
  const { id } = await ledger.jobs.enqueue(double, { n: 21 });

  const worker = await startWorker({ ledger, handlers: [handle(double, ({ payload }) => ({ twice: payload.n * 2 }))] });
  await worker.event("succeeded");

  expect(await ledger.jobs.get(id, everywhere)).toMatchObject({
    status: "SUCCEEDED",
    attempt: 1,
    output: { twice: 42 },
    workerId: worker.worker.id,
  });
});

test("a handler is given the attempt, the checkpoint and what reports on the job", async () => {
  const seen: unknown[] = [];
  const { id } = await ledger.jobs.enqueue("resumable", {});
  const worker = await startWorker({
    ledger,
    handlers: [
      handle("resumable", async (context) => {
        // As code that adds something of its own to the context hands it on.
        const { attempt, checkpoint, saveCheckpoint, progress, log, ...rest } = { ...context };
        expect([rest.signal.aborted, rest.lease, rest.job.lease.jobId]).toEqual([false, context.lease, id]);
        seen.push({ attempt, checkpoint });
        if (attempt === 2) return "done";
        await saveCheckpoint({ page: 7 });
        await progress(7, 10);
        await log("info", "halfway", { page: 7 });
        throw new RetryableError("page.unreadable", "again");
      }),
    ],
  });
  await worker.event("succeeded");

  expect(seen).toEqual([
    { attempt: 1, checkpoint: null },
    { attempt: 2, checkpoint: { page: 7 } },
  ]);
  expect(await ledger.jobs.get(id, everywhere)).toMatchObject({ output: "done", progress: { done: 7, total: 10 } });
  expect((await database.pool.query("select level, message from runledger.job_logs")).rows).toEqual([
    { level: "info", message: "halfway" },
  ]);
});

test("an error is retried with its code, or its name, until the attempts are used up", async () => {
  await ledger.jobs.sync([defineJob("fragile", { backoff: { initialSeconds: 0 } })]);
  const { id } = await ledger.jobs.enqueue("fragile", {}, { maxAttempts: 3 });
  const errors = [
    Object.assign(new Error("no route"), { code: "EHOSTUNREACH" }),
    new TypeError("bad"),
    new Error("plain"),
  ];

  const worker = await startWorker({
    ledger,
    handlers: [
      handle("fragile", ({ attempt }) => {
        throw errors[attempt - 1];
      }),
    ],
  });
  const failed = await worker.event("failed");

  const retries = worker.events.flatMap((event) => (event.type === "retried" ? [event.failure] : []));
  expect(retries).toEqual([
    { kind: "RETRYABLE", code: "EHOSTUNREACH", message: "no route" },
    { kind: "RETRYABLE", code: "TypeError", message: "bad" },
  ]);
  expect(failed).toMatchObject({ job: { attempt: 3 }, failure: { code: "job.failed", message: "plain" } });
  expect(await ledger.jobs.get(id, everywhere)).toMatchObject({
    status: "DEAD_LETTERED",
    attempt: 3,
    failureKind: "RETRYABLE",
    errorCode: "job.failed",
    errorMessage: "plain",
  });
});

test("a TerminalError ends the job at once", async () => {
  const { id } = await ledger.jobs.enqueue("hopeless", {});
  const worker = await startWorker({
    ledger,
    handlers: [
      handle("hopeless", () => {
        throw new TerminalError("card.declined", "The card was declined.");
      }),
    ],
  });
  await worker.event("failed");

  expect(await ledger.jobs.get(id, everywhere)).toMatchObject({
    status: "DEAD_LETTERED",
    attempt: 1,
    failureKind: "TERMINAL",
    errorCode: "card.declined",
    errorMessage: "The card was declined.",
  });
});

test("a RetryableError's notBefore moves the next attempt", async () => {
  const notBefore = new Date(Date.now() + 3_600_000);
  const { id } = await ledger.jobs.enqueue("rate-limited", {});
  const worker = await startWorker({
    ledger,
    handlers: [
      handle("rate-limited", () => {
        throw new RetryableError("api.busy", "later", { notBefore });
      }),
    ],
  });

  expect(await worker.event("retried")).toMatchObject({ runAt: notBefore });
  expect(await ledger.jobs.get(id, everywhere)).toMatchObject({ status: "PENDING", runAt: notBefore });
});

test("what is thrown and is no error is a panic", async () => {
  const { id } = await ledger.jobs.enqueue("panicking", {});
  const worker = await startWorker({
    ledger,
    handlers: [handle("panicking", () => Promise.reject({ secret: "s3cret" }))],
  });
  await worker.event("failed");

  expect(await ledger.jobs.get(id, everywhere)).toMatchObject({
    status: "DEAD_LETTERED",
    failureKind: "PANICKED",
    errorCode: "job.panicked",
    errorMessage: "The handler threw an object that is not an error.",
  });
});

test("an output without a JSON form fails its own job and none that is stored with it", async () => {
  const together = gate();
  const jobs = await ledger.jobs.enqueueMany(
    ["plain", "bigint", "nul", "plain"].map((payload) => ({ type: "unstorable", payload })),
  );
  let started = 0;
  const outputs: Readonly<Record<string, unknown>> = { plain: "fine", bigint: 1n, nul: "\0" };
  const worker = await startWorker({
    ledger,
    handlers: [
      handle("unstorable", async ({ payload }) => {
        started += 1;
        if (started === 4) together.open();
        await together.opened;
        return outputs[String(payload)];
      }),
    ],
  });
  await worker.count("succeeded", 2);
  await worker.count("failed", 2);

  const stored = await Promise.all(jobs.map(({ id }) => ledger.jobs.get(id, everywhere)));
  expect(stored).toMatchObject([
    { status: "SUCCEEDED", output: "fine" },
    { status: "DEAD_LETTERED", failureKind: "PANICKED", errorCode: "payload.not_json" },
    { status: "DEAD_LETTERED", failureKind: "PANICKED", errorCode: "payload.not_json" },
    { status: "SUCCEEDED", output: "fine" },
  ]);
});

test("a handler receives what the schema makes of the payload", async () => {
  const dated = defineJob("dated", { input: z.object({ at: z.string().transform((text) => new Date(text)) }) });
  const received = gate<Date>();
  await ledger.jobs.enqueue(dated, { at: "2030-01-01T00:00:00Z" });
  await startWorker({ ledger, handlers: [handle(dated, ({ payload }) => received.open(payload.at))] });

  expect((await received.opened).toISOString()).toBe("2030-01-01T00:00:00.000Z");
});

test("a payload that does not fit its schema ends the job and never reaches the handler", async () => {
  const strict = defineJob("strict", { input: z.object({ orderId: z.string() }) });
  const { id } = await ledger.jobs.enqueue("strict", { orderId: 12 });
  let called = false;
  const worker = await startWorker({
    ledger,
    handlers: [
      handle(strict, () => {
        called = true;
      }),
    ],
  });
  await worker.event("failed");

  expect(called).toBe(false);
  expect(await ledger.jobs.get(id, everywhere)).toMatchObject({
    status: "DEAD_LETTERED",
    attempt: 1,
    failureKind: "TERMINAL",
    errorCode: "payload.invalid",
    errorMessage: "The payload does not fit the input schema of its definition. At: orderId.",
  });
});

test("at its timeout an attempt is settled as TIMEOUT, and what its handler returns later is ignored", async () => {
  const [late, returned] = [gate(), gate()];
  const { id } = await ledger.jobs.enqueue("deaf", {}, { timeoutSeconds: 1, maxAttempts: 1 });
  const worker = await startWorker({
    ledger,
    concurrency: 1,
    handlers: [
      handle("deaf", async ({ signal }) => {
        await late.opened;
        returned.open();
        return { aborted: signal.aborted };
      }),
    ],
  });

  expect(await worker.event("failed")).toMatchObject({ failure: { kind: "TIMEOUT", code: "job.timeout" } });
  late.open();
  await returned.opened;
  await worker.worker.stop();

  expect(worker.events.map(({ type }) => type)).toEqual(["claimed", "started", "failed", "stopped"]);
  expect(await ledger.jobs.get(id, everywhere)).toMatchObject({ status: "DEAD_LETTERED", failureKind: "TIMEOUT" });
});

test("a timeout aborts the signal, and the attempt is made again", async () => {
  await ledger.jobs.sync([defineJob("slow-once", { backoff: { initialSeconds: 0 } })]);
  const { id } = await ledger.jobs.enqueue("slow-once", {}, { timeoutSeconds: 1 });
  const reasons: unknown[] = [];
  const worker = await startWorker({
    ledger,
    handlers: [
      handle("slow-once", async ({ attempt, signal }) => {
        if (attempt === 2) return "in time";
        return aborted(signal).catch((reason: unknown) => {
          reasons.push(reason);
          throw reason;
        });
      }),
    ],
  });
  await worker.event("succeeded");

  expect(reasons).toMatchObject([{ name: "JobAborted", kind: "timeout", code: "job.timeout" }]);
  expect(await ledger.jobs.get(id, everywhere)).toMatchObject({ attempt: 2, output: "in time" });
});

test("a step finds the outputs of its prerequisites, and jobs without steps cost no query for them", async () => {
  const count = defineJob("count", { input: typed<{ of: string }>(), output: typed<{ count: number }>() });
  const sum = defineJob("sum", {
    output: typed<number>(),
    prerequisites: typed<{ apples: { count: number }; pears: { count: number } }>(),
  });
  const graph = new WorkflowBuilder("fruit");
  const apples = graph.job("apples", count, { of: "apples" });
  const pears = graph.job("pears", count, { of: "pears" });
  graph.result(graph.job("sum", sum, {}, { onSuccess: [apples, pears] }));
  const run = await ledger.runs.enqueue(graph.build());

  const { statements } = await database.record(async () => {
    const worker = await startWorker({
      ledger,
      handlers: [
        handle(count, ({ payload }) => ({ count: payload.of.length })),
        handle(sum, ({ prerequisites: { apples, pears } }) => apples.count + pears.count),
      ],
    });
    await worker.count("succeeded", 3);
    await worker.worker.stop();
  });

  expect(await ledger.runs.getResult(run.id, { scope: everywhere })).toBe(11);
  expect(statements.filter((text) => text.includes("step_prerequisites"))).toHaveLength(2);

  const alone = await database.record(async () => {
    await ledger.jobs.enqueue(count, { of: "plums" });
    const worker = await startWorker({ ledger, handlers: [handle(count, () => ({ count: 1 }))] });
    await worker.event("succeeded");
  });
  expect(alone.statements.filter((text) => text.includes("step_prerequisites"))).toHaveLength(0);
});

test("a step that runs after a failed prerequisite is told why it failed", async () => {
  const graph = new WorkflowBuilder("told");
  const charge = graph.job("charge", "told.charge", {}, { maxAttempts: 1 });
  const reserve = graph.job("reserve", "told.reserve", {});
  graph.job("undo", "told.undo", {}, { onTerminal: [charge, reserve] });
  const run = await ledger.runs.enqueue(graph.build());

  const worker = await startWorker({
    ledger,
    handlers: [
      handle("told.charge", () => {
        throw new TerminalError("card.declined", "The card was declined.");
      }),
      handle("told.reserve", () => "three"),
      handle("told.undo", ({ prerequisites, failures }) => ({ prerequisites, failures })),
    ],
  });

  await worker.event("succeeded", ({ job }) => job.type === "told.undo");

  const { steps } = await ledger.runs.get(run.id, everywhere);
  expect(steps.find(({ key }) => key === "undo")?.output).toEqual({
    prerequisites: { reserve: "three" },
    failures: {
      charge: { status: "FAILED", errorCode: "card.declined", errorMessage: "The card was declined.", reason: null },
    },
  });
});

test("outcomes of the same moment are stored by one statement", async () => {
  const together = gate();
  let started = 0;
  await ledger.jobs.enqueueMany(Array.from({ length: 10 }, () => ({ type: "gathered", payload: {} })));
  const { statements } = await database.record(async () => {
    const worker = await startWorker({
      ledger,
      handlers: [
        handle("gathered", async () => {
          started += 1;
          if (started === 10) together.open();
          await together.opened;
        }),
      ],
    });
    await worker.count("succeeded", 10);
  });

  expect(statements.filter((text) => text.includes("complete_jobs"))).toHaveLength(1);
});

test("a backlog is worked off without a poll, each job once, and never more at once than concurrency allows", async () => {
  const jobs = Array.from({ length: 200 }, (_, n) => ({ type: "many", payload: n }));
  await ledger.jobs.enqueueMany(jobs);
  const ran: unknown[] = [];
  let [running, most] = [0, 0];
  const worker = await startWorker({
    ledger,
    concurrency: 7,
    pollIntervalMs: 3_600_000,
    handlers: [
      handle("many", async ({ payload }) => {
        running += 1;
        most = Math.max(most, running);
        ran.push(payload);
        await new Promise((resolve) => setImmediate(resolve));
        running -= 1;
      }),
    ],
  });
  await worker.count("succeeded", 200);

  expect(most).toBe(7);
  expect(ran.length).toBe(200);
  expect(new Set(ran).size).toBe(200);
});

test("an idle worker that cannot listen finds jobs by polling", async () => {
  const worker = await startWorker({ ledger, handlers: [handle("polled", () => "found")] });
  await ledger.jobs.enqueue("polled", {});
  await worker.event("succeeded");
});

test("handlers, options and states that make no sense are refused", async () => {
  const handler = handle("sensible", () => {});
  const refused = [
    { handlers: [handler, handle("sensible", () => {})] },
    { concurrency: 0 },
    { concurrency: 1.5 },
    { leaseSeconds: Number.NaN },
    { pollIntervalMs: -1 },
    { batchSize: 10_001 },
    { prefetch: -1 },
    { workerId: " " },
    { reap: { intervalMs: 0 } },
    { concurency: 3 },
  ];
  for (const options of refused) {
    expect(() => makeWorker({ ledger, handlers: [handler], ...options })).toThrow(
      expect.objectContaining({ code: "config.invalid" }),
    );
  }

  const { worker } = makeWorker({ ledger, handlers: [handler] });
  await worker.start();
  await expect(worker.start()).rejects.toMatchObject({ code: "worker.invalid_state" });
  expect(() => worker.stop({ timeoutMs: Number.NaN })).toThrow(expect.objectContaining({ code: "config.invalid" }));
  await worker.stop();
  await worker.stop();
  await worker.done;
  await expect(worker.start()).rejects.toMatchObject({ code: "worker.invalid_state" });

  const unused = makeWorker({ ledger, handlers: [handler] }).worker;
  await unused.stop();
  await unused.done;
});
