/** Firing: each tick once, as a job or run with its intended time, and the schedule moves on (FEATURES F-S1). */
import { describe, expect, test } from "@jest/globals";
import { defineJob, defineSchedule, defineWorkflow, typed } from "../../src/index.ts";
import { expectInvariants } from "../invariants.ts";
import { createTestDatabase } from "../support/database.ts";
import {
  audit,
  auditing,
  finish,
  firesOf,
  global,
  globally,
  hourly,
  jobsOf,
  ledgerOf,
  missed,
  newName,
  organizationId,
  report,
  setBack,
} from "./fixtures.ts";

const database = await createTestDatabase();
const ledger = ledgerOf(database);

describe("a tick of a job", () => {
  test("is fired once: its job has the payload, the settings and the intended time", async () => {
    const name = newName();
    await ledger.schedules.upsert(
      defineSchedule(name, {
        cron: "0 * * * *",
        job: report,
        payload: { kind: name },
        priority: 7,
        tags: ["a b", "c"],
        organizationId,
      }),
    );
    const [tick] = await setBack(database, name, 1);
    const { fired, skipped, setAside } = await ledger.schedules.fireDue();
    const [job, ...more] = await ledger.jobs.claim({ workerId: "w", limit: 10, types: ["report"] });

    expect({ fired, skipped, setAside, more }).toEqual({
      fired: [{ name, organizationId, intendedAt: tick, jobId: job?.lease.jobId, runId: null }],
      skipped: [],
      setAside: [],
      more: [],
    });
    expect(job).toMatchObject({
      payload: { kind: name },
      schedule: { name, intendedAt: tick },
      priority: 7,
      maxAttempts: 3,
      tags: ["a b", "c"],
      organizationId,
    });
    expect((await ledger.schedules.fireDue()).fired).toEqual([]);
    const scope = { organization: organizationId };
    expect(await ledger.jobs.get(job?.lease.jobId ?? "", scope)).toMatchObject({
      schedule: { name, intendedAt: tick },
    });
    expect(await ledger.schedules.fires(name, { scope })).toEqual({
      fires: [{ intendedAt: tick, firedAt: expect.any(Date), outcome: "fired", jobId: job?.lease.jobId, runId: null }],
      next: null,
    });
  });

  test("is shown with its job, live and ended, and another job has none", async () => {
    const { name, ticks } = await missed(database, ledger, 1);
    await ledger.jobs.enqueue(name, {});
    await ledger.schedules.fireDue();
    const [one] = await jobsOf(database, name).then((jobs) => jobs.filter(({ intendedAt }) => intendedAt !== null));
    const schedule = { name, intendedAt: ticks[0] };
    const shown = async () => (await ledger.jobs.list({ ...globally, type: name })).jobs.map((job) => job.schedule);

    expect(await shown()).toEqual([schedule, null]);
    await finish(ledger, name);
    expect(await shown()).toEqual([schedule, null]);
    expect(await ledger.jobs.get(one?.id ?? "", global)).toMatchObject({ status: "SUCCEEDED", schedule });
  });

  test("has the limit of its definition, with the key of its payload", async () => {
    const limited = defineJob("limited", {
      input: typed<{ customer: string }>(),
      limit: { key: ({ customer }) => `customer ${customer}`, concurrency: 1 },
    });
    const [own, other] = [newName(), newName()];
    await ledger.schedules.sync([
      defineSchedule(own, { cron: "0 * * * *", job: limited, payload: { customer: "a" } }),
      defineSchedule(other, {
        cron: "0 * * * *",
        job: limited,
        payload: { customer: "b" },
        limit: { key: "all", rate: { starts: 5, periodSeconds: 60 } },
      }),
    ]);
    for (const name of [own, other]) await setBack(database, name, 1);
    await ledger.schedules.fireDue();
    const { rows } = await database.pool.query(
      `select limit_key, limit_concurrency, limit_starts, limit_period_seconds from runledger.job_queue
       where type = 'limited' order by limit_key`,
    );

    expect(rows).toEqual([
      { limit_key: "all", limit_concurrency: null, limit_starts: 5, limit_period_seconds: 60 },
      { limit_key: "customer a", limit_concurrency: 1, limit_starts: null, limit_period_seconds: null },
    ]);
    expect(await ledger.schedules.get(other, global)).toMatchObject({
      limit: { key: "all", rate: { starts: 5, periodSeconds: 60 } },
    });
  });

  test("moves the schedule to the tick after now, which is what comes next", async () => {
    const { name, ticks } = await missed(database, ledger, 1);
    const { nextAt, nextInMs } = await ledger.schedules.fireDue();
    const schedule = await ledger.schedules.get(name, global);
    const nextHour = new Date((ticks[0]?.getTime() ?? 0) + 3_600_000);

    expect(schedule).toMatchObject({ nextAt: nextHour, dueAt: nextHour, lastAt: ticks[0], overdueSeconds: 0 });
    expect(nextAt).toEqual(nextHour);
    expect(nextInMs).toBeGreaterThan(0);
    expect(nextInMs).toBeLessThanOrEqual(3_600_000);
  });

  test("stays on the job when it has ended, in the ledger", async () => {
    const { name, ticks } = await missed(database, ledger, 1);
    await ledger.schedules.fireDue();
    await finish(ledger, name);
    const { rows } = await database.pool.query("select metadata from runledger.job_ledger where type = $1", [name]);

    expect(rows).toEqual([{ metadata: { schedule: { name, intendedAt: ticks[0]?.toISOString() } } }]);
  });

  test("that nobody scheduled has no tick", async () => {
    await ledger.jobs.enqueue("unscheduled", {});
    const [job] = await ledger.jobs.claim({ workerId: "w", limit: 1, types: ["unscheduled"] });

    expect(job?.schedule).toBeNull();
  });
});

describe("a tick of a workflow", () => {
  test("is fired once: its graph is built with the input and the intended time", async () => {
    const definition = auditing();
    await ledger.schedules.upsert(definition);
    const [tick] = await setBack(database, definition.name, 1);
    const { fired } = await ledger.schedules.fireDue({ workflows: [audit] });
    const run = await ledger.runs.get(fired[0]?.runId ?? "", global);
    const jobs = await jobsOf(database, "audit.look");

    expect(fired).toMatchObject([{ name: definition.name, intendedAt: tick, jobId: null }]);
    expect(run).toMatchObject({ type: "audit", steps: [{ key: "look" }, { key: "write" }] });
    expect(jobs).toMatchObject([{ payload: { area: definition.name, for: tick?.toISOString() }, intendedAt: null }]);
    expect((await ledger.schedules.fireDue({ workflows: [audit] })).fired).toEqual([]);
    await expectInvariants(database);
  });

  test("is left for a process that knows the workflow, and the list shows how long", async () => {
    const definition = auditing();
    await ledger.schedules.upsert(definition);
    await setBack(database, definition.name, 2);
    const blind = await ledger.schedules.fireDue();
    const shown = await ledger.schedules.get(definition.name, global);
    const seeing = await ledger.schedules.fireDue({ workflows: [audit] });

    expect(blind).toMatchObject({ fired: [], setAside: [] });
    expect(shown).toMatchObject({ failure: null });
    expect(shown.overdueSeconds).toBeGreaterThanOrEqual(3_600);
    expect(seeing.fired).toMatchObject([{ name: definition.name }]);
  });

  test("has the run's deadline, and its first steps have the jitter", async () => {
    const name = newName();
    await ledger.schedules.upsert(
      defineSchedule(name, {
        cron: "0 * * * *",
        workflow: audit,
        input: { area: "late" },
        deadlineSeconds: 600,
        jitterSeconds: 1_000_000,
      }),
    );
    await setBack(database, name, 1);
    const { fired } = await ledger.schedules.fireDue({ workflows: [audit] });
    const run = await ledger.runs.get(fired[0]?.runId ?? "", global);
    const { rows } = await database.pool.query(
      "select run_at > now() + interval '1 second' as late from runledger.job_queue where workflow_run_id = $1",
      [run.id],
    );

    expect((run.deadlineAt?.getTime() ?? 0) - run.createdAt.getTime()).toBe(600_000);
    expect(rows).toEqual([{ late: true }]);
  });
});

test("jitter moves the start of a job and not its tick", async () => {
  const { name, ticks } = await missed(database, ledger, 1, { jitterSeconds: 1_000_000 });
  await ledger.schedules.fireDue();
  const [job] = await jobsOf(database, name);
  const delay = (job?.run_at.getTime() ?? 0) - Date.now();

  expect(job?.intendedAt).toEqual(ticks[0]);
  expect(delay).toBeGreaterThan(0);
  expect(delay).toBeLessThan(1_000_000_000);
});

describe("many", () => {
  test("are fired together, those that are due the longest first, and the rest with the next call", async () => {
    const names = [];
    for (const hours of [1, 5, 3]) names.push((await missed(database, ledger, hours)).name);
    const first = await ledger.schedules.fireDue({ limit: 2 });
    const second = await ledger.schedules.fireDue({ limit: 2 });

    expect(first.fired.map(({ name }) => name)).toEqual([names[1], names[2]]);
    expect(first.nextInMs).toBeLessThanOrEqual(0);
    expect(second.fired.map(({ name }) => name)).toEqual([names[0]]);
    expect(second.nextInMs).toBeGreaterThan(0);
  });

  test("a schedule that cannot be fired is set aside with its error, and the others are fired", async () => {
    const broken = defineWorkflow("broken", {
      input: typed<null>(),
      build() {
        throw new Error("the service's own");
      },
    });
    const empty = defineWorkflow("empty", { input: typed<null>(), build: () => undefined });
    const bad = [broken, empty].map((workflow) =>
      defineSchedule(newName(), { cron: "0 * * * *", workflow, input: null }),
    );
    const good = [hourly(), auditing(), hourly()];
    await ledger.schedules.sync([...bad, ...good]);
    for (const { name } of [...bad, ...good]) await setBack(database, name, 1);
    const { fired, setAside, nextInMs } = await ledger.schedules.fireDue({ workflows: [audit, broken, empty] });
    const shown = await Promise.all(bad.map(({ name }) => ledger.schedules.get(name, global)));

    expect(fired.map(({ name }) => name).sort()).toEqual(good.map(({ name }) => name).sort());
    expect(setAside.map(({ name, error }) => [name, error.code]).sort()).toEqual([
      [bad[0]?.name, "schedule.build_failed"],
      [bad[1]?.name, "workflow.invalid_dag_no_steps"],
    ]);
    expect(nextInMs).toBeGreaterThan(0);
    expect(shown.map(({ failure }) => [failure?.code, failure?.count])).toEqual([
      ["schedule.build_failed", 1],
      ["workflow.invalid_dag_no_steps", 1],
    ]);
    expect(JSON.stringify(shown)).not.toContain("the service's own");
    for (const { dueAt, nextAt } of shown) expect(dueAt?.getTime()).toBeGreaterThan(nextAt?.getTime() ?? Infinity);
  });

  test("what was set aside is tried again later, and is well when it succeeds", async () => {
    const fails = { now: true };
    const moody = defineWorkflow("moody", {
      input: typed<null>(),
      build(graph) {
        if (fails.now) throw new Error("not today");
        return graph.job("a", "moody.a", {});
      },
    });
    const name = newName();
    await ledger.schedules.upsert(defineSchedule(name, { cron: "0 * * * *", workflow: moody, input: null }));
    const [tick] = await setBack(database, name, 1);
    const fire = () => ledger.schedules.fireDue({ workflows: [moody] });
    const delayPassed = () =>
      database.pool.query("update runledger.job_schedules set due_at = now() where name = $1", [name]);
    const first = await fire();
    const tooEarly = await fire();
    await delayPassed();
    await fire();
    const failing = await ledger.schedules.get(name, global);
    fails.now = false;
    await delayPassed();
    const well = await fire();

    expect([first, tooEarly].map(({ setAside }) => setAside.length)).toEqual([1, 0]);
    expect(failing).toMatchObject({ failure: { code: "schedule.build_failed", count: 2 }, nextAt: tick });
    expect(well.fired).toMatchObject([{ name, intendedAt: tick }]);
    expect(await ledger.schedules.get(name, global)).toMatchObject({ failure: null });
  });

  test("with strict, a job type without a definition is refused", async () => {
    const { name } = await missed(database, ledger, 1);
    const { setAside } = await ledger.schedules.fireDue({ strict: true });

    expect(setAside).toMatchObject([{ name, error: { code: "job.definition_not_found_or_disabled" } }]);
  });
});

describe("in a caller's transaction", () => {
  test("what is fired goes with it", async () => {
    const { name } = await missed(database, ledger, 1);
    const undone = new Error("undone");
    const attempt = database.db.transaction().execute(async (trx) => {
      expect((await ledger.in(trx).schedules.fireDue()).fired).toMatchObject([{ name }]);
      throw undone;
    });

    await expect(attempt).rejects.toBe(undone);
    expect(await jobsOf(database, name)).toEqual([]);
    expect((await ledger.schedules.fireDue()).fired).toMatchObject([{ name }]);
  });

  test("at another level than READ COMMITTED it is refused before anything is sent", async () => {
    const { statements } = await database.record(() =>
      database.db
        .transaction()
        .setIsolationLevel("repeatable read")
        .execute(async (trx) => {
          await expect(ledger.in(trx).schedules.fireDue()).rejects.toMatchObject({
            code: "schedule.fire_unsupported_isolation",
          });
        }),
    );

    expect(statements.filter((text) => text.includes("runledger:"))).toHaveLength(1);
  });
});

test.each([0, 1.5, 101])("a limit of %p is refused", async (limit) => {
  await expect(ledger.schedules.fireDue({ limit })).rejects.toMatchObject({ code: "input.invalid" });
});

test("the history of fires comes in pages, the latest first", async () => {
  const { name, ticks } = await missed(database, ledger, 5, { catchUp: "backfill" });
  await ledger.schedules.fireDue();
  const seen: Date[] = [];
  let after: string | undefined;
  do {
    const page = await ledger.schedules.fires(name, { ...globally, limit: 2, ...(after ? { after } : {}) });
    seen.push(...page.fires.map(({ intendedAt }) => intendedAt));
    after = page.next ?? undefined;
  } while (after !== undefined);

  expect(seen).toEqual([...ticks].reverse());
  expect(await firesOf(ledger, name)).toHaveLength(5);
});
