/** Retention: what is past its age goes with all that hangs on it, and nothing else (FEATURES F-H2). */
import { afterEach, beforeEach, describe, expect, test } from "@jest/globals";
import { createLedger, type Ledger, type RetentionPolicies } from "../../src/index.ts";
import { expectInvariants } from "../invariants.ts";
import { claimedOne, codeOf, leased } from "../jobs/fixtures.ts";
import { startChild, startParent } from "../runs/children.ts";
import { TestRun } from "../runs/fixtures.ts";
import { createTestDatabase } from "../support/database.ts";
import { waitForBackend } from "../support/waiting.ts";

const database = await createTestDatabase();
const ledger = createLedger({ db: database.db });
const scope = { admin: true } as const;

beforeEach(async () => {
  await ledger.maintenance.retain({ policies: everything });
  await database.pool.query(
    "delete from runledger.job_idempotency_keys; delete from runledger.workflow_idempotency_keys",
  );
  await ledger.maintenance.retain({ policies: everything });
});
afterEach(() => expectInvariants(database));

const all = { SUCCEEDED: 0, CANCELED: 0 } as const;
const everything: RetentionPolicies = {
  jobs: { ...all, DEAD_LETTERED: 0 },
  runs: { ...all, COMPLETED_WITH_ERRORS: 0 },
};

const retain = (policies: RetentionPolicies, options = {}) => ledger.maintenance.retain({ policies, ...options });

describe("jobs", () => {
  test("go by their outcome and age, and by those of their type", async () => {
    const [old, young] = [await oneOfEach("some", 40), await oneOfEach("some", 20)];
    const [oldOther, youngOther] = [await oneOfEach("other", 40), await oneOfEach("other", 20)];

    const result = await retain({
      jobs: { SUCCEEDED: 30, DEAD_LETTERED: 60, types: { other: { SUCCEEDED: null, DEAD_LETTERED: 10 } } },
    });

    expect(result).toMatchObject({ jobs: 3, runs: 0, complete: true });
    expect(await remaining(old)).toEqual(["DEAD_LETTERED", "CANCELED"]);
    expect(await remaining(young)).toEqual(["SUCCEEDED", "DEAD_LETTERED", "CANCELED"]);
    expect(await remaining(oldOther)).toEqual(["SUCCEEDED", "CANCELED"]);
    expect(await remaining(youngOther)).toEqual(["SUCCEEDED", "CANCELED"]);
  });

  test("go with their attempts, events, logs and keys, and count no more", async () => {
    const { lease } = await leased(ledger, "whole", { maxAttempts: 1 });
    await ledger.jobs.log(lease, [{ level: "info", message: "here" }]);
    await ledger.jobs.fail(lease, { code: "no", message: "no" });
    await database.pool.query("insert into runledger.job_events (job_id, run_number, event) values ($1, 1, 'noted')", [
      lease.jobId,
    ]);
    await withKey(lease.jobId, "whole", "now() - interval '1 s'");
    await age(lease.jobId, 10);

    expect(await retain({ jobs: { DEAD_LETTERED: 5 } })).toMatchObject({ jobs: 1, keys: 1 });

    for (const table of ["job_attempts", "job_events", "job_logs", "job_idempotency_keys"]) {
      const { rowCount } = await database.pool.query(`select from runledger.${table} where job_id = $1`, [lease.jobId]);
      expect([table, rowCount]).toEqual([table, 0]);
    }
    expect((await ledger.jobs.counts(scope)).types).toEqual([]);
  });

  test("take the guards of their replays along, which outlive the replays themselves", async () => {
    const { lease } = await leased(ledger, "replayed");
    await ledger.jobs.complete(lease);
    const { id } = await ledger.jobs.replay(lease.jobId, { scope, key: "k" });
    await ledger.jobs.complete((await claimedOne(ledger, "replayed")).lease);
    const guards = async () => (await database.pool.query("select from runledger.job_replays")).rowCount;

    await age(id, 40);
    expect(await retain({ jobs: { SUCCEEDED: 30 } })).toMatchObject({ jobs: 1 });
    expect(await guards()).toBe(1);
    await age(lease.jobId, 40);
    expect(await retain({ jobs: { SUCCEEDED: 30 } })).toMatchObject({ jobs: 1 });
    expect(await guards()).toBe(0);
  });

  test("with a live key stay, and go when its time is over", async () => {
    const forever = await succeeded("keyed", 100, "now() + interval '1 day'");
    const endless = await succeeded("keyed", 100, "null");
    const over = await succeeded("keyed", 100, "now() - interval '1 s'");

    expect(await retain({ jobs: { SUCCEEDED: 1 } })).toMatchObject({ jobs: 1 });
    expect(await stillThere(forever, endless, over)).toEqual([true, true, false]);
    await database.pool.query("update runledger.job_idempotency_keys set created_at = now() - interval '10 days'");
    expect(await retain({ jobs: { SUCCEEDED: 1 }, keys: 11 })).toMatchObject({ jobs: 0 });
    expect(await retain({ jobs: { SUCCEEDED: 1 }, keys: 9 })).toMatchObject({ jobs: 1 });
    expect(await stillThere(forever, endless)).toEqual([true, false]);
  });

  test("of a run that is there stay", async () => {
    const run = await TestRun.start(database, ledger, { a: [], b: ["a"] });
    await run.succeed("a");
    await database.pool.query("update runledger.job_ledger set ended_at = now() - interval '100 days'");
    await shift();

    expect(await retain({ jobs: { SUCCEEDED: 1 } })).toMatchObject({ jobs: 0 });
    await run.succeed("b");
    expect(await retain({ jobs: { SUCCEEDED: 1 } })).toMatchObject({ jobs: 0 });
  });

  test("that are live again stay, with the runs before", async () => {
    const run = await TestRun.start(database, ledger, { a: [] });
    await run.fail("a");
    await unbind(run.id);
    const { rows } = await database.pool.query("select id from runledger.job_ledger");
    const id = await age(rows[0].id, 50);
    await putBack(id);

    expect(await retain({ jobs: { DEAD_LETTERED: 1 } })).toMatchObject({ jobs: 0 });
    const [job] = await ledger.jobs.claim({ workerId: "w", limit: 1 });
    await ledger.jobs.complete(job?.lease ?? never());
    expect(await retain({ jobs: { DEAD_LETTERED: 1 } })).toMatchObject({ jobs: 0 });
    expect(await retain({ jobs: { SUCCEEDED: 0 } })).toMatchObject({ jobs: 1 });
    expect((await database.pool.query("select from runledger.job_ledger")).rowCount).toBe(0);
  });

  test("that are put back at the same time stay: a put back that has begun is passed over", async () => {
    const id = await dead("race", 50);
    const trx = await database.connect();
    await trx.query("begin");
    await putBack(id, trx);

    expect(await retain({ jobs: { DEAD_LETTERED: 1 } })).toMatchObject({ jobs: 0, complete: true });
    await trx.query("commit");
    expect(await retain({ jobs: { DEAD_LETTERED: 1 } })).toMatchObject({ jobs: 0 });
    await ledger.jobs.cancel(id, { scope });
  });

  test("that are put back while they are deleted wait for that, and live without a past", async () => {
    const id = await dead("race-2", 50);
    const holder = await database.connect();
    await holder.query("begin");
    await holder.query("select from runledger.job_idempotency_keys");
    await holder.query("lock table runledger.job_attempts in share mode");
    const retaining = retain({ jobs: { DEAD_LETTERED: 1 } });
    await waitForBackend({ client: database.pool, marker: "forget_jobs" });
    const back = putBack(id);
    await waitForBackend({ client: database.pool, marker: "put_back" });
    await holder.query("commit");

    expect(await retaining).toMatchObject({ jobs: 1 });
    await back;
    expect(await ledger.jobs.get(id, scope)).toMatchObject({ status: "PENDING", runNumber: 2 });
    await expectInvariants(database);
    await ledger.jobs.cancel(id, { scope });
  });

  test("go in batches, each told of, whatever is kept among them", async () => {
    const ids: string[] = [];
    for (let n = 0; n < 12; n += 1) ids.push(n % 3 === 0 ? await dead("batched", 50) : await succeeded("batched", 50));
    const progress: number[] = [];

    const result = await retain(
      { jobs: { SUCCEEDED: 1 } },
      { batchSize: 5, onProgress: ({ jobs }: { jobs: number }) => void progress.push(jobs) },
    );

    expect(result).toMatchObject({ jobs: 8, complete: true });
    expect(progress.length).toBeGreaterThan(1);
    expect(await stillThere(...ids)).toEqual(ids.map((_, n) => n % 3 === 0));
  });

  test("a job of many runs that a batch ends in the middle of goes all the same, and goes whole", async () => {
    const id = await dead("many-runs", 50);
    for (let n = 2; n <= 7; n += 1) {
      await putBack(id);
      const [job] = await ledger.jobs.claim({ workerId: "w", limit: 1, types: ["many-runs"] });
      await ledger.jobs.fail(job?.lease ?? never(), { kind: "TERMINAL", code: "c", message: "m" });
    }
    await age(id, 50, false);
    expect(await retain({ jobs: { DEAD_LETTERED: 1 } }, { batchSize: 2 })).toMatchObject({ jobs: 1 });
    expect((await database.pool.query("select from runledger.job_ledger where id = $1", [id])).rowCount).toBe(0);
  });
});

describe("runs", () => {
  test("go by their outcome and age with all that hangs on them", async () => {
    const [good, young] = [await ended("SUCCEEDED", 40), await ended("SUCCEEDED", 20)];
    const failed = await ended("FAILED", 0);
    await ledger.runs.retry(failed.id, { scope, key: "k" });
    await failed.fail("a");
    const bad = await ageRun(failed, 40);
    const jobs = await jobsOfRuns(good.id, bad.id);

    expect(await retain({ runs: { SUCCEEDED: 30, COMPLETED_WITH_ERRORS: 60 } })).toMatchObject({ runs: 1, jobs: 0 });
    expect(await runsThere(good, bad, young)).toEqual([false, true, true]);
    expect(await retain({ runs: { types: { [bad.type]: { COMPLETED_WITH_ERRORS: 30 } } } })).toMatchObject({ runs: 1 });
    expect(await runsThere(bad, young)).toEqual([false, true]);

    for (const [table, column] of [
      ["workflow_steps", "run_id"],
      ["workflow_step_dependencies", "run_id"],
      ["workflow_run_mutations", "run_id"],
      ["workflow_idempotency_keys", "run_id"],
    ] as const) {
      const { rowCount } = await database.pool.query(`select from runledger.${table} where ${column} = any($1)`, [
        [good.id, bad.id],
      ]);
      expect([table, rowCount]).toEqual([table, 0]);
    }
    for (const [table, column] of [
      ["job_ledger", "id"],
      ["job_attempts", "job_id"],
      ["job_events", "job_id"],
      ["job_logs", "job_id"],
    ] as const) {
      const { rowCount } = await database.pool.query(`select from runledger.${table} where ${column} = any($1)`, [
        jobs,
      ]);
      expect([table, rowCount]).toEqual([table, 0]);
    }
  });

  test("that live stay, whatever their age, and so do child runs of a run that lives", async () => {
    const live = await ageRun(await TestRun.start(database, ledger, { a: [] }), 100);
    const young = await startParent(database, ledger, { child: [] });
    const child = await startChild(database, ledger, young, "child", { only: [] });
    await child.succeed("only");
    const [parent, old] = [await ageRun(young, 100), await ageRun(child, 100)];
    await database.pool.query("delete from runledger.workflow_idempotency_keys");

    expect(await retain(everything)).toMatchObject({ runs: 0 });
    await ledger.runs.cancel(parent.id, { scope });
    expect(await retain({ runs: { SUCCEEDED: 1, CANCELED: 1 } })).toMatchObject({ runs: 1 });
    expect(await runsThere(live, parent, old)).toEqual([true, true, false]);
    await ledger.runs.cancel(live.id, { scope });
  });

  test("with a live key stay", async () => {
    const run = await TestRun.start(database, ledger, { a: [] }, { idempotencyKey: "keep" });
    await run.succeed("a");
    await ageRun(run, 100);
    expect(await retain(everything)).toMatchObject({ runs: 0 });
    await database.pool.query("update runledger.workflow_idempotency_keys set expires_at = now()");
    expect(await retain(everything)).toMatchObject({ runs: 1, keys: 1 });
  });

  test.each(["workflow_runs where id", "workflow_steps where run_id"])(
    "of which somebody holds a row of %s are passed over without a wait",
    async (of) => {
      const [held, free] = [await ended("SUCCEEDED", 40), await ended("SUCCEEDED", 40)];
      const holder = await database.connect();
      await holder.query("begin");
      await holder.query(`select from runledger.${of} = $1 for share`, [held.id]);

      expect(await retain(everything)).toMatchObject({ runs: 1, complete: true });
      expect(await runsThere(held, free)).toEqual([true, false]);
      await holder.query("rollback");
    },
  );

  test("a retry that comes while its run is deleted finds it gone, and one that was first keeps it", async () => {
    const [first, second] = [await ended("FAILED", 40), await ended("FAILED", 40)];
    const trx = await database.db.startTransaction().execute();
    await ledger.in(trx).runs.retry(first.id, { scope });
    const holder = await database.connect();
    await holder.query("begin; lock table runledger.job_attempts in share mode");
    const retaining = retain({ runs: { COMPLETED_WITH_ERRORS: 1 } });
    await waitForBackend({ client: database.pool, marker: "forget_workflow_runs" });
    const retried = codeOf(() => ledger.runs.retry(second.id, { scope }));
    await waitForBackend({ client: database.pool, marker: "lock_workflow" });
    await holder.query("commit");

    expect(await retaining).toMatchObject({ runs: 1 });
    expect(await retried).toBe("workflow.run_not_found");
    await trx.commit().execute();
    expect(await runsThere(first, second)).toEqual([true, false]);
    await ledger.runs.cancel(first.id, { scope });
  });

  test("go in batches of bounded size, a larger one by itself", async () => {
    const wide = await TestRun.start(database, ledger, { a: [], b: [], c: [], d: [] });
    for (const key of ["a", "b", "c", "d"]) await wide.succeed(key);
    await ageRun(wide, 40);
    for (let n = 0; n < 5; n += 1) await ended("SUCCEEDED", 40);
    const progress: number[] = [];

    const onProgress = ({ runs }: { runs: number }) => void progress.push(runs);
    expect(await retain(everything, { batchSize: 2, onProgress })).toMatchObject({ runs: 6 });
    expect(progress).toEqual([1, 3, 5, 6]);
  });
});

describe("partitions", () => {
  test("of which everything is past are dropped with what hangs on their jobs, and count no more", async () => {
    const [from, partition] = await pastPartition(10);
    const id = await deadAt(from + 1000, "dropped");
    await ledger.jobs.enqueue("stays", 1);

    const result = await retain({ jobs: { DEAD_LETTERED: 30 } });

    expect(result).toMatchObject({ jobs: 1, droppedPartitions: [partition], blockedPartitions: [], complete: true });
    expect(await exists(partition)).toBe(false);
    for (const table of ["job_attempts", "job_logs"]) {
      expect((await database.pool.query(`select from runledger.${table} where job_id = $1`, [id])).rowCount).toBe(0);
    }
    expect((await ledger.jobs.counts(scope)).total).toMatchObject({ DEAD_LETTERED: 0 });
    await cancelAll();
  });

  test.each<[string, (id: string) => Promise<unknown>]>([
    ["a job that is not past", (id) => age(id, 1, false)],
    ["a job with a live key", (id) => withKey(id, "held", "null")],
    ["a live job", (id) => putBack(id)],
    ["a job of a run that is there", async (id) => bind(id, await TestRun.start(database, ledger, { a: [] }))],
  ])("with %s stay, and all else in them goes", async (_what, keep) => {
    const [from, partition] = await pastPartition(12);
    const [kept, other] = [await deadAt(from + 1000, "kept"), await deadAt(from + 2000, "goes")];
    await keep(kept);

    expect(await retain({ jobs: { DEAD_LETTERED: 30 } })).toMatchObject({ jobs: 1, droppedPartitions: [] });
    expect(await stillThere(kept, other)).toEqual([true, false]);
    expect(await exists(partition)).toBe(true);
    await database.pool.query("delete from runledger.job_idempotency_keys");
    await cancelAll();
    await age(kept, 60, false);
    await database.pool.query("update runledger.job_ledger set workflow_run_id = null, workflow_step_id = null");
    expect((await retain({ jobs: { DEAD_LETTERED: 30, CANCELED: 30 } })).droppedPartitions).toEqual([partition]);
  });

  test("of this week and to come stay, empty as they are", async () => {
    const before = await partitionNames();
    expect((await retain(everything)).droppedPartitions).toEqual([]);
    expect(await partitionNames()).toEqual(before);
    expect(await ledger.maintenance.ensurePartitions()).toEqual([]);
    expect(await ledger.maintenance.ensurePartitions(9)).toHaveLength(1);
  });

  test("that somebody reads for long are left, and nobody waits behind the drop for longer than its bound", async () => {
    const [from, partition] = await pastPartition(14);
    await deadAt(from, "read");
    const reader = await database.connect();
    await reader.query("begin; select count(*) from runledger.job_ledger");

    const retaining = retain({ jobs: { DEAD_LETTERED: 30 } });
    await waitForBackend({ client: database.pool, marker: "drop_job_ledger_partition" });
    const { lease } = await leased(ledger, "meanwhile");
    await ledger.jobs.complete(lease);

    expect(await retaining).toMatchObject({ droppedPartitions: [], blockedPartitions: [partition], jobs: 1 });
    await reader.query("commit");
    expect(await retain({ jobs: { DEAD_LETTERED: 30 } })).toMatchObject({ droppedPartitions: [partition] });
  });

  test("to which a job is being added wait for that, and then keep it", async () => {
    const [from, partition] = await pastPartition(16);
    const id = idAt(from);
    await enqueueAs(id, "late");
    const [job] = await ledger.jobs.claim({ workerId: "w", limit: 1, types: ["late"] });
    const trx = await database.db.startTransaction().execute();
    await ledger.in(trx).jobs.complete(job?.lease ?? never());

    expect(await retain({ jobs: { SUCCEEDED: 30 } })).toMatchObject({ droppedPartitions: [] });
    await trx.commit().execute();
    expect(await retain({ jobs: { SUCCEEDED: 30 } })).toMatchObject({ droppedPartitions: [] });
    expect(await stillThere(id)).toEqual([true]);
    await age(id, 60, false);
    expect(await retain({ jobs: { SUCCEEDED: 30 } })).toMatchObject({ droppedPartitions: [partition] });
  });
});

test("keys whose time to live is over go, and their jobs stay", async () => {
  const [over, live] = [await succeeded("ttl", 0, "now() - interval '1 s'"), await succeeded("ttl", 0, "null")];

  expect(await retain({})).toMatchObject({ keys: 1, jobs: 0 });
  const { rows } = await database.pool.query("select job_id from runledger.job_idempotency_keys");
  expect(rows).toEqual([{ job_id: live }]);
  expect(await stillThere(over, live)).toEqual([true, true]);
});

test("one process deletes at a time: another finds that it is busy", async () => {
  await succeeded("busy", 50);
  const trx = await database.connect();
  await trx.query("begin; select pg_advisory_xact_lock(hashtextextended('runledger.retention', 0))");
  expect(await retain(everything)).toMatchObject({ jobs: 0, complete: false });
  await trx.query("rollback");
  expect(await retain(everything)).toMatchObject({ jobs: 1, complete: true });
});

test("a signal ends the pass after the batch that is under way", async () => {
  for (let n = 0; n < 6; n += 1) await succeeded("stopped", 50);
  const stop = new AbortController();
  const options = { batchSize: 2, signal: stop.signal, onProgress: () => stop.abort() };
  expect(await retain(everything, options)).toMatchObject({ jobs: 2, complete: false });
  expect(await retain(everything)).toMatchObject({ jobs: 4, complete: true });
});

test("nothing goes for which there is no policy", async () => {
  const ids = Object.values(await oneOfEach("kept", 1000));
  const run = await ended("SUCCEEDED", 1000);
  for (const policies of [{}, { jobs: {} }, { jobs: { SUCCEEDED: null }, runs: { CANCELED: 1 }, keys: 1 }]) {
    expect(await retain(policies)).toMatchObject({ jobs: 0, runs: 0 });
  }
  expect(await stillThere(...ids)).toEqual([true, true, true]);
  expect(await runsThere(run)).toEqual([true]);
});

test.each<[string, unknown]>([
  ["no policies", undefined],
  ["an unknown part", { job: {} }],
  ["an unknown outcome", { jobs: { FAILED: 1 } }],
  ["an outcome of runs for jobs", { jobs: { COMPLETED_WITH_ERRORS: 1 } }],
  ["a negative age", { jobs: { SUCCEEDED: -1 } }],
  ["an age that is no number", { runs: { SUCCEEDED: "30 days" } }],
  ["an unknown outcome of a type", { jobs: { types: { a: { FAILED: 1 } } } }],
  ["an age without end", { keys: Number.POSITIVE_INFINITY }],
])("%s is refused", async (_what, policies) => {
  expect(await codeOf(() => retain(policies as RetentionPolicies))).toBe("input.invalid");
});

test("retention in a caller's transaction is refused before anything is sent", async () => {
  const trx = await database.db.startTransaction().execute();
  const inside: Ledger = ledger.in(trx);
  const { result, statements } = await database.record(() =>
    codeOf(() => inside.maintenance.retain({ policies: everything })),
  );
  expect(result).toBe("maintenance.transaction_unsupported");
  expect(statements).toEqual([]);
  await trx.rollback().execute();
});

const WEEK = 7 * 24 * 3600 * 1000;

function never(): never {
  throw new Error("no job could be claimed");
}

/** Ends it so many days ago; its id is as old, unless it is to stay. */
async function age(id: string, days: number, moves = true): Promise<string> {
  const older = moves ? idAt(Date.now() - days * 24 * 3600 * 1000) : id;
  const ago = `now() - ${days} * interval '1 day'`;
  await database.pool.query(
    `with l as (update runledger.job_ledger set id = $2, ended_at = ${ago} where id = $1),
      a as (update runledger.job_attempts set job_id = $2 where job_id = $1),
      g as (update runledger.job_logs set job_id = $2 where job_id = $1),
      e as (update runledger.job_events set job_id = $2 where job_id = $1),
      r as (update runledger.job_replays set source_job_id = $2 where source_job_id = $1)
     update runledger.job_idempotency_keys set job_id = $2 where job_id = $1`,
    [id, older],
  );
  return older;
}

let last = 0;

/** A new id of that time. */
function idAt(ms: number): string {
  last += 1;
  const time = Math.floor(ms).toString(16).padStart(12, "0");
  return `${time.slice(0, 8)}-${time.slice(8)}-7000-8000-${last.toString(16).padStart(12, "0")}`;
}

async function withKey(jobId: string, type: string, expiresAt: string): Promise<void> {
  await database.pool.query(
    `insert into runledger.job_idempotency_keys (type, key, job_id, requested, expires_at) values ($1, $2::text, $2::text::uuid, '{}', ${expiresAt})`,
    [type, jobId],
  );
}

async function succeeded(type: string, days: number, keyExpiresAt?: string): Promise<string> {
  const { lease } = await leased(ledger, type);
  await ledger.jobs.complete(lease);
  const id = await age(lease.jobId, days);
  if (keyExpiresAt !== undefined) await withKey(id, type, keyExpiresAt);
  return id;
}

async function dead(type: string, days: number): Promise<string> {
  const { lease } = await leased(ledger, type);
  await ledger.jobs.log(lease, [{ level: "info", message: "here" }]);
  await ledger.jobs.fail(lease, { kind: "TERMINAL", code: "no", message: "no" });
  return age(lease.jobId, days);
}

async function oneOfEach(type: string, days: number) {
  const { id } = await ledger.jobs.enqueue(type, {});
  await ledger.jobs.cancel(id, { scope });
  return {
    SUCCEEDED: await succeeded(type, days),
    DEAD_LETTERED: await dead(type, days),
    CANCELED: await age(id, days),
  };
}

async function remaining(ids: Record<string, string>): Promise<string[]> {
  const there = await stillThere(...Object.values(ids));
  return Object.keys(ids).filter((_, place) => there[place]);
}

async function stillThere(...ids: string[]): Promise<boolean[]> {
  const { rows } = await database.pool.query("select id from runledger.jobs where id = any($1)", [ids]);
  const there = new Set(rows.map(({ id }) => id));
  return ids.map((id) => there.has(id));
}

/** What a requeue does, in one statement. */
async function putBack(id: string, client: { query: typeof database.pool.query } | null = null): Promise<void> {
  await (client ?? database.pool).query(
    `/* put_back */ insert into runledger.job_queue (id, run_number, type, priority, run_at, max_attempts, timeout_seconds, payload)
     select id, run_number + 1, type, priority, now(), max_attempts, timeout_seconds, payload
     from runledger.job_ledger where id = $1 order by run_number desc limit 1`,
    [id],
  );
}

/** Ids of the ledger as old as their ends. */
async function shift(): Promise<void> {
  const { rows } = await database.pool.query("select id from runledger.job_ledger");
  for (const { id } of rows) {
    const older = await age(id, 100);
    await database.pool.query("update runledger.workflow_steps set job_id = $2 where job_id = $1", [id, older]);
  }
}

/** The run goes, and its jobs stay. */
async function unbind(runId: string): Promise<void> {
  await database.pool.query("update runledger.job_ledger set workflow_run_id = null, workflow_step_id = null");
  await database.pool.query("delete from runledger.workflow_runs where id = $1", [runId]);
}

async function bind(id: string, run: TestRun): Promise<void> {
  await database.pool.query(
    "update runledger.job_ledger set workflow_run_id = $2, workflow_step_id = $2 where id = $1",
    [id, run.id],
  );
}

/** A run that ended so many days ago. */
async function ended(outcome: "SUCCEEDED" | "FAILED", days: number): Promise<TestRun> {
  const run = await TestRun.start(database, ledger, { a: [] });
  if (outcome === "SUCCEEDED") await run.succeed("a");
  else await run.fail("a");
  return ageRun(run, days);
}

/** The run begins, and if it has ended ends, so many days ago; its id is as old. */
async function ageRun(run: TestRun, days: number): Promise<TestRun> {
  const older = idAt(Date.now() - days * 24 * 3600 * 1000);
  const ago = `now() - ${days} * interval '1 day'`;
  const moved = (table: string, column = "run_id") =>
    `update runledger.${table} set ${column} = '${older}' where ${column} = '${run.id}';`;
  const client = await database.connect();
  // Foreign keys would have it done in no order.
  await client.query(`
    set session_replication_role = replica;
    begin;
    update runledger.workflow_runs set ended_at = ${ago} where id = '${run.id}' and ended_at is not null;
    ${moved("workflow_runs", "id")} ${moved("workflow_runs", "parent_run_id")}
    ${moved("workflow_steps")} ${moved("workflow_steps", "child_run_id")} ${moved("workflow_step_dependencies")}
    ${moved("workflow_run_mutations")} ${moved("workflow_idempotency_keys")}
    ${moved("job_queue", "workflow_run_id")} ${moved("job_ledger", "workflow_run_id")}
    commit`);
  await client.query("set session_replication_role = origin");
  return new TestRun(database, ledger, older, run.type);
}

async function runsThere(...runs: readonly TestRun[]): Promise<boolean[]> {
  const { rows } = await database.pool.query("select id from runledger.workflow_runs");
  const there = new Set(rows.map(({ id }) => id));
  return runs.map(({ id }) => there.has(id));
}

async function jobsOfRuns(...ids: readonly string[]): Promise<string[]> {
  const { rows } = await database.pool.query("select job_id from runledger.workflow_steps where run_id = any($1)", [
    ids,
  ]);
  return rows.map(({ job_id }) => job_id);
}

/** A partition of a week that is over, as one that was made in its time. */
async function pastPartition(weeksAgo: number): Promise<readonly [number, string]> {
  const from = Math.floor(Date.now() / WEEK) * WEEK - weeksAgo * WEEK;
  const name = `job_ledger_past_${weeksAgo}`;
  const bound = (ms: number) => idAt(ms).replace(/-7000-8000-.*/, "-0000-0000-000000000000");
  await database.pool.query(
    `create table runledger.${name} partition of runledger.job_ledger for values from ('${bound(from)}') to ('${bound(from + WEEK)}')`,
  );
  return [from, name];
}

async function enqueueAs(id: string, type: string): Promise<void> {
  await database.pool.query(
    `insert into runledger.job_queue (id, type, priority, run_at, max_attempts, timeout_seconds, payload)
     values ($1, $2, 0, now(), 1, 60, '{}')`,
    [id, type],
  );
}

/** A dead job with an id of that time, that ended sixty days ago. */
async function deadAt(ms: number, type: string): Promise<string> {
  const id = idAt(ms);
  await enqueueAs(id, type);
  const [job] = await ledger.jobs.claim({ workerId: "w", limit: 1, types: [type] });
  const { lease } = job ?? never();
  await ledger.jobs.log(lease, [{ level: "info", message: "here" }]);
  await ledger.jobs.fail(lease, { kind: "TERMINAL", code: "no", message: "no" });
  return age(id, 60, false);
}

async function cancelAll(): Promise<void> {
  const { jobs } = await ledger.jobs.list({ scope, status: "PENDING" });
  for (const { id, workflowRunId } of jobs) {
    if (workflowRunId === null) await ledger.jobs.cancel(id, { scope });
    else await ledger.runs.cancel(workflowRunId, { scope });
  }
}

async function partitionNames(): Promise<string[]> {
  const { rows } = await database.pool.query(
    "select inhrelid::regclass::text as name from pg_inherits where inhparent = 'runledger.job_ledger'::regclass order by 1",
  );
  return rows.map(({ name }) => name);
}

async function exists(partition: string): Promise<boolean> {
  return (await partitionNames()).includes(`runledger.${partition}`);
}
