/** A gate that nobody completes in its time ends as its graph says (FEATURES F-W6). */
import { afterEach, describe, expect, test } from "@jest/globals";
import type { FiredTimers, GateExpiry } from "../../src/index.ts";
import { runReleaseKey } from "../../src/locks/key.ts";
import { expectInvariants, watchForDeadlocks } from "../invariants.ts";
import { codeOf, globally, holding, ledgerOf, openTransaction, raw, TestRun } from "../runs/fixtures.ts";
import { expirePatiently, gatesAreDue, startExpiring } from "../runs/timed.ts";
import { createTestDatabase } from "../support/database.ts";
import { waitForBackend } from "../support/waiting.ts";

const database = await createTestDatabase();
const expectNoDeadlocks = watchForDeadlocks(database);
const ledger = ledgerOf(database);

afterEach(async () => {
  await expectInvariants(database);
  expectNoDeadlocks();
});

const graph = { gate: [], on: ["gate"], any: ["gate?"] };
const start = (expires: Partial<GateExpiry> = {}, steps: Record<string, string[]> = graph) =>
  startExpiring(database, ledger, steps, expires);
/** A run whose gate's time is over. */
const late = async (expires: Partial<GateExpiry> = {}, steps: Record<string, string[]> = graph) => {
  const run = await start(expires, steps);
  await gatesAreDue(database, run);
  return run;
};
/** A run whose gate puts out what a map step fans out over. */
async function mapped(expires: Partial<GateExpiry>): Promise<TestRun> {
  const { id } = await ledger.runs.enqueue({
    type: "expiring-map",
    resultStep: null,
    steps: [
      { key: "gate", dependencies: [], expires: { afterSeconds: 60, outcome: "FAILED", ...expires } },
      {
        key: "each",
        job: { type: "expiring-map.each" },
        map: { over: "gate" },
        dependencies: [{ key: "gate", kind: "ON_SUCCESS" }],
      },
    ],
  });
  return new TestRun(database, ledger, id, "expiring-map");
}
const seen = (marker: string) => waitForBackend({ client: database.pool, marker });
const complete = (run: TestRun, completion: object = {}) =>
  ledger.steps.complete(run.id, "gate", { ...globally, ...completion });
const codesOf = ({ setAside }: FiredTimers) => setAside.map(({ error, ...of }) => ({ ...of, code: error.code }));

const conflictingOutcome = "workflow.external_step_conflicting_completion_retry";
const nothing = { expiredGates: [], canceledRuns: [], setAside: [] };

describe("a gate whose time is over", () => {
  test("that is to succeed hands its output to its dependents", async () => {
    const run = await late({ outcome: "SUCCEEDED", output: { by: "default", list: [1, null] } });

    expect(await ledger.runs.fireTimers()).toMatchObject({
      expiredGates: [{ runId: run.id, stepKey: "gate", status: "SUCCEEDED" }],
      canceledRuns: [],
      setAside: [],
    });

    expect(await run.statuses()).toEqual({ gate: "SUCCEEDED", on: "ENQUEUED", any: "ENQUEUED" });
    expect(await run.row("gate")).toMatchObject({
      output: { by: "default", list: [1, null] },
      error_code: null,
      completed_by: "runledger",
      reason: "expired",
      open_since: null,
    });
  });

  test.each(["FAILED", "CANCELED"] as const)(
    "that is to be %s cancels those that need its success",
    async (outcome) => {
      const run = await late({ outcome });
      await ledger.runs.fireTimers();

      expect(await run.statuses()).toEqual({ gate: outcome, on: "CANCELED", any: "ENQUEUED" });
      expect(await run.row("gate")).toMatchObject({
        output: null,
        error_code: "workflow.external_expired",
        completed_by: "runledger",
        reason: "expired",
      });
    },
  );

  test("and that is the last open step ends the run", async () => {
    const run = await late({ outcome: "SUCCEEDED" }, { gate: [] });
    await ledger.runs.fireTimers();

    expect(await run.state()).toEqual({ run: "SUCCEEDED", steps: { gate: "SUCCEEDED" } });
  });

  test("puts out the array that a map step fans out over", async () => {
    const run = await mapped({ outcome: "SUCCEEDED", output: ["x", "y"] });
    await gatesAreDue(database, run);
    await ledger.runs.fireTimers();

    expect(await run.statuses()).toEqual({
      gate: "SUCCEEDED",
      each: "BLOCKED",
      "each[0]": "ENQUEUED",
      "each[1]": "ENQUEUED",
    });
  });

  test("expires once, however many look at the same time", async () => {
    const run = await late();
    const fired = await Promise.all(Array.from({ length: 8 }, () => ledger.runs.fireTimers()));

    expect(fired.flatMap(({ expiredGates }) => expiredGates)).toHaveLength(1);
    expect(await run.liveJobs()).toEqual(["any"]);
    expect(await ledger.runs.fireTimers()).toMatchObject(nothing);
  });

  test("in a caller's transaction expires with its commit, and stays open when it rolls back", async () => {
    const run = await late();
    const before = await run.state();
    const dropped = await openTransaction(database);
    expect((await ledger.in(dropped).runs.fireTimers()).expiredGates).toHaveLength(1);
    await dropped.rollback().execute();
    expect(await run.state()).toEqual(before);

    const kept = await openTransaction(database);
    await raw(kept, "set local lock_timeout = '90s'");
    expect((await ledger.in(kept).runs.fireTimers()).expiredGates).toHaveLength(1);
    expect(await raw(kept, "show lock_timeout")).toEqual([{ lock_timeout: "90s" }]);
    await kept.commit().execute();
    expect(await run.statuses()).toMatchObject({ gate: "FAILED" });
  });
});

test.each<[string, Partial<GateExpiry>, string]>([
  ["no time at all", { afterSeconds: 0 }, "workflow.invalid_dag_step_shape"],
  ["a time that is no number", { afterSeconds: "60" as never }, "workflow.invalid_dag_step_shape"],
  ["an endless time", { afterSeconds: Number.POSITIVE_INFINITY }, "input.invalid"],
  ["an unknown outcome", { outcome: "BLOCKED" as never }, "workflow.invalid_dag_step_shape"],
  ["an output without success", { outcome: "FAILED", output: 1 }, "workflow.invalid_dag_step_shape"],
  ["an output that is no JSON", { outcome: "SUCCEEDED", output: 1n }, "payload.not_json"],
])("an expiry with %s is refused before anything is sent", async (_, expires, code) => {
  const { result, statements } = await database.record(() => codeOf(start(expires)));

  expect(result).toBe(code);
  expect(statements).toEqual([]);
});

describe("a gate is left open", () => {
  test("before its time is over, and without a time for ever", async () => {
    const [timed, untimed] = [await start(), await TestRun.start(database, ledger, { gate: [] })];

    expect(await ledger.runs.fireTimers()).toMatchObject(nothing);
    for (const run of [timed, untimed]) expect(await run.statuses()).toMatchObject({ gate: "WAITING_FOR_EXTERNAL" });
  });

  test("until it has been open for so long: a gate that is blocked has no time yet", async () => {
    const run = await start({ afterSeconds: 60 }, { a: [], gate: ["a"] });
    expect(await run.row("gate")).toMatchObject({ open_since: null, expires_at: null });
    await run.succeed("a");

    const { rows } = await database.pool.query(
      `select open_since between now() - interval '30 seconds' and now() as opened,
         round(extract(epoch from expires_at - open_since)) as seconds
       from runledger.workflow_steps where run_id = $1 and step_key = 'gate'`,
      [run.id],
    );
    expect(rows).toEqual([{ opened: true, seconds: "60" }]);
    expect(await ledger.runs.fireTimers()).toMatchObject(nothing);
  });
});

describe("a completion after the expiry", () => {
  test("that says the same changes nothing", async () => {
    const run = await late({ outcome: "SUCCEEDED", output: [1] });
    await ledger.runs.fireTimers();
    const before = await run.row("gate");

    expect(await complete(run, { output: [1], completedBy: "ann" })).toMatchObject({ completed: false });
    expect(await run.row("gate")).toEqual(before);
  });

  test("that says something else conflicts", async () => {
    const run = await late({ outcome: "SUCCEEDED", output: [1] });
    await ledger.runs.fireTimers();

    expect(await codeOf(complete(run, { outcome: "FAILED" }))).toBe(conflictingOutcome);
    expect(await codeOf(complete(run, { output: [2] }))).toBe("workflow.external_step_conflicting_output_retry");
  });
});

describe("against a completion", () => {
  test("an expiry that waited for one that committed leaves the gate as it is", async () => {
    const run = await late();
    const completing = await openTransaction(database);
    await ledger.in(completing).steps.complete(run.id, "gate", { ...globally, output: 1 });

    const expired = expirePatiently(database, run);
    await seen("lock_workflow_step_closure_for_update");
    await completing.commit().execute();

    expect(await expired).toBe(0);
    expect(await run.row("gate")).toMatchObject({ status: "SUCCEEDED", output: 1, completed_by: null });
  });

  test("an expiry that waited for one that rolled back expires the gate", async () => {
    const run = await late();
    const completing = await openTransaction(database);
    await ledger.in(completing).steps.complete(run.id, "gate", { ...globally, output: 1 });

    const expired = expirePatiently(database, run);
    await seen("lock_workflow_step_closure_for_update");
    await completing.rollback().execute();

    expect(await expired).toBe(1);
    expect(await run.row("gate")).toMatchObject({ status: "FAILED", output: null });
  });

  test.each([
    ["finds the conflict", "commit", conflictingOutcome],
    ["completes the gate when that rolled back", "rollback", "SUCCEEDED"],
  ] as const)("a completion that waited for an expiry %s", async (_, end, expected) => {
    const run = await late();
    const expiring = await openTransaction(database);
    await ledger.in(expiring).runs.fireTimers();

    const completed = complete(run);
    const answer = end === "commit" ? codeOf(completed) : completed.then(({ status }) => status);
    await seen("lock_workflow_step_closure_for_update");
    await expiring[end]().execute();

    expect(await answer).toBe(expected);
  });

  test("a gate that another session gave more time meanwhile stays open", async () => {
    const run = await late();
    const session = await holding(database, [
      "update runledger.workflow_steps set expires_at = now() + interval '1 hour' where run_id = $1 and step_key = 'gate'",
      [run.id],
    ]);

    const expired = expirePatiently(database, run);
    await seen("lock_workflow_step_closure_for_update");
    await session.query("commit");

    expect(await expired).toBe(0);
    expect(await run.statuses()).toMatchObject({ gate: "WAITING_FOR_EXTERNAL" });
  });

  test("of one gate the others of the batch expire all the same", async () => {
    const runs = await Promise.all(Array.from({ length: 6 }, () => late()));
    const [first, ...others] = runs as [TestRun, ...TestRun[]];
    const session = await holding(database, [
      "update runledger.workflow_steps set expires_at = now() + interval '1 hour' where run_id = $1 and step_key = 'gate'",
      [first.id],
    ]);

    const fired = ledger.runs.fireTimers();
    await seen("lock_workflow_step_closure_for_update");
    await session.query("commit");

    expect((await fired).expiredGates.map(({ runId }) => runId).sort()).toEqual(others.map(({ id }) => id).sort());
  });
});

describe("against a cancel", () => {
  test("of the run that is under way the gate is set aside without a wait, and CANCELED in the end", async () => {
    const run = await late();
    const canceling = await openTransaction(database);
    await ledger.in(canceling).runs.cancel(run.id, globally);

    expect(codesOf(await ledger.runs.fireTimers())).toEqual([
      { runId: run.id, stepKey: "gate", code: "workflow.release_conflict" },
    ]);
    await canceling.commit().execute();

    expect(await ledger.runs.fireTimers()).toMatchObject(nothing);
    expect(await run.statuses()).toEqual({ gate: "CANCELED", on: "CANCELED", any: "CANCELED" });
  });

  test("that rolls back the gate expires the next time", async () => {
    const run = await late();
    const canceling = await openTransaction(database);
    await ledger.in(canceling).runs.cancel(run.id, globally);
    await ledger.runs.fireTimers();
    await canceling.rollback().execute();

    expect((await ledger.runs.fireTimers()).expiredGates).toHaveLength(1);
    expect(await run.statuses()).toMatchObject({ gate: "FAILED" });
  });

  test("a cancel waits for the expiry, and cancels what that released", async () => {
    const run = await late({ outcome: "SUCCEEDED", output: 1 });
    const expiring = await openTransaction(database);
    await ledger.in(expiring).runs.fireTimers();

    const canceled = ledger.runs.cancel(run.id, globally);
    await seen("lock_workflow_run_release");
    await expiring.commit().execute();

    expect(await canceled).toMatchObject({ canceled: true });
    expect(await run.statuses()).toEqual({ gate: "SUCCEEDED", on: "CANCELED", any: "CANCELED" });
    expect(await run.liveJobs()).toEqual([]);
  });
});

describe("a batch", () => {
  test("of gates of many runs, and several of one, ends in one transaction", async () => {
    const runs = await Promise.all(
      Array.from({ length: 30 }, () => late({}, { gate: [], gateToo: [], on: ["gate", "gateToo"], any: ["gate?"] })),
    );

    const { result, statements } = await database.record(() => ledger.runs.fireTimers());

    expect(result.expiredGates).toHaveLength(60);
    expect(statements.filter((text) => text === "begin" || text.startsWith("start transaction"))).toHaveLength(1);
    expect(statements).toHaveLength(11);
    for (const run of runs) {
      expect(await run.statuses()).toEqual({ gate: "FAILED", gateToo: "FAILED", on: "CANCELED", any: "ENQUEUED" });
    }
  });

  test("expires without those that are in the way, and with them when they are not", async () => {
    const runs = await Promise.all(Array.from({ length: 12 }, () => late()));
    const [canceling, held, broken] = [runs[2], runs[7], runs[10]] as [TestRun, TestRun, TestRun];
    const cancel = await holding(database, ["select pg_advisory_xact_lock($1)", [String(runReleaseKey(canceling.id))]]);
    const holder = await holding(database, [
      "select from runledger.workflow_steps where run_id = $1 and step_key = 'on' for update",
      [held.id],
    ]);
    const setWaiting = "update runledger.workflow_runs set waiting_count = $2 where id = $1";
    await database.pool.query(setWaiting, [broken.id, 0]);

    const fired = await ledger.runs.fireTimers();

    expect(fired.expiredGates).toHaveLength(9);
    expect(codesOf(fired).sort((a, b) => (a.code < b.code ? -1 : 1))).toEqual([
      { runId: broken.id, stepKey: "gate", code: "db.constraint_violated" },
      { runId: held.id, stepKey: "gate", code: "db.lock_timeout" },
      { runId: canceling.id, stepKey: "gate", code: "workflow.release_conflict" },
    ]);
    for (const run of [canceling, held, broken]) {
      expect(await run.statuses()).toEqual({ gate: "WAITING_FOR_EXTERNAL", on: "BLOCKED", any: "BLOCKED" });
    }

    await database.pool.query(setWaiting, [broken.id, 1]);
    await cancel.query("rollback");
    await holder.query("rollback");
    expect(await ledger.runs.fireTimers()).toMatchObject({ setAside: [], expiredGates: { length: 3 } });
  });

  test("is no larger than its limit, the longest due first", async () => {
    const runs = await Promise.all(Array.from({ length: 5 }, () => start()));
    for (const [n, run] of runs.entries()) {
      await database.pool.query(
        "update runledger.workflow_steps set expires_at = now() - make_interval(mins => $2) where run_id = $1 and step_key = 'gate'",
        [run.id, 10 - n],
      );
    }

    const first = await ledger.runs.fireTimers({ limit: 2 });
    expect(first.expiredGates.map(({ runId }) => runId)).toEqual([runs[0]?.id, runs[1]?.id]);
    // The third has been due for eight minutes.
    expect(Math.round((first.nextInMs ?? 0) / 60_000)).toBe(-8);
    const rest = await ledger.runs.fireTimers({ limit: 3 });
    expect(rest.expiredGates.map(({ runId }) => runId)).toEqual(runs.slice(2).map(({ id }) => id));
  });
});
