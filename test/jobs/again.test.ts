/** Jobs that stay in the queue: snoozed ones, and those that continue as their next run (FEATURES F-J7). */
import { once } from "node:events";
import { afterEach, expect, test } from "@jest/globals";
import { createLedger, defineJob, type Lease, type Settlement, WorkflowBuilder } from "../../src/index.ts";
import { expectInvariants } from "../invariants.ts";
import { createTestDatabase } from "../support/database.ts";
import { waitForBackend } from "../support/waiting.ts";
import { claimedOne, codeOf, everythingOf, expire, failure, globally, leased, makeDue, success } from "./fixtures.ts";

const database = await createTestDatabase();
const ledger = createLedger({ db: database.db });

afterEach(() => expectInvariants(database));

test("a snooze uses no attempt, even where there is only one, and keeps progress and checkpoint", async () => {
  let { lease } = await leased(ledger, "snoozed", { maxAttempts: 1 });
  for (const _ of [1, 2, 3]) {
    await ledger.jobs.progress(lease, { done: 3, total: 10 });
    await ledger.jobs.checkpoint(lease, { page: 3 });

    expect(await ledger.jobs.snooze(lease, { seconds: 0 })).toEqual({ status: "PENDING", runAt: expect.any(Date) });

    expect(await ledger.jobs.get(lease.jobId, globally)).toMatchObject({
      status: "PENDING",
      runNumber: 1,
      attempt: 0,
      workerId: null,
      leasedAt: null,
      progress: { done: 3, total: 10 },
      checkpoint: { page: 3 },
    });
    lease = (await claimedOne(ledger, "snoozed")).lease;
    expect(lease).toMatchObject({ runNumber: 1, attempt: 1 });
  }
  expect(await ledger.jobs.fail(lease, { code: "c", message: "m" })).toMatchObject({ status: "DEAD_LETTERED" });
});

test("a slice is due from the very moment that it counts as enqueued", async () => {
  await ledger.jobs.enqueueMany(Array.from({ length: 500 }, (_, n) => ({ type: "moments", payload: n })));
  const jobs = await ledger.jobs.claim({ workerId: "w", limit: 500, types: ["moments"] });
  await ledger.jobs.settle(jobs.map(({ lease }) => ({ lease, continuation: {} })));

  const { rows } = await database.pool.query(
    "select count(*)::int as slices, count(*) filter (where run_at = enqueued_at)::int as due from runledger.job_queue where type = 'moments'",
  );
  expect(rows).toEqual([{ slices: 500, due: 500 }]);
});

test("a snooze after failed attempts leaves them counted", async () => {
  const { lease } = await leased(ledger, "snoozed-late", { maxAttempts: 2 });
  await ledger.jobs.fail(lease, { code: "c", message: "m" });
  await makeDue(database, [lease.jobId]);
  await ledger.jobs.snooze((await claimedOne(ledger, "snoozed-late")).lease, { seconds: 0 });
  const last = await claimedOne(ledger, "snoozed-late");

  expect(last.lease.attempt).toBe(2);
  expect(await ledger.jobs.fail(last.lease, { code: "c", message: "m" })).toMatchObject({ status: "DEAD_LETTERED" });
});

test.each([
  ["seconds", { seconds: 90.5 }, 90.5],
  ["a time", { until: new Date(Date.now() + 500_000) }, null],
  ["a time that has passed: at once", { until: "2000-01-01T00:00:00Z" }, 0],
])("a snooze until %s, by the database's clock", async (what, snooze, seconds) => {
  const { lease } = await leased(ledger, `snoozed-until-${what}`);

  const { runAt } = await ledger.jobs.snooze(lease, snooze);

  const { rows } = await database.pool.query<{ delay: number }>(
    `select extract(epoch from q.run_at - e.at)::float as delay
     from runledger.job_queue q join runledger.job_events e on e.job_id = q.id where q.id = $1`,
    [lease.jobId],
  );
  if (seconds === null) expect(runAt).toEqual(snooze.until);
  else expect(Math.abs((rows[0]?.delay ?? Number.NaN) - seconds)).toBeLessThan(0.2);
});

test("a snooze is an event of the job, with its time and its reason", async () => {
  const { lease } = await leased(ledger, "snoozed-noted");
  const { runAt } = await ledger.jobs.snooze(lease, { seconds: 10, reason: "the mail server is full\0" });

  const [event, ...more] = await eventsOf(lease.jobId);
  expect(more).toEqual([]);
  expect(event).toMatchObject({ event: "snoozed", run_number: 1, details: { reason: "the mail server is full�" } });
  expect(new Date(event?.details.run_at ?? "").getTime()).toBe(runAt?.getTime());
});

test("a continuation ends the run in the ledger and puts the job back as its next, with fresh attempts", async () => {
  await ledger.jobs.enqueue("slices", { all: true }, { maxAttempts: 3, priority: 7, tags: ["t"] });
  const first = await claimedOne(ledger, "slices");
  const { jobId } = first.lease;
  await ledger.jobs.fail(first.lease, { code: "c", message: "m" });
  await makeDue(database, [jobId]);
  const { lease } = await claimedOne(ledger, "slices");
  await ledger.jobs.progress(lease, { done: 5, total: 5 });
  await ledger.jobs.checkpoint(lease, { page: 4 });

  const settled = await ledger.jobs.continue(lease, { checkpoint: { page: 5 }, output: { rows: 500 } });

  expect(settled).toEqual({ status: "PENDING", runAt: expect.any(Date) });
  expect(await ledger.jobs.get(jobId, globally)).toMatchObject({
    status: "PENDING",
    runNumber: 2,
    attempt: 0,
    maxAttempts: 3,
    priority: 7,
    payload: { all: true },
    checkpoint: { page: 5 },
    progress: null,
    workerId: null,
    endedAt: null,
    tags: ["t"],
  });
  expect((await rowsOf(jobId)).ledger).toMatchObject([
    {
      run_number: 1,
      status: "SUCCEEDED",
      continued: true,
      attempt: 2,
      worker_id: "worker",
      checkpoint: { page: 4 },
      output: { rows: 500 },
      progress_done: "5",
      leased_at: expect.any(Date),
      lease_expires_at: expect.any(Date),
      payload: { all: true },
      priority: 7,
      tags: ["t"],
    },
  ]);
  const next = await claimedOne(ledger, "slices");
  expect(next).toMatchObject({ lease: { jobId, runNumber: 2, attempt: 1 }, checkpoint: { page: 5 } });
  await ledger.jobs.complete(next.lease, { output: "all" });
  expect(await ledger.jobs.get(jobId, globally)).toMatchObject({ status: "SUCCEEDED", runNumber: 2, output: "all" });
  expect((await rowsOf(jobId)).ledger.map(({ continued }) => continued)).toEqual([true, null]);
  expect(await eventsOf(jobId)).toMatchObject([{ event: "continued", run_number: 2 }]);
});

test("a continuation without a checkpoint goes on with the one that is stored, and null is a checkpoint", async () => {
  const { lease } = await leased(ledger, "stored-checkpoint");
  await ledger.jobs.checkpoint(lease, { page: 1 });
  await ledger.jobs.continue(lease);
  const second = await claimedOne(ledger, "stored-checkpoint");
  expect(second.checkpoint).toEqual({ page: 1 });
  await ledger.jobs.continue(second.lease, { checkpoint: null });

  expect((await claimedOne(ledger, "stored-checkpoint")).checkpoint).toBeNull();
});

test("a continuation waits for its delay by the database's clock", async () => {
  const { lease } = await leased(ledger, "delayed-slice");
  await ledger.jobs.continue(lease, { delaySeconds: 120 });

  const { rows } = await database.pool.query<{ delay: number }>(
    `select extract(epoch from q.run_at - l.ended_at)::float as delay
     from runledger.job_queue q join runledger.job_ledger l on l.id = q.id where q.id = $1`,
    [lease.jobId],
  );
  expect(Math.abs((rows[0]?.delay ?? Number.NaN) - 120)).toBeLessThan(0.1);
  expect(await ledger.jobs.claim({ workerId: "w", limit: 1, types: ["delayed-slice"] })).toEqual([]);
});

test("a crash of the worker after a continuation repeats the slice that was lost, from its checkpoint", async () => {
  const { lease } = await leased(ledger, "crashed-slice");
  await ledger.jobs.continue(lease, { checkpoint: 1 });
  await claimedOne(ledger, "crashed-slice");
  await expire(database, [lease.jobId]);
  await ledger.jobs.reap();
  await makeDue(database, [lease.jobId]);

  const { lease: again, checkpoint } = await claimedOne(ledger, "crashed-slice");
  expect([again.runNumber, again.attempt, checkpoint]).toEqual([2, 2, 1]);
});

test("every outcome goes in one batch with all others, each with its own answer", async () => {
  await ledger.jobs.enqueueMany(Array.from({ length: 6 }, () => ({ type: "mixed", payload: {} })));
  const jobs = await ledger.jobs.claim({ workerId: "w", limit: 6, types: ["mixed"] });
  const [a, b, c, d, e, f] = jobs.map(({ lease }) => lease) as [Lease, Lease, Lease, Lease, Lease, Lease];
  await expire(database, [f.jobId]);
  const batch: Settlement[] = [
    success(a),
    failure(b),
    failure(c, "TERMINAL"),
    { lease: d, snooze: { seconds: 60 } },
    { lease: e, continuation: { checkpoint: 1 } },
    { lease: f, snooze: { seconds: 60 } },
    { lease: e, snooze: { seconds: 60 } },
  ];

  const results = await ledger.jobs.settle(batch);

  expect(results.map((result) => (result.ok ? result.status : result.error.code))).toEqual([
    "SUCCEEDED",
    "PENDING",
    "DEAD_LETTERED",
    "PENDING",
    "PENDING",
    "job.lease_owner_mismatch",
    "job.lease_owner_mismatch",
  ]);
  const states = await Promise.all([a, b, c, d, e].map(({ jobId }) => ledger.jobs.get(jobId, globally)));
  expect(states.map(({ status, runNumber, attempt }) => [status, runNumber, attempt])).toEqual([
    ["SUCCEEDED", 1, 1],
    ["PENDING", 1, 1],
    ["DEAD_LETTERED", 1, 1],
    ["PENDING", 1, 0],
    ["PENDING", 2, 0],
  ]);
});

test("a thousand jobs continue in one statement, and each has its row", async () => {
  await ledger.jobs.enqueueMany(Array.from({ length: 1000 }, (_, n) => ({ type: "many", payload: n })));
  const jobs = await ledger.jobs.claim({ workerId: "w", limit: 1000, types: ["many"] });
  const batch = jobs.map(({ lease, payload }) => ({ lease, continuation: { checkpoint: payload, output: payload } }));
  const { statements, result } = await database.record(() => ledger.jobs.settle(batch));

  expect(statements).toHaveLength(1);
  expect(result.every(({ ok }) => ok)).toBe(true);
  const { rows } = await database.pool.query(
    `select count(*)::int as slices, bool_and(l.output = q.checkpoint and q.payload = l.output) as same
     from runledger.job_ledger l join runledger.job_queue q on q.id = l.id where l.type = 'many' and l.continued`,
  );
  expect(rows).toEqual([{ slices: 1000, same: true }]);
});

test.each(["snooze", "continuation"] as const)("a %s that waited for a cancel finds the lease lost", async (what) => {
  const { lease } = await leased(ledger, `${what}-cancelled`);
  const trx = await database.db.startTransaction().execute();
  await ledger.in(trx).jobs.cancel(lease.jobId, { scope: globally });
  const settling =
    what === "snooze"
      ? codeOf(() => ledger.jobs.snooze(lease, { seconds: 1 }))
      : codeOf(() => ledger.jobs.continue(lease));
  await waitForBackend({ client: database.pool, marker: "settle_attempts_with_again" });
  await trx.commit().execute();

  expect(await settling).toBe("job.lease_owner_mismatch");
  expect(await ledger.jobs.get(lease.jobId, globally)).toMatchObject({ status: "CANCELED", runNumber: 1 });
});

test("a cancel that waited for a continuation cancels the next run", async () => {
  const { lease } = await leased(ledger, "cancel-continued");
  const trx = await database.db.startTransaction().execute();
  await ledger.in(trx).jobs.continue(lease, { checkpoint: 2 });
  const canceling = ledger.jobs.cancel(lease.jobId, { scope: globally });
  await waitForBackend({ client: database.pool, marker: "runledger:cancel_job" });
  await trx.commit().execute();

  expect(await canceling).toMatchObject({ canceled: true, leaseExpiresAt: null });
  expect((await rowsOf(lease.jobId)).ledger).toMatchObject([
    { run_number: 1, status: "SUCCEEDED" },
    { run_number: 2, status: "CANCELED", checkpoint: 2 },
  ]);
});

test("a slice keeps what was stored while its continuation waited for the row", async () => {
  const { lease } = await leased(ledger, "late-progress");
  const trx = await database.db.startTransaction().execute();
  await ledger.in(trx).jobs.progress(lease, { done: 9, total: 9 });
  await ledger.in(trx).jobs.checkpoint(lease, { page: 9 });
  const continuing = ledger.jobs.continue(lease);
  await waitForBackend({ client: database.pool, marker: "settle_attempts_with_again" });
  await trx.commit().execute();
  await continuing;

  expect((await rowsOf(lease.jobId)).ledger).toMatchObject([{ progress_done: "9", checkpoint: { page: 9 } }]);
  expect((await claimedOne(ledger, "late-progress")).checkpoint).toEqual({ page: 9 });
});

test("a connection that is cut in the middle of a continuation leaves the lease as it was", async () => {
  const { lease } = await leased(ledger, "cut");
  const before = await everythingOf(database, lease.jobId);
  const holder = await database.connect();
  await holder.query("begin");
  await holder.query("select from runledger.job_queue where id = $1 for update", [lease.jobId]);
  const continuing = codeOf(() => ledger.jobs.continue(lease, { checkpoint: 1 }));
  const { pid } = await waitForBackend({ client: database.pool, marker: "settle_attempts_with_again" });
  const noticed = once(database.pool, "remove");
  await holder.query("select pg_terminate_backend($1)", [pid]);
  await noticed;
  await holder.query("rollback");

  expect(await continuing).toMatch(/^db\./);
  expect(await everythingOf(database, lease.jobId)).toEqual(before);
  expect(await ledger.jobs.continue(lease)).toMatchObject({ status: "PENDING" });
});

test("in a caller's transaction a continuation comes and goes with what was written beside it", async () => {
  const { lease } = await leased(ledger, "in-transaction");
  const before = await everythingOf(database, lease.jobId);
  const trx = await database.db.startTransaction().execute();
  await ledger.in(trx).jobs.enqueue("beside", {});
  await ledger.in(trx).jobs.continue(lease, { checkpoint: 1 });
  await trx.rollback().execute();

  expect(await everythingOf(database, lease.jobId)).toEqual(before);
});

test("a step continues only when it was declared to; else nothing is written, and its lease is still held", async () => {
  const graph = new WorkflowBuilder("undeclared");
  graph.job("only", "undeclared", {});
  await ledger.runs.enqueue(graph.build());
  const { lease } = await claimedOne(ledger, "undeclared");
  const beside = (await leased(ledger, "beside-undeclared")).lease;
  const before = await everythingOf(database, lease.jobId);

  const results = await ledger.jobs.settle([
    { lease, continuation: { checkpoint: 1 } },
    { lease: beside, continuation: { checkpoint: 1 } },
  ]);

  expect(results).toMatchObject([
    { ok: false, error: { code: "workflow.step_continuation_not_declared", retryable: false } },
    { ok: true, status: "PENDING" },
  ]);
  expect(await everythingOf(database, lease.jobId)).toEqual(before);
  expect(await ledger.jobs.snooze(lease, { seconds: 0 })).toMatchObject({ status: "PENDING" });
});

test.each([
  ["no time", {}],
  ["two times", { seconds: 1, until: new Date() }],
  ["less than nothing", { seconds: -1 }],
  ["NaN", { seconds: Number.NaN }],
  ["text", { seconds: "1" }],
  ["no date", { until: "soon" }],
])("a snooze with %s is refused before anything is written", async (_what, snooze) => {
  const { lease } = await leased(ledger, "bad-snooze");
  const before = await everythingOf(database, lease.jobId);

  expect(await codeOf(() => ledger.jobs.snooze(lease, snooze as { seconds: number }))).toBe("input.invalid");
  expect(await everythingOf(database, lease.jobId)).toEqual(before);
  await ledger.jobs.complete(lease);
});

test.each([
  ["a delay of less than nothing", { delaySeconds: -1 }, "input.invalid"],
  ["an endless delay", { delaySeconds: Number.POSITIVE_INFINITY }, "input.invalid"],
  ["a checkpoint that is no JSON", { checkpoint: 1n }, "payload.not_json"],
  ["an output that is no JSON", { output: () => 1 }, "payload.not_json"],
])("a continuation with %s is refused before anything is written", async (_what, continuation, code) => {
  const { lease } = await leased(ledger, "bad-continuation");
  const before = await everythingOf(database, lease.jobId);

  expect(await codeOf(() => ledger.jobs.continue(lease, continuation))).toBe(code);
  expect(await everythingOf(database, lease.jobId)).toEqual(before);
  await ledger.jobs.complete(lease);
});

test("idle workers are told of a job that goes on at once, and not of one that waits", async () => {
  const listening = await database.connect();
  const told: string[] = [];
  listening.on("notification", ({ channel }) => told.push(channel));
  await listening.query("listen runledger_jobs");
  const { lease } = await leased(ledger, "told");
  const { lease: other } = await leased(ledger, "told-not");
  const flush = async () => {
    await listening.query("select 1");
    return told.splice(0).length;
  };
  await flush();
  await ledger.jobs.continue(lease);
  expect(await flush()).toBe(1);
  await ledger.jobs.snooze(other, { seconds: 60 });
  expect(await flush()).toBe(0);
});

test("the attempts of a slice back off from the first again", async () => {
  await ledger.jobs.sync([defineJob("backs-off", { backoff: { initialSeconds: 10, factor: 10, jitter: 0 } })]);
  const first = await leased(ledger, "backs-off");
  await ledger.jobs.fail(first.lease, { code: "c", message: "m" });
  await makeDue(database, [first.lease.jobId]);
  await ledger.jobs.continue((await claimedOne(ledger, "backs-off")).lease);
  const { lease } = await claimedOne(ledger, "backs-off");
  await ledger.jobs.fail(lease, { code: "c", message: "m" });

  const { rows } = await database.pool.query<{ delay: number }>(
    `select extract(epoch from q.run_at - a.ended_at)::float as delay from runledger.job_queue q
     join runledger.job_attempts a on a.job_id = q.id and a.run_number = 2 where q.id = $1`,
    [lease.jobId],
  );
  expect(Math.abs((rows[0]?.delay ?? Number.NaN) - 10)).toBeLessThan(0.1);
});

interface EventRow {
  readonly event: string;
  readonly run_number: number;
  readonly details: { readonly run_at: string; readonly reason?: string };
}

async function eventsOf(jobId: string): Promise<EventRow[]> {
  const { rows } = await database.pool.query<EventRow>(
    "select event, run_number, details from runledger.job_events where job_id = $1 order by id",
    [jobId],
  );
  return rows;
}

async function rowsOf(jobId: string) {
  const of = (table: string) =>
    database.pool.query(`select * from runledger.${table} where id = $1 order by run_number`, [jobId]);
  const [queue, ended] = await Promise.all([of("job_queue"), of("job_ledger")]);
  return { queue: queue.rows, ledger: ended.rows };
}
