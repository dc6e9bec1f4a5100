/** Timelines and logs: what happened to a job and to a run, in order, each in one query (FEATURES F-H1). */
import { afterEach, describe, expect, test } from "@jest/globals";
import { createLedger, type LogLevel } from "../../src/index.ts";
import { expectInvariants } from "../invariants.ts";
import { claimedOne, codeOf, expire, globally, leased, makeDue, unknownId } from "../jobs/fixtures.ts";
import { someOrganization, TestRun } from "../runs/fixtures.ts";
import { createTestDatabase } from "../support/database.ts";

const database = await createTestDatabase();
const ledger = createLedger({ db: database.db });
const scope = { admin: true } as const;

afterEach(() => expectInvariants(database));

describe("a job's timeline", () => {
  test("tells of each attempt by whom and how it ended, and of the job's end after it", async () => {
    const { lease } = await leased(ledger, "story", { maxAttempts: 3 });
    await ledger.jobs.fail(lease, { code: "first", message: "m1" });
    await makeDue(database, [lease.jobId]);
    await claimedOne(ledger, "story", "second");
    await expire(database, [lease.jobId]);
    await ledger.jobs.reap();
    await makeDue(database, [lease.jobId]);
    await ledger.jobs.fail((await claimedOne(ledger, "story", "third")).lease, { code: "last", message: "m3" });

    expect(await storyOf(lease.jobId)).toEqual([
      "1 enqueued",
      "1 leased 1 worker",
      "1 attempt_failed 1 worker first",
      "1 leased 2 second",
      "1 attempt_failed 2 second job.lease_expired",
      "1 leased 3 third",
      "1 attempt_failed 3 third last",
      "1 dead_lettered 3 third last",
    ]);
    const events = await ledger.jobs.timeline(lease.jobId, globally);
    expect(events.map(({ at }) => at.getTime())).toEqual(events.map(({ at }) => at.getTime()).sort((a, b) => a - b));
    expect(events.at(-2)).toMatchObject({ message: "m3", details: { kind: "RETRYABLE" } });
  });

  test("tells of every run of the job, and of what put it back", async () => {
    const run = await TestRun.start(database, ledger, { a: [] });
    await run.fail("a");
    await ledger.runs.retry(run.id, { scope, retriedBy: "ann", reason: "try again" });
    const { lease } = await run.claim("a");
    const before = await storyOf(lease.jobId);
    await ledger.jobs.complete(lease);

    expect(before).toEqual([
      "1 enqueued",
      "1 leased 1 worker of a",
      "1 attempt_failed 1 worker of a test.failed",
      "1 dead_lettered 1 worker of a test.failed",
      "2 enqueued",
      "2 retried ann",
      "2 leased 1 worker of a",
    ]);
    expect(await storyOf(lease.jobId)).toEqual([...before, "2 succeeded 1 worker of a"]);
  });

  test("is seen in its scope only", async () => {
    const { id } = await ledger.jobs.enqueue("secret", {}, { organizationId: someOrganization });

    expect(await ledger.jobs.timeline(id, { organization: someOrganization })).toHaveLength(1);
    expect(await codeOf(() => ledger.jobs.timeline(id, globally))).toBe("job.not_found");
    expect(await codeOf(() => ledger.jobs.timeline(unknownId, scope))).toBe("job.not_found");
    expect(await codeOf(() => ledger.jobs.timeline("x", scope))).toBe("input.invalid");
  });
});

describe("a run's timeline", () => {
  test("tells of the run, its steps and gates, and what was asked of it", async () => {
    const run = await TestRun.start(database, ledger, { a: [], gate: ["a"], b: ["gate"] });
    await run.succeed("a");
    await ledger.runs.append(run.id, {
      scope,
      key: "more",
      graph: { steps: [{ key: "added", dependencies: [], job: { type: "added", payload: 1 } }] },
    });
    await ledger.steps.complete(run.id, "gate", { scope, outcome: "SUCCEEDED", completedBy: "ann", reason: "fine" });
    await run.fail("b");
    await ledger.jobs.complete((await claimedOne(ledger, "added")).lease);

    const story = await runStoryOf(run.id);
    expect(story[0]).toBe("run created");
    expect(story.at(-1)).toBe("run completed_with_errors");
    expect(["run", "a", "gate", "b", "added"].map((of) => story.filter((event) => event.startsWith(`${of} `)))).toEqual(
      [
        ["run created", "run append", "run completed_with_errors"],
        ["a released", "a started", "a succeeded"],
        ["gate opened", "gate succeeded ann fine"],
        ["b released", "b started", "b failed It failed."],
        ["added released", "added started", "added succeeded"],
      ],
    );
    expect(story.indexOf("a succeeded")).toBeLessThan(story.indexOf("run append"));
    expect(story.indexOf("run append")).toBeLessThan(story.indexOf("gate succeeded ann fine"));
  });

  test("tells of a step's start while it runs", async () => {
    const run = await TestRun.start(database, ledger, { a: [], b: ["a"] });
    expect(await runStoryOf(run.id)).toEqual(["run created", "a released"]);
    await run.claim("a");
    expect(await runStoryOf(run.id)).toEqual(["run created", "a released", "a started worker of a"]);
  });

  test("with attempts tells what the steps' jobs went through, tries before a retry too", async () => {
    const run = await TestRun.start(database, ledger, { a: [] });
    await run.fail("a");
    await ledger.runs.retry(run.id, { scope, retriedBy: "ann", key: "once" });
    await run.succeed("a");

    const events = await ledger.runs.timeline(run.id, globally, { attempts: true });
    expect(events.flatMap(({ jobId, event, runNumber }) => (jobId === null ? [] : `${runNumber} ${event}`))).toEqual([
      "1 enqueued",
      "1 leased",
      "1 attempt_failed",
      "1 dead_lettered",
      "2 enqueued",
      "2 retried",
      "2 leased",
      "2 succeeded",
    ]);
    expect(events.every(({ jobId, stepKey }) => jobId === null || stepKey === "a")).toBe(true);
    const own = events.filter(({ jobId }) => jobId === null).map(({ event }) => event);
    expect(own.sort()).toEqual(["created", "released", "retry", "started", "succeeded", "succeeded"]);
  });

  test("is seen in its scope only", async () => {
    const run = await TestRun.start(database, ledger, { a: [] }, { organizationId: someOrganization });

    for (const options of [{}, { attempts: true }]) {
      expect((await ledger.runs.timeline(run.id, { organization: someOrganization }, options)).length).toBeGreaterThan(
        1,
      );
      expect(await codeOf(() => ledger.runs.timeline(run.id, globally, options))).toBe("workflow.run_not_found");
      expect(await codeOf(() => ledger.runs.timeline(unknownId, scope, options))).toBe("workflow.run_not_found");
    }
  });
});

describe("a job's log", () => {
  test("comes in pages, in the order in which it was written, and can be followed", async () => {
    const { lease } = await leased(ledger, "logging");
    const write = (...numbers: number[]) =>
      ledger.jobs.log(
        lease,
        numbers.map((n) => ({ level: "info", message: `line ${n}`, fields: { n } })),
      );
    expect(await ledger.jobs.logs(lease.jobId, globally)).toEqual({ lines: [], next: null, last: null });
    await write(1, 2, 3, 4, 5);

    const first = await ledger.jobs.logs(lease.jobId, globally, { limit: 3 });
    const second = await ledger.jobs.logs(lease.jobId, globally, { limit: 3, after: first.next ?? "" });
    expect([first, second].map(({ lines }) => lines.map(({ fields }) => fields))).toEqual([
      [{ n: 1 }, { n: 2 }, { n: 3 }],
      [{ n: 4 }, { n: 5 }],
    ]);
    expect(second.next).toBeNull();
    await write(6);
    const { lines } = await ledger.jobs.logs(lease.jobId, globally, { after: second.last ?? "" });
    expect(lines).toMatchObject([{ message: "line 6", level: "info", runNumber: 1, attempt: 1 }]);
  });

  test("of a level has that one and graver ones", async () => {
    const { lease } = await leased(ledger, "levels");
    await ledger.jobs.log(
      lease,
      (["debug", "info", "warn", "error"] as const).map((level) => ({ level, message: level })),
    );
    const levels = async (level: LogLevel) =>
      (await ledger.jobs.logs(lease.jobId, globally, { level })).lines.map((line) => line.level);

    expect(await levels("debug")).toEqual(["debug", "info", "warn", "error"]);
    expect(await levels("warn")).toEqual(["warn", "error"]);
    expect(await codeOf(() => levels("loud" as LogLevel))).toBe("input.invalid");
    expect(await codeOf(() => ledger.jobs.logs(lease.jobId, globally, { after: "x" }))).toBe("input.invalid");
  });

  test("is seen in its scope only", async () => {
    const { lease } = await leased(ledger, "private", { organizationId: someOrganization });
    await ledger.jobs.log(lease, [{ level: "info", message: "here" }]);

    expect((await ledger.jobs.logs(lease.jobId, { organization: someOrganization })).lines).toHaveLength(1);
    expect(await codeOf(() => ledger.jobs.logs(lease.jobId, globally))).toBe("job.not_found");
  });
});

async function storyOf(jobId: string): Promise<string[]> {
  const events = await ledger.jobs.timeline(jobId, scope);
  return events.map(({ runNumber, event, attempt, actor, code }) => text(runNumber, event, attempt, actor, code));
}

async function runStoryOf(runId: string): Promise<string[]> {
  const events = await ledger.runs.timeline(runId, scope);
  return events.map(({ stepKey, event, actor, message }) => text(stepKey ?? "run", event, actor, message));
}

function text(...parts: unknown[]): string {
  return parts.filter((part) => part !== null).join(" ");
}
