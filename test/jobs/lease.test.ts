/** The lease fence (FEATURES F-J5) and what a running attempt writes (F-J6). */
import { expect, test } from "@jest/globals";
import { sql } from "kysely";
import { createLedger, type Lease, type Ledger } from "../../src/index.ts";
import { createTestDatabase } from "../support/database.ts";
import { waitForBackend } from "../support/waiting.ts";
import { claimedOne, codeOf, everythingOf, expire, globally, leased, unknownId } from "./fixtures.ts";

const database = await createTestDatabase();
const ledger = createLedger({ db: database.db });

type Write = (ledger: Ledger, lease: Lease) => Promise<unknown>;

/** Every write under a lease, its statement, and how it answers when the lease is not held. */
const writes: readonly [string, string, Write, unknown][] = [
  [
    "heartbeat",
    "heartbeat_jobs",
    async (l, lease) => (await l.jobs.heartbeat([lease]))[0]?.state,
    { resolved: "LOST" },
  ],
  ["handBack", "hand_back_jobs", (l, lease) => l.jobs.handBack([lease]), { resolved: [] }],
  ["progress", "progress_job", (l, lease) => l.jobs.progress(lease, { done: 1 }), "job.lease_owner_mismatch"],
  ["checkpoint", "checkpoint_job", (l, lease) => l.jobs.checkpoint(lease, { at: 1 }), "job.lease_owner_mismatch"],
  ["log", "log_job", (l, lease) => l.jobs.log(lease, [{ level: "info", message: "m" }]), "job.lease_owner_mismatch"],
  ["complete", "complete_jobs", (l, lease) => l.jobs.complete(lease, { output: 1 }), "job.lease_owner_mismatch"],
  [
    "fail",
    "settle_attempts",
    (l, lease) => l.jobs.fail(lease, { code: "c", message: "m" }),
    "job.lease_owner_mismatch",
  ],
  [
    "fail for good",
    "settle_attempts",
    (l, lease) => l.jobs.fail(lease, { kind: "TERMINAL", code: "c", message: "m" }),
    "job.lease_owner_mismatch",
  ],
  [
    "snooze",
    "settle_attempts_with_again",
    (l, lease) => l.jobs.snooze(lease, { seconds: 60 }),
    "job.lease_owner_mismatch",
  ],
  [
    "continue",
    "settle_attempts_with_again",
    (l, lease) => l.jobs.continue(lease, { checkpoint: 1 }),
    "job.lease_owner_mismatch",
  ],
];

/** What happens to the lease before it is used, or which lease is used in its place. */
const staleness: readonly [string, (lease: Lease) => { readonly use: Lease } | Promise<unknown>][] = [
  ["of another attempt", (lease) => ({ use: { ...lease, attempt: lease.attempt + 1 } })],
  ["of another run number", (lease) => ({ use: { ...lease, runNumber: lease.runNumber + 1 } })],
  ["of another worker", (lease) => ({ use: { ...lease, workerId: `${lease.workerId}-2` } })],
  ["of an unknown job", (lease) => ({ use: { ...lease, jobId: unknownId } })],
  ["that has expired", (lease) => expire(database, [lease.jobId])],
  ["that was reaped", (lease) => expire(database, [lease.jobId]).then(() => ledger.jobs.reap())],
  ["that was handed back", (lease) => ledger.jobs.handBack([lease])],
  ["whose job has succeeded", (lease) => ledger.jobs.complete(lease)],
  ["whose job was snoozed", (lease) => ledger.jobs.snooze(lease, { seconds: 60 })],
  ["whose job has continued", (lease) => ledger.jobs.continue(lease)],
  ["whose job is dead", (lease) => ledger.jobs.fail(lease, { kind: "PANICKED", code: "c", message: "m" })],
];

test.each(
  staleness.flatMap(([how, stale]) =>
    writes.map(([name, , write, answer]) => [name, how, stale, write, answer] as const),
  ),
)("%s under a lease %s is refused and writes nothing", async (_name, _how, makeStale, write, answer) => {
  const { lease } = await leased(ledger, "fenced");
  const made = makeStale(lease);
  const stale = "use" in made ? made.use : lease;
  await made;
  const before = await everythingOf(database, lease.jobId);

  expect(await codeOf(() => write(ledger, stale))).toEqual(answer);

  expect(await everythingOf(database, lease.jobId)).toEqual(before);
  await database.pool.query("delete from runledger.job_queue where type = 'fenced'");
});

test("a heartbeat under the lease of a cancelled job says so", async () => {
  const { lease } = await leased(ledger, "cancelled");
  await ledger.jobs.cancel(lease.jobId, { scope: globally });

  expect(await ledger.jobs.heartbeat([lease])).toEqual([
    { jobId: lease.jobId, state: "CANCELED", leaseExpiresAt: null },
  ]);
  expect(await codeOf(() => ledger.jobs.complete(lease))).toBe("job.lease_owner_mismatch");
});

test.each(writes)("%s judges the lease's end after its wait for the row", async (_name, marker, write, answer) => {
  const { lease } = await leased(ledger, "expires-during");
  const holder = await database.connect();
  await holder.query("begin");
  await holder.query("select from runledger.job_queue where id = $1 for update", [lease.jobId]);

  const writing = codeOf(() => write(ledger, lease));
  await waitForBackend({ client: database.pool, marker: `/* runledger:${marker} */` });
  // The lease is the same; it ended while the row was waited for.
  await holder.query(
    "update runledger.job_queue set lease_expires_at = clock_timestamp() - interval '1 ms' where id = $1",
    [lease.jobId],
  );
  await holder.query("commit");

  expect(await writing).toEqual(answer);
  const { rows } = await database.pool.query(
    "select status, attempt, checkpoint, progress_done from runledger.job_queue where id = $1",
    [lease.jobId],
  );
  expect(rows).toEqual([{ status: "LEASED", attempt: 1, checkpoint: null, progress_done: null }]);
  await database.pool.query("delete from runledger.job_queue where id = $1", [lease.jobId]);
});

test.each(writes)(
  "%s does not take for its own what a later claim wrote while it waited",
  async (_name, marker, write, answer) => {
    const { lease } = await leased(ledger, "taken-during");
    const holder = await database.connect();
    await holder.query("begin");
    await holder.query("update runledger.job_queue set attempt = 2, worker_id = 'other' where id = $1", [lease.jobId]);

    const writing = codeOf(() => write(ledger, lease));
    await waitForBackend({ client: database.pool, marker: `/* runledger:${marker} */` });
    await holder.query("commit");

    expect(await writing).toEqual(answer);
    const { rows } = await database.pool.query("select attempt, worker_id from runledger.job_queue where id = $1", [
      lease.jobId,
    ]);
    expect(rows).toEqual([{ attempt: 2, worker_id: "other" }]);
    await database.pool.query("delete from runledger.job_queue where id = $1", [lease.jobId]);
  },
);

test.each(writes)(
  "%s waits for a row no longer than the ledger's bound, and leaves the pool as it was",
  async (_name, _marker, write) => {
    const impatient = createLedger({ db: database.db, lockWaitMs: 5 });
    const { lease } = await leased(ledger, "bounded");
    const holder = await database.connect();
    await holder.query("begin");
    await holder.query("select from runledger.job_queue where id = $1 for update", [lease.jobId]);

    expect(await codeOf(() => write(impatient, lease))).toBe("db.lock_timeout");

    await holder.query("rollback");
    const { rows } = await database.pool.query("show lock_timeout");
    expect(rows).toEqual([{ lock_timeout: "0" }]);
    await ledger.jobs.handBack([lease]);
    await database.pool.query("delete from runledger.job_queue where id = $1", [lease.jobId]);
  },
);

const batches: readonly [string, string, (ledger: Ledger, leases: readonly Lease[]) => Promise<unknown>][] = [
  ["heartbeat", "heartbeat_jobs", (l, leases) => l.jobs.heartbeat(leases)],
  ["handBack", "hand_back_jobs", (l, leases) => l.jobs.handBack(leases)],
  ["settle", "settle_attempts", (l, leases) => l.jobs.settle(leases.map((lease) => ({ lease, success: {} })))],
];

test.each(batches)(
  "a batch of %s takes its rows in id order, whatever the order of its leases",
  async (name, marker, call) => {
    await ledger.jobs.enqueueMany(Array.from({ length: 5 }, () => ({ type: `rows-${name}`, payload: 1 })));
    const jobs = await ledger.jobs.claim({ workerId: "w", limit: 5, types: [`rows-${name}`] });
    const ids = jobs.map(({ lease }) => lease.jobId);
    const holder = await database.connect();
    await holder.query("begin");
    await holder.query("select from runledger.job_queue where id = $1 for update", [ids[2]]);
    const trx = await database.db.startTransaction().execute();
    // Leases are looked up one after the other, as in a large queue.
    for (const way of ["hashjoin", "mergejoin", "seqscan"])
      await sql`set local ${sql.raw(`enable_${way}`)} = off`.execute(trx);

    const calling = call(ledger.in(trx), jobs.map(({ lease }) => lease).reverse());
    await waitForBackend({ client: database.pool, marker: `/* runledger:${marker} */` });

    const { rows } = await database.pool.query<{ id: string }>(
      "select id from runledger.job_queue where id = any($1) order by id for update skip locked",
      [ids],
    );
    expect(rows.map(({ id }) => id)).toEqual(ids.slice(3));
    await holder.query("rollback");
    await calling;
    await trx.rollback().execute();
  },
);

test("a heartbeat extends from now on", async () => {
  const { lease } = await leased(ledger, "beats");

  const [beat] = await ledger.jobs.heartbeat([lease], 600);

  const { rows } = await database.pool.query(
    "select lease_expires_at, extract(epoch from lease_expires_at - clock_timestamp())::float as seconds from runledger.job_queue where id = $1",
    [lease.jobId],
  );
  expect(beat).toMatchObject({ jobId: lease.jobId, state: "EXTENDED" });
  expect(rows[0].lease_expires_at).toEqual(beat?.leaseExpiresAt);
  expect(rows[0].seconds).toBeGreaterThan(590);
  expect(rows[0].seconds).toBeLessThanOrEqual(600);
});

test("a heartbeat of many answers for each, in their order", async () => {
  const [live, lost, cancelled] = [
    (await leased(ledger, "many")).lease,
    (await leased(ledger, "many")).lease,
    (await leased(ledger, "many")).lease,
  ];
  await expire(database, [lost.jobId]);
  await ledger.jobs.cancel(cancelled.jobId, { scope: globally });

  const beats = await ledger.jobs.heartbeat([cancelled, { ...live, jobId: live.jobId.toUpperCase() }, lost]);

  expect(beats.map(({ state }) => state)).toEqual(["CANCELED", "EXTENDED", "LOST"]);
  expect(beats[1]?.jobId).toBe(live.jobId.toUpperCase());
});

test("a heartbeat with an old and the present lease of one job answers for each of them", async () => {
  const { lease: old } = await leased(ledger, "both");
  await expire(database, [old.jobId]);
  await ledger.jobs.reap();
  await database.pool.query("update runledger.job_queue set run_at = now() where id = $1", [old.jobId]);
  const { lease: present } = await claimedOne(ledger, "both");

  expect((await ledger.jobs.heartbeat([old, present])).map(({ state }) => state)).toEqual(["LOST", "EXTENDED"]);
  expect((await ledger.jobs.heartbeat([present, old])).map(({ state }) => state)).toEqual(["EXTENDED", "LOST"]);
});

test("a claim that was handed back has used no attempt and is due as before", async () => {
  const { lease } = await leased(ledger, "unstarted");
  const before = await ledger.jobs.get(lease.jobId, globally);

  expect(await ledger.jobs.handBack([lease, { ...lease, jobId: unknownId }])).toEqual([lease.jobId]);

  expect(await ledger.jobs.get(lease.jobId, globally)).toMatchObject({
    status: "PENDING",
    attempt: 0,
    workerId: null,
    leaseExpiresAt: null,
    runAt: before.runAt,
  });
  expect((await claimedOne(ledger, "unstarted")).lease.attempt).toBe(1);
});

test("progress is kept, its total stays, and what is stored counts against what comes", async () => {
  const { lease } = await leased(ledger, "progress");
  const progress = async () => (await ledger.jobs.get(lease.jobId, globally)).progress;

  await ledger.jobs.progress(lease, { done: 0 });
  expect(await progress()).toEqual({ done: 0, total: null });
  await ledger.jobs.progress(lease, { done: 3, total: 10 });
  await ledger.jobs.progress(lease, { done: 4 });
  expect(await progress()).toEqual({ done: 4, total: 10 });
  expect(await codeOf(() => ledger.jobs.progress(lease, { done: 11 }))).toBe("job.progress_invalid");
  expect(await progress()).toEqual({ done: 4, total: 10 });
  await ledger.jobs.progress(lease, { done: 11, total: Number.MAX_SAFE_INTEGER });
  expect(await progress()).toEqual({ done: 11, total: Number.MAX_SAFE_INTEGER });
});

test.each([
  { done: -1 },
  { done: 0.5 },
  { done: Number.NaN },
  { done: 2 ** 53 },
  { done: 2, total: 1 },
  { done: 0, total: -1 },
  { done: 0, total: 1.5 },
  { done: "1" as unknown as number },
  { done: 1n as unknown as number },
])("the progress %p is refused before anything is sent", async (progress) => {
  const { lease } = await leased(ledger, "bad-progress");
  const { statements } = await database.record(async () => {
    expect(await codeOf(() => ledger.jobs.progress(lease, progress))).toBe("job.progress_invalid");
  });

  expect(statements).toEqual([]);
});

test("a checkpoint is handed to the next attempt, and progress with it", async () => {
  const { lease } = await leased(ledger, "resumes");
  await ledger.jobs.checkpoint(lease, { page: 1 });
  await ledger.jobs.checkpoint(lease, { page: 2 });
  await ledger.jobs.progress(lease, { done: 2, total: 9 });
  await ledger.jobs.fail(lease, { code: "c", message: "m" });
  await database.pool.query("update runledger.job_queue set run_at = now() where id = $1", [lease.jobId]);

  const next = await claimedOne(ledger, "resumes");

  expect(next.checkpoint).toEqual({ page: 2 });
  expect((await ledger.jobs.get(lease.jobId, globally)).progress).toEqual({ done: 2, total: 9 });
  await ledger.jobs.checkpoint(next.lease, null);
  expect((await ledger.jobs.get(lease.jobId, globally)).checkpoint).toBeNull();
});

test("log lines keep their order, level, fields and attempt", async () => {
  const { lease } = await leased(ledger, "logs");

  await ledger.jobs.log(lease, [
    { level: "debug", message: "one" },
    { level: "error", message: "two\0\ud800", fields: { a: [1] } },
  ]);
  await ledger.jobs.log(lease, [{ level: "warn", message: "" }]);
  await ledger.jobs.log(lease, []);

  const { rows } = await database.pool.query(
    "select run_number, attempt, level, message, fields from runledger.job_logs where job_id = $1 order by id",
    [lease.jobId],
  );
  expect(rows).toEqual([
    { run_number: 1, attempt: 1, level: "debug", message: "one", fields: null },
    { run_number: 1, attempt: 1, level: "error", message: "two��", fields: { a: [1] } },
    { run_number: 1, attempt: 1, level: "warn", message: "", fields: null },
  ]);
});
