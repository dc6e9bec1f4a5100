/** Bulk cancel, requeue and replay of jobs by filter (FEATURES F-J9), in bounded batches. */
import { afterEach, beforeEach, expect, test } from "@jest/globals";
import { v7 } from "uuid";
import { createLedger, type JobRequest, WorkflowBuilder } from "../../src/index.ts";
import { expectInvariants } from "../invariants.ts";
import { createTestDatabase } from "../support/database.ts";
import { waitForBackend } from "../support/waiting.ts";
import { claimedOne, codeOf, globally } from "./fixtures.ts";

const database = await createTestDatabase();
const ledger = createLedger({ db: database.db, lockWaitMs: 300 });
const scope = globally;
const organization = v7();

beforeEach(() =>
  database.pool.query(
    "truncate runledger.job_queue, runledger.job_ledger, runledger.job_events, runledger.job_replays, runledger.job_attempts, runledger.workflow_runs cascade",
  ),
);
afterEach(() => expectInvariants(database));

type Outcome = "PENDING" | "LEASED" | "SUCCEEDED" | "DEAD_LETTERED" | "CANCELED";

/** Enqueues jobs and brings them where they are wanted; answers with their ids. */
async function jobs(outcome: Outcome, count: number, request: Partial<JobRequest> = {}, code = "test.failed") {
  const made = await ledger.jobs.enqueueMany(
    Array.from({ length: count }, (_, n) => ({ type: "job", payload: n, ...request })),
  );
  const ids = made.map(({ id }) => id);
  if (outcome === "PENDING") return ids;
  if (outcome === "CANCELED") {
    await ledger.jobs.cancelMany({ scope: { admin: true }, filter: {} });
    return ids;
  }
  const claimed = await ledger.jobs.claim({ workerId: "w", limit: count, types: [request.type ?? "job"] });
  const settle = (failed: boolean) =>
    ledger.jobs.settle(
      claimed.map(({ lease }) =>
        failed ? { lease, failure: { kind: "TERMINAL", code, message: "m" } } : { lease, success: {} },
      ),
    );
  if (outcome !== "LEASED") await settle(outcome === "DEAD_LETTERED");
  return ids;
}

async function statuses(ids: readonly string[]): Promise<Record<string, number>> {
  const { rows } = await database.pool.query<{ status: string; count: number }>(
    "select status, count(*)::int from runledger.jobs where id = any($1) group by status",
    [ids],
  );
  return Object.fromEntries(rows.map(({ status, count }) => [status, count]));
}

test("cancelMany cancels what the filter finds, and tells how far it has come", async () => {
  const pending = await jobs("PENDING", 7);
  const other = await jobs("PENDING", 3, { type: "other" });
  const steps: unknown[] = [];

  const result = await ledger.jobs.cancelMany({
    scope,
    filter: { type: "job" },
    reason: "not needed",
    batchSize: 3,
    onProgress: (progress) => void steps.push(progress),
  });

  expect(result).toEqual({ canceled: 7, alreadyEnded: 0, failed: [] });
  expect(steps).toEqual([3, 6, 7].map((canceled) => ({ canceled, alreadyEnded: 0, failed: 0, done: canceled })));
  expect(await statuses(pending)).toEqual({ CANCELED: 7 });
  expect(await statuses(other)).toEqual({ PENDING: 3 });
  expect((await ledger.jobs.get(pending[0] ?? "", scope)).canceledReason).toBe("not needed");
});

test("cancelMany by status, tags, times and tenant: each narrows", async () => {
  const leasedJobs = await jobs("LEASED", 2);
  const tagged = await jobs("PENDING", 2, { tags: ["a", "b"] });
  const plain = await jobs("PENDING", 2, { tags: ["a"] });
  const tenants = await jobs("PENDING", 2, { organizationId: organization });
  const cancel = async (filter: object, within: object = scope) =>
    (await ledger.jobs.cancelMany({ scope: within as typeof scope, filter })).canceled;

  expect(await cancel({ enqueuedBefore: "2000-01-01T00:00:00Z" })).toBe(0);
  expect(await cancel({ enqueuedAfter: "2999-01-01T00:00:00Z" })).toBe(0);
  expect(await cancel({ type: "none" })).toBe(0);
  expect(await cancel({}, { organization: v7() })).toBe(0);
  expect(await cancel({ tags: ["b", "a"] })).toBe(2);
  expect(await statuses(tagged)).toEqual({ CANCELED: 2 });
  expect(await cancel({ statuses: ["LEASED"] })).toBe(2);
  expect(await statuses(leasedJobs)).toEqual({ CANCELED: 2 });
  expect(await cancel({}, { organization })).toBe(2);
  expect(await statuses(tenants)).toEqual({ CANCELED: 2 });
  expect(await cancel({ enqueuedAfter: "2000-01-01T00:00:00Z", enqueuedBefore: "2999-01-01T00:00:00Z" })).toBe(2);
  expect(await statuses(plain)).toEqual({ CANCELED: 2 });
});

test("requeueMany by error code, type, times and status: each narrows", async () => {
  const busy = await jobs("DEAD_LETTERED", 3, {}, "busy");
  const broken = await jobs("DEAD_LETTERED", 3, { type: "other", organizationId: organization }, "broken");
  const canceled = await jobs("CANCELED", 2);
  const requeue = async (filter: object, within: object = { admin: true }) =>
    (
      await ledger.jobs.requeueMany({
        scope: within as typeof scope,
        filter: { status: "DEAD_LETTERED" as const, ...filter },
        requeuedBy: "ana",
        reason: "fixed",
      })
    ).requeued;

  expect(await requeue({ errorCode: "unknown" })).toBe(0);
  expect(await requeue({ endedAfter: "2999-01-01T00:00:00Z" })).toBe(0);
  expect(await requeue({ endedBefore: "2000-01-01T00:00:00Z" })).toBe(0);
  expect(await requeue({ errorCode: "busy" }, { organization })).toBe(0);
  expect(await requeue({ errorCode: "busy" })).toBe(3);
  expect(await statuses(busy)).toEqual({ PENDING: 3 });
  expect(await requeue({ type: "other" })).toBe(3);
  expect(await statuses(broken)).toEqual({ PENDING: 3 });
  expect(await statuses(canceled)).toEqual({ CANCELED: 2 });
  expect(await requeue({ status: "CANCELED" })).toBe(2);
  const { rows } = await database.pool.query("select distinct event, actor from runledger.job_events");
  expect(rows).toEqual([{ event: "requeued", actor: "ana" }]);
});

test("requeueMany takes each job once, also those that die again meanwhile, and it ends", async () => {
  const ids = await jobs("DEAD_LETTERED", 10);
  let rounds = 0;
  const result = await ledger.jobs.requeueMany({
    scope,
    filter: { status: "DEAD_LETTERED" },
    batchSize: 4,
    onProgress: async () => {
      rounds += 1;
      const claimed = await ledger.jobs.claim({ workerId: "w", limit: 100 });
      await ledger.jobs.settle(
        claimed.map(({ lease }) => ({ lease, failure: { kind: "TERMINAL", code: "again", message: "m" } })),
      );
    },
  });

  expect(result).toEqual({ requeued: 10, alreadyChanged: 0, failed: [] });
  expect(rounds).toBe(3);
  expect(await statuses(ids)).toEqual({ DEAD_LETTERED: 10 });
  const { rows } = await database.pool.query("select distinct run_number from runledger.jobs");
  expect(rows).toEqual([{ run_number: 2 }]);
});

test("requeueMany finds a job by its latest run only, however often it died before", async () => {
  const [id = ""] = await jobs("DEAD_LETTERED", 1);
  for (const runNumber of [1, 2, 3]) {
    await ledger.jobs.requeue(id, { scope, expected: { status: "DEAD_LETTERED", runNumber } });
    await ledger.jobs.fail((await claimedOne(ledger, "job")).lease, { kind: "TERMINAL", code: "c", message: "m" });
  }
  const requeue = () => ledger.jobs.requeueMany({ scope, filter: { status: "DEAD_LETTERED" }, batchSize: 1 });
  expect(await requeue()).toEqual({ requeued: 1, alreadyChanged: 0, failed: [] });
  expect(await requeue()).toEqual({ requeued: 0, alreadyChanged: 0, failed: [] });
  await ledger.jobs.complete((await claimedOne(ledger, "job")).lease);
  expect(await requeue()).toEqual({ requeued: 0, alreadyChanged: 0, failed: [] });
});

test("requeueMany leaves a cancelled job whose lease has not ended, and says which", async () => {
  const [leasedJob = ""] = await jobs("LEASED", 1);
  await jobs("PENDING", 2);
  await ledger.jobs.cancelMany({ scope, filter: {} });

  const result = await ledger.jobs.requeueMany({ scope, filter: { status: "CANCELED" } });

  expect(result).toMatchObject({
    requeued: 2,
    alreadyChanged: 0,
    failed: [{ jobId: leasedJob, error: { code: "job.cancellation_not_quiesced" } }],
  });
});

test("replayMany replays each job once for its key, and goes on where a call broke off", async () => {
  await jobs("SUCCEEDED", 10);
  const replay = (limit?: number) =>
    ledger.jobs.replayMany({ scope, filter: { type: "job" }, key: "k", batchSize: 3, ...(limit ? { limit } : {}) });

  expect(await replay(4)).toEqual({ replayed: 4, alreadyReplayed: 0, failed: [] });
  expect(await replay()).toEqual({ replayed: 6, alreadyReplayed: 4, failed: [] });
  const { rows } = await database.pool.query(
    "select count(*)::int, count(distinct source_job_id)::int as sources from runledger.job_queue",
  );
  expect(rows).toEqual([{ count: 10, sources: 10 }]);
});

test("replayMany does not replay what succeeds meanwhile, its own replays included", async () => {
  await jobs("SUCCEEDED", 6);
  const result = await ledger.jobs.replayMany({
    scope,
    filter: {},
    key: "k",
    batchSize: 2,
    onProgress: async () => {
      const claimed = await ledger.jobs.claim({ workerId: "w", limit: 100 });
      await ledger.jobs.settle(claimed.map(({ lease }) => ({ lease, success: {} })));
    },
  });

  expect(result).toMatchObject({ replayed: 6 });
});

test("jobs of workflow runs are never found", async () => {
  const graph = new WorkflowBuilder("bulk-steps");
  graph.job("a", "a", {});
  graph.job("b", "b", {});
  graph.job("c", "c", {});
  await ledger.runs.enqueue(graph.build());
  await ledger.jobs.complete((await claimedOne(ledger, "a")).lease);
  await ledger.jobs.fail((await claimedOne(ledger, "b")).lease, { kind: "TERMINAL", code: "c", message: "m" });
  const admin = { scope: { admin: true } } as const;

  expect((await ledger.jobs.cancelMany({ ...admin, filter: {} })).canceled).toBe(0);
  expect((await ledger.jobs.requeueMany({ ...admin, filter: { status: "DEAD_LETTERED" } })).requeued).toBe(0);
  expect((await ledger.jobs.replayMany({ ...admin, filter: {}, key: "k" })).replayed).toBe(0);
  await ledger.jobs.complete((await claimedOne(ledger, "c")).lease);
});

test("a limit is kept to the job, whatever the batch size", async () => {
  await jobs("PENDING", 10);

  expect(await ledger.jobs.cancelMany({ scope, filter: {}, limit: 4, batchSize: 3 })).toMatchObject({ canceled: 4 });
  expect(await ledger.jobs.cancelMany({ scope, filter: {}, limit: 2 })).toMatchObject({ canceled: 2 });
});

test("a walk goes on over stretches in which the filter finds nothing, and past thousands of rows", async () => {
  await jobs("PENDING", 1, { type: "wanted" });
  await jobs("PENDING", 12_000, { type: "unwanted" });
  await jobs("PENDING", 1, { type: "wanted" });
  const { result, statements } = await database.record(() =>
    ledger.jobs.cancelMany({ scope, filter: { type: "wanted" } }),
  );

  expect(result.canceled).toBe(2);
  expect(statements.filter((text) => text.includes("walk_live_jobs"))).toHaveLength(3);
  expect(statements.filter((text) => text.includes("cancel_jobs"))).toHaveLength(2);
});

test("a batch is two statements, whatever its size", async () => {
  await jobs("PENDING", 500);
  const canceling = await database.record(() => ledger.jobs.cancelMany({ scope, filter: {}, batchSize: 500 }));
  const requeueing = await database.record(() =>
    ledger.jobs.requeueMany({ scope, filter: { status: "CANCELED" }, batchSize: 500 }),
  );
  const claimed = await ledger.jobs.claim({ workerId: "w", limit: 500 });
  await ledger.jobs.settle(claimed.map(({ lease }) => ({ lease, success: {} })));
  const replaying = await database.record(() =>
    ledger.jobs.replayMany({ scope, filter: {}, key: "k", batchSize: 500 }),
  );

  expect(canceling.result.canceled).toBe(500);
  expect(requeueing.result.requeued).toBe(500);
  expect(replaying.result.replayed).toBe(500);
  // The last look finds nothing more.
  for (const { statements } of [canceling, requeueing, replaying]) expect(statements).toHaveLength(3);
});

test("a job whose row somebody holds is left, and does not stop the others", async () => {
  const ids = await jobs("PENDING", 5);
  const held = ids[2] ?? "";
  const holder = await database.connect();
  await holder.query("begin");
  await holder.query("select from runledger.job_queue where id = $1 for update", [held]);

  const result = await ledger.jobs.cancelMany({ scope, filter: {} });

  expect(result).toMatchObject({ canceled: 4, failed: [{ jobId: held, error: { code: "db.lock_timeout" } }] });
  await holder.query("rollback");
});

test("a job that ends while a bulk cancel waits for it counts as ended", async () => {
  const patient = createLedger({ db: database.db });
  const [id = ""] = await jobs("PENDING", 1);
  const trx = await database.db.startTransaction().execute();
  await patient.in(trx).jobs.cancel(id, { scope });
  const canceling = patient.jobs.cancelMany({ scope, filter: {} });
  await waitForBackend({ client: database.pool, marker: "runledger:cancel_jobs" });
  await trx.commit().execute();

  expect(await canceling).toEqual({ canceled: 0, alreadyEnded: 1, failed: [] });
});

test("of two bulk requeues at once each job is requeued by one", async () => {
  const patient = createLedger({ db: database.db });
  const ids = await jobs("DEAD_LETTERED", 4);
  const filter = { status: "DEAD_LETTERED" } as const;
  const trx = await database.db.startTransaction().execute();
  expect(await patient.in(trx).jobs.requeueMany({ scope, filter, limit: 2 })).toMatchObject({ requeued: 2 });
  const second = patient.jobs.requeueMany({ scope, filter });
  await waitForBackend({ client: database.pool, marker: "runledger:requeue_jobs" });
  await trx.commit().execute();

  expect(await second).toEqual({ requeued: 2, alreadyChanged: 2, failed: [] });
  expect(await statuses(ids)).toEqual({ PENDING: 4 });
});

test("in a caller's transaction all comes and goes with it", async () => {
  const ids = await jobs("DEAD_LETTERED", 4);
  const trx = await database.db.startTransaction().execute();
  const result = await ledger.in(trx).jobs.requeueMany({ scope, filter: { status: "DEAD_LETTERED" }, batchSize: 2 });
  await trx.rollback().execute();

  expect(result.requeued).toBe(4);
  expect(await statuses(ids)).toEqual({ DEAD_LETTERED: 4 });
});

test("what onProgress throws ends the call; what was done before stays", async () => {
  const ids = await jobs("PENDING", 4);
  const stop = new Error("enough");
  const canceling = ledger.jobs.cancelMany({
    scope,
    filter: {},
    batchSize: 2,
    onProgress: () => {
      throw stop;
    },
  });

  await expect(canceling).rejects.toBe(stop);
  expect(await statuses(ids)).toEqual({ CANCELED: 2, PENDING: 2 });
});

test("a filter that says something unknown, or nothing, is refused: it would be wider than it looks", async () => {
  const ids = await jobs("PENDING", 1);
  const filters = [
    undefined,
    null,
    [],
    { tpye: "job" },
    { type: undefined },
    { statuses: ["SUCCEEDED"] },
    { tags: "a" },
  ];
  for (const filter of filters) {
    expect(await codeOf(() => ledger.jobs.cancelMany({ scope, filter: filter as object }))).toBe("input.invalid");
  }
  const status = "SUCCEEDED" as "CANCELED";
  expect(await codeOf(() => ledger.jobs.requeueMany({ scope, filter: { status } }))).toBe("input.invalid");
  expect(await statuses(ids)).toEqual({ PENDING: 1 });
});
