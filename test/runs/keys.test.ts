/** Keys of runs: idempotency keys that expire, and active keys that a run holds until it ends (FEATURES F-J3, F-J12). */
import { afterEach, describe, expect, test } from "@jest/globals";
import type { Ledger, RunOptions } from "../../src/index.ts";
import { expectInvariants, watchForDeadlocks } from "../invariants.ts";
import { createTestDatabase } from "../support/database.ts";
import { waitForBackend } from "../support/waiting.ts";
import {
  codeOf,
  countOf,
  errorOf,
  globally,
  graphOf,
  ledgerOf,
  openTransaction,
  otherOrganization,
  someOrganization,
  TestRun,
} from "./fixtures.ts";
import { deadlineIsPast } from "./timed.ts";

const database = await createTestDatabase();
const expectNoDeadlocks = watchForDeadlocks(database);
const ledger = ledgerOf(database);

afterEach(async () => {
  await expectInvariants(database);
  expectNoDeadlocks();
});

const active = { active: { key: "k" } } as const;
const enqueue = (type: string, options: RunOptions = active, l: Ledger = ledger) =>
  l.runs.enqueue(graphOf(type, { a: [], b: ["a"] }), options);
const runOf = async (type: string, options: RunOptions = active) =>
  new TestRun(database, ledger, (await enqueue(type, options)).id, type);
const runsOf = (type: string) => countOf(database, "runledger.workflow_runs where type = $1", [type]);
const liveRunsOf = (type: string) =>
  countOf(database, "runledger.workflow_runs where type = $1 and ended_at is null", [type]);
const waiting = () => waitForBackend({ client: database.pool, marker: "runledger:enqueue_keyed_workflow_runs" });

/** What a run of the type has in the tables, by kind. */
async function rowsOf(type: string) {
  const { rows } = await database.pool.query(
    `select count(distinct r.id)::int as runs, count(distinct s.id)::int as steps, count(distinct q.id)::int as jobs
     from runledger.workflow_runs r left join runledger.workflow_steps s on s.run_id = r.id
     left join runledger.job_queue q on q.workflow_run_id = r.id where r.type = $1`,
    [type],
  );
  return rows[0];
}

describe("an active key", () => {
  test("gives the live run while there is one, whatever its graph", async () => {
    const first = await enqueue("live");
    expect(first).toMatchObject({ status: "RUNNING", disposition: "inserted" });

    const other = await ledger.runs.enqueue(graphOf("live", { gate: [] }), active);

    expect(other).toEqual({ ...first, disposition: "existing_active" });
    expect(await rowsOf("live")).toEqual({ runs: 1, steps: 2, jobs: 1 });
  });

  const ends: readonly [string, (run: TestRun) => Promise<unknown>][] = [
    ["success", async (run) => [await run.succeed("a"), await run.succeed("b")]],
    ["end with errors", (run) => run.fail("a")],
    ["cancel", (run) => ledger.runs.cancel(run.id, globally)],
    ["cancel by filter", (run) => ledger.runs.cancelMany({ ...globally, filter: { ids: [run.id] } })],
    [
      "deadline",
      async (run) => {
        await deadlineIsPast(database, run);
        await ledger.runs.fireTimers();
      },
    ],
  ];

  test.each(ends)("is free after a run's %s", async (name, end) => {
    const type = `ends-${name}`;
    const run = await runOf(type, { ...active, deadlineSeconds: 3600 });
    expect(await enqueue(type)).toMatchObject({ id: run.id, disposition: "existing_active" });

    await end(run);

    expect(await enqueue(type)).toMatchObject({ disposition: "inserted" });
    expect(await liveRunsOf(type)).toBe(1);
  });

  test("is held while the run waits for a gate", async () => {
    const { id } = await ledger.runs.enqueue(graphOf("gated", { gate: [] }), active);

    expect(await enqueue("gated")).toEqual({
      id,
      status: "WAITING_FOR_EXTERNAL",
      disposition: "existing_active",
    });
  });

  test("belongs to its workflow type and its tenant", async () => {
    const scopes: RunOptions[] = [{}, { organizationId: someOrganization }, { organizationId: otherOrganization }];
    const requests = [...scopes.map((scope) => ["scoped", scope] as const), ["scoped-other", {}] as const].map(
      ([type, scope]) => ({ graph: graphOf(type, { a: [] }), ...active, ...scope }),
    );

    const runs = await ledger.runs.enqueueMany(requests);
    const again = await ledger.runs.enqueueMany(requests);

    expect(runs.every(({ disposition }) => disposition === "inserted")).toBe(true);
    expect(again).toEqual(runs.map((run) => ({ ...run, disposition: "existing_active" })));
  });

  test("is no idempotency key, and not to be had together with one", async () => {
    const one = await enqueue("kinds", { idempotencyKey: "k" });
    const two = await enqueue("kinds");

    expect(two).toMatchObject({ disposition: "inserted" });
    expect(two.id).not.toBe(one.id);
    expect(await codeOf(enqueue("kinds", { idempotencyKey: "k", ...active }))).toBe("input.invalid");
  });

  test("in a batch of 1000: some new, some taken, some named twice, some without", async () => {
    const requests = Array.from({ length: 1000 }, (_, n) => ({
      graph: graphOf("thousand", { a: [] }),
      ...(n % 10 === 9 ? {} : { active: { key: `k-${n % 500}` } }),
    }));
    const old = await ledger.runs.enqueueMany(requests.slice(0, 100).reverse());

    const runs = await ledger.runs.enqueueMany(requests);

    const ids = new Map(old.reverse().map(({ id }, n) => [n, id]));
    for (const [n, { id, disposition }] of runs.entries()) {
      const without = n % 10 === 9;
      if (without) expect(disposition).toBe("inserted");
      else if (n < 100) expect([id, disposition]).toEqual([ids.get(n), "existing_active"]);
      else expect(disposition).toBe(n < 500 ? "inserted" : "existing_active");
      if (n >= 500 && !without) expect(id).toBe(runs[n - 500]?.id);
    }
    expect(await runsOf("thousand")).toBe(450 + 100 + 10);
  });

  test("goes together with idempotency keys in one batch", async () => {
    const graph = graphOf("mixed", { a: [] });
    const requests = [{ graph, idempotencyKey: "k" }, { graph, ...active }, { graph }];
    await ledger.runs.enqueueMany(requests);

    const again = await ledger.runs.enqueueMany([...requests].reverse());

    expect(again.map(({ disposition }) => disposition)).toEqual(["inserted", "existing_active", "existing"]);
    expect(await runsOf("mixed")).toBe(4);
  });
});

describe("a run that lives again", () => {
  test("retried in place holds its key again", async () => {
    const run = await runOf("retried");
    await run.fail("a");
    await ledger.runs.retry(run.id, globally);

    expect(await enqueue("retried")).toMatchObject({ id: run.id, disposition: "existing_active" });
  });

  test.each(["retry", "recover", "rerun"] as const)("cannot, by %s, while another one holds its key", async (again) => {
    const type = `taken-${again}`;
    const run = await runOf(type);
    await run.fail("a");
    const other = await enqueue(type);
    const before = await rowsOf(type);

    const options = { ...globally, key: "again" };
    const error = await errorOf(
      again === "rerun" ? ledger.runs.rerun(run.id, { ...options, from: "a" }) : ledger.runs[again](run.id, options),
    );

    expect(error).toMatchObject({ code: "workflow.active_key_taken", category: "conflict", retryable: false });
    expect(await rowsOf(type)).toEqual(before);
    await ledger.runs.cancel(other.id, globally);
    await ledger.runs.retry(run.id, globally);
    expect(await enqueue(type)).toMatchObject({ id: run.id });
  });

  test.each(["recover", "rerun"] as const)("as a new run, by %s, holds the key", async (again) => {
    const type = `renewed-${again}`;
    const run = await runOf(type);
    await run.fail("a");

    const made = await ledger.runs[again](run.id, { ...globally, key: "again", from: "a" });

    expect(await enqueue(type)).toMatchObject({ id: made.id, disposition: "existing_active" });
  });
});

describe("two sessions at one active key", () => {
  test.each(["commit", "rollback"] as const)("who finds a run in the making waits, and goes by its %s", async (end) => {
    const type = `making-${end}`;
    const trx = await openTransaction(database);
    const first = await enqueue(type, active, ledger.in(trx));

    const second = enqueue(type);
    await waiting();
    await trx[end]().execute();

    expect((await second).disposition).toBe(end === "commit" ? "existing_active" : "inserted");
    expect((await second).id === first.id).toBe(end === "commit");
    expect(await rowsOf(type)).toEqual({ runs: 1, steps: 2, jobs: 1 });
  });

  test.each(["commit", "rollback"] as const)("who finds a run that is about to end goes by its %s", async (end) => {
    const type = `ending-${end}`;
    const run = await runOf(type);
    const { lease } = await run.claim("a");
    const trx = await openTransaction(database);
    await ledger.in(trx).jobs.fail(lease, { kind: "TERMINAL", code: "no", message: "no" });

    const second = enqueue(type);
    await waiting();
    await trx[end]().execute();

    expect(await second).toMatchObject(
      end === "commit" ? { disposition: "inserted" } : { id: run.id, disposition: "existing_active" },
    );
    expect(await liveRunsOf(type)).toBe(1);
  });

  test("40 at once: one inserts, the others get its run", async () => {
    const runs = await Promise.all(Array.from({ length: 40 }, () => enqueue("stampede")));

    expect(runs.filter(({ disposition }) => disposition === "inserted")).toHaveLength(1);
    expect(new Set(runs.map(({ id }) => id)).size).toBe(1);
    expect(await rowsOf("stampede")).toEqual({ runs: 1, steps: 2, jobs: 1 });
  });

  test("batches in opposite order neither deadlock nor insert twice", async () => {
    const requests = Array.from({ length: 60 }, (_, n) => ({
      graph: graphOf(`opposite-${n % 3}`, { a: [] }),
      active: { key: `k-${n}` },
    }));

    const batches = await Promise.all(
      Array.from({ length: 10 }, (_, n) => ledger.runs.enqueueMany(n % 2 === 0 ? requests : [...requests].reverse())),
    );

    expect(batches.flat().filter(({ disposition }) => disposition === "inserted")).toHaveLength(60);
    expect(new Set(batches.flat().map(({ id }) => id)).size).toBe(60);
  });

  test("the wait is bounded", async () => {
    const trx = await openTransaction(database);
    await enqueue("bounded", active, ledger.in(trx));

    expect(await codeOf(enqueue("bounded", active, ledgerOf(database, { lockWaitMs: 50 })))).toBe("db.lock_timeout");
    await trx.rollback().execute();
  });
});

describe("an idempotency key with a time to live", () => {
  const keyed = (type: string, options: RunOptions = {}, l: Ledger = ledger) =>
    enqueue(type, { idempotencyKey: "k", idempotencyTtlSeconds: 60, ...options }, l);
  const age = (type: string, seconds: number) =>
    database.pool.query(
      "update runledger.workflow_idempotency_keys set expires_at = expires_at - make_interval(secs => $2) where type = $1",
      [type, seconds],
    );

  test("gives its run until the time has passed, and then a new one", async () => {
    const first = await keyed("ages");
    await age("ages", 59);
    expect(await keyed("ages", { idempotencyTtlSeconds: 7200 })).toEqual({ ...first, disposition: "existing" });

    await age("ages", 1);
    const second = await keyed("ages");

    expect(second).toMatchObject({ disposition: "inserted" });
    expect(await keyed("ages")).toEqual({ ...second, disposition: "existing" });
    expect(await runsOf("ages")).toBe(2);
  });

  test("compares requests while it lives, and not after", async () => {
    await keyed("compares");
    expect(await codeOf(keyed("compares", { deadlineSeconds: 60 }))).toBe("workflow.enqueue_conflicting_retry");

    await age("compares", 60);
    expect(await keyed("compares", { deadlineSeconds: 60 })).toMatchObject({ disposition: "inserted" });
  });

  test.each(["commit", "rollback"] as const)(
    "that has expired: the second session goes by the first's %s",
    async (end) => {
      const type = `raced-${end}`;
      await keyed(type);
      await age(type, 60);
      const trx = await openTransaction(database);
      const first = await keyed(type, {}, ledger.in(trx));

      const second = keyed(type);
      await waiting();
      await trx[end]().execute();

      expect((await second).disposition).toBe(end === "commit" ? "existing" : "inserted");
      expect((await second).id === first.id).toBe(end === "commit");
    },
  );

  test("needs a key, and a time above 0", async () => {
    expect(await codeOf(enqueue("refused", { idempotencyTtlSeconds: 60 }))).toBe("input.invalid");
    expect(await codeOf(keyed("refused", { idempotencyTtlSeconds: 0 }))).toBe("input.invalid");
  });
});
