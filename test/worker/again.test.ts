/** Handlers that snooze their job, or continue it as its next run. */
import { afterEach, expect, test } from "@jest/globals";
import { createLedger, defineJob, typed, WorkflowBuilder } from "../../src/index.ts";
import { Continue, handle, Snooze } from "../../src/worker/index.ts";
import { expectInvariants } from "../invariants.ts";
import { createTestDatabase } from "../support/database.ts";
import { waitForBackend } from "../support/waiting.ts";
import { everywhere, gate, ledgerOn, outliveCuts, startWorker, type WatchedWorker } from "./support.ts";

const database = await createTestDatabase();
outliveCuts(database);
const ledger = ledgerOn(database);

afterEach(() => expectInvariants(database));

test("a handler that throws a Snooze is called again later, in the same attempt", async () => {
  const attempts: number[] = [];
  const { id } = await ledger.jobs.enqueue("busy", {}, { maxAttempts: 1 });
  const worker = await startWorker({
    ledger,
    handlers: [
      handle("busy", ({ attempt }) => {
        attempts.push(attempt);
        if (attempts.length < 4) throw new Snooze({ seconds: 0.01, reason: "busy" });
        return "done";
      }),
    ],
  });
  await worker.event("succeeded");

  expect(attempts).toEqual([1, 1, 1, 1]);
  expect(storyOf(worker)).toEqual(["snoozed", "snoozed", "snoozed", "succeeded"]);
  expect(await worker.event("snoozed")).toMatchObject({ runAt: expect.any(Date), job: { jobId: id } });
  expect(await ledger.jobs.get(id, everywhere)).toMatchObject({ status: "SUCCEEDED", attempt: 1, output: "done" });
});

test("a handler works a long job off in slices, with its typed output at the end, and without a poll between them", async () => {
  const sum = defineJob("sum", { input: typed<{ upTo: number }>(), output: typed<{ sum: number }>() });
  const { id } = await ledger.jobs.enqueue(sum, { upTo: 20 }, { maxAttempts: 1 });
  const seen: unknown[] = [];
  const worker = await startWorker({
    ledger,
    pollIntervalMs: 3_600_000,
    handlers: [
      handle(sum, ({ payload, checkpoint, attempt, lease }) => {
        seen.push([lease.runNumber, attempt, checkpoint]);
        const [at, so] = Array.isArray(checkpoint) ? checkpoint.map(Number) : [0, 0];
        const next: [number, number] = [(at ?? 0) + 5, (so ?? 0) + 5];
        if (next[0] < payload.upTo) throw new Continue({ checkpoint: next, output: { at: next[0] } });
        return { sum: next[1] };
      }),
    ],
  });
  await worker.event("succeeded");

  expect(seen).toEqual([
    [1, 1, null],
    [2, 1, [5, 5]],
    [3, 1, [10, 10]],
    [4, 1, [15, 15]],
  ]);
  expect(storyOf(worker)).toEqual(["continued", "continued", "continued", "succeeded"]);
  expect(await ledger.jobs.get(id, everywhere)).toMatchObject({ runNumber: 4, output: { sum: 20 } });
});

test("a step continues within its run, and its dependents find the output of its last slice", async () => {
  const graph = new WorkflowBuilder("sliced");
  const slices = graph.job("slices", "sliced.work", {}, { continues: true });
  graph.result(graph.job("end", "sliced.end", {}, { onSuccess: [slices] }));
  const { id } = await ledger.runs.enqueue(graph.build());
  await startWorker({
    ledger,
    handlers: [
      handle("sliced.work", ({ checkpoint }) => {
        if (checkpoint !== 3) throw new Continue({ checkpoint: Number(checkpoint ?? 0) + 1 });
        return "three slices and an end";
      }),
      handle("sliced.end", ({ prerequisites }) => prerequisites),
    ],
  });

  expect(await ledger.runs.getResult(id, { scope: everywhere, timeoutMs: 10_000 })).toEqual({
    slices: "three slices and an end",
  });
});

test("a step that was not declared to continue is dead-lettered with the code of the refusal", async () => {
  const graph = new WorkflowBuilder("undeclared");
  graph.job("work", "undeclared.work", {});
  const { id } = await ledger.runs.enqueue(graph.build());
  const worker = await startWorker({
    ledger,
    handlers: [
      handle("undeclared.work", () => {
        throw new Continue();
      }),
    ],
  });
  const { failure } = await worker.event("failed");

  expect(failure).toMatchObject({ kind: "PANICKED", code: "workflow.step_continuation_not_declared" });
  expect(await ledger.runs.getStatus(id, everywhere)).toMatchObject({ status: "COMPLETED_WITH_ERRORS" });
});

test("steps that an attempt appended are not lost by a continuation: it is refused", async () => {
  const graph = new WorkflowBuilder("appends");
  graph.job("work", "appends.work", {}, { continues: true });
  await ledger.runs.enqueue(graph.build());
  const worker = await startWorker({
    ledger,
    handlers: [
      handle("appends.work", ({ append }) => {
        append("more", (added) => added.job("more", "appends.more", {}));
        throw new Continue();
      }),
    ],
  });

  expect((await worker.event("failed")).failure).toMatchObject({ kind: "PANICKED", code: "worker.append_in_slice" });
});

test.each([
  ["a snooze for no time", () => new Snooze({ seconds: Number.NaN }), "input.invalid"],
  ["a checkpoint that is no JSON", () => new Continue({ checkpoint: 1n }), "payload.not_json"],
])("%s ends its job as PANICKED and harms no other", async (what, thrown, code) => {
  const type = `bad ${what}`;
  const together = gate();
  await ledger.jobs.enqueueMany([1, 2].map((payload) => ({ type, payload })));
  let started = 0;
  const worker = await startWorker({
    ledger,
    handlers: [
      handle(type, async ({ payload }) => {
        started += 1;
        if (started === 2) together.open();
        await together.opened;
        if (payload === 1) throw thrown();
      }),
    ],
  });

  expect((await worker.event("failed")).failure).toMatchObject({ kind: "PANICKED", code });
  await worker.event("succeeded");
});

test("all outcomes of one moment are stored by one statement", async () => {
  const outcomes = [() => "output", () => new Snooze({ seconds: 60 }), () => new Continue({ delaySeconds: 60 })];
  await ledger.jobs.enqueueMany(outcomes.map((_, n) => ({ type: "one-moment", payload: n })));
  const together = gate();
  let started = 0;
  const { statements } = await database.record(async () => {
    const worker = await startWorker({
      ledger,
      handlers: [
        handle("one-moment", async ({ payload }) => {
          started += 1;
          if (started === outcomes.length) together.open();
          await together.opened;
          const outcome = outcomes[Number(payload)]?.();
          if (outcome instanceof Error) throw outcome;
          return outcome;
        }),
      ],
    });
    await Promise.all([worker.event("succeeded"), worker.event("snoozed"), worker.event("continued")]);
  });

  expect(statements.filter((text) => text.includes("settle_attempts"))).toHaveLength(1);
});

test("a handler that continues or snoozes its job in a transaction of its own has not lost it", async () => {
  const kept = createLedger({ db: database.db, notify: false });
  await kept.jobs.enqueue("by-hand", 1);
  await kept.jobs.enqueue("by-hand", 2);
  const worker = await startWorker({
    ledger: kept,
    handlers: [
      handle("by-hand", ({ lease, payload }) =>
        database.db.transaction().execute(async (trx) => {
          const { jobs } = kept.in(trx);
          await (payload === 1 ? jobs.continue(lease, { delaySeconds: 60 }) : jobs.snooze(lease, { seconds: 60 }));
        }),
      ),
    ],
  });
  await Promise.all([worker.event("continued"), worker.event("snoozed")]);

  expect(storyOf(worker).sort()).toEqual(["continued", "snoozed"]);
});

test("the answer to a continuation is lost: the worker looks, and does not take the job for lost", async () => {
  const { id } = await ledger.jobs.enqueue("cut-off", {});
  // Continued by a session that nobody hears of, while the worker's own statement waits for its row.
  const started = gate();
  const finish = gate();
  const worker = await startWorker({
    ledger,
    handlers: [
      handle("cut-off", async () => {
        started.open();
        await finish.opened;
        throw new Continue({ delaySeconds: 60 });
      }),
    ],
  });
  await started.opened;
  const trx = await database.db.startTransaction().execute();
  const [event] = worker.events.flatMap((seen) => (seen.type === "started" ? [seen.job] : []));
  if (event === undefined) throw new Error("the job has not started");
  const lease = { ...event, workerId: worker.worker.id };
  await ledger.in(trx).jobs.continue(lease, { delaySeconds: 60 });
  finish.open();
  await waitForBackend({ client: database.pool, marker: "settle_attempts_with_again" });
  await trx.commit().execute();
  await worker.event("continued");

  expect(await ledger.jobs.get(id, everywhere)).toMatchObject({ status: "PENDING", runNumber: 2 });
  expect(storyOf(worker)).toEqual(["continued"]);
});

test("an outcome of another copy of the package counts the same", async () => {
  const foreign = Object.assign(new Error("not now"), {
    [Symbol.for("runledger.worker.goesOn")]: { snooze: { seconds: 60 } },
  });
  await ledger.jobs.enqueue("foreign", {});
  const worker = await startWorker({
    ledger,
    handlers: [
      handle("foreign", () => {
        throw foreign;
      }),
    ],
  });

  await worker.event("snoozed");
});

function storyOf(worker: WatchedWorker): string[] {
  const told = ["succeeded", "snoozed", "continued", "retried", "failed", "lost"];
  return worker.events.map(({ type }) => type).filter((type) => told.includes(type));
}
