/** A handler finds what its prerequisites came to, read once for a whole batch of claims (FEATURES F-W5). */
import { afterEach, describe, expect, test } from "@jest/globals";
import { expectInvariants } from "../invariants.ts";
import { globally, ledgerOf, TestRun } from "../runs/fixtures.ts";
import { gatesAreDue, startExpiring } from "../runs/timed.ts";
import { createTestDatabase } from "../support/database.ts";

const database = await createTestDatabase({ max: 4 });
const ledger = ledgerOf(database);

afterEach(() => expectInvariants(database));

async function found(run: TestRun, key: string) {
  const job = await run.claim(key);
  return (await ledger.steps.prerequisites([job])).get(job.lease.jobId);
}

async function outputsOf(run: TestRun, key: string) {
  return (await found(run, key))?.outputs;
}

describe("a handler finds", () => {
  test("the output of every prerequisite that succeeded, by step key, and of no other step", async () => {
    const run = await TestRun.start(database, ledger, {
      root: [],
      a: ["root"],
      b: ["root"],
      gate: ["root"],
      end: ["a", "b?", "gate"],
    });
    await run.succeed("root", "not a prerequisite of end");
    await run.succeed("a", { n: 1 });
    await run.succeed("b", [1, "two", null]);
    await ledger.steps.complete(run.id, "gate", { ...globally, output: false });

    expect(await outputsOf(run, "end")).toEqual({ a: { n: 1 }, b: [1, "two", null], gate: false });
  });

  test("null for a prerequisite without an output, and for one whose output is null", async () => {
    const run = await TestRun.start(database, ledger, { a: [], b: [], end: ["a", "b"] });
    await run.succeed("a");
    await run.succeed("b", null);

    expect(await outputsOf(run, "end")).toEqual({ a: null, b: null });
  });

  test("nothing of an ON_TERMINAL prerequisite that failed or was cancelled", async () => {
    const run = await TestRun.start(database, ledger, {
      bad: [],
      sad: ["bad"],
      good: [],
      end: ["bad?", "sad?", "good?"],
    });
    await run.fail("bad");
    await run.succeed("good", 1);

    expect(await outputsOf(run, "end")).toEqual({ good: 1 });
  });

  test("nothing when it has no prerequisites", async () => {
    const run = await TestRun.start(database, ledger, { a: [] });

    expect(await outputsOf(run, "a")).toEqual({});
  });

  test("outputs under keys that objects have already", async () => {
    const names = ["__proto__", "constructor", "toString", "a.b", '"', "\u{1F600}"];
    const run = await TestRun.start(database, ledger, {
      ...Object.fromEntries(names.map((name) => [name, []])),
      end: names,
    });
    for (const name of names) await run.succeed(name, { of: name });

    const outputs = await outputsOf(run, "end");

    expect(Object.keys(outputs ?? {}).sort()).toEqual([...names].sort());
    for (const name of names) expect(Object.getOwnPropertyDescriptor(outputs, name)?.value).toEqual({ of: name });
    expect(Object.getPrototypeOf(outputs)).toBe(Object.prototype);
  });

  test("numbers, strings and depths as they were given", async () => {
    const output = { big: 1e21, small: -0.1, text: "\u2028 \\u0000 ☃", deep: [[[[{ a: [] }]]]] };
    const run = await TestRun.start(database, ledger, { a: [], end: ["a"] });
    await run.succeed("a", output);

    expect(await outputsOf(run, "end")).toEqual({ a: output });
  });
});

describe("a handler finds why a prerequisite did not succeed", () => {
  test("when its job failed, or it was cancelled with what it needed", async () => {
    const run = await TestRun.start(database, ledger, {
      bad: [],
      sad: ["bad"],
      good: [],
      end: ["bad?", "sad?", "good?"],
    });
    await run.fail("bad");
    await run.succeed("good", 1);

    expect(await found(run, "end")).toEqual({
      outputs: { good: 1 },
      failures: {
        bad: { status: "FAILED", errorCode: "test.failed", errorMessage: "It failed.", reason: null },
        sad: {
          status: "CANCELED",
          errorCode: "workflow.dependency_unsatisfied",
          errorMessage: null,
          reason: null,
        },
      },
      undecodable: null,
    });
  });

  test.each([
    ["FAILED", "workflow.external_failed"],
    ["CANCELED", "workflow.external_canceled"],
  ] as const)("when somebody completed its gate as %s, with the reason", async (outcome, errorCode) => {
    const run = await TestRun.start(database, ledger, { gate: [], end: ["gate?"] });
    await ledger.steps.complete(run.id, "gate", { ...globally, outcome, reason: "not this year" });

    expect(await found(run, "end")).toEqual({
      outputs: {},
      failures: { gate: { status: outcome, errorCode, errorMessage: null, reason: "not this year" } },
      undecodable: null,
    });
  });

  test("when its gate expired", async () => {
    const run = await startExpiring(database, ledger, { gate: [], end: ["gate?"] });
    await gatesAreDue(database, run);
    await ledger.runs.fireTimers();

    expect((await found(run, "end"))?.failures).toEqual({
      gate: { status: "FAILED", errorCode: "workflow.external_expired", errorMessage: null, reason: "expired" },
    });
  });

  test("under keys that objects have already", async () => {
    const names = ["__proto__", "constructor"];
    const run = await TestRun.start(database, ledger, {
      ...Object.fromEntries(names.map((name) => [name, []])),
      end: names.map((name) => `${name}?`),
    });
    for (const name of names) await run.fail(name);

    const failures = (await found(run, "end"))?.failures ?? {};

    expect(Object.keys(failures).sort()).toEqual(names);
    for (const name of names) {
      expect(Object.getOwnPropertyDescriptor(failures, name)?.value).toMatchObject({ errorCode: "test.failed" });
    }
  });
});

describe("a batch of claims", () => {
  test("of many runs is one query, each job with its own", async () => {
    const runs = await Promise.all(
      Array.from({ length: 20 }, () => TestRun.start(database, ledger, { a: [], end: ["a"] })),
    );
    for (const [n, run] of runs.entries()) await run.succeed("a", n);
    await ledger.jobs.enqueue("not-a-step", {});
    const types = [...runs.map((run) => `${run.type}.end`), "not-a-step"];
    const jobs = await ledger.jobs.claim({ workerId: "w", limit: 100, types });

    const { result, statements } = await database.record(() => ledger.steps.prerequisites(jobs));

    expect(statements).toHaveLength(1);
    expect(jobs).toHaveLength(21);
    expect(result.size).toBe(20);
    const byType = new Map(jobs.map((job) => [job.type, result.get(job.lease.jobId)]));
    expect(runs.map((run) => byType.get(`${run.type}.end`))).toEqual(
      runs.map((_, n) => ({ outputs: { a: n }, failures: {}, undecodable: null })),
    );
  });

  test("without steps is no query", async () => {
    await ledger.jobs.enqueue("plain", {});
    const jobs = await ledger.jobs.claim({ workerId: "w", limit: 1, types: ["plain"] });

    const { result, statements } = await database.record(() => ledger.steps.prerequisites(jobs));

    expect([...result]).toEqual([]);
    expect(statements).toEqual([]);
  });
});
