/** What an operator does with schedules: pause, resume, trigger, set the time, remove, list (FEATURES F-S2). */
import { describe, expect, test } from "@jest/globals";
import type { Ledger } from "../../src/index.ts";
import { createTestDatabase } from "../support/database.ts";
import {
  audit,
  auditing,
  firesOf,
  global,
  globally,
  hourly,
  jobsOf,
  ledgerOf,
  missed,
  newName,
  organizationId,
  setBack,
} from "./fixtures.ts";

const database = await createTestDatabase();
const ledger = ledgerOf(database);
const ofOrganization = { scope: { organization: organizationId } };

describe("a pause", () => {
  test("keeps a due schedule from being fired, and a resume goes on from now", async () => {
    const { name } = await missed(database, ledger, 5, { catchUp: "backfill" });
    await ledger.schedules.pause([name], globally);
    const paused = await ledger.schedules.fireDue();
    await ledger.schedules.resume([name], globally);
    const resumed = await ledger.schedules.fireDue();
    const { nextAt } = await ledger.schedules.get(name, global);

    expect([paused.fired, resumed.fired]).toEqual([[], []]);
    expect(nextAt?.getTime()).toBeGreaterThan(Date.now() - 60_000);
  });

  test("of several is of all or none", async () => {
    const names = [await missed(database, ledger, 1), await missed(database, ledger, 1)].map(({ name }) => name);
    const attempt = ledger.schedules.pause([...names, "nobody's"], globally);

    await expect(attempt).rejects.toMatchObject({ code: "schedule.not_found" });
    expect((await ledger.schedules.fireDue()).fired).toHaveLength(2);
    await ledger.schedules.pause(names, globally);
    for (const name of names) expect(await ledger.schedules.get(name, global)).toMatchObject({ paused: true });
  });

  test("of what is paused, and a resume of what is not, change nothing", async () => {
    const { name, ticks } = await missed(database, ledger, 1);
    await ledger.schedules.resume([name], globally);
    expect((await ledger.schedules.get(name, global)).nextAt).toEqual(ticks[0]);
    await ledger.schedules.pause([name], globally);
    await ledger.schedules.pause([name], globally);

    expect(await ledger.schedules.get(name, global)).toMatchObject({ paused: true, nextAt: null });
  });

  test("of a disabled schedule that is resumed leaves it disabled", async () => {
    const definition = hourly({ enabled: false });
    await ledger.schedules.upsert(definition);
    await ledger.schedules.pause([definition.name], globally);
    await ledger.schedules.resume([definition.name], globally);

    expect(await ledger.schedules.get(definition.name, global)).toMatchObject({ enabled: false, nextAt: null });
  });
});

describe("a trigger", () => {
  test("starts a job at once, with the time of the trigger, and moves no tick", async () => {
    const definition = hourly({ jitterSeconds: 1_000_000 });
    const { nextAt } = await ledger.schedules.upsert(definition);
    const { intendedAt, jobId, runId } = await ledger.schedules.triggerNow(definition.name, globally);
    const [job] = await ledger.jobs.claim({ workerId: "w", limit: 1, types: [definition.name] });

    expect(job).toMatchObject({ lease: { jobId }, schedule: { name: definition.name, intendedAt } });
    expect(runId).toBeNull();
    expect(await ledger.schedules.get(definition.name, global)).toMatchObject({ nextAt, lastAt: intendedAt });
    expect(await firesOf(ledger, definition.name)).toMatchObject([{ outcome: "triggered", intendedAt, jobId }]);
  });

  test("starts a paused schedule, too, which stays paused", async () => {
    const definition = hourly();
    await ledger.schedules.upsert(definition);
    await ledger.schedules.pause([definition.name], globally);
    await ledger.schedules.triggerNow(definition.name, globally);

    expect(await jobsOf(database, definition.name)).toHaveLength(1);
    expect(await ledger.schedules.get(definition.name, global)).toMatchObject({ paused: true, nextAt: null });
  });

  test("starts a run when its definition is given, and is refused when it is not", async () => {
    const definition = auditing();
    await ledger.schedules.upsert(definition);
    const attempt = ledger.schedules.triggerNow(definition.name, globally);
    await expect(attempt).rejects.toMatchObject({ code: "schedule.workflow_unknown" });
    expect(await firesOf(ledger, definition.name)).toEqual([]);
    const { runId } = await ledger.schedules.triggerNow(definition.name, { ...globally, workflows: [audit] });

    expect((await ledger.runs.get(runId ?? "", global)).type).toBe("audit");
  });

  test("twice starts two jobs", async () => {
    const definition = hourly();
    await ledger.schedules.upsert(definition);
    await Promise.all([1, 2].map(() => ledger.schedules.triggerNow(definition.name, globally)));

    expect(await jobsOf(database, definition.name)).toHaveLength(2);
  });

  test("in a caller's transaction goes with it", async () => {
    const definition = hourly();
    await ledger.schedules.upsert(definition);
    const undone = database.db.transaction().execute(async (trx) => {
      await ledger.in(trx).schedules.triggerNow(definition.name, globally);
      throw new Error("undone");
    });

    await expect(undone).rejects.toThrow("undone");
    expect(await firesOf(ledger, definition.name)).toEqual([]);
  });
});

describe("a retime", () => {
  test("sets the next tick, after which the expression goes on", async () => {
    const definition = hourly({ cron: "0 0 1 1 *" });
    await ledger.schedules.upsert(definition);
    const at = new Date(Date.now() - 5_000);
    expect(await ledger.schedules.retime(definition.name, { ...globally, at })).toEqual(at);
    const { fired } = await ledger.schedules.fireDue();

    expect(fired.find(({ name }) => name === definition.name)?.intendedAt).toEqual(at);
    expect((await ledger.schedules.get(definition.name, global)).nextAt?.getUTCMinutes()).toBe(0);
  });

  test("without a time forgets what was due, and its failure", async () => {
    const { name } = await missed(database, ledger, 5);
    await database.pool.query(
      "update runledger.job_schedules set failures = 1, failed_at = now(), error_code = 'x', error_message = 'x' where name = $1",
      [name],
    );
    const next = await ledger.schedules.retime(name, globally);

    expect(next?.getTime()).toBeGreaterThan(Date.now() - 60_000);
    expect(await ledger.schedules.get(name, global)).toMatchObject({ nextAt: next, dueAt: next, failure: null });
  });

  test("to a time that was fired before does not fire it again", async () => {
    const { name, ticks } = await missed(database, ledger, 3, { catchUp: "backfill" });
    await ledger.schedules.fireDue();
    await ledger.schedules.retime(name, { ...globally, at: ticks[0] ?? "" });
    const { fired, setAside } = await ledger.schedules.fireDue();

    expect({ fired, setAside }).toEqual({ fired: [], setAside: [] });
    expect(await jobsOf(database, name)).toHaveLength(3);
    expect((await ledger.schedules.get(name, global)).overdueSeconds).toBe(0);
  });

  test("of what is paused or disabled is refused", async () => {
    const paused = hourly();
    const disabled = hourly({ enabled: false });
    await ledger.schedules.sync([paused, disabled]);
    await ledger.schedules.pause([paused.name], globally);

    for (const { name } of [paused, disabled]) {
      await expect(ledger.schedules.retime(name, globally)).rejects.toMatchObject({ code: "schedule.not_active" });
    }
  });

  test("to what is no time is refused", () => {
    expect(() => ledger.schedules.retime("any", { ...globally, at: "soon" })).toThrow(
      expect.objectContaining({ code: "input.invalid" }),
    );
  });
});

test("a removed schedule is gone with its history, and what it started stays", async () => {
  const { name } = await missed(database, ledger, 2);
  await ledger.schedules.fireDue();
  await ledger.schedules.remove(name, globally);

  await expect(ledger.schedules.get(name, global)).rejects.toMatchObject({ code: "schedule.not_found" });
  expect(await jobsOf(database, name)).toHaveLength(1);
});

describe("the scope", () => {
  const calls: Record<string, (l: Ledger, name: string, scope: typeof ofOrganization) => Promise<unknown>> = {
    get: (l, name, { scope }) => l.schedules.get(name, scope),
    fires: (l, name, scope) => l.schedules.fires(name, scope),
    pause: (l, name, scope) => l.schedules.pause([name], scope),
    resume: (l, name, scope) => l.schedules.resume([name], scope),
    triggerNow: (l, name, scope) => l.schedules.triggerNow(name, scope),
    retime: (l, name, scope) => l.schedules.retime(name, scope),
    remove: (l, name, scope) => l.schedules.remove(name, scope),
  };

  test.each(Object.keys(calls))("of another tenant does not find: %s", async (call) => {
    const definition = hourly();
    await ledger.schedules.upsert(definition);
    const outcome = calls[call]?.(ledger, definition.name, ofOrganization);

    await expect(outcome).rejects.toMatchObject({ code: "schedule.not_found" });
    await ledger.schedules.get(definition.name, { admin: true });
  });

  test.each(Object.keys(calls))("is required: %s", async (call) => {
    const outcome = async () => calls[call]?.(ledger, "any", { scope: {} as never });

    await expect(outcome()).rejects.toMatchObject({ code: "scope.required" });
  });

  test("of all tenants is ambiguous where two have the name", async () => {
    const name = newName();
    await ledger.schedules.sync([hourly({}, name), hourly({ organizationId }, name)]);
    const pause = () => ledger.schedules.pause([name], { scope: { admin: true } });

    await expect(pause()).rejects.toMatchObject({ code: "schedule.ambiguous" });
    await ledger.schedules.remove(name, ofOrganization);
    await pause();
    expect(await ledger.schedules.get(name, global)).toMatchObject({ paused: true });
  });
});

describe("a list", () => {
  test("has the schedules in scope, in pages, by tenant and name", async () => {
    await database.pool.query("delete from runledger.job_schedules");
    const names = ["a", "b", "b/c", "d"];
    await ledger.schedules.sync([
      ...names.map((name) => hourly({}, name)),
      ...names.map((name) => hourly({ organizationId }, name)),
    ]);
    const listed = async (scope: Parameters<Ledger["schedules"]["list"]>[0]["scope"]) => {
      const found: string[] = [];
      let after: string | undefined;
      do {
        const page = await ledger.schedules.list({ scope, limit: 3, ...(after === undefined ? {} : { after }) });
        found.push(...page.schedules.map((schedule) => `${schedule.organizationId ?? "global"} ${schedule.name}`));
        after = page.next ?? undefined;
      } while (after !== undefined);
      return found;
    };

    expect(await listed(global)).toEqual(names.map((name) => `global ${name}`));
    expect(await listed({ organization: organizationId })).toEqual(names.map((name) => `${organizationId} ${name}`));
    expect(await listed({ admin: true })).toHaveLength(8);
    const { next } = await ledger.schedules.list({ scope: global, limit: 1 });
    await expect(ledger.schedules.list({ ...ofOrganization, after: next ?? "" })).rejects.toMatchObject({
      code: "input.invalid",
    });
  });

  test.each([{ limit: 0 }, { after: "nothing" }, { after: 1 as never }])("of %p is refused", async (options) => {
    await expect(ledger.schedules.list({ scope: global, ...options })).rejects.toMatchObject({ code: "input.invalid" });
  });

  test("of fires after what is no time is refused", async () => {
    const { name } = await missed(database, ledger, 1);
    const page = ledger.schedules.fires(name, { ...globally, after: "then" });

    await expect(page).rejects.toMatchObject({ code: "input.invalid" });
    await setBack(database, name, 1);
  });
});
