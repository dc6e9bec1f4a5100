/** Bulk cancel: what a filter finds, in which batches, and what one run in the way does to the rest (FEATURES F-W9). */
import { afterEach, describe, expect, test } from "@jest/globals";
import { type CancelFilter, type CancelProgress, LedgerError } from "../../src/index.ts";
import { expectInvariants, watchForDeadlocks } from "../invariants.ts";
import { createTestDatabase } from "../support/database.ts";
import { waitForBackend } from "../support/waiting.ts";
import { startChild, startParent } from "./children.ts";
import {
  codeOf,
  countOf,
  errorOf,
  globally,
  graphOf,
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

let types = 0;

/** Runs of a type of their own, in the order of their ids. */
async function started(count: number, options: { organizationId?: string; type?: string } = {}) {
  types += 1;
  const { type = `many-${types}`, ...rest } = options;
  const graph = graphOf(type, { a: [], b: ["a"], gate: [] });
  const runs = await ledger.runs.enqueueMany(Array.from({ length: count }, () => ({ graph, ...rest })));
  return { type, runs: runs.map(({ id }) => new TestRun(database, ledger, id, type)) };
}

async function statusesOf(runs: readonly TestRun[]): Promise<string[]> {
  return Promise.all(runs.map(async (run) => (await run.state()).run));
}

const canceled = (count: number) => ({ canceled: count, alreadyEnded: 0, failed: [] });
const stepHeld = (run: TestRun) =>
  holding(database, ["select from runledger.workflow_steps where run_id = $1 and step_key = 'a' for update", [run.id]]);

describe("a filter", () => {
  test("by type finds the live runs of it and no others; the reason is kept", async () => {
    const { type, runs } = await started(3);
    const { runs: others } = await started(2);
    const ended = new TestRun(database, ledger, (await ledger.runs.enqueue(graphOf(`${type}`, { only: [] }))).id, type);
    await ended.fail("only");

    expect(await ledger.runs.cancelMany({ ...globally, filter: { type }, reason: "swept" })).toEqual(canceled(3));

    expect(await statusesOf(runs)).toEqual(["CANCELED", "CANCELED", "CANCELED"]);
    expect(await statusesOf([...others, ended])).toEqual(["RUNNING", "RUNNING", "COMPLETED_WITH_ERRORS"]);
    expect(await ledger.runs.get(runs[0]?.id ?? "", globally.scope)).toMatchObject({ canceledReason: "swept" });
    for (const run of runs) expect(await run.liveJobs()).toEqual([]);
  });

  test("by status finds runs that wait for somebody, or those that do not", async () => {
    types += 1;
    const type = `by-status-${types}`;
    const { id } = await ledger.runs.enqueue(graphOf(type, { gate: [] }));
    const waiting = new TestRun(database, ledger, id, type);
    const { runs } = await started(2, { type });

    expect(await ledger.runs.cancelMany({ ...globally, filter: { type, statuses: ["WAITING_FOR_EXTERNAL"] } })).toEqual(
      canceled(1),
    );
    expect(await statusesOf([waiting, ...runs])).toEqual(["CANCELED", "RUNNING", "RUNNING"]);
    expect(await ledger.runs.cancelMany({ ...globally, filter: { type, statuses: [] } })).toEqual(canceled(0));
    expect(await ledger.runs.cancelMany({ ...globally, filter: { type, statuses: ["RUNNING"] } })).toEqual(canceled(2));
  });

  test("by time finds what was created in [createdAfter, createdBefore)", async () => {
    const { type, runs } = await started(4);
    for (const [place, run] of runs.entries()) {
      await database.pool.query("update runledger.workflow_runs set created_at = $1 where id = $2", [
        `2026-01-0${place + 1}T00:00:00Z`,
        run.id,
      ]);
    }
    const filter = { type, createdAfter: "2026-01-02T00:00:00Z", createdBefore: new Date("2026-01-04T00:00:00Z") };

    expect(await ledger.runs.cancelMany({ ...globally, filter })).toEqual(canceled(2));
    expect(await statusesOf(runs)).toEqual(["RUNNING", "CANCELED", "CANCELED", "RUNNING"]);
  });

  test("by ids finds those, together with what else is asked for; unknown ones and repeated ones do not count", async () => {
    const { type, runs } = await started(3);
    const { runs: others } = await started(1);
    const ids = [...runs.slice(1), ...others].map(({ id }) => id);

    expect(
      await ledger.runs.cancelMany({ ...globally, filter: { type, ids: [...ids, ...ids, unknownId] }, batchSize: 1 }),
    ).toEqual(canceled(2));
    expect(await statusesOf([...runs, ...others])).toEqual(["RUNNING", "CANCELED", "CANCELED", "RUNNING"]);
    expect(await ledger.runs.cancelMany({ ...globally, filter: { ids: [] } })).toEqual(canceled(0));
  });

  test("that is empty finds all live runs of the scope, and another tenant's stay as they are", async () => {
    const mine = await started(3, { organizationId: someOrganization });
    const more = await started(2, { organizationId: someOrganization });
    const theirs = await started(2, { organizationId: otherOrganization });
    const nobodys = await started(2);
    const scope = { organization: someOrganization };

    expect(await ledger.runs.cancelMany({ scope, filter: { ids: theirs.runs.map(({ id }) => id) } })).toEqual(
      canceled(0),
    );
    expect(await ledger.runs.cancelMany({ scope, filter: {}, batchSize: 2 })).toEqual(canceled(5));
    expect(new Set(await statusesOf([...mine.runs, ...more.runs]))).toEqual(new Set(["CANCELED"]));
    expect(new Set(await statusesOf([...theirs.runs, ...nobodys.runs]))).toEqual(new Set(["RUNNING"]));
    const { canceled: rest } = await ledger.runs.cancelMany({ scope: { admin: true }, filter: {} });
    expect(rest).toBeGreaterThanOrEqual(4);
    expect(await countOf(database, "runledger.workflow_runs where ended_at is null")).toBe(0);
  });
});

describe("bad input is refused before anything is sent", () => {
  const filters: [string, unknown][] = [
    ["missing", undefined],
    ["null", null],
    ["a list", []],
    ["a word", "all"],
    ["misspelt", { tpye: "x" }],
    ["of an undefined type", { type: undefined }],
    ["of a blank type", { type: " " }],
    ["of one status", { statuses: "RUNNING" }],
    ["of an unknown status", { statuses: ["PAUSED"] }],
    ["of a terminal status", { statuses: ["SUCCEEDED"] }],
    ["of one id", { ids: unknownId }],
    ["of a bad id", { ids: [unknownId, "x"] }],
    ["of a bad time", { createdBefore: "yesterday" }],
    ["of another bad time", { createdAfter: 5 }],
  ];
  test.each(filters)("a filter that is %s", async (_, filter) => {
    await expectRefused({ ...globally, filter }, "input.invalid");
  });

  const others: [string, object, string][] = [
    ["no scope", { scope: undefined }, "scope.required"],
    ["half a scope", { scope: { organization: "x" } }, "scope.required"],
    ["a batch of none", { batchSize: 0 }, "input.invalid"],
    ["a batch that is too large", { batchSize: 1001 }, "input.invalid"],
    ["half a run a batch", { batchSize: 0.5 }, "input.invalid"],
    ["a progress that cannot be called", { onProgress: "print" }, "input.invalid"],
  ];
  test.each(others)("%s", async (_, options, code) => {
    await expectRefused({ ...globally, filter: {}, ...options }, code);
  });

  async function expectRefused(options: object, code: string): Promise<void> {
    const { result, statements } = await database.record(() => codeOf(ledger.runs.cancelMany(options as never)));
    expect(result).toBe(code);
    expect(statements).toEqual([]);
  }
});

describe("batches", () => {
  test("are bounded, each is one transaction of the round trips of one cancel, and each is reported", async () => {
    const { type, runs } = await started(25);
    const seen: CancelProgress[] = [];

    const { result, statements } = await database.record(() =>
      ledger.runs.cancelMany({
        ...globally,
        filter: { type },
        batchSize: 10,
        onProgress: async (progress) => {
          seen.push(progress);
          expect(await countOf(database, "runledger.workflow_runs where type = $1 and ended_at is null", [type])).toBe(
            runs.length - progress.done,
          );
        },
      }),
    );

    expect(result).toEqual(canceled(25));
    expect(seen.map(({ done }) => done)).toEqual([10, 20, 25]);
    expect(seen.at(-1)).toEqual({ canceled: 25, alreadyEnded: 0, failed: 0, done: 25 });
    expect(statements.filter((text) => text.includes("runledger:cancel_workflow_runs"))).toHaveLength(3);
    expect(statements.filter((text) => text.startsWith("start transaction"))).toHaveLength(3);
  });

  test("of all types go on where the one before ended", async () => {
    const scope = { organization: unknownId };
    for (let n = 0; n < 4; n += 1) await started(3, { organizationId: unknownId });
    const seen: number[] = [];

    const all = await ledger.runs.cancelMany({
      scope,
      filter: {},
      batchSize: 5,
      onProgress: ({ done }) => {
        seen.push(done);
      },
    });

    expect(all).toEqual(canceled(12));
    expect(seen).toEqual([5, 10, 12]);
  });

  test("do not take in runs that are enqueued after it began", async () => {
    for (const narrow of ["type", "none"]) {
      const { type } = await started(2, { organizationId: otherOrganization });
      const late: TestRun[] = [];
      const answer = await ledger.runs.cancelMany({
        scope: { organization: otherOrganization },
        filter: narrow === "type" ? { type } : {},
        batchSize: 1,
        onProgress: async () => {
          late.push(...(await started(1, { type, organizationId: otherOrganization })).runs);
        },
      });

      expect(await statusesOf(late)).toEqual(["RUNNING", "RUNNING"]);
      expect(answer).toEqual(canceled(2));
      await ledger.runs.cancelMany({ scope: { organization: otherOrganization }, filter: {} });
    }
  });

  test("before one whose progress callback throws stay cancelled, those after are not begun", async () => {
    const { type, runs } = await started(3);
    const stopped = new RangeError("enough");

    const canceling = ledger.runs.cancelMany({
      ...globally,
      filter: { type },
      batchSize: 1,
      onProgress: ({ done }) => {
        if (done === 2) throw stopped;
      },
    });

    await expect(canceling).rejects.toBe(stopped);
    expect(await statusesOf(runs)).toEqual(["CANCELED", "CANCELED", "RUNNING"]);
  });

  test("find a run that ended by itself meanwhile", async () => {
    const { type, runs } = await started(1);
    const trx = await openTransaction(database);
    await ledger.in(trx).runs.cancel(runs[0]?.id ?? "", globally);

    const canceling = ledger.runs.cancelMany({ ...globally, filter: { type } });
    await waitForBackend({ client: database.pool, marker: "lock_workflow_step_jobs_for_update " });
    await trx.commit().execute();

    expect(await canceling).toEqual({ canceled: 0, alreadyEnded: 1, failed: [] });
  });
});

describe("child runs", () => {
  const family = async (organizationId: string) => {
    const parent = await startParent(database, ledger, { child: [], own: [] }, { organizationId });
    return { parent, child: await startChild(database, ledger, parent, "child", { a: [] }) };
  };

  test("go with their parents, and count once wherever the filter finds them", async () => {
    const organization = "0190a5f0-0000-7000-8000-00000000000a";
    for (const batchSize of [1, 2, 100]) {
      for (const narrow of ["parent", "child", "all", "ids"] as const) {
        const { parent, child } = await family(organization);
        const filters: Record<typeof narrow, CancelFilter> = {
          parent: { type: parent.type },
          child: { type: child.type },
          all: {},
          ids: { ids: [child.id, parent.id] },
        };
        const answer = await ledger.runs.cancelMany({ scope: { organization }, filter: filters[narrow], batchSize });

        expect(answer).toEqual(canceled(narrow === "child" ? 1 : 2));
        expect((await child.state()).run).toBe("CANCELED");
        expect((await parent.state()).run).toBe(narrow === "child" ? "RUNNING" : "CANCELED");
        if (narrow === "child") await ledger.runs.cancel(parent.id, { scope: { admin: true } });
      }
    }
  });

  test("are not taken for ended by themselves when a batch is done run by run", async () => {
    const organization = "0190a5f0-0000-7000-8000-00000000000b";
    const { parent, child } = await family(organization);
    const stuck = await started(1, { organizationId: organization });
    const holder = await stepHeld(stuck.runs[0] as TestRun);

    const answer = await ledgerOf(database, { lockWaitMs: 40 }).runs.cancelMany({
      scope: { organization },
      filter: {},
    });

    expect(answer).toMatchObject({ canceled: 2, alreadyEnded: 0, failed: [{ runId: stuck.runs[0]?.id }] });
    expect(await statusesOf([parent, child])).toEqual(["CANCELED", "CANCELED"]);
    await holder.query("rollback");
  });
});

describe("a run that somebody holds", () => {
  test("does not stop the rest of its batch; it is named with its error and is as it was", async () => {
    const { type, runs } = await started(5);
    const [, , stuck] = runs;
    if (stuck === undefined) throw new Error("no run");
    const before = await stuck.state();
    const holder = await stepHeld(stuck);
    const seen: CancelProgress[] = [];

    const answer = await ledgerOf(database, { lockWaitMs: 40 }).runs.cancelMany({
      ...globally,
      filter: { type },
      batchSize: 4,
      onProgress: (progress) => {
        seen.push(progress);
      },
    });

    expect(answer).toMatchObject({ canceled: 4, alreadyEnded: 0, failed: [{ runId: stuck.id }] });
    expect(answer.failed[0]?.error).toMatchObject({ code: "db.lock_timeout", retryable: true });
    expect(answer.failed[0]?.error).toBeInstanceOf(LedgerError);
    expect(seen).toEqual([
      { canceled: 3, alreadyEnded: 0, failed: 1, done: 4 },
      { canceled: 4, alreadyEnded: 0, failed: 1, done: 5 },
    ]);
    expect(await stuck.state()).toEqual(before);
    await holder.query("rollback");
    expect(await ledger.runs.cancelMany({ ...globally, filter: { type } })).toEqual(canceled(1));
  });

  test("for less than the bound is waited for", async () => {
    const { type, runs } = await started(3);
    const holder = await stepHeld(runs[1] as TestRun);

    const canceling = ledger.runs.cancelMany({ ...globally, filter: { type } });
    await waitForBackend({ client: database.pool, marker: "lock_workflow_step_rows_for_update" });
    await holder.query("rollback");

    expect(await canceling).toEqual(canceled(3));
  });
});

describe("in a caller's transaction", () => {
  test("all runs are one batch, in one report, and are taken back with it", async () => {
    const { type, runs } = await started(7);
    const trx = await openTransaction(database);
    const seen: number[] = [];

    const { result, statements } = await database.record(() =>
      ledger.in(trx).runs.cancelMany({
        ...globally,
        filter: { type },
        batchSize: 2,
        onProgress: ({ done }) => {
          seen.push(done);
        },
      }),
    );

    expect(result).toEqual(canceled(7));
    expect(seen).toEqual([7]);
    expect(statements).toHaveLength(15);
    await trx.rollback().execute();
    expect(new Set(await statusesOf(runs))).toEqual(new Set(["RUNNING"]));
    await ledger.runs.cancelMany({ ...globally, filter: { type } });
  });

  test("two that name the same runs in opposite order go on one after the other", async () => {
    const { type, runs } = await started(6);
    const ids = runs.map(({ id }) => id);
    const first = await openTransaction(database);
    expect(await ledger.in(first).runs.cancelMany({ ...globally, filter: { ids: ids.slice(0, 4) } })).toEqual(
      canceled(4),
    );
    const second = database.db
      .transaction()
      .execute((trx) => ledger.in(trx).runs.cancelMany({ ...globally, filter: { ids: [...ids].reverse() } }));
    await waitForBackend({ client: database.pool, marker: "lock_workflow_step_jobs_for_update " });
    await first.commit().execute();

    expect(await second).toEqual({ canceled: 2, alreadyEnded: 4, failed: [] });
    expect(await ledger.runs.cancelMany({ ...globally, filter: { type } })).toEqual(canceled(0));
  });

  test("a run that is held ends the call with its error", async () => {
    const { type, runs } = await started(2);
    await stepHeld(runs[0] as TestRun);
    const canceling = database.db.transaction().execute(async (trx) => {
      await raw(trx, "set local lock_timeout = '40ms'");
      return ledger.in(trx).runs.cancelMany({ ...globally, filter: { type } });
    });

    expect(await errorOf(canceling)).toMatchObject({ code: "db.lock_timeout" });
    expect(await statusesOf(runs)).toEqual(["RUNNING", "RUNNING"]);
  });
});

test("bulk cancels of the same runs, and workers at them, get through together", async () => {
  const { type, runs } = await started(60);
  const work = async (worker: number) => {
    for (;;) {
      const jobs = await ledger.jobs.claim({ workerId: `w${worker}`, limit: 5, types: [`${type}.a`, `${type}.b`] });
      if (jobs.length === 0) return;
      const results = await ledger.jobs.settle(jobs.map(({ lease }) => ({ lease, success: {} })));
      for (const result of results) {
        if (!result.ok) expect(result.error.code).toMatch(/^(job\.lease_owner_mismatch|workflow\.release_conflict)$/);
      }
    }
  };
  const sweep = (batchSize: number) => ledger.runs.cancelMany({ ...globally, filter: { type }, batchSize });

  const [one, two] = await Promise.all([sweep(7), sweep(11), work(1), work(2), work(3)]);

  expect(one.canceled + two.canceled).toBe(60);
  expect([...one.failed, ...two.failed]).toEqual([]);
  expect(new Set(await statusesOf(runs))).toEqual(new Set(["CANCELED"]));
  expect(await countOf(database, "runledger.job_queue where type like $1", [`${type}.%`])).toBe(0);
});
