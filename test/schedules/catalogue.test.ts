/** Schedules in code and in the database: what a sync writes, keeps and refuses (FEATURES F-S2). */
import { beforeEach, describe, expect, test } from "@jest/globals";
import { z } from "zod";
import { defineJob, defineSchedule, defineWorkflow, isLedgerError, type ScheduleDefinition } from "../../src/index.ts";
import { createTestDatabase } from "../support/database.ts";
import {
  audit,
  auditing,
  global,
  globally,
  hourly,
  ledgerOf,
  newName,
  organizationId,
  report,
  setBack,
} from "./fixtures.ts";

const database = await createTestDatabase();
const ledger = ledgerOf(database);
const otherOrganization = "0190a5f0-0000-7000-8000-000000000002";

beforeEach(() => database.pool.query("delete from runledger.job_schedules"));

describe("a sync", () => {
  test("writes what is new, timed from the database's now, and nothing the second time", async () => {
    const definitions = [hourly(), auditing()];
    const names = definitions.map(({ name }) => name).sort();
    const first = await ledger.schedules.sync(definitions);
    const before = await everything();
    const second = await ledger.schedules.sync(definitions, { mode: "exact" });
    const { rows } = await database.pool.query("select date_trunc('hour', now()) + interval '1 hour' as next");

    expect(first).toEqual({ written: names, disabled: [] });
    expect(second).toEqual({ written: [], disabled: [] });
    expect(await everything()).toEqual(before);
    for (const name of names) expect((await ledger.schedules.get(name, global)).nextAt).toEqual(rows[0]?.next);
  });

  test("stores all that a definition says", async () => {
    const name = newName();
    await ledger.schedules.sync(
      [
        defineSchedule(name, {
          cron: " 30 2 * * MON ",
          timeZone: "Europe/Berlin",
          job: report,
          payload: { kind: "weekly" },
          priority: -1,
          timeoutSeconds: 60,
          tags: ["a"],
          catchUp: "backfill",
          backfillLimit: 9,
          graceSeconds: 30,
          overlap: "queue",
          jitterSeconds: 10,
          startAt: "2030-01-01T00:00:00+01:00",
          endAt: new Date("2030-02-01T00:00:00Z"),
        }),
      ],
      { catalogue: "billing" },
    );

    expect(await ledger.schedules.get(name, global)).toEqual({
      name,
      organizationId: null,
      cron: "30 2 * * MON",
      timeZone: "Europe/Berlin",
      target: "job",
      type: "report",
      payload: { kind: "weekly" },
      priority: -1,
      maxAttempts: 3,
      timeoutSeconds: 60,
      tags: ["a"],
      limit: null,
      deadlineSeconds: null,
      catchUp: "backfill",
      backfillLimit: 9,
      graceSeconds: 30,
      overlap: "queue",
      jitterSeconds: 10,
      startAt: new Date("2029-12-31T23:00:00Z"),
      endAt: new Date("2030-02-01T00:00:00Z"),
      enabled: true,
      paused: false,
      catalogue: "billing",
      nextAt: new Date("2030-01-07T01:30:00Z"),
      dueAt: new Date("2030-01-07T01:30:00Z"),
      overdueSeconds: 0,
      lastAt: null,
      lastJobId: null,
      lastRunId: null,
      failure: null,
    });
  });

  test("times a schedule whose times changed anew, and keeps the time of one that changed otherwise", async () => {
    const [name, other] = [newName(), newName()];
    await ledger.schedules.sync([hourly({}, name), hourly({}, other)]);
    const [due] = await setBack(database, name, 3);
    await setBack(database, other, 3);
    const { written } = await ledger.schedules.sync([
      hourly({ jitterSeconds: 5 }, name),
      hourly({ timeZone: "Europe/Berlin" }, other),
    ]);

    expect(written).toEqual([name, other].sort());
    expect((await ledger.schedules.get(name, global)).nextAt).toEqual(due);
    expect((await ledger.schedules.get(other, global)).overdueSeconds).toBe(0);
  });

  test("keeps an operator's pause, whatever changes", async () => {
    const { name } = hourly();
    await ledger.schedules.sync([hourly({}, name)]);
    await ledger.schedules.pause([name], globally);
    await ledger.schedules.sync([hourly({ cron: "* * * * *" }, name)], { mode: "exact" });
    const changed = await ledger.schedules.get(name, global);
    await ledger.schedules.sync([], { mode: "exact" });
    await ledger.schedules.sync([hourly({}, name)], { mode: "exact" });

    expect(changed).toMatchObject({ paused: true, cron: "* * * * *", nextAt: null });
    expect(await ledger.schedules.get(name, global)).toMatchObject({ paused: true, enabled: true, nextAt: null });
  });

  test("exact disables what its own catalogue no longer holds; additive, and other catalogues, leave it", async () => {
    const [kept, gone, foreign] = [hourly(), hourly(), hourly()];
    await ledger.schedules.sync([kept, gone], { catalogue: "a" });
    await ledger.schedules.sync([foreign], { catalogue: "b" });
    const additive = await ledger.schedules.sync([kept], { catalogue: "a" });
    const exact = await ledger.schedules.sync([kept], { catalogue: "a", mode: "exact" });
    const shown = await ledger.schedules.get(gone.name, global);
    const back = await ledger.schedules.sync([kept, gone], { catalogue: "a", mode: "exact" });

    expect(additive.disabled).toEqual([]);
    expect(exact).toEqual({ written: [], disabled: [gone.name] });
    expect(shown).toMatchObject({ enabled: false, nextAt: null, dueAt: null });
    expect(await ledger.schedules.get(foreign.name, global)).toMatchObject({ enabled: true });
    expect(back).toEqual({ written: [gone.name], disabled: [] });
    expect((await ledger.schedules.get(gone.name, global)).nextAt).not.toBeNull();
  });

  test("of a definition that is disabled stores it, and nothing is due", async () => {
    const { name } = hourly();
    await ledger.schedules.sync([hourly({ enabled: false }, name)]);
    const disabled = await ledger.schedules.get(name, global);
    await ledger.schedules.sync([hourly({ enabled: true }, name)]);

    expect(disabled).toMatchObject({ enabled: false, nextAt: null });
    expect((await ledger.schedules.get(name, global)).nextAt).not.toBeNull();
  });

  test("clears the failure of a schedule that it changes, which is due again", async () => {
    const moody = defineWorkflow("moody", {
      build() {
        throw new Error("no");
      },
    });
    const name = newName();
    const failing = (input: number) => defineSchedule(name, { cron: "0 * * * *", workflow: moody, input });
    await ledger.schedules.sync([failing(1)]);
    const [tick] = await setBack(database, name, 1);
    await ledger.schedules.fireDue({ workflows: [moody] });
    await ledger.schedules.sync([failing(1)]);
    const unchanged = await ledger.schedules.get(name, global);
    await ledger.schedules.sync([failing(2)]);

    expect(unchanged.failure).not.toBeNull();
    expect(await ledger.schedules.get(name, global)).toMatchObject({ failure: null, nextAt: tick, dueAt: tick });
  });

  test("of one name for two tenants makes two schedules", async () => {
    const { name } = hourly();
    const { written } = await ledger.schedules.sync([
      hourly({}, name),
      hourly({ organizationId }, name),
      hourly({ organizationId: otherOrganization }, name),
    ]);

    expect(written).toEqual([name, name, name]);
    await expect(ledger.schedules.get(name, { admin: true })).rejects.toMatchObject({ code: "schedule.ambiguous" });
    expect(await ledger.schedules.get(name, { organization: organizationId.toUpperCase() })).toMatchObject({
      organizationId,
    });
  });
});

describe("an upsert", () => {
  test("creates, and changes what is there; no catalogue disables it then", async () => {
    const definition = hourly();
    await ledger.schedules.sync([definition], { catalogue: "a" });
    const changed = await ledger.schedules.upsert(hourly({ cron: "@daily" }, definition.name));
    const { disabled } = await ledger.schedules.sync([], { catalogue: "a", mode: "exact" });

    expect(changed).toMatchObject({ name: definition.name, cron: "@daily", catalogue: null });
    expect(disabled).toEqual([]);
  });

  test("of a tenant's schedule answers that one", async () => {
    expect(await ledger.schedules.upsert(hourly({ organizationId }))).toMatchObject({ organizationId });
  });
});

describe("refused, with nothing written", () => {
  const checked = defineJob("checked", { input: z.object({ kind: z.string() }) });
  const cron = "0 * * * *";
  const timing = { cron, job: "any", payload: {} } as const;
  const cases: [string, () => ScheduleDefinition | ScheduleDefinition[]][] = [
    ["schedule.cron_invalid", () => hourly({ cron: "61 * * * *" })],
    ["schedule.cron_invalid", () => hourly({ cron: "0 0 31 2 *" })],
    ["schedule.time_zone_invalid", () => hourly({ timeZone: "Mars/Phobos" })],
    ["payload.invalid", () => defineSchedule("a", { cron, job: checked, payload: { kind: 1 as never } })],
    ["payload.invalid", () => defineSchedule("a", { cron, workflow: checkedWorkflow, input: { area: 1 as never } })],
    ["payload.not_json", () => defineSchedule("a", { ...timing, payload: 1n })],
    ["payload.not_json", () => defineSchedule("a", { cron, workflow: audit, input: undefined as never })],
    ["input.invalid", () => hourly({}, " ")],
    ["input.invalid", () => hourly({ catchUp: "twice" as never })],
    ["input.invalid", () => hourly({ overlap: "toString" as never })],
    ["input.invalid", () => hourly({ backfillLimit: 1001 })],
    ["input.invalid", () => hourly({ graceSeconds: -1 })],
    ["input.invalid", () => hourly({ jitterSeconds: 0.5 })],
    ["input.invalid", () => hourly({ startAt: "2030-01-01", endAt: "2030-01-01" })],
    ["input.invalid", () => hourly({ startAt: "soon" })],
    ["input.invalid", () => hourly({ enabled: "yes" as never })],
    ["input.invalid", () => hourly({ organizationId: "acme" })],
    ["input.invalid", () => defineSchedule("a", { ...timing, priority: 1.5 })],
    ["input.invalid", () => defineSchedule("a", { cron, workflow: audit, input: { area: "" }, deadlineSeconds: 0 })],
    ["input.invalid", () => [hourly({}, "twice"), hourly({}, "twice")]],
  ];

  test.each(cases)("%s %#", async (code, define) => {
    const attempt = database.record(() => ledger.schedules.sync([hourly({}, "valid"), define()].flat()).catch(codeOf));
    const { result, statements } = await attempt;

    expect(result).toBe(code);
    expect(statements).toEqual([]);
  });

  const checkedWorkflow = defineWorkflow("checked", {
    input: z.object({ area: z.string() }),
    build: (graph) => graph.job("a", "a", {}),
  });

  test.each([{ mode: "all" as never }, { catalogue: "" }])("%p", async (options) => {
    await expect(ledger.schedules.sync([hourly()], options)).rejects.toMatchObject({ code: "input.invalid" });
  });
});

function codeOf(error: unknown): unknown {
  return isLedgerError(error) ? error.code : error;
}

async function everything(): Promise<unknown[]> {
  return (await database.pool.query("select * from runledger.job_schedules order by id")).rows;
}
