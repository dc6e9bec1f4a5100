/** Cancelling runs together with their child runs, and several runs at once (FEATURES F-W9, F-W12, LOCKS.md §3). */
import { afterEach, describe, expect, test } from "@jest/globals";
import type { ClaimedJob, Ledger, Settlement } from "../../src/index.ts";
import { runReleaseKey } from "../../src/locks/key.ts";
import { cancelRuns } from "../../src/runs/cancel.ts";
import { expectInvariants, watchForDeadlocks } from "../invariants.ts";
import { executorOf } from "../jobs/fixtures.ts";
import { createTestDatabase } from "../support/database.ts";
import { waitForBackend } from "../support/waiting.ts";
import { startChild, startChildIn, startParent } from "./children.ts";
import {
  codeOf,
  errorOf,
  failure,
  globally,
  holding,
  ledgerOf,
  openTransaction,
  otherOrganization,
  someOrganization,
  TestRun,
  unknownId,
} from "./fixtures.ts";

const database = await createTestDatabase();
const expectNoDeadlocks = watchForDeadlocks(database);
const ledger = ledgerOf(database);
const executor = executorOf(database.db);

/** RUNLEDGER_RACE_ROUNDS=5000 looks longer. */
const ROUNDS = Math.ceil(Number(process.env.RUNLEDGER_RACE_ROUNDS ?? 200) / 10);

afterEach(async () => {
  await expectInvariants(database);
  expectNoDeadlocks();
});

const waitsFor = (marker: string) => waitForBackend({ client: database.pool, marker: `runledger:${marker} ` });
const waitsForJobs = () => waitsFor("lock_workflow_step_jobs_for_update");
const waitsForRelease = () => waitsFor("lock_workflow_run_release");
const cancel = (run: TestRun, by: Ledger = ledger) => by.runs.cancel(run.id, globally);
const sharing = (run: TestRun) =>
  holding(database, ["select pg_advisory_xact_lock_shared($1)", [String(runReleaseKey(run.id))]]);

/** A parent with its child, and the child's own child. */
async function threeGenerations() {
  const parent = await startParent(database, ledger, { child: [], own: [], next: ["child"], any: ["child?"] });
  const child = await startParentAsChild(parent);
  const grandchild = await startChild(database, ledger, child, "child", { a: [], b: ["a"] });
  return { parent, child, grandchild };
}

/** A child run that has a step for a child run itself: enqueued as one, then given to its parent. */
async function startParentAsChild(parent: TestRun): Promise<TestRun> {
  return startChild(database, ledger, parent, "child", { child: [], a: [], b: ["a"], gate: [] });
}

async function jobOf(run: TestRun, stepKey: string) {
  const { job_id } = await run.row(stepKey);
  const { rows } = await database.pool.query<{ run_number: number; status: string; payload: unknown }>(
    "select run_number, status, payload from runledger.job_queue where id = $1",
    [job_id],
  );
  return rows[0] ?? null;
}

describe("cancel of a parent", () => {
  test("cancels all live descendants with the same reason, and no step of theirs has a job any more", async () => {
    const { parent, child, grandchild } = await threeGenerations();

    expect(await ledger.runs.cancel(parent.id, { ...globally, reason: "all of it" })).toEqual({
      id: parent.id,
      status: "CANCELED",
      canceled: true,
    });

    expect(await parent.state()).toEqual({
      run: "CANCELED",
      steps: { child: "CANCELED", own: "CANCELED", next: "CANCELED", any: "CANCELED" },
    });
    expect(await child.state()).toEqual({
      run: "CANCELED",
      steps: { child: "CANCELED", a: "CANCELED", b: "CANCELED", gate: "CANCELED" },
    });
    expect(await grandchild.state()).toEqual({ run: "CANCELED", steps: { a: "CANCELED", b: "CANCELED" } });
    for (const run of [parent, child, grandchild]) {
      expect(await ledger.runs.get(run.id, globally.scope)).toMatchObject({
        canceledReason: "all of it",
        openCount: 0,
        waitingCount: 0,
      });
      expect(await run.liveJobs()).toEqual([]);
    }
  });

  test("takes as many statements for a family of twelve as for a run alone", async () => {
    const alone = await TestRun.start(database, ledger, { a: [], b: ["a"] });
    const keys = Array.from({ length: 10 }, (_, n) => `child${n}`);
    const parent = await startParent(database, ledger, Object.fromEntries(keys.map((key) => [key, []])));
    for (const key of keys) await startChild(database, ledger, parent, key, { a: [], b: ["a"] });

    const one = await database.record(() => cancel(alone));
    const many = await database.record(() => cancel(parent));

    expect(many.statements).toEqual(one.statements);
    expect(many.statements).toHaveLength(14);
    expect(Object.values(await parent.statuses())).toEqual(keys.map(() => "CANCELED"));
  });

  test("leaves a child that has ended as it is, and takes the job that its end put into the queue", async () => {
    const parent = await startParent(database, ledger, { child: [], other: [] });
    const child = await startChild(database, ledger, parent, "child", { a: [] });
    await child.succeed("a", 1);
    expect(await jobOf(parent, "child")).toMatchObject({ run_number: 2, payload: { childRunId: child.id } });

    expect(await cancel(parent)).toMatchObject({ canceled: true });

    expect((await child.state()).run).toBe("SUCCEEDED");
    expect(await jobOf(parent, "child")).toBeNull();
    expect(await parent.statuses()).toEqual({ child: "CANCELED", other: "CANCELED" });
  });

  test("keeps when the step that waits for its child was started", async () => {
    const parent = await startParent(database, ledger, { child: [] });
    await startChild(database, ledger, parent, "child", { a: [] });
    const before = await parent.row("child");

    await cancel(parent);

    expect(await parent.row("child")).toMatchObject({ started_at: before.started_at, status: "CANCELED" });
    expect(before.started_at).toBeInstanceOf(Date);
  });

  test("is taken back with the caller's transaction, in the child too", async () => {
    const { parent, child, grandchild } = await threeGenerations();
    const before = await Promise.all([parent.state(), child.state(), grandchild.state()]);
    const trx = await openTransaction(database);

    await cancel(parent, ledger.in(trx));
    await trx.rollback().execute();

    expect(await Promise.all([parent.state(), child.state(), grandchild.state()])).toEqual(before);
    await grandchild.succeed("a");
  });
});

describe("cancel of a child alone", () => {
  test("puts its parent's step back into the queue under the next run number, and announces it", async () => {
    const { parent, child, grandchild } = await threeGenerations();
    const listener = await database.connect();
    const heard: string[] = [];
    listener.on("notification", ({ channel, payload }) => heard.push(`${channel} ${payload}`));
    await listener.query("listen runledger_jobs; listen runledger_runs");

    expect(await cancel(child)).toMatchObject({ canceled: true });

    expect(await grandchild.state()).toMatchObject({ run: "CANCELED" });
    expect(await child.liveJobs()).toEqual([]);
    expect(await parent.state()).toEqual({
      run: "RUNNING",
      steps: { child: "RUNNING", own: "ENQUEUED", next: "BLOCKED", any: "BLOCKED" },
    });
    expect(await jobOf(parent, "child")).toMatchObject({
      run_number: 2,
      status: "PENDING",
      payload: { childRunId: child.id },
    });
    await listener.query("select 1");
    expect(heard.sort()).toEqual(
      ["runledger_jobs ", `runledger_runs ${child.id}`, `runledger_runs ${grandchild.id}`].sort(),
    );
  });

  test("in one call with its parent puts nothing into the queue, whichever of them is named", async () => {
    for (const name of [["parent", "child"], ["child", "parent"], ["parent"]] as const) {
      const family = await threeGenerations();
      const ids = name.map((which) => family[which].id);

      const answers = await cancelRuns(executor, ids, globally);

      expect(answers).toEqual(
        [family.parent, family.child, family.grandchild].map(({ id }) => ({ id, status: "CANCELED", canceled: true })),
      );
      expect(await jobOf(family.parent, "child")).toBeNull();
    }
  });
});

describe("a set of runs", () => {
  test("is cancelled in the round trips of one; those that have ended are answered as they are", async () => {
    const runs = await Promise.all(
      Array.from({ length: 20 }, () => TestRun.start(database, ledger, { a: [], b: ["a"], gate: [] })),
    );
    const ended = await TestRun.start(database, ledger, { a: [] });
    await ended.fail("a");

    const { result, statements } = await database.record(() =>
      cancelRuns(executor, [unknownId, ...runs, ended].map(idOf), { ...globally, reason: "swept" }),
    );

    expect(statements).toHaveLength(14);
    expect(result.map(({ id }) => id)).toEqual([...runs, ended].map(({ id }) => id).sort());
    expect(result.filter(({ canceled }) => canceled)).toHaveLength(20);
    expect(result.find(({ id }) => id === ended.id)).toEqual({
      id: ended.id,
      status: "COMPLETED_WITH_ERRORS",
      canceled: false,
    });
    for (const run of runs) {
      expect(await run.state()).toEqual({
        run: "CANCELED",
        steps: { a: "CANCELED", b: "CANCELED", gate: "CANCELED" },
      });
      expect(await ledger.runs.getStatus(run.id, globally.scope)).toMatchObject({ erroredCount: 3, openCount: 0 });
    }
  });

  test("goes by scope: another tenant's runs are not in the answer and stay as they are", async () => {
    const mine = await startParent(database, ledger, { child: [] }, { organizationId: someOrganization });
    const mineToo = await startChild(database, ledger, mine, "child", { a: [] });
    const theirs = await TestRun.start(database, ledger, { a: [] }, { organizationId: otherOrganization });
    const nobodys = await TestRun.start(database, ledger, { a: [] });

    const answers = await cancelRuns(executor, [mine, theirs, nobodys].map(idOf), {
      scope: { organization: someOrganization },
    });

    expect(answers.map(({ id }) => id)).toEqual([mine.id, mineToo.id]);
    expect((await theirs.state()).run).toBe("RUNNING");
    expect((await nobodys.state()).run).toBe("RUNNING");
    const all = await cancelRuns(executor, [theirs, nobodys].map(idOf), { scope: { admin: true } });
    expect(all.map(({ canceled }) => canceled)).toEqual([true, true]);
  });

  test("that is empty, or of runs that have ended, locks nothing", async () => {
    const ended = await TestRun.start(database, ledger, { a: [] });
    await ended.succeed("a");

    for (const ids of [[], [ended.id], [unknownId]]) {
      const { statements } = await database.record(() => cancelRuns(executor, ids, globally));
      expect(statements).toHaveLength(3);
    }
  });

  test("bad input is refused before anything is sent", async () => {
    const run = await TestRun.start(database, ledger, { a: [] });
    const { statements } = await database.record(async () => {
      expect(await codeOf(cancelRuns(executor, [run.id, "x"], globally))).toBe("input.invalid");
      expect(await codeOf(ledger.runs.cancel("x", globally))).toBe("input.invalid");
      // @ts-expect-error there is no default scope
      expect(await codeOf(ledger.runs.cancel(run.id, {}))).toBe("scope.required");
      expect(await codeOf(ledger.runs.cancel(run.id, { scope: { organization: "nobody" } }))).toBe("scope.required");
    });
    expect(statements).toEqual([]);
  });
});

describe("cancel of a parent against", () => {
  test("the start of a child that came first: the cancel starts over and takes the child with it", async () => {
    const parent = await startParent(database, ledger, { child: [], own: [] });
    let child: TestRun | undefined;
    let canceling: Promise<unknown> | undefined;
    await database.db.transaction().execute(async (trx) => {
      child = await startChildIn(trx, database, ledger, parent, "child", { a: [] });
      canceling = cancel(parent);
      await waitsForJobs();
    });

    expect(await canceling).toMatchObject({ canceled: true });
    expect(await child?.state()).toEqual({ run: "CANCELED", steps: { a: "CANCELED" } });
    expect((await parent.state()).run).toBe("CANCELED");
  });

  test("the start of a child that it meets at the release lock", async () => {
    const parent = await startParent(database, ledger, { child: [], own: [] });
    // Another step's transaction holds the lock while the child is started: the cancel waits for both.
    const other = await sharing(parent);
    let child: TestRun | undefined;
    const trx = await openTransaction(database);
    const canceling = (async () => {
      child = await startChildIn(trx as never, database, ledger, parent, "child", { a: [] });
      const answer = cancel(parent);
      await waitsForJobs();
      await trx.commit().execute();
      await waitsForRelease();
      await other.query("rollback");
      return answer;
    })();

    expect(await canceling).toMatchObject({ canceled: true });
    expect((await child?.state())?.run).toBe("CANCELED");
  });

  test("the start of a child that was rolled back: the step is cancelled as it was", async () => {
    const parent = await startParent(database, ledger, { child: [] });
    const trx = await openTransaction(database);
    await startChildIn(trx as never, database, ledger, parent, "child", { a: [] });

    const canceling = cancel(parent);
    await waitsForJobs();
    await trx.rollback().execute();

    expect(await canceling).toMatchObject({ canceled: true });
    expect(await parent.statuses()).toEqual({ child: "CANCELED" });
  });

  test("the end of its child that came first: the job that this put into the queue is taken", async () => {
    const parent = await startParent(database, ledger, { child: [], own: [] });
    const child = await startChild(database, ledger, parent, "child", { a: [] });
    const trx = await openTransaction(database);
    await ledger.in(trx).jobs.complete((await child.claim("a")).lease, { output: 1 });

    const canceling = cancel(parent);
    await waitsForJobs();
    await trx.commit().execute();

    expect(await canceling).toMatchObject({ canceled: true });
    expect((await child.state()).run).toBe("SUCCEEDED");
    expect(await parent.statuses()).toEqual({ child: "CANCELED", own: "CANCELED" });
    expect(await jobOf(parent, "child")).toBeNull();
  });

  test("the end of its child that comes during it: the lease is lost", async () => {
    const parent = await startParent(database, ledger, { child: [] });
    const child = await startChild(database, ledger, parent, "child", { a: [] });
    const { lease } = await child.claim("a");
    const trx = await openTransaction(database);
    await cancel(parent, ledger.in(trx));

    const completing = codeOf(ledger.jobs.complete(lease));
    await waitsFor("complete_step_jobs");
    await trx.commit().execute();

    expect(await completing).toBe("job.lease_owner_mismatch");
    expect(await jobOf(parent, "child")).toBeNull();
  });

  test("the end of its child that waited for a cancel which rolled back: the parent goes on", async () => {
    const parent = await startParent(database, ledger, { child: [] });
    const child = await startChild(database, ledger, parent, "child", { a: [] });
    const { lease } = await child.claim("a");
    const trx = await openTransaction(database);
    await cancel(parent, ledger.in(trx));

    const failing = ledger.jobs.fail(lease, failure);
    await waitsFor("settle_attempts");
    await trx.rollback().execute();

    expect(await failing).toMatchObject({ status: "DEAD_LETTERED" });
    expect((await child.state()).run).toBe("COMPLETED_WITH_ERRORS");
    expect(await jobOf(parent, "child")).toMatchObject({ run_number: 2, payload: { childRunId: child.id } });
  });

  test("a cancel of its child that came first: the parent's job that it queued is taken", async () => {
    const parent = await startParent(database, ledger, { child: [] });
    const child = await startChild(database, ledger, parent, "child", { a: [] });
    const trx = await openTransaction(database);
    await cancel(child, ledger.in(trx));

    const canceling = cancel(parent);
    await waitsForJobs();
    await trx.commit().execute();

    expect(await canceling).toMatchObject({ canceled: true });
    expect(await parent.statuses()).toEqual({ child: "CANCELED" });
    expect(await jobOf(parent, "child")).toBeNull();
  });

  test("a cancel of its child that comes during it: the child had ended", async () => {
    const { parent, child } = await threeGenerations();
    const trx = await openTransaction(database);
    await cancel(parent, ledger.in(trx));

    const canceling = cancel(child);
    await waitsForJobs();
    await trx.commit().execute();

    expect(await canceling).toEqual({ id: child.id, status: "CANCELED", canceled: false });
    expect(await jobOf(parent, "child")).toBeNull();
  });

  test("a claim batch over parent and child that is held: it waits, and takes both jobs away", async () => {
    const parent = await startParent(database, ledger, { child: [], own: [] });
    const child = await startChild(database, ledger, parent, "child", { a: [], b: [] });
    const types = [`${parent.type}.own`, `${child.type}.a`, `${child.type}.b`];
    const trx = await openTransaction(database);
    const claimed = await ledger.in(trx).jobs.claim({ workerId: "w", limit: 10, types });
    expect(claimed).toHaveLength(3);

    const canceling = cancel(parent);
    await waitsForJobs();
    await trx.commit().execute();

    expect(await canceling).toMatchObject({ canceled: true });
    const beats = await ledger.jobs.heartbeat(claimed.map(({ lease }) => lease));
    expect(beats.map(({ state }) => state)).toEqual(["CANCELED", "CANCELED", "CANCELED"]);
    expect(await ledger.jobs.claim({ workerId: "late", limit: 10, types })).toEqual([]);
  });

  test("a late job of its child, which waits for the lock that the cancel holds: the cancel gives way", async () => {
    const parent = await startParent(database, ledger, { child: [], own: [] });
    const child = await startChild(database, ledger, parent, "child", { a: [], late: ["a"], last: ["late"] });
    const completion = await openTransaction(database);
    await ledger.in(completion).jobs.complete((await child.claim("a")).lease);
    const holder = await sharing(child);
    const canceling = cancel(parent);
    await waitsForJobs();
    await completion.commit().execute();
    await waitsForRelease();

    const completing = ledger.jobs.complete((await child.claim("late")).lease);
    await waitsFor("lock_workflow_run_release_shared");
    await holder.query("rollback");

    expect(await completing).toMatchObject({ status: "SUCCEEDED" });
    expect(await canceling).toMatchObject({ canceled: true });
    expect(await child.statuses()).toEqual({ a: "SUCCEEDED", late: "SUCCEEDED", last: "CANCELED" });
  });
});

describe("two that meet go on one after the other, wherever they stand", () => {
  const tables = ["job_queue", "workflow_steps", "workflow_runs"] as const;

  test.each(tables)("cancels of overlapping families named in opposite order: %s", async (table) => {
    for (let place = 0; place < 4; place += 1) {
      const [left, right] = [await threeGenerations(), await threeGenerations()];
      const holder = await holdOne(table, [left, right], place);
      const both = [
        cancelRuns(executor, [left.parent, right.child].map(idOf), globally),
        cancelRuns(executor, [right.parent, left.child].map(idOf), globally),
      ];
      await waitForBackend({ client: database.pool, count: 2 });
      await holder.query("rollback");

      const answers = (await Promise.all(both)).flat();
      for (const { parent, child, grandchild } of [left, right]) {
        for (const run of [parent, child, grandchild]) {
          expect((await run.state()).run).toBe("CANCELED");
          expect(answers.filter(({ id, canceled }) => id === run.id && canceled)).toHaveLength(1);
        }
      }
    }
  });

  test("cancels of overlapping families at the release locks", async () => {
    const [left, right] = [await threeGenerations(), await threeGenerations()];
    const holder = await sharing(right.grandchild);
    const both = [
      cancelRuns(executor, [left.parent, right.child].map(idOf), globally),
      cancelRuns(executor, [right.parent, left.child].map(idOf), globally),
    ];
    await waitForBackend({ client: database.pool, count: 2 });
    await holder.query("rollback");

    const answers = (await Promise.all(both)).flat();
    expect(answers.filter(({ canceled }) => canceled)).toHaveLength(6);
  });

  const ends: [string, (job: ClaimedJob) => Settlement][] = [
    ["successes", ({ lease }) => ({ lease, success: {} })],
    ["failures", ({ lease }) => ({ lease, failure })],
  ];
  test.each(ends)(
    "a cancel of a set and batches of %s that touch the same two runs in opposite order",
    async (_, settlement) => {
      for (let place = 0; place < 4; place += 1) {
        const runs = [await pairOfRoots(), await pairOfRoots()] as const;
        const [a1, b1] = await runs[0].claimAll("a", "b");
        const [a2, b2] = await runs[1].claimAll("a", "b");
        const held = [a1, b1, a2, b2][place];
        const holder = await holding(database, [
          "select from runledger.job_queue where id = $1 for update",
          [held?.lease.jobId],
        ]);
        const batches = [ledger.jobs.settle([a1, b2].map(settlement)), ledger.jobs.settle([a2, b1].map(settlement))];
        const canceling = cancelRuns(executor, [...runs].reverse().map(idOf), globally);
        await waitForBackend({ client: database.pool, count: 2 });
        await holder.query("rollback");

        expectSettledOrLost((await Promise.all(batches)).flat());
        expect((await canceling).every(({ status }) => status !== "RUNNING")).toBe(true);
        for (const run of runs) expect(await run.liveJobs()).toEqual([]);
      }
    },
  );
});

test("cancels of overlapping sets, of children and batches all at once: all get through", async () => {
  for (let round = 0; round < ROUNDS; round += 1) {
    const [left, right] = [await threeGenerations(), await threeGenerations()];
    const jobs = await Promise.all([
      left.parent.claim("own"),
      right.child.claim("a"),
      right.grandchild.claim("a"),
      left.grandchild.claim("a"),
    ]);
    const [one, two, three, four] = jobs.map(({ lease }) => ({ lease, success: {} }));
    if (!one || !two || !three || !four) throw new Error("a job is missing");

    const [first, second, third, ...batches] = await Promise.all([
      cancelRuns(executor, [left.parent, right.parent].map(idOf), globally),
      cancelRuns(executor, [right.child, left.grandchild].map(idOf), globally),
      ledger.runs.cancel(left.child.id, globally),
      ledger.jobs.settle([one, two]),
      ledger.jobs.settle([three, four]),
    ]);

    expectSettledOrLost(batches.flat());
    const canceled = [...first, ...second, third].filter((answer) => answer.canceled).map(({ id }) => id);
    expect(new Set(canceled).size).toBe(canceled.length);
    for (const run of [left, right].flatMap(({ parent, child, grandchild }) => [parent, child, grandchild])) {
      expect((await run.state()).run).toBe("CANCELED");
      expect(await run.liveJobs()).toEqual([]);
    }
  }
});

test("the bound of the waits holds for a family too, with nothing written", async () => {
  const { parent, child, grandchild } = await threeGenerations();
  const before = await Promise.all([parent.state(), child.state(), grandchild.state()]);
  const holder = await sharing(grandchild);

  const error = await errorOf(cancel(parent, ledgerOf(database, { lockWaitMs: 40 })));

  expect(error).toMatchObject({ code: "db.lock_timeout", retryable: true, sqlstate: "55P03" });
  await holder.query("rollback");
  expect(await Promise.all([parent.state(), child.state(), grandchild.state()])).toEqual(before);
});

function idOf(run: TestRun | string): string {
  return typeof run === "string" ? run : run.id;
}

function pairOfRoots(): Promise<TestRun> {
  return TestRun.start(database, ledger, { a: [], b: [], both: ["a", "b"], any: ["a?", "b?"] });
}

function expectSettledOrLost(results: readonly { readonly ok: boolean; readonly error?: { readonly code: string } }[]) {
  for (const result of results) {
    if (!result.ok) expect(result.error?.code).toMatch(/^(job\.lease_owner_mismatch|workflow\.release_conflict)$/);
  }
}

type Family = Awaited<ReturnType<typeof threeGenerations>>;

/** Holds one of the rows that a cancel of either parent and a cancel of either child need. */
async function holdOne(table: string, families: readonly Family[], place: number) {
  const ids = families.flatMap(({ child, grandchild }) => [child.id, grandchild.id]);
  const column = { job_queue: "workflow_run_id", workflow_steps: "run_id", workflow_runs: "id" }[table];
  const { rows } = await database.pool.query<{ id: string }>(
    `select id from runledger.${table} where ${column} = any($1) order by id`,
    [ids],
  );
  const id = rows[Math.floor(((place + 1) * rows.length) / 5)]?.id;
  return holding(database, [`select from runledger.${table} where id = $1 for update`, [id]]);
}
