/** Counts by status are kept, and are what counting would find, in every snapshot (FEATURES F-H3). */
import { afterEach, describe, expect, test } from "@jest/globals";
import { sql } from "kysely";
import { createLedger, type JobStatus, type Ledger, type Scope } from "../../src/index.ts";
import { expectInvariants } from "../invariants.ts";
import { claimedOne, codeOf, globally, leased } from "../jobs/fixtures.ts";
import { startChild, startParent } from "../runs/children.ts";
import { otherOrganization, someOrganization, TestRun } from "../runs/fixtures.ts";
import { createTestDatabase } from "../support/database.ts";
import { backendPid, waitForBackend } from "../support/waiting.ts";

const database = await createTestDatabase();
const ledger = createLedger({ db: database.db });
const everywhere = { admin: true } as const;

afterEach(() => expectInvariants(database));

const none = { PENDING: 0, LEASED: 0, SUCCEEDED: 0, DEAD_LETTERED: 0, CANCELED: 0 };
const noRuns = { RUNNING: 0, WAITING_FOR_EXTERNAL: 0, SUCCEEDED: 0, COMPLETED_WITH_ERRORS: 0, CANCELED: 0 };

async function jobsOf(type: string, scope: Scope = everywhere) {
  const { types } = await ledger.jobs.counts(scope);
  return types.find((counts) => counts.type === type) ?? { ...none, type };
}

async function runsOf(type: string, scope: Scope = everywhere) {
  const { types } = await ledger.runs.counts(scope);
  return types.find((counts) => counts.type === type) ?? { ...noRuns, type };
}

describe("jobs", () => {
  test("a job counts once, under the status that it has", async () => {
    const type = "through-life";
    expect(await jobsOf(type)).toEqual({ ...none, type });
    await ledger.jobs.enqueueMany(Array.from({ length: 5 }, () => ({ type, payload: 1 })));
    expect(await jobsOf(type)).toEqual({ ...none, type, PENDING: 5 });
    const jobs = await ledger.jobs.claim({ workerId: "w", limit: 4, types: [type] });
    expect(await jobsOf(type)).toEqual({ ...none, type, PENDING: 1, LEASED: 4 });
    const [first, second, third] = jobs.map(({ lease }) => lease);
    if (!first || !second || !third) throw new Error("four were claimed");
    await ledger.jobs.complete(first);
    await ledger.jobs.fail(second, { kind: "TERMINAL", code: "no", message: "no" });
    await ledger.jobs.fail(third, { code: "again", message: "again" });
    expect(await jobsOf(type)).toEqual({ type, PENDING: 2, LEASED: 1, SUCCEEDED: 1, DEAD_LETTERED: 1, CANCELED: 0 });
    await ledger.jobs.cancel(third.jobId, { scope: globally });
    expect(await jobsOf(type)).toEqual({ type, PENDING: 1, LEASED: 1, SUCCEEDED: 1, DEAD_LETTERED: 1, CANCELED: 1 });
  });

  test("a run of a job that follows on an ended one takes its end away", async () => {
    const run = await TestRun.start(database, ledger, { a: [] });
    await run.fail("a");
    expect(await jobsOf(`${run.type}.a`)).toMatchObject({ DEAD_LETTERED: 1, PENDING: 0 });
    await ledger.runs.retry(run.id, { scope: { global: true } });
    expect(await jobsOf(`${run.type}.a`)).toMatchObject({ DEAD_LETTERED: 0, PENDING: 1 });
    await run.succeed("a");
    expect(await jobsOf(`${run.type}.a`)).toMatchObject({ DEAD_LETTERED: 0, PENDING: 0, SUCCEEDED: 1 });
  });

  test("the job of a child run's step counts once, before and after it", async () => {
    const parent = await startParent(database, ledger, { child: [] });
    const child = await startChild(database, ledger, parent, "child", { only: [] });
    await child.succeed("only");
    await expectInvariants(database);
    await ledger.runs.cancel(parent.id, { scope: { global: true } });
  });

  test("a run of a job that ends and leaves it live is no end", async () => {
    const { lease } = await leased(ledger, "slice");
    const client = await database.connect();
    await client.query(
      `with next as (
         update runledger.job_queue set run_number = 2, status = 'PENDING', attempt = 0, worker_id = null, leased_at = null,
           lease_expires_at = null where id = $1 returning *
       )
       insert into runledger.job_ledger (id, run_number, status, type, priority, run_at, attempt, max_attempts,
         timeout_seconds, enqueued_at, ended_at, payload, continued)
       select id, 1, 'SUCCEEDED', type, priority, run_at, 1, max_attempts, timeout_seconds, enqueued_at, now(), payload, true
       from next`,
      [lease.jobId],
    );
    expect(await jobsOf("slice")).toEqual({ ...none, type: "slice", PENDING: 1 });
    await ledger.jobs.complete((await claimedOne(ledger, "slice")).lease);
    expect(await jobsOf("slice")).toEqual({ ...none, type: "slice", SUCCEEDED: 1 });
  });

  test("ended jobs that are deleted, with all their runs, count no more", async () => {
    const run = await TestRun.start(database, ledger, { a: [] });
    await run.fail("a");
    await ledger.runs.retry(run.id, { scope: { global: true } });
    await run.succeed("a");
    await database.pool.query("delete from runledger.job_ledger where type = $1", [`${run.type}.a`]);
    expect(await jobsOf(`${run.type}.a`)).toEqual({ ...none, type: `${run.type}.a` });
  });

  test("a scope sees its own, and an administrator all", async () => {
    const type = "scoped";
    await ledger.jobs.enqueueMany([
      { type, payload: 1 },
      { type, payload: 1, organizationId: someOrganization },
      { type, payload: 1, organizationId: someOrganization },
      { type, payload: 1, organizationId: otherOrganization },
    ]);
    await ledger.jobs.claim({ workerId: "w", limit: 4, types: [type] });
    await ledger.maintenance.compactCounts();
    await ledger.jobs.enqueue(type, 1, { organizationId: someOrganization });
    expect(await jobsOf(type, { organization: someOrganization })).toEqual({ ...none, type, LEASED: 2, PENDING: 1 });
    expect(await jobsOf(type, { organization: otherOrganization })).toEqual({ ...none, type, LEASED: 1 });
    expect(await jobsOf(type, globally)).toEqual({ ...none, type, LEASED: 1 });
    expect(await jobsOf(type)).toEqual({ ...none, type, LEASED: 4, PENDING: 1 });
    expect(await codeOf(() => ledger.jobs.counts({} as Scope))).toBe("scope.required");
  });

  test("the total is the sum of the types", async () => {
    const { total, types } = await ledger.jobs.counts(everywhere);
    const sum = (status: keyof typeof none) => types.reduce((all, counts) => all + counts[status], 0);
    expect(Object.entries(total)).toEqual(
      Object.keys(none).map((status) => [status, sum(status as keyof typeof none)]),
    );
  });
});

test("a run counts under the status that it has", async () => {
  const run = await TestRun.start(database, ledger, { a: [], gate: ["a"] });
  const type = run.type;
  expect(await runsOf(type)).toEqual({ ...noRuns, type, RUNNING: 1 });
  await run.succeed("a");
  expect(await runsOf(type)).toEqual({ ...noRuns, type, WAITING_FOR_EXTERNAL: 1 });
  await ledger.runs.cancel(run.id, { scope: { global: true } });
  expect(await runsOf(type)).toEqual({ ...noRuns, type, CANCELED: 1 });
  await database.pool.query("delete from runledger.workflow_runs where id = $1", [run.id]);
  expect(await runsOf(type)).toEqual({ ...noRuns, type });
});

describe("compacting", () => {
  test("folds what there is, and changes no count", async () => {
    await ledger.jobs.enqueueMany(["x", "y", "x"].map((type) => ({ type, payload: 1 })));
    const before = await ledger.jobs.counts(everywhere);
    expect((await ledger.maintenance.compactCounts()).folded).toBeGreaterThan(0);
    expect(await ledger.maintenance.compactCounts()).toEqual({ folded: 0 });
    expect(await ledger.jobs.counts(everywhere)).toEqual(before);
  });

  test("folds at most as many as asked for", async () => {
    for (let n = 0; n < 4; n += 1) await ledger.jobs.enqueue("one", n);
    expect(await ledger.maintenance.compactCounts({ limit: 3 })).toEqual({ folded: 3 });
    expect(await ledger.maintenance.compactCounts({ limit: 3 })).toEqual({ folded: 1 });
  });

  test("in a transaction that stays open keeps nobody from enqueueing, and another compaction takes the rest", async () => {
    await ledger.jobs.enqueue("before", 1);
    const trx = await database.db.startTransaction().execute();
    expect((await ledger.in(trx).maintenance.compactCounts()).folded).toBeGreaterThan(0);
    await ledger.jobs.enqueue("meanwhile", 1);
    await expect(ledger.maintenance.compactCounts()).resolves.toEqual({ folded: 1 });
    await trx.commit().execute();
    expect(await jobsOf("meanwhile")).toMatchObject({ PENDING: 1 });
  });

  test("of the same counts by two at once: the second waits, for the first only, and loses nothing", async () => {
    await ledger.jobs.enqueue("same", 1);
    const trx = await database.db.startTransaction().execute();
    await ledger.in(trx).maintenance.compactCounts();
    await ledger.jobs.enqueue("same", 1);
    const second = ledger.maintenance.compactCounts();
    await waitForBackend({ client: database.pool, marker: "compact_status_counts" });
    await ledger.jobs.enqueue("same", 1);
    await trx.commit().execute();
    expect(await second).toEqual({ folded: 1 });
    expect(await jobsOf("same")).toMatchObject({ PENDING: 3 });
  });
});

test("an enqueue in a transaction that stays open keeps no other waiting, and counts when it commits", async () => {
  const trx = await database.db.startTransaction().execute();
  await ledger.in(trx).jobs.enqueue("open", 1);
  await ledger.jobs.enqueue("open", 1);
  expect(await jobsOf("open")).toMatchObject({ PENDING: 1 });
  await trx.commit().execute();
  expect(await jobsOf("open")).toMatchObject({ PENDING: 2 });
});

test("a job that is put back holds the run that it follows on, until it is there", async () => {
  const run = await TestRun.start(database, ledger, { a: [] });
  await run.fail("a");
  const trx = await database.db.startTransaction().execute();
  await ledger.in(trx).runs.retry(run.id, { scope: { global: true } });
  const client = await database.connect();
  const pid = await backendPid(client);
  const deleted = client.query("delete from runledger.job_ledger where type = $1", [`${run.type}.a`]);
  await waitForBackend({ client: database.pool, pid });
  await trx.commit().execute();
  await deleted;
  expect(await jobsOf(`${run.type}.a`)).toMatchObject({ DEAD_LETTERED: 0, PENDING: 1 });
  await run.succeed("a");
});

test("TRUNCATE takes what it removes out of the counts, and nothing else", async () => {
  await database.pool.query("truncate runledger.job_queue, runledger.job_ledger");
  const type = "truncated";
  await ledger.jobs.enqueueMany(Array.from({ length: 4 }, () => ({ type, payload: 1 })));
  const { lease } = await claimedOne(ledger, type);
  await ledger.jobs.fail(lease, { kind: "TERMINAL", code: "no", message: "no" });
  await ledger.jobs.requeue(lease.jobId, {
    scope: globally,
    expected: { status: "DEAD_LETTERED", runNumber: 1 },
  });
  const run = await TestRun.start(database, ledger, { gate: [] });
  await ledger.maintenance.compactCounts();

  await database.pool.query("truncate runledger.job_queue");
  expect(await jobsOf(type)).toEqual({ ...none, type, DEAD_LETTERED: 1 });
  await database.pool.query("truncate runledger.job_ledger");
  expect(await jobsOf(type)).toEqual({ ...none, type });
  expect(await runsOf(run.type)).toMatchObject({ WAITING_FOR_EXTERNAL: 1 });
  await database.pool.query("truncate runledger.workflow_runs, runledger.workflow_idempotency_keys cascade");
  expect(await runsOf(run.type)).toEqual({ ...noRuns, type: run.type });
});

test("TRUNCATE waits for who folds deltas", async () => {
  const type = "folded";
  await ledger.jobs.enqueue(type, 1);
  const folding = await database.db.startTransaction().execute();
  await ledger.in(folding).maintenance.compactCounts();
  const client = await database.connect();
  const pid = await backendPid(client);
  const truncated = client.query("truncate runledger.job_queue");
  await waitForBackend({ client: database.pool, pid });
  await folding.commit().execute();
  await truncated;

  expect(await jobsOf(type)).toEqual({ ...none, type });
});

test("random work of many sessions leaves counts that are exact, and are so in every snapshot meanwhile", async () => {
  const types = ["r0", "r1", "r2"];
  const organizations = [null, someOrganization, otherOrganization];
  let working = true;
  const workers = Array.from({ length: 5 }, (_, n) => work(ledger, n, types, organizations, 60));
  const compacting = (async () => {
    while (working) await ledger.maintenance.compactCounts({ limit: 20 });
  })();
  const watching = (async () => {
    let looks = 0;
    for (; working; looks += 1) {
      const trx = await database.db.startTransaction().setIsolationLevel("repeatable read").execute();
      const { types: kept } = await ledger.in(trx).jobs.counts(everywhere);
      const { rows } = await sql<{ type: string; status: JobStatus; n: number }>`
        select type, status, count(*)::int as n from runledger.jobs group by 1, 2`.execute(trx);
      await trx.commit().execute();
      const counted = rows.map(({ type, status, n }) => `${type} ${status} ${n}`).sort();
      expect(kept.flatMap(({ type, ...by }) => textsOf(type, by)).sort()).toEqual(counted);
    }
    return looks;
  })();
  await Promise.all(workers);
  working = false;
  await compacting;
  expect(await watching).toBeGreaterThan(3);
});

function textsOf(type: string, by: Readonly<Record<string, number>>): string[] {
  return Object.entries(by).flatMap(([status, n]) => (n === 0 ? [] : `${type} ${status} ${n}`));
}

async function work(
  own: Ledger,
  seed: number,
  types: readonly string[],
  organizations: readonly (string | null)[],
  rounds: number,
): Promise<void> {
  const pick = <T>(values: readonly T[]): T => values[Math.floor(Math.random() * values.length)] as T;
  for (let round = 0; round < rounds; round += 1) {
    const requests = Array.from({ length: 1 + Math.floor(Math.random() * 4) }, () => ({
      type: pick(types),
      payload: round,
      organizationId: pick(organizations),
    }));
    const trx = await database.db.startTransaction().execute();
    await own.in(trx).jobs.enqueueMany(requests);
    await (Math.random() < 0.2 ? trx.rollback() : trx.commit()).execute();
    const claimed = await own.jobs.claim({ workerId: `w${seed}`, limit: 3 });
    for (const { lease } of claimed) {
      const chance = Math.random();
      if (chance < 0.5) await own.jobs.complete(lease);
      else if (chance < 0.7) await own.jobs.fail(lease, { kind: "TERMINAL", code: "no", message: "no" });
      else if (chance < 0.8) await own.jobs.cancel(lease.jobId, { scope: everywhere });
      else if (chance < 0.9) await own.jobs.handBack([lease]);
    }
  }
}
