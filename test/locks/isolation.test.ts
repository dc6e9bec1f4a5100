/** Isolation guards (LOCKS.md §4): each operation's code, before anything else is sent. */
import { expect, test } from "@jest/globals";
import type { IsolationLevel } from "kysely";
import { v7 } from "uuid";
import { createLedger, type Lease, type Ledger, type LedgerErrorCode, WorkflowBuilder } from "../../src/index.ts";
import { claimedOne, codeOf, globally } from "../jobs/fixtures.ts";
import { createTestDatabase } from "../support/database.ts";

const database = await createTestDatabase();
const ledger = createLedger({ db: database.db });

const graph = new WorkflowBuilder("guarded");
graph.job("work", "guarded", {});
graph.external("gate");
const run = await ledger.runs.enqueue(graph.build());
const { lease } = await claimedOne(ledger, "guarded");
const plain = await ledger.jobs.enqueue("plain", {});
const plainLease: Lease = { ...lease, jobId: plain.id, workflowRunId: null };

const guarded: readonly [string, LedgerErrorCode, (ledger: Ledger) => Promise<unknown>][] = [
  [
    "jobs.enqueue with a key",
    "job.enqueue_idempotency_unsupported_isolation",
    (l) => l.jobs.enqueue("j", {}, { idempotencyKey: "k" }),
  ],
  [
    "jobs.enqueueMany with a key among them",
    "job.enqueue_idempotency_unsupported_isolation",
    (l) =>
      l.jobs.enqueueMany([
        { type: "j", payload: 1 },
        { type: "j", payload: 1, idempotencyKey: "k" },
      ]),
  ],
  [
    "jobs.enqueue with an active key",
    "job.enqueue_active_key_unsupported_isolation",
    (l) => l.jobs.enqueue("j", {}, { active: { key: "k" } }),
  ],
  [
    "jobs.enqueue with a debounce key",
    "job.enqueue_debounce_unsupported_isolation",
    (l) => l.jobs.enqueue("j", {}, { debounce: { key: "k", seconds: 1 } }),
  ],
  [
    "jobs.enqueue with a throttle key",
    "job.enqueue_throttle_unsupported_isolation",
    (l) => l.jobs.enqueue("j", {}, { throttle: { key: "k", seconds: 1 } }),
  ],
  ["jobs.cancel", "job.cancel_unsupported_isolation", (l) => l.jobs.cancel(plain.id, { scope: globally })],
  ["jobs.complete of a step", "workflow.terminal_completion_unsupported_isolation", (l) => l.jobs.complete(lease)],
  [
    "jobs.fail of a step",
    "workflow.terminal_completion_unsupported_isolation",
    (l) => l.jobs.fail(lease, { code: "c", message: "m" }),
  ],
  [
    "jobs.settle with a step among others",
    "workflow.terminal_completion_unsupported_isolation",
    (l) =>
      l.jobs.settle([
        { lease: plainLease, success: {} },
        { lease, success: {} },
      ]),
  ],
  ["jobs.reap", "workflow.terminal_completion_unsupported_isolation", (l) => l.jobs.reap()],
  ["runs.cancel", "workflow.cancel_unsupported_isolation", (l) => l.runs.cancel(run.id, { scope: globally })],
  [
    "runs.cancelMany",
    "workflow.cancel_unsupported_isolation",
    (l) => l.runs.cancelMany({ scope: globally, filter: { ids: [run.id] } }),
  ],
  [
    "a handle's cancel",
    "workflow.cancel_unsupported_isolation",
    (l) => l.runs.handle(run.id, { scope: globally }).cancel(),
  ],
  [
    "runs.enqueue with a key",
    "workflow.enqueue_idempotency_unsupported_isolation",
    (l) => l.runs.enqueue(graph.build(), { idempotencyKey: "k" }),
  ],
  [
    "runs.enqueue with an active key",
    "workflow.enqueue_active_key_unsupported_isolation",
    (l) => l.runs.enqueue(graph.build(), { active: { key: "k" } }),
  ],
  [
    "steps.complete",
    "workflow.external_completion_unsupported_isolation",
    (l) => l.steps.complete(run.id, "gate", { scope: globally }),
  ],
];

const refusedLevels: readonly IsolationLevel[] = ["repeatable read", "serializable"];
const acceptedLevels: readonly IsolationLevel[] = ["read uncommitted", "read committed"];

test.each(refusedLevels.flatMap((level) => guarded.map(([name, ...rest]) => [name, level, ...rest] as const)))(
  "%s in a %s transaction is refused after one check and nothing else",
  async (_name, level, code, call) => {
    const trx = await database.db.startTransaction().setIsolationLevel(level).execute();

    const { result, statements } = await database.record(() => codeOf(() => call(ledger.in(trx))));

    expect(result).toBe(code);
    expect(statements).toEqual([expect.stringContaining("runledger:isolation_level")]);
    await trx.rollback().execute();
  },
);

test.each(acceptedLevels.flatMap((level) => guarded.map(([name, , call]) => [name, level, call] as const)))(
  "%s in a %s transaction is let through",
  async (_name, level, call) => {
    const trx = await database.db.startTransaction().setIsolationLevel(level).execute();

    expect(await codeOf(() => call(ledger.in(trx)))).toMatchObject({ resolved: expect.anything() });

    await trx.rollback().execute();
  },
);

test("bad arguments are refused before the level is asked for", async () => {
  const trx = await database.db.startTransaction().setIsolationLevel("serializable").execute();
  const bound = ledger.in(trx);

  const { statements } = await database.record(async () => {
    expect(await codeOf(() => bound.jobs.cancel("x", { scope: globally }))).toBe("input.invalid");
    expect(await codeOf(() => bound.runs.cancel("x", { scope: globally }))).toBe("input.invalid");
    expect(await codeOf(() => bound.jobs.enqueue("", {}, { idempotencyKey: "k" }))).toBe("input.invalid");
  });

  expect(statements).toEqual([]);
  await trx.rollback().execute();
});

test("what needs no level works in a serializable transaction of the caller's", async () => {
  const trx = await database.db.startTransaction().setIsolationLevel("serializable").execute();
  const bound = ledger.in(trx);

  const { id } = await bound.jobs.enqueue("serializable", {});
  const [job] = await bound.jobs.claim({ workerId: "w", limit: 1, types: ["serializable"] });
  if (job === undefined) throw new Error("nothing was claimed");
  await bound.jobs.progress(job.lease, { done: 1 });
  await bound.jobs.complete(job.lease, { output: 1 });
  expect((await bound.jobs.get(id, globally)).status).toBe("SUCCEEDED");
  await trx.commit().execute();
});

test("an unknown run is reported only where the level fits", async () => {
  const trx = await database.db.startTransaction().setIsolationLevel("repeatable read").execute();
  expect(await codeOf(() => ledger.in(trx).runs.cancel(v7(), { scope: globally }))).toBe(
    "workflow.cancel_unsupported_isolation",
  );
  await trx.rollback().execute();
});
