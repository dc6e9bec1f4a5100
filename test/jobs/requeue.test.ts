/** Requeue of dead-lettered and cancelled jobs (FEATURES F-J9): compare, then put back. */
import { afterEach, expect, test } from "@jest/globals";
import { v7 } from "uuid";
import { createLedger, type RequeueOptions, WorkflowBuilder } from "../../src/index.ts";
import { expectInvariants } from "../invariants.ts";
import { createTestDatabase } from "../support/database.ts";
import { waitForBackend } from "../support/waiting.ts";
import { claimedOne, codeOf, errorOf, everythingOf, globally, leased, unknownId } from "./fixtures.ts";

const database = await createTestDatabase();
const ledger = createLedger({ db: database.db });
const scope = globally;
const dead = { status: "DEAD_LETTERED", runNumber: 1 } as const;
const canceled = { status: "CANCELED", runNumber: 1 } as const;

afterEach(() => expectInvariants(database));

test("a dead job goes back as its next run, with fresh attempts, and goes on from its checkpoint", async () => {
  const id = await deadJob("keeps", { maxAttempts: 3, payload: { in: 1 }, tags: ["t"] });
  const before = await runsOf(id);

  expect(await ledger.jobs.requeue(id, { scope, expected: dead, requeuedBy: "ana", reason: "fixed\0" })).toEqual({
    id,
    status: "PENDING",
    runNumber: 2,
  });

  expect(await ledger.jobs.get(id, scope)).toMatchObject({
    status: "PENDING",
    runNumber: 2,
    attempt: 0,
    maxAttempts: 3,
    payload: { in: 1 },
    checkpoint: { page: 4 },
    progress: { done: 4, total: 9 },
    workerId: null,
    failureKind: null,
    tags: ["t"],
  });
  expect(await runsOf(id)).toEqual(before);
  expect(await eventsOf(id)).toEqual([
    { event: "requeued", run_number: 2, actor: "ana", details: { from: "DEAD_LETTERED", reason: "fixed�" } },
  ]);
  const again = await claimedOne(ledger, "keeps");
  expect(again).toMatchObject({ lease: { runNumber: 2, attempt: 1 }, checkpoint: { page: 4 } });
  await ledger.jobs.complete(again.lease);
  expect((await runsOf(id)).map(({ status }) => status)).toEqual(["DEAD_LETTERED", "SUCCEEDED"]);
});

test("a requeue that resets starts from nothing, and one that corrects the payload says so, without the values", async () => {
  const id = await deadJob("resets", { payload: { typo: "secret" } });
  await ledger.jobs.requeue(id, { scope, expected: dead, reset: true, payload: { right: "secret" } });

  expect(await ledger.jobs.get(id, scope)).toMatchObject({
    payload: { right: "secret" },
    checkpoint: null,
    progress: null,
  });
  expect(await eventsOf(id)).toMatchObject([{ details: { from: "DEAD_LETTERED", reset: true, corrected: true } }]);
  expect(JSON.stringify(await eventsOf(id))).not.toContain("secret");
  expect((await runsOf(id)).map(({ payload }) => payload)).toEqual([{ typo: "secret" }]);
});

test("null is a payload", async () => {
  const id = await deadJob("null-payload", { payload: 1 });
  await ledger.jobs.requeue(id, { scope, expected: dead, payload: null });

  expect((await ledger.jobs.get(id, scope)).payload).toBeNull();
});

test("a job that was cancelled before it started is requeued at once", async () => {
  const { id } = await ledger.jobs.enqueue("canceled-pending", {});
  await ledger.jobs.cancel(id, { scope });

  expect(await ledger.jobs.requeue(id, { scope, expected: canceled })).toMatchObject({ runNumber: 2 });
});

test("a job that was cancelled under a lease is requeued when the lease has ended, and not before", async () => {
  const { lease, leaseExpiresAt } = await leased(ledger, "canceled-leased");
  await ledger.jobs.cancel(lease.jobId, { scope });
  const before = await everythingOf(database, lease.jobId);

  expect(await errorOf(ledger.jobs.requeue(lease.jobId, { scope, expected: canceled }))).toMatchObject({
    code: "job.cancellation_not_quiesced",
    retryable: true,
    details: { leaseExpiresAt: leaseExpiresAt.toISOString() },
  });
  expect(await everythingOf(database, lease.jobId)).toEqual(before);

  await database.pool.query("update runledger.job_ledger set lease_expires_at = clock_timestamp() where id = $1", [
    lease.jobId,
  ]);
  expect(await ledger.jobs.requeue(lease.jobId, { scope, expected: canceled })).toMatchObject({ runNumber: 2 });
});

test.each<[string, () => Promise<string>, RequeueOptions["expected"]]>([
  ["another status", () => deadJob("conflict"), canceled],
  ["an earlier run", () => requeuedAndDead("conflict"), dead],
  ["a later run", () => deadJob("conflict"), { ...dead, runNumber: 2 }],
  ["a job that is PENDING", async () => (await ledger.jobs.enqueue("conflict-pending", {})).id, dead],
  ["a job that is LEASED", async () => (await leased(ledger, "conflict-leased")).lease.jobId, dead],
  ["a job that was requeued", () => requeued("conflict-requeued"), dead],
  ["a job that has succeeded", () => succeeded("conflict-succeeded"), dead],
])("to expect %s is a conflict, and nothing is written", async (_what, make, expected) => {
  const id = await make();
  const before = await everythingOf(database, id);

  expect(await codeOf(() => ledger.jobs.requeue(id, { scope, expected }))).toBe("job.requeue_conflict");
  expect(await everythingOf(database, id)).toEqual(before);
});

test("a requeue goes by scope, and another tenant's job is not found", async () => {
  const organizationId = v7();
  const requeue = async (options: Pick<RequeueOptions, "scope">) => {
    const id = await deadJob(`scoped-${Object.keys(options.scope)}-${v7()}`, { organizationId });
    return codeOf(() => ledger.jobs.requeue(id, { ...options, expected: dead }));
  };

  expect(await requeue({ scope })).toBe("job.not_found");
  expect(await requeue({ scope: { organization: v7() } })).toBe("job.not_found");
  expect(await requeue({ scope: { organization: organizationId } })).toMatchObject({ resolved: { runNumber: 2 } });
  expect(await requeue({ scope: { admin: true } })).toMatchObject({ resolved: { runNumber: 2 } });
  expect(await codeOf(() => ledger.jobs.requeue(unknownId, { scope, expected: dead }))).toBe("job.not_found");
});

test("a job of a workflow run refuses: its run is the unit", async () => {
  const graph = new WorkflowBuilder("requeue-step");
  graph.job("work", "requeue-step", {});
  await ledger.runs.enqueue(graph.build());
  const { lease } = await claimedOne(ledger, "requeue-step");
  await ledger.jobs.fail(lease, { kind: "TERMINAL", code: "c", message: "m" });

  expect(await codeOf(() => ledger.jobs.requeue(lease.jobId, { scope: { admin: true }, expected: dead }))).toBe(
    "job.workflow_requeue_not_supported",
  );
});

test("a replayed job keeps its lineage when it is requeued", async () => {
  const source = await succeeded("lineage");
  const { id } = await ledger.jobs.replay(source, { scope, key: "k" });
  await ledger.jobs.fail((await claimedOne(ledger, "lineage")).lease, { kind: "TERMINAL", code: "c", message: "m" });
  await ledger.jobs.requeue(id, { scope, expected: dead });

  const { rows } = await database.pool.query(
    "select source_job_id, source_run_number from runledger.job_queue where id = $1",
    [id],
  );
  expect(rows).toEqual([{ source_job_id: source, source_run_number: 1 }]);
});

test("of two requeues at once one wins, and the other has a conflict", async () => {
  const id = await deadJob("race");
  const trx = await database.db.startTransaction().execute();
  await ledger.in(trx).jobs.requeue(id, { scope, expected: dead, requeuedBy: "first" });
  const second = codeOf(() => ledger.jobs.requeue(id, { scope, expected: dead, requeuedBy: "second" }));
  await waitForBackend({ client: database.pool, marker: "runledger:requeue_jobs" });
  await trx.commit().execute();

  expect(await second).toBe("job.requeue_conflict");
  expect(await eventsOf(id)).toMatchObject([{ actor: "first" }]);
});

test("a requeue that waited for one that rolled back wins", async () => {
  const id = await deadJob("race-rolled-back");
  const trx = await database.db.startTransaction().execute();
  await ledger.in(trx).jobs.requeue(id, { scope, expected: dead });
  const second = ledger.jobs.requeue(id, { scope, expected: dead });
  await waitForBackend({ client: database.pool, marker: "runledger:requeue_jobs" });
  await trx.rollback().execute();

  expect(await second).toMatchObject({ runNumber: 2 });
});

test("a requeue whose snapshot is older than the whole next run does not make that run again", async () => {
  const id = await deadJob("race-ended");
  const trx = await database.db.startTransaction().execute();
  const first = ledger.in(trx).jobs;
  await first.requeue(id, { scope, expected: dead });
  const second = codeOf(() => ledger.jobs.requeue(id, { scope, expected: dead }));
  await waitForBackend({ client: database.pool, marker: "runledger:requeue_jobs" });
  const [job] = await first.claim({ workerId: "w", limit: 1, types: ["race-ended"] });
  if (job === undefined) throw new Error("the job is due");
  await first.complete(job.lease);
  await trx.commit().execute();

  expect(await second).toBe("job.requeue_conflict");
  expect((await runsOf(id)).map(({ run_number }) => run_number)).toEqual([1, 2]);
});

test("a requeue beside a cancel that has not committed has a conflict, and one after it goes by the lease", async () => {
  const { lease } = await leased(ledger, "race-cancel");
  const trx = await database.db.startTransaction().execute();
  await ledger.in(trx).jobs.cancel(lease.jobId, { scope });

  expect(await codeOf(() => ledger.jobs.requeue(lease.jobId, { scope, expected: canceled }))).toBe(
    "job.requeue_conflict",
  );
  await trx.commit().execute();
  expect(await codeOf(() => ledger.jobs.requeue(lease.jobId, { scope, expected: canceled }))).toBe(
    "job.cancellation_not_quiesced",
  );
});

test("a cancel beside a requeue that has not committed finds the job ended, and one after it cancels the next run", async () => {
  const id = await deadJob("race-requeue");
  const trx = await database.db.startTransaction().execute();
  await ledger.in(trx).jobs.requeue(id, { scope, expected: dead });

  expect(await ledger.jobs.cancel(id, { scope })).toMatchObject({ canceled: false, status: "DEAD_LETTERED" });
  await trx.commit().execute();
  expect(await ledger.jobs.cancel(id, { scope })).toMatchObject({ canceled: true });
  expect((await runsOf(id)).map(({ status }) => status)).toEqual(["DEAD_LETTERED", "CANCELED"]);
});

test("in a caller's transaction a conflict leaves it able to go on, and only READ COMMITTED will do", async () => {
  const id = await deadJob("in-transaction");
  const trx = await database.db.startTransaction().execute();
  const { jobs } = ledger.in(trx);
  expect(await codeOf(() => jobs.requeue(id, { scope, expected: canceled }))).toBe("job.requeue_conflict");
  await jobs.requeue(id, { scope, expected: dead });
  await trx.commit().execute();
  expect(await ledger.jobs.get(id, scope)).toMatchObject({ status: "PENDING", runNumber: 2 });

  const other = await database.db.startTransaction().setIsolationLevel("serializable").execute();
  expect(await codeOf(() => ledger.in(other).jobs.requeue(id, { scope, expected: dead }))).toBe(
    "job.requeue_unsupported_isolation",
  );
  await other.rollback().execute();
});

async function deadJob(type: string, options: Parameters<typeof leased>[2] = {}): Promise<string> {
  const { lease } = await leased(ledger, type, options);
  await ledger.jobs.progress(lease, { done: 4, total: 9 });
  await ledger.jobs.checkpoint(lease, { page: 4 });
  await ledger.jobs.fail(lease, { kind: "TERMINAL", code: "c", message: "m" });
  return lease.jobId;
}

async function requeued(type: string): Promise<string> {
  const id = await deadJob(type);
  await ledger.jobs.requeue(id, { scope, expected: dead });
  return id;
}

async function requeuedAndDead(type: string): Promise<string> {
  const id = await requeued(type);
  await ledger.jobs.fail((await claimedOne(ledger, type)).lease, { kind: "TERMINAL", code: "c", message: "m" });
  return id;
}

async function succeeded(type: string): Promise<string> {
  const { lease } = await leased(ledger, type);
  await ledger.jobs.complete(lease);
  return lease.jobId;
}

async function runsOf(jobId: string): Promise<{ status: string; run_number: number; payload: unknown }[]> {
  const { rows } = await database.pool.query("select * from runledger.job_ledger where id = $1 order by run_number", [
    jobId,
  ]);
  return rows;
}

async function eventsOf(jobId: string): Promise<unknown[]> {
  const { rows } = await database.pool.query(
    "select event, run_number, actor, details from runledger.job_events where job_id = $1 order by id",
    [jobId],
  );
  return rows;
}
