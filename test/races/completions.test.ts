/** Completions of one run, or of the same runs, at the same time (LOCKS.md §3). */
import { afterEach, describe, expect, test } from "@jest/globals";
import type { ClaimedJob, GraphSpec, Settlement } from "../../src/index.ts";
import { expectInvariants, watchForDeadlocks } from "../invariants.ts";
import { countOf, failure, graphOf, ledgerOf, openTransaction, TestRun } from "../runs/fixtures.ts";
import { createTestDatabase } from "../support/database.ts";
import { waitForBackend } from "../support/waiting.ts";

/** RUNLEDGER_RACE_ROUNDS=5000 looks longer. */
const ROUNDS = Number(process.env.RUNLEDGER_RACE_ROUNDS ?? 200);
/** Rounds that run at the same time, each with two or more sessions. */
const AT_ONCE = 5;

const database = await createTestDatabase();
const expectNoDeadlocks = watchForDeadlocks(database);
const ledger = ledgerOf(database);

afterEach(async () => {
  await expectInvariants(database);
  expectNoDeadlocks();
});

const success = ({ lease }: ClaimedJob): Settlement => ({ lease, success: {} });
const failed = ({ lease }: ClaimedJob): Settlement => ({ lease, failure });
const numbered = (count: number, entry: (n: number) => [string, string[]]) =>
  Object.fromEntries(Array.from({ length: count }, (_, n) => entry(n)));

const shared = { r1: [], r2: [], ...numbered(16, (n) => [`d${n}`, ["r1", "r2"]]) };

test("two roots that finish at the same time release each of sixteen shared dependents once", async () => {
  await race("sixteen", shared, ["r1", "r2"], ([a, b]) => [[success(a)], [success(b)]]);

  expect(await statusesOf("sixteen")).toEqual({ "r SUCCEEDED": 2 * ROUNDS, "d ENQUEUED": 16 * ROUNDS });
  expect(await countOf(database, "runledger.job_queue where type like 'sixteen.d%'")).toBe(16 * ROUNDS);
});

test("a root that succeeds while the other fails: each shared dependent is cancelled, whoever was first", async () => {
  await race("both-ways", shared, ["r1", "r2"], ([a, b]) => [[success(a)], [failed(b)]]);

  expect(await statusesOf("both-ways")).toEqual({
    "r SUCCEEDED": ROUNDS,
    "r FAILED": ROUNDS,
    "d CANCELED": 16 * ROUNDS,
  });
});

test("two completions that each release a dependent of their own", async () => {
  const graph = { r1: [], r2: [], d1: ["r1"], d2: ["r2"] };
  await race("own", graph, ["r1", "r2"], ([a, b]) => [[success(a)], [success(b)]]);

  expect(await statusesOf("own")).toEqual({ "r SUCCEEDED": 2 * ROUNDS, "d ENQUEUED": 2 * ROUNDS });
});

test("two failures whose cancelled steps lie between each other's, level by level", async () => {
  // Each root cancels every second step of each level, and both lead to the last ones.
  const graph = {
    r1: [],
    r2: [],
    ...numbered(8, (n) => [`d${n}`, [n % 2 === 0 ? "r1" : "r2"]]),
    ...numbered(8, (n) => [`e${n}`, [`d${7 - n}`]]),
    ...numbered(4, (n) => [`f${n}`, [`e${n}`, `e${n + 3}`, `d${n}`]]),
    g: ["f0", "f1?", "f2", "f3?"],
  };
  await race("levels", graph, ["r1", "r2"], ([a, b]) => [[failed(a)], [failed(b)]]);

  expect(await countOf(database, "runledger.workflow_runs where type = 'levels' and errored_count = 23")).toBe(ROUNDS);
});

test("failures on different levels, the lower one first", async () => {
  const graph = {
    top: [],
    side: [],
    ...numbered(6, (n) => [`d${n}`, n === 0 ? ["top"] : [`d${n - 1}`]]),
    e: ["side"],
    ...numbered(6, (n) => [`f${n}`, [`d${5 - n}`, "e"]]),
  };
  await race("cross", graph, ["top", "side"], ([a, b]) => [[failed(b)], [failed(a)]]);

  expect(await countOf(database, "runledger.workflow_runs where type = 'cross' and errored_count = 15")).toBe(ROUNDS);
});

describe("batches that touch the same two runs in opposite order", () => {
  const graph = { r1: [], r2: [], both: ["r1", "r2"], d1: ["r1"], d2: ["r2"] };
  const mixes: [string, (job: ClaimedJob) => Settlement, (job: ClaimedJob) => Settlement][] = [
    ["successes", success, success],
    ["failures", failed, failed],
    ["a-mixture", success, failed],
  ];
  test.each(mixes)("%s", async (type, first, second) => {
    const rounds = Math.ceil(ROUNDS / 2);
    const [left, right] = [
      await claimedRuns(`${type}-left`, graph, rounds),
      await claimedRuns(`${type}-right`, graph, rounds),
    ];

    await inTurns(rounds, async (n) => {
      const [a1, a2] = pair(left[n]);
      const [b1, b2] = pair(right[n]);
      const results = await Promise.all([
        ledger.jobs.settle([first(a1), second(b1)]),
        ledger.jobs.settle([first(b2), second(a2)]),
      ]);
      expect(results.flat().every(({ ok }) => ok)).toBe(true);
    });

    const open = await countOf(
      database,
      "runledger.workflow_steps as s join runledger.workflow_runs as r on r.id = s.run_id where r.type like $1 and s.status = 'BLOCKED'",
      [`${type}-%`],
    );
    expect(open).toBe(0);
  });
});

describe("two that stand before a row in the middle of what both need go on one after the other", () => {
  const ends: [string, (job: ClaimedJob) => Settlement, (job: ClaimedJob) => Settlement][] = [
    ["two successes", success, success],
    ["two failures", failed, failed],
    ["a success and a failure", success, failed],
  ];
  /** Places of the row that is held: rows taken in any other order than all others take them meet at one of them. */
  const places = [2, 5, 8, 10, 12, 14];

  test.each(ends)("steps: %s", async (_, first, second) => {
    for (const place of places) {
      const run = await TestRun.start(database, ledger, shared);
      const [r1, r2] = await run.claimAll("r1", "r2");
      await standing("workflow_steps", (await run.row(`d${place}`)).id, () => [
        ledger.jobs.settle([first(r1)]),
        ledger.jobs.settle([second(r2)]),
      ]);
      expect(Object.values(await run.statuses())).not.toContain("BLOCKED");
    }
  });

  test.each(ends)("runs: %s in each of sixteen", async (type, first, second) => {
    for (const place of places) {
      const runs = await claimedRuns(`${type} ${place}`, { r1: [], r2: [] }, 16);
      await standing("workflow_runs", runs[place]?.[0].lease.workflowRunId ?? "", () => [
        ledger.jobs.settle(runs.map(([r1]) => first(r1))),
        ledger.jobs.settle(runs.map(([, r2]) => second(r2)).reverse()),
      ]);
      expect(
        await countOf(database, "runledger.workflow_runs where type = $1 and ended_at is null", [`${type} ${place}`]),
      ).toBe(0);
    }
  });

  test.each(ends)("jobs: %s and a cancel", async (_, first, second) => {
    const keys = Array.from({ length: 16 }, (_, n) => `r${n}`);
    for (const place of places) {
      const run = await TestRun.start(database, ledger, Object.fromEntries(keys.map((key) => [key, []])));
      const jobs = await run.claimAll(...keys);
      await standing("job_queue", jobs[place]?.lease.jobId ?? "", () => [
        ledger.jobs.settle(jobs.map((job, n) => (n % 2 === 0 ? first(job) : second(job))).reverse()),
        ledger.runs.cancel(run.id, { scope: { global: true } }),
      ]);
      expect((await run.state()).run).not.toBe("RUNNING");
    }
  });

  /** Starts both while the row is held, lets the row go once both wait, and waits for both. */
  async function standing(table: string, id: string, start: () => Promise<unknown>[]): Promise<void> {
    const holder = await database.connect();
    await holder.query("begin");
    await holder.query(`select from runledger.${table} where id = $1 for update`, [id]);
    const both = start();
    await waitForBackend({ client: database.pool, count: 2 });
    await holder.end();
    await Promise.all(both);
  }
});

describe("a completion that waited for another sees what it changed", () => {
  const graph = { good: [], bad: [], both: ["good", "bad"], after: ["both"], any: ["both?"] };

  test("a success behind a failure: the shared dependent is cancelled, not released", async () => {
    const run = await TestRun.start(database, ledger, graph);
    const [good, bad] = await run.claimAll("good", "bad");
    const trx = await openTransaction(database);
    await ledger.in(trx).jobs.fail(bad.lease, failure);

    const completing = ledger.jobs.complete(good.lease);
    await waitForBackend({ client: database.pool, marker: "complete_step_jobs" });
    await trx.commit().execute();
    await completing;

    expect(await run.statuses()).toMatchObject({ both: "CANCELED", after: "CANCELED", any: "ENQUEUED" });
  });

  test("a success behind a failure that rolled back: the shared dependent goes on waiting", async () => {
    const run = await TestRun.start(database, ledger, graph);
    const [good, bad] = await run.claimAll("good", "bad");
    const trx = await openTransaction(database);
    await ledger.in(trx).jobs.fail(bad.lease, failure);

    const completing = ledger.jobs.complete(good.lease);
    await waitForBackend({ client: database.pool, marker: "complete_step_jobs" });
    await trx.rollback().execute();
    await completing;

    expect(await run.statuses()).toEqual({
      good: "SUCCEEDED",
      bad: "ENQUEUED",
      both: "BLOCKED",
      after: "BLOCKED",
      any: "BLOCKED",
    });
    expect(await run.row("both")).toMatchObject({ pending_count: 1, unsatisfied_count: 0 });
  });

  test("a failure behind a success: the shared dependent is cancelled", async () => {
    const run = await TestRun.start(database, ledger, graph);
    const [good, bad] = await run.claimAll("good", "bad");
    const trx = await openTransaction(database);
    await ledger.in(trx).jobs.complete(good.lease);

    const failing = ledger.jobs.fail(bad.lease, failure);
    await waitForBackend({ client: database.pool, marker: "lock_workflow_step_closure_for_update" });
    await trx.commit().execute();
    await failing;

    expect(await run.statuses()).toMatchObject({ both: "CANCELED", after: "CANCELED", any: "ENQUEUED" });
  });

  test("a success behind a success: the shared dependent is released by the second", async () => {
    const run = await TestRun.start(database, ledger, graph);
    const [good, bad] = await run.claimAll("good", "bad");
    const trx = await openTransaction(database);
    await ledger.in(trx).jobs.complete(good.lease);

    const completing = ledger.jobs.complete(bad.lease);
    await waitForBackend({ client: database.pool, marker: "complete_step_jobs" });
    await trx.commit().execute();
    await completing;

    expect(await run.statuses()).toMatchObject({ both: "ENQUEUED", after: "BLOCKED" });
    expect(await run.liveJobs()).toEqual(["both"]);
  });

  test("a failure that reaches further than it looked: what the other failure cancels, it follows too", async () => {
    // `last` only ends `both`; whether `both` is cancelled then, and `deep` with it, the first failure decides.
    const run = await TestRun.start(database, ledger, {
      bad: [],
      last: [],
      both: ["bad", "last?"],
      deep: ["both"],
      deeper: ["deep"],
    });
    const [bad, last] = await run.claimAll("bad", "last");
    const trx = await openTransaction(database);
    await ledger.in(trx).jobs.fail(bad.lease, failure);

    const failing = ledger.jobs.fail(last.lease, failure);
    await waitForBackend({ client: database.pool, marker: "lock_workflow_step_closure_for_update" });
    await trx.commit().execute();
    await failing;

    expect(await run.statuses()).toEqual({
      bad: "FAILED",
      last: "FAILED",
      both: "CANCELED",
      deep: "CANCELED",
      deeper: "CANCELED",
    });
  });
});

type Pair = readonly [ClaimedJob, ClaimedJob];

/** Starts `ROUNDS` runs of the graph and settles two of its steps at the same time, from two sessions, in each. */
async function race(
  type: string,
  steps: Record<string, string[]>,
  keys: readonly [string, string],
  settlements: (jobs: Pair) => readonly Settlement[][],
): Promise<void> {
  const runs = await claimedRuns(type, steps, ROUNDS, keys);
  await inTurns(ROUNDS, async (n) => {
    const results = await Promise.all(settlements(pair(runs[n])).map((batch) => ledger.jobs.settle(batch)));
    expect(results.flat().every(({ ok }) => ok)).toBe(true);
  });
}

/** The claimed jobs of these two steps, run by run. */
async function claimedRuns(
  type: string,
  steps: Record<string, string[]>,
  count: number,
  keys: readonly [string, string] = ["r1", "r2"],
): Promise<Pair[]> {
  const graph: GraphSpec = graphOf(type, steps);
  const runs = await ledger.runs.enqueueMany(Array.from({ length: count }, () => ({ graph })));
  const jobs = new Map<string, ClaimedJob>();
  for (const key of keys) {
    const claimed = await ledger.jobs.claim({ workerId: key, limit: count, types: [`${type}.${key}`] });
    for (const job of claimed) jobs.set(`${job.lease.workflowRunId} ${key}`, job);
  }
  return runs.map(({ id }) => pair([jobs.get(`${id} ${keys[0]}`), jobs.get(`${id} ${keys[1]}`)]));
}

function pair(jobs: readonly (ClaimedJob | undefined)[] | undefined): Pair {
  const [first, second] = jobs ?? [];
  if (first === undefined || second === undefined) throw new Error("the round lacks a job");
  return [first, second];
}

async function inTurns(rounds: number, round: (n: number) => Promise<void>): Promise<void> {
  for (let from = 0; from < rounds; from += AT_ONCE) {
    const numbers = Array.from({ length: Math.min(AT_ONCE, rounds - from) }, (_, n) => from + n);
    await Promise.all(numbers.map(round));
  }
}

/** How many steps of the runs of a type have each status, by the first letter of their keys. */
async function statusesOf(type: string): Promise<Record<string, number>> {
  const { rows } = await database.pool.query<{ what: string; count: string }>(
    `select left(s.step_key, 1) || ' ' || s.status as what, count(*) as count
     from runledger.workflow_steps as s join runledger.workflow_runs as r on r.id = s.run_id
     where r.type = $1 group by 1`,
    [type],
  );
  return Object.fromEntries(rows.map(({ what, count }) => [what, Number(count)]));
}
