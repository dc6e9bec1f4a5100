/** Cancelling a run, alone and against everything else that may happen to it (FEATURES F-W9, LOCKS.md §3). */
import { afterEach, describe, expect, test } from "@jest/globals";
import { Kysely, PostgresDialect } from "kysely";
import pg from "pg";
import { createLedger, type Ledger, type SettledJob } from "../../src/index.ts";
import { runReleaseKey } from "../../src/locks/key.ts";
import { expectInvariants, watchForDeadlocks } from "../invariants.ts";
import { createTestDatabase } from "../support/database.ts";
import { backendPid, blockingPids, waitForBackend } from "../support/waiting.ts";
import {
  codeOf,
  countOf,
  errorOf,
  failure,
  globally,
  holding,
  ledgerOf,
  openTransaction,
  otherOrganization,
  raw,
  someOrganization,
  TestRun,
  unknownId,
} from "./fixtures.ts";

const database = await createTestDatabase();
const expectNoDeadlocks = watchForDeadlocks(database);
const ledger = ledgerOf(database);

afterEach(async () => {
  await expectInvariants(database);
  expectNoDeadlocks();
});

const jobRow = "select from runledger.job_queue where id = $1 for update";
const stepRow = "select from runledger.workflow_steps where run_id = $1 and step_key = $2 for update";
const runRow = "select from runledger.workflow_runs where id = $1 for update";
const releaseShared = "select pg_advisory_xact_lock_shared($1)";
const releaseExclusive = "select pg_advisory_xact_lock($1)";

const keyOf = (run: TestRun) => String(runReleaseKey(run.id));
const waitsFor = (marker: string) => waitForBackend({ client: database.pool, marker: `runledger:${marker} ` });
const waitsForJobs = () => waitsFor("lock_workflow_step_jobs_for_update");
const waitsForRelease = () => waitsFor("lock_workflow_run_release");
const waitsForSteps = () => waitsFor("lock_workflow_step_rows_for_update");

const cancel = (run: TestRun, by: Ledger = ledger) => by.runs.cancel(run.id, globally);

describe("cancel", () => {
  test("ends every step that has not ended, and its job, with the reason", async () => {
    const run = await TestRun.start(database, ledger, {
      done: [],
      on: [],
      off: ["on"],
      gate: [],
      bad: [],
      any: ["on?"],
    });
    await run.succeed("done", { kept: true });
    await run.fail("bad");
    const on = await run.claim("on");

    expect(await ledger.runs.cancel(run.id, { ...globally, reason: "no longer wanted" })).toEqual({
      id: run.id,
      status: "CANCELED",
      canceled: true,
    });

    expect(await run.state()).toEqual({
      run: "CANCELED",
      steps: { done: "SUCCEEDED", bad: "FAILED", on: "CANCELED", off: "CANCELED", gate: "CANCELED", any: "CANCELED" },
    });
    expect(await run.row("done")).toMatchObject({ output: { kept: true }, reason: null });
    expect(await run.row("gate")).toMatchObject({ reason: "no longer wanted" });
    expect(await ledger.runs.get(run.id, globally.scope)).toMatchObject({
      status: "CANCELED",
      openCount: 0,
      waitingCount: 0,
      erroredCount: 5,
      canceledReason: "no longer wanted",
    });
    expect(await ledger.jobs.get(on.lease.jobId, globally.scope)).toMatchObject({
      status: "CANCELED",
      canceledReason: "no longer wanted",
      workerId: on.lease.workerId,
    });
  });

  test("afterwards nothing of the run can be claimed, completed, failed or extended", async () => {
    const run = await TestRun.start(database, ledger, { on: [], off: [], next: ["on"], any: ["on?"] });
    const { lease } = await run.claim("on");
    await cancel(run);

    const types = ["on", "off", "next", "any"].map((key) => `${run.type}.${key}`);
    expect(await ledger.jobs.claim({ workerId: "late", limit: 9, types })).toEqual([]);
    expect(await codeOf(ledger.jobs.complete(lease))).toBe("job.lease_owner_mismatch");
    expect(await codeOf(ledger.jobs.fail(lease, failure))).toBe("job.lease_owner_mismatch");
    expect(await ledger.jobs.heartbeat([lease])).toMatchObject([{ state: "CANCELED" }]);
    expect(await run.statuses()).toEqual({ on: "CANCELED", off: "CANCELED", next: "CANCELED", any: "CANCELED" });
  });

  test("a run that has ended is returned unchanged, whatever its end", async () => {
    const good = await TestRun.start(database, ledger, { a: [] });
    await good.succeed("a");
    const bad = await TestRun.start(database, ledger, { a: [] });
    await bad.fail("a");
    const canceled = await TestRun.start(database, ledger, { a: [] });
    await ledger.runs.cancel(canceled.id, { ...globally, reason: "first" });
    const before = await ledger.runs.get(canceled.id, globally.scope);

    expect(await cancel(good)).toEqual({ id: good.id, status: "SUCCEEDED", canceled: false });
    expect(await cancel(bad)).toEqual({ id: bad.id, status: "COMPLETED_WITH_ERRORS", canceled: false });
    expect(await ledger.runs.cancel(canceled.id, { ...globally, reason: "second" })).toEqual({
      id: canceled.id,
      status: "CANCELED",
      canceled: false,
    });
    expect(await ledger.runs.get(canceled.id, globally.scope)).toEqual(before);
  });

  test("a run is found by its tenant and by an admin, by nobody else", async () => {
    const run = await TestRun.start(database, ledger, { a: [] }, { organizationId: someOrganization });

    for (const scope of [{ global: true }, { organization: otherOrganization }] as const) {
      expect(await codeOf(ledger.runs.cancel(run.id, { scope }))).toBe("workflow.run_not_found");
    }
    expect(await codeOf(ledger.runs.cancel(unknownId, { scope: { admin: true } }))).toBe("workflow.run_not_found");
    expect(await run.statuses()).toEqual({ a: "ENQUEUED" });
    expect(await ledger.runs.cancel(run.id, { scope: { organization: someOrganization } })).toMatchObject({
      canceled: true,
    });
  });

  test("takes as many statements for a thousand steps as for one", async () => {
    const steps = (count: number) => Object.fromEntries(Array.from({ length: count }, (_, n) => [`s${n}`, []]));
    const [small, large] = [
      await TestRun.start(database, ledger, steps(1)),
      await TestRun.start(database, ledger, steps(1000)),
    ];

    const first = await database.record(() => cancel(small));
    const second = await database.record(() => cancel(large));

    expect(second.statements).toEqual(first.statements);
    expect(await countOf(database, "runledger.job_ledger where workflow_run_id = $1", [large.id])).toBe(1000);
  });
});

describe("cancel in a caller's transaction", () => {
  test("is taken back with it", async () => {
    const run = await TestRun.start(database, ledger, { a: [], b: ["a"], gate: [] });
    const before = await run.state();
    const trx = await openTransaction(database);

    expect(await cancel(run, ledger.in(trx))).toMatchObject({ canceled: true });
    await trx.rollback().execute();

    expect(await run.state()).toEqual(before);
    await run.succeed("a");
    expect(await run.statuses()).toMatchObject({ b: "ENQUEUED" });
  });

  test.each(["repeatable read", "serializable"] as const)(
    "at %s it fails before any other statement",
    async (level) => {
      const run = await TestRun.start(database, ledger, { a: [] });
      const { result, statements } = await database.record(() =>
        database.db
          .transaction()
          .setIsolationLevel(level)
          .execute((trx) => codeOf(cancel(run, ledger.in(trx)))),
      );

      expect(result).toBe("workflow.cancel_unsupported_isolation");
      expect(statements.map((text) => /runledger:(\w+)/.exec(text)?.[1])).toEqual([
        undefined,
        "isolation_level",
        undefined,
      ]);
      expect(await run.statuses()).toEqual({ a: "ENQUEUED" });
    },
  );

  test.each(["0", "250ms", "61s", "2min"])("lock_timeout is %s again afterwards", async (setting) => {
    const run = await TestRun.start(database, ledger, { a: [] });

    await database.db.transaction().execute(async (trx) => {
      await raw(trx, `set local lock_timeout = '${setting}'`);
      const before = await raw(trx, "show lock_timeout");
      await cancel(run, ledger.in(trx));
      expect(await raw(trx, "show lock_timeout")).toEqual(before);
    });
    expect(await run.statuses()).toEqual({ a: "CANCELED" });
  });
});

describe("cancel against a completion", () => {
  test("that comes while a cancel is under way and then commits: the lease is lost and nothing is released", async () => {
    const run = await TestRun.start(database, ledger, { a: [], next: ["a"], any: ["a?"], gate: ["a"] });
    const { lease } = await run.claim("a");
    const trx = await openTransaction(database);
    await cancel(run, ledger.in(trx));

    const completing = codeOf(ledger.jobs.complete(lease));
    await waitsFor("complete_step_jobs");
    await trx.commit().execute();

    expect(await completing).toBe("job.lease_owner_mismatch");
    expect(await run.statuses()).toEqual({ a: "CANCELED", next: "CANCELED", any: "CANCELED", gate: "CANCELED" });
    expect(await run.liveJobs()).toEqual([]);
  });

  test("that waited for a cancel that rolled back goes on and releases its dependents", async () => {
    const run = await TestRun.start(database, ledger, { a: [], next: ["a"], any: ["a?"], gate: ["a"] });
    const { lease } = await run.claim("a");
    const trx = await openTransaction(database);
    await cancel(run, ledger.in(trx));

    const completing = ledger.jobs.complete(lease, { output: 1 });
    await waitsFor("complete_step_jobs");
    await trx.rollback().execute();

    expect(await completing).toMatchObject({ status: "SUCCEEDED" });
    expect(await run.state()).toEqual({
      run: "RUNNING",
      steps: { a: "SUCCEEDED", next: "ENQUEUED", any: "ENQUEUED", gate: "WAITING_FOR_EXTERNAL" },
    });
  });

  test("that failed and waited for a cancel that rolled back goes on and cancels its dependents", async () => {
    const run = await TestRun.start(database, ledger, { a: [], next: ["a"], any: ["a?"], deep: ["next"] });
    const { lease } = await run.claim("a");
    const trx = await openTransaction(database);
    await cancel(run, ledger.in(trx));

    const failing = ledger.jobs.fail(lease, failure);
    await waitsFor("settle_attempts");
    await trx.rollback().execute();

    expect(await failing).toMatchObject({ status: "DEAD_LETTERED" });
    expect(await run.statuses()).toEqual({ a: "FAILED", next: "CANCELED", any: "ENQUEUED", deep: "CANCELED" });
  });

  const ends: [string, (by: Ledger, run: TestRun) => Promise<SettledJob>][] = [
    ["succeeded", async (by, run) => by.jobs.complete((await run.claim("a")).lease)],
    ["failed", async (by, run) => by.jobs.fail((await run.claim("a")).lease, failure)],
  ];
  test.each(ends)("that came first and %s: the cancel waits for it, then cancels what it released", async (_, end) => {
    const run = await TestRun.start(database, ledger, { a: [], next: ["a"], any: ["a?"], deep: ["any"] });
    const trx = await openTransaction(database);
    await end(ledger.in(trx), run);

    const canceling = cancel(run);
    await waitsForJobs();
    await trx.commit().execute();

    expect(await canceling).toMatchObject({ canceled: true });
    const { a, ...rest } = await run.statuses();
    expect(a).toMatch(/SUCCEEDED|FAILED/);
    expect(rest).toEqual({ next: "CANCELED", any: "CANCELED", deep: "CANCELED" });
    expect(await run.liveJobs()).toEqual([]);
    expect(
      await ledger.jobs.claim({ workerId: "late", limit: 9, types: [`${run.type}.next`, `${run.type}.any`] }),
    ).toEqual([]);
  });

  test("that ends the run: the cancel that waited for it changes nothing", async () => {
    const run = await TestRun.start(database, ledger, { a: [] });
    const { lease } = await run.claim("a");
    const trx = await openTransaction(database);
    await ledger.in(trx).jobs.complete(lease);

    const canceling = cancel(run);
    await waitsForJobs();
    await trx.commit().execute();

    expect(await canceling).toEqual({ id: run.id, status: "SUCCEEDED", canceled: false });
  });

  test("of a late job, which waits for the lock that the cancel holds: the cancel gives way and both go on", async () => {
    const run = await TestRun.start(database, ledger, {
      a: [],
      late: ["a"],
      last: ["late"],
      any: ["late?"],
      other: [],
    });
    // The cancel has looked for jobs before `late` is there, and waits: first for a's job, then for the release lock.
    const completion = await openTransaction(database);
    await ledger.in(completion).jobs.complete((await run.claim("a")).lease);
    const sharing = await holding(database, [releaseShared, [keyOf(run)]]);
    const canceling = cancel(run);
    await waitsForJobs();
    await completion.commit().execute();
    const canceler = await waitsForRelease();

    // The late job's completion holds its row and queues for the release lock behind the cancel.
    const completing = ledger.jobs.complete((await run.claim("late")).lease);
    const completer = await waitsFor("lock_workflow_run_release_shared");
    expect(await blockingPids(database.pool, completer.pid)).toEqual([canceler.pid]);
    expect(await blockingPids(database.pool, canceler.pid)).toEqual([await backendPid(sharing)]);
    await sharing.query("rollback");

    expect(await completing).toMatchObject({ status: "SUCCEEDED" });
    expect(await canceling).toMatchObject({ canceled: true });
    expect(await run.statuses()).toEqual({
      a: "SUCCEEDED",
      late: "SUCCEEDED",
      last: "CANCELED",
      any: "CANCELED",
      other: "CANCELED",
    });
    expect(await run.liveJobs()).toEqual([]);
  });

  test("a late job that nobody holds is found by the second look", async () => {
    const run = await TestRun.start(database, ledger, { a: [], late: ["a"], other: [] });
    const trx = await openTransaction(database);
    await ledger.in(trx).jobs.complete((await run.claim("a")).lease);
    const canceling = cancel(run);
    await waitsForJobs();
    await trx.commit().execute();
    await canceling;

    expect(await run.statuses()).toEqual({ a: "SUCCEEDED", late: "CANCELED", other: "CANCELED" });
    expect(await run.liveJobs()).toEqual([]);
  });

  test("that gives up leaves the job LEASED, its dependents alone, and its connection as it was", async () => {
    const run = await TestRun.start(database, ledger, { a: [], next: ["a"], any: ["a?"] });
    const { lease } = await run.claim("a");
    const before = await run.state();
    const single = await oneConnection("61s");
    const impatient = createLedger({ db: single.db, lockWaitMs: 50 });
    const canceling = await holding(database, [releaseExclusive, [keyOf(run)]]);

    const error = await errorOf(impatient.jobs.complete(lease));
    expect(error).toMatchObject({ code: "workflow.release_conflict", retryable: true, sqlstate: "55P03" });
    expect(error.cause).toMatchObject({ code: "55P03" });
    expect(await codeOf(impatient.jobs.fail(lease, failure))).toBe("workflow.release_conflict");

    expect(await run.state()).toEqual(before);
    expect(await ledger.jobs.get(lease.jobId, globally.scope)).toMatchObject({ status: "LEASED", attempt: 1 });
    expect((await single.pool.query("show lock_timeout")).rows).toEqual([{ lock_timeout: "61s" }]);
    await canceling.query("rollback");
    expect(await impatient.jobs.complete(lease)).toMatchObject({ status: "SUCCEEDED" });
    expect((await single.pool.query("show lock_timeout")).rows).toEqual([{ lock_timeout: "61s" }]);
  });

  test.each(["lock_timeout", "statement_timeout"])(
    "a stricter %s of the caller's wins over the bound",
    async (name) => {
      const run = await TestRun.start(database, ledger, { a: [], next: ["a"] });
      const { lease } = await run.claim("a");
      const canceling = await holding(database, [releaseExclusive, [keyOf(run)]]);
      const patient = ledgerOf(database, { lockWaitMs: 2_000_000_000 });

      const completing = database.db.transaction().execute(async (trx) => {
        await raw(trx, `set local ${name} = '60ms'`);
        return patient.in(trx).jobs.complete(lease);
      });

      expect(await errorOf(completing)).toMatchObject({
        code: "workflow.release_conflict",
        sqlstate: name === "lock_timeout" ? "55P03" : "57014",
      });
      await canceling.query("rollback");
      expect(await run.statuses()).toEqual({ a: "ENQUEUED", next: "BLOCKED" });
    },
  );
});

describe("cancel waits for each lock, and no longer than the bound", () => {
  const locks: [string, (run: TestRun, jobId: string) => Promise<pg.Client>, () => Promise<unknown>][] = [
    ["a job row", (_, jobId) => holding(database, [jobRow, [jobId]]), waitsForJobs],
    ["the release lock", (run) => holding(database, [releaseShared, [keyOf(run)]]), waitsForRelease],
    ["a step row", (run) => holding(database, [stepRow, [run.id, "b"]]), waitsForSteps],
    ["the run row", (run) => holding(database, [runRow, [run.id]]), () => waitsFor("lock_workflow_run_for_update")],
  ];

  test.each(locks)("%s", async (_, hold, seen) => {
    const run = await TestRun.start(database, ledger, { a: [], b: ["a"] });
    const { job_id } = await run.row("a");
    const before = await run.state();
    const holder = await hold(run, job_id);

    expect(await errorOf(cancel(run, ledgerOf(database, { lockWaitMs: 40 })))).toMatchObject({
      code: "db.lock_timeout",
      retryable: true,
      sqlstate: "55P03",
    });
    expect(await run.state()).toEqual(before);

    const canceling = cancel(run);
    await seen();
    await holder.query("rollback");
    expect(await canceling).toMatchObject({ canceled: true });
  });

  test.each(locks)("%s, with a stricter lock_timeout of the caller's", async (_, hold) => {
    const run = await TestRun.start(database, ledger, { a: [], b: ["a"] });
    const { job_id } = await run.row("a");
    await hold(run, job_id);
    const patient = ledgerOf(database, { lockWaitMs: 2_000_000_000 });

    const canceling = database.db.transaction().execute(async (trx) => {
      await raw(trx, "set local lock_timeout = '40ms'");
      return cancel(run, patient.in(trx));
    });

    expect(await codeOf(canceling)).toBe("db.lock_timeout");
  });
});

describe("cancel against", () => {
  test("another cancel: one of them did it", async () => {
    const run = await TestRun.start(database, ledger, { a: [], b: ["a"] });
    const trx = await openTransaction(database);
    await cancel(run, ledger.in(trx));

    const second = cancel(run);
    await waitsForJobs();
    await trx.commit().execute();

    expect(await second).toEqual({ id: run.id, status: "CANCELED", canceled: false });
  });

  test("a claim that came first: the cancel waits for it and takes the job away", async () => {
    const run = await TestRun.start(database, ledger, { a: [], b: ["a"] });
    const trx = await openTransaction(database);
    const [job] = await ledger.in(trx).jobs.claim({ workerId: "w", limit: 1, types: [`${run.type}.a`] });

    const canceling = cancel(run);
    await waitsForJobs();
    await trx.commit().execute();

    expect(await canceling).toMatchObject({ canceled: true });
    expect(await ledger.jobs.heartbeat(job === undefined ? [] : [job.lease])).toMatchObject([{ state: "CANCELED" }]);
  });

  test("a claim that comes during it: there is nothing to claim", async () => {
    const run = await TestRun.start(database, ledger, { a: [], b: [] });
    const trx = await openTransaction(database);
    await cancel(run, ledger.in(trx));

    const types = [`${run.type}.a`, `${run.type}.b`];
    expect(await ledger.jobs.claim({ workerId: "w", limit: 10, types })).toEqual([]);
    await trx.commit().execute();
    expect(await ledger.jobs.claim({ workerId: "w", limit: 10, types })).toEqual([]);
  });

  test("a retry that came first: the job that went back to the queue is cancelled", async () => {
    const run = await retryable();
    const { lease } = await run.claim("a");
    const trx = await openTransaction(database);
    await ledger.in(trx).jobs.fail(lease, { code: "again", message: "again" });

    const canceling = cancel(run);
    await waitsForJobs();
    await trx.commit().execute();

    expect(await canceling).toMatchObject({ canceled: true });
    expect(await ledger.jobs.get(lease.jobId, globally.scope)).toMatchObject({ status: "CANCELED", attempt: 1 });
  });

  test("a retry that comes during it: the lease is lost", async () => {
    const run = await retryable();
    const { lease } = await run.claim("a");
    const trx = await openTransaction(database);
    await cancel(run, ledger.in(trx));

    const failing = codeOf(ledger.jobs.fail(lease, { code: "again", message: "again" }));
    await waitsFor("settle_attempts");
    await trx.commit().execute();

    expect(await failing).toBe("job.lease_owner_mismatch");
    expect(await run.statuses()).toEqual({ a: "CANCELED" });
  });

  test("a reap that came first: what the dead letter released is cancelled", async () => {
    const run = await TestRun.start(database, ledger, { a: [], next: ["a"], any: ["a?"] });
    await run.claim("a");
    await expire(run);
    const trx = await openTransaction(database);
    expect(await ledger.in(trx).jobs.reap()).toMatchObject({ deadLettered: 1 });

    const canceling = cancel(run);
    await waitsForJobs();
    await trx.commit().execute();

    expect(await canceling).toMatchObject({ canceled: true });
    expect(await run.statuses()).toEqual({ a: "FAILED", next: "CANCELED", any: "CANCELED" });
    expect(await run.liveJobs()).toEqual([]);
  });

  test("a reap that comes during it: the reap passes the job over", async () => {
    const run = await TestRun.start(database, ledger, { a: [], any: ["a?"] });
    await run.claim("a");
    await expire(run);
    const trx = await openTransaction(database);
    await cancel(run, ledger.in(trx));

    expect(await ledger.jobs.reap()).toEqual({ returned: 0, deadLettered: 0, setAside: [] });
    await trx.commit().execute();
    expect(await run.statuses()).toEqual({ a: "CANCELED", any: "CANCELED" });
  });

  test("an external completion that came first: what it released is cancelled", async () => {
    const run = await TestRun.start(database, ledger, { gate: [], next: ["gate"], any: ["gate?"] });
    const trx = await openTransaction(database);
    await ledger.in(trx).steps.complete(run.id, "gate", globally);

    const canceling = cancel(run);
    await waitsForRelease();
    await trx.commit().execute();

    expect(await canceling).toMatchObject({ canceled: true });
    expect(await run.statuses()).toEqual({ gate: "SUCCEEDED", next: "CANCELED", any: "CANCELED" });
    expect(await run.liveJobs()).toEqual([]);
  });

  test("an external completion that rolled back: the gate is cancelled", async () => {
    const run = await TestRun.start(database, ledger, { gate: [], next: ["gate"] });
    const trx = await openTransaction(database);
    await ledger.in(trx).steps.complete(run.id, "gate", globally);

    const canceling = cancel(run);
    await waitsForRelease();
    await trx.rollback().execute();

    expect(await canceling).toMatchObject({ canceled: true });
    expect(await run.statuses()).toEqual({ gate: "CANCELED", next: "CANCELED" });
  });

  test("an external completion that holds steps: it never waits for the lock, so the cancel gets them", async () => {
    const run = await TestRun.start(database, ledger, { gate: [], next: ["gate"] });
    const holder = await holding(database, [stepRow, [run.id, "next"]]);
    const completing = codeOf(ledger.steps.complete(run.id, "gate", globally));
    await waitsFor("lock_workflow_step_closure_for_update");
    const canceling = cancel(run);
    await waitsForSteps();
    await holder.query("rollback");

    expect(await completing).toBe("workflow.release_conflict");
    expect(await canceling).toMatchObject({ canceled: true });
    expect(await run.statuses()).toEqual({ gate: "CANCELED", next: "CANCELED" });
  });

  test("an external completion in a caller's transaction: it has written nothing, even if the caller commits", async () => {
    const run = await TestRun.start(database, ledger, { first: [], gate: [], next: ["gate"], any: ["gate?"] });
    const before = await run.state();
    // The cancel holds the release lock and waits for the first of the steps.
    const holder = await holding(database, [stepRow, [run.id, "first"]]);
    const trx = await openTransaction(database);
    const canceling = cancel(run);
    await waitsForSteps();

    await raw(trx, "set local lock_timeout = '77s'");
    expect(await codeOf(ledger.in(trx).steps.complete(run.id, "gate", globally))).toBe("workflow.release_conflict");
    expect(await raw(trx, "show lock_timeout")).toEqual([{ lock_timeout: "77s" }]);
    expect(await run.state()).toEqual(before);
    // It keeps no row either: the cancel ends while the caller goes on.
    await holder.query("rollback");
    expect(await canceling).toMatchObject({ canceled: true });
    await raw(trx, "create table public.callers_own ()");
    await trx.commit().execute();

    expect(await run.statuses()).toEqual({ first: "CANCELED", gate: "CANCELED", next: "CANCELED", any: "CANCELED" });
    expect(await countOf(database, "public.callers_own")).toBe(0);
  });

  test("an external completion that waited for it: the gate has ended otherwise", async () => {
    const run = await TestRun.start(database, ledger, { gate: [], next: ["gate"] });
    const trx = await openTransaction(database);
    await cancel(run, ledger.in(trx));

    const completing = codeOf(ledger.steps.complete(run.id, "gate", globally));
    await waitsFor("lock_workflow_step_closure_for_update");
    await trx.commit().execute();

    expect(await completing).toBe("workflow.external_step_conflicting_completion_retry");
  });
});

/** A pool of one connection, whose lock_timeout is set from the start. */
async function oneConnection(lockTimeout: string) {
  const pool = new pg.Pool({ connectionString: database.url, max: 1, options: `-c lock_timeout=${lockTimeout}` });
  pool.on("error", () => {});
  database.defer(() => pool.end());
  return { pool, db: new Kysely<unknown>({ dialect: new PostgresDialect({ pool }) }) };
}

let retryables = 0;

async function retryable(): Promise<TestRun> {
  retryables += 1;
  const type = `retryable-${retryables}`;
  const job = { type: `${type}.a`, payload: null, maxAttempts: 3 };
  const { id } = await ledger.runs.enqueue({ type, resultStep: null, steps: [{ key: "a", dependencies: [], job }] });
  return new TestRun(database, ledger, id, type);
}

async function expire(run: TestRun): Promise<void> {
  await database.pool.query(
    "update runledger.job_queue set lease_expires_at = now() - interval '1 second' where workflow_run_id = $1 and status = 'LEASED'",
    [run.id],
  );
}
