/** Lists of jobs and runs: filtered, scoped, in pages that neither lose nor repeat one (FEATURES F-H3). */
import { afterEach, describe, expect, test } from "@jest/globals";
import { createLedger, type ListJobsOptions, type ListRunsOptions, type Scope } from "../../src/index.ts";
import { expectInvariants } from "../invariants.ts";
import { claimedOne, codeOf, leased } from "../jobs/fixtures.ts";
import { otherOrganization, someOrganization, TestRun } from "../runs/fixtures.ts";
import { createTestDatabase } from "../support/database.ts";

const database = await createTestDatabase();
const ledger = createLedger({ db: database.db });
const scope = { admin: true } as const;

afterEach(() => expectInvariants(database));

const idsOf = async (options: Partial<ListJobsOptions>) =>
  (await ledger.jobs.list({ scope, ...options })).jobs.map(({ id }) => id);
const runIdsOf = async (options: Partial<ListRunsOptions>) =>
  (await ledger.runs.list({ scope, ...options })).runs.map(({ id }) => id);

/** Nobody claims it. */
const runAt = "2999-01-01T00:00:00Z";

/** A job in each status, the oldest first. */
async function oneOfEach(type: string, organizationId?: string) {
  const options = organizationId === undefined ? {} : { organizationId };
  const succeeded = (await leased(ledger, type, options)).lease;
  await ledger.jobs.complete(succeeded);
  const dead = (await leased(ledger, type, options)).lease;
  await ledger.jobs.fail(dead, { kind: "TERMINAL", code: "no", message: "not so" });
  const canceled = await ledger.jobs.enqueue(type, {}, options);
  await ledger.jobs.cancel(canceled.id, { scope, reason: "why" });
  const held = (await leased(ledger, type, options)).lease;
  const pending = await ledger.jobs.enqueue(type, { n: 1 }, { ...options, tags: ["red", "blue"], runAt });
  return {
    SUCCEEDED: succeeded.jobId,
    DEAD_LETTERED: dead.jobId,
    CANCELED: canceled.id,
    LEASED: held.jobId,
    PENDING: pending.id,
  } as const;
}

describe("jobs", () => {
  test("are listed whatever their status, the newest first, and by each status", async () => {
    const ids = await oneOfEach("each");
    const newest = Object.values(ids).reverse();

    expect(await idsOf({ type: "each" })).toEqual(newest);
    for (const status of ["SUCCEEDED", "DEAD_LETTERED", "CANCELED", "LEASED", "PENDING"] as const) {
      expect(await idsOf({ type: "each", status })).toEqual([ids[status]]);
      expect(await idsOf({ status })).toContain(ids[status]);
    }
    expect((await idsOf({})).slice(0, 5)).toEqual(newest);
  });

  test("are seen in their scope only, by whichever index they are found", async () => {
    const [mine, others, global] = [
      await oneOfEach("scoped", someOrganization),
      await oneOfEach("scoped", otherOrganization),
      await oneOfEach("scoped"),
    ];
    const scopes: [Scope, Record<string, string>][] = [
      [{ organization: someOrganization }, mine],
      [{ organization: otherOrganization }, others],
      [{ global: true }, global],
    ];
    for (const [own, ids] of scopes) {
      expect(await idsOf({ scope: own, type: "scoped" })).toEqual(Object.values(ids).reverse());
      for (const [status, id] of Object.entries(ids)) {
        const options = { scope: own, status: status as keyof typeof mine };
        expect(await idsOf({ ...options, type: "scoped" })).toEqual([id]);
        expect((await idsOf(options))[0]).toBe(id);
      }
    }
    expect(await idsOf({ type: "scoped" })).toHaveLength(15);
  });

  test("come with what a list needs, and with their payload when it is asked for", async () => {
    const ids = await oneOfEach("shown");
    const [pending, , , dead] = (await ledger.jobs.list({ scope, type: "shown", payload: true })).jobs;

    expect(pending).toMatchObject({ id: ids.PENDING, status: "PENDING", endedAt: null, payload: { n: 1 } });
    expect(pending?.tags).toEqual(["red", "blue"]);
    expect(dead).toMatchObject({ failureKind: "TERMINAL", errorCode: "no", errorMessage: "not so", attempt: 1 });
    const [bare] = (await ledger.jobs.list({ scope, type: "shown" })).jobs;
    const {
      payload: _payload,
      checkpoint: _checkpoint,
      output: _output,
      ...summary
    } = await ledger.jobs.get(ids.PENDING, scope);
    expect(bare).toEqual(summary);
  });

  test("are found by a tag, live or ended", async () => {
    const { lease } = await leased(ledger, "tagged", { tags: ["green"] });
    await ledger.jobs.complete(lease);
    const live = await ledger.jobs.enqueue("tagged", {}, { tags: ["green", "blue"] });
    await ledger.jobs.enqueue("tagged", {}, { tags: ["greenish"] });

    expect(await idsOf({ tag: "green" })).toEqual([live.id, lease.jobId]);
    expect(await idsOf({ tag: "green", status: "SUCCEEDED" })).toEqual([lease.jobId]);
  });

  test("are found by when they were enqueued: from a time on, and before another", async () => {
    const at = (ms: number) => new Date(Date.UTC(2031, 0, 1) + ms);
    const idAt = (ms: number) =>
      `${at(ms)
        .getTime()
        .toString(16)
        .padStart(12, "0")
        .replace(/^(.{8})/, "$1-")}-7000-8000-000000000000`;
    const ids = [0, 1, 2, 3].map(idAt);
    for (const id of ids) {
      await database.pool.query(
        `insert into runledger.job_queue (id, type, priority, run_at, max_attempts, timeout_seconds, payload)
         values ($1, 'timed', 0, now(), 1, 1, '{}')`,
        [id],
      );
    }
    await ledger.jobs.complete((await claimedOne(ledger, "timed")).lease);

    expect(await idsOf({ enqueuedBetween: { from: at(1), to: at(3) }, type: "timed" })).toEqual([ids[2], ids[1]]);
    expect(await idsOf({ enqueuedBetween: { from: at(2) }, type: "timed" })).toEqual([ids[3], ids[2]]);
    expect(await idsOf({ enqueuedBetween: { to: at(1).toISOString() }, type: "timed" })).toEqual([ids[0]]);
    await database.pool.query("update runledger.job_queue set run_at = now() where type = 'timed'");
    for (let n = 0; n < 3; n += 1) await ledger.jobs.complete((await claimedOne(ledger, "timed")).lease);
  });

  test("come in pages of which each is the next, whatever is enqueued and ends meanwhile", async () => {
    const all = [await oneOfEach("paged"), await oneOfEach("paged")].flatMap((ids) => Object.values(ids)).reverse();
    const first = await ledger.jobs.list({ scope, type: "paged", limit: 4 });
    await ledger.jobs.enqueue("paged", {});
    const { id } = (await ledger.jobs.list({ scope, type: "paged", status: "PENDING" })).jobs.at(-1) ?? { id: "" };
    await ledger.jobs.cancel(id, { scope });
    const second = await ledger.jobs.list({ scope, type: "paged", limit: 4, after: first.next ?? "" });
    const third = await ledger.jobs.list({ scope, type: "paged", limit: 4, after: second.next ?? "" });

    expect([first, second, third].flatMap(({ jobs }) => jobs.map((job) => job.id))).toEqual(all);
    expect([first.jobs.length, second.jobs.length, third.jobs.length]).toEqual([4, 4, 2]);
    expect(third.next).toBeNull();
  });

  test("a page that is exactly the last one has no next", async () => {
    await ledger.jobs.enqueueMany([1, 2].map((payload) => ({ type: "exact", payload })));
    expect((await ledger.jobs.list({ scope, type: "exact", limit: 2 })).next).toBeNull();
  });

  test("a job that is live again is listed once, and is no dead letter", async () => {
    const run = await TestRun.start(database, ledger, { a: [] });
    const type = `${run.type}.a`;
    await run.fail("a");
    const [dead] = (await ledger.jobs.deadLetters({ scope, type })).jobs;
    expect(dead).toMatchObject({ status: "DEAD_LETTERED", workflowRunId: run.id });
    expect(await deadInView(type)).toEqual([dead?.id]);
    await ledger.runs.retry(run.id, { scope });

    expect((await ledger.jobs.deadLetters({ scope, type })).jobs).toEqual([]);
    expect(await deadInView(type)).toEqual([]);
    expect((await ledger.jobs.list({ scope, type })).jobs).toMatchObject([{ status: "PENDING", runNumber: 2 }]);
    await run.succeed("a");
    expect((await ledger.jobs.list({ scope, type })).jobs).toMatchObject([{ status: "SUCCEEDED", runNumber: 2 }]);
    expect((await ledger.jobs.deadLetters({ scope, type })).jobs).toEqual([]);
    expect(await deadInView(type)).toEqual([]);
  });

  test.each([
    [{ status: "DONE" as "PENDING" }],
    [{ type: "" }],
    [{ tag: " " }],
    [{ limit: 0 }],
    [{ limit: 10_001 }],
    [{ after: "x" }],
    [{ after: "" }],
    [{ enqueuedBetween: { from: "yesterday" } }],
  ])("%j is refused", async (options) => {
    expect(await codeOf(() => ledger.jobs.list({ scope, ...options }))).toBe("input.invalid");
  });

  test("a list without a scope is refused", async () => {
    expect(await codeOf(() => ledger.jobs.list({} as ListJobsOptions))).toBe("scope.required");
    expect(await codeOf(() => ledger.runs.list({} as ListRunsOptions))).toBe("scope.required");
  });
});

describe("runs", () => {
  test("are listed whatever their status, the newest first, and by each status", async () => {
    const ids = await runOfEach();
    expect((await runIdsOf({})).slice(0, 5)).toEqual(Object.values(ids).reverse());
    for (const [status, id] of Object.entries(ids)) {
      expect((await runIdsOf({ status: status as keyof typeof ids }))[0]).toBe(id);
    }
    const run = await ledger.runs.get(ids.CANCELED, scope);
    const { steps: _steps, resultStep: _result, ...summary } = run;
    expect((await ledger.runs.list({ scope, type: run.type })).runs).toEqual([summary]);
  });

  test("are seen in their scope only, by whichever index they are found", async () => {
    const [mine, others] = [await runOfEach(someOrganization), await runOfEach(otherOrganization)];
    for (const [organization, ids] of [
      [someOrganization, mine],
      [otherOrganization, others],
    ] as const) {
      const own = { organization };
      expect(await runIdsOf({ scope: own })).toEqual(Object.values(ids).reverse());
      for (const [status, id] of Object.entries(ids)) {
        expect(await runIdsOf({ scope: own, status: status as keyof typeof ids })).toEqual([id]);
      }
    }
    expect(await runIdsOf({ scope: { global: true } })).not.toContain(mine.RUNNING);
  });

  test("come in pages of which each is the next, in every status", async () => {
    for (const status of [undefined, "RUNNING", "CANCELED", "SUCCEEDED"] as const) {
      const options = status === undefined ? {} : { status };
      const all = await runIdsOf(options);
      const paged: string[] = [];
      for (let after: string | null | undefined; after !== null; ) {
        const page = await ledger.runs.list({ scope, ...options, limit: 2, ...(after === undefined ? {} : { after }) });
        paged.push(...page.runs.map(({ id }) => id));
        after = page.next;
      }
      expect(paged).toEqual(all);
      expect(all.length).toBeGreaterThan(2);
    }
  });

  test.each([[{ status: "DONE" as "RUNNING" }], [{ type: "" }], [{ limit: 0 }], [{ after: "x" }]])(
    "%j is refused",
    async (options) => {
      expect(await codeOf(() => ledger.runs.list({ scope, ...options }))).toBe("input.invalid");
    },
  );
});

async function deadInView(type: string): Promise<string[]> {
  const { rows } = await database.pool.query("select id from runledger.job_dead_letters where type = $1", [type]);
  return rows.map(({ id }) => id);
}

async function runOfEach(organizationId?: string) {
  const options = organizationId === undefined ? {} : { organizationId };
  const start = (steps: Record<string, string[]>) => TestRun.start(database, ledger, steps, options);
  const [succeeded, failed, canceled, waiting, running] = [
    await start({ a: [] }),
    await start({ a: [] }),
    await start({ a: [] }),
    await start({ gate: [] }),
    await start({ a: [] }),
  ];
  await succeeded.succeed("a");
  await failed.fail("a");
  await ledger.runs.cancel(canceled.id, { scope });
  return {
    SUCCEEDED: succeeded.id,
    COMPLETED_WITH_ERRORS: failed.id,
    CANCELED: canceled.id,
    WAITING_FOR_EXTERNAL: waiting.id,
    RUNNING: running.id,
  } as const;
}
