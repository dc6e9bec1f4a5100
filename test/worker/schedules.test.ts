/** A worker fires schedules: on time, and each tick with its handler (FEATURES F-S1, F-R2). */
import { expect, test } from "@jest/globals";
import { defineSchedule, defineWorkflow, type ScheduleTick } from "../../src/index.ts";
import { handle } from "../../src/worker/index.ts";
import { audit, auditing, global, hourly, newName, setBack } from "../schedules/fixtures.ts";
import { createTestDatabase } from "../support/database.ts";
import { beginOutage, ledgerOn, outliveCuts, startWorker } from "./support.ts";

const database = await createTestDatabase();
const ledger = ledgerOn(database);
outliveCuts(database);

/** Longer than any test may take: only what the worker knows of the next tick can wake it. */
const NEVER_MS = 3_600_000;
const handlers = [handle("nothing", () => {})];
const schedule = { intervalMs: NEVER_MS };

test("each tick comes in time and reaches its handler, though the worker looks by itself only once an hour", async () => {
  const name = newName();
  await ledger.schedules.upsert(hourly({ cron: "* * * * * *" }, name));
  const ticks: (ScheduleTick | null)[] = [];
  const handler = handle(name, (context) => {
    ticks.push(context.schedule);
  });
  const worker = await startWorker({ ledger, handlers: [handler], schedule });
  await worker.count("succeeded", 3);
  await worker.worker.stop();
  await ledger.schedules.remove(name, { scope: global });

  const seconds = ticks.map((tick) => tick?.intendedAt.getTime() ?? 0);
  expect(ticks.every((tick) => tick?.name === name)).toBe(true);
  expect(new Set(seconds).size).toBe(seconds.length);
  expect(seconds.every((tick) => tick % 1000 === 0)).toBe(true);
});

test("a schedule that is new is found at the next look", async () => {
  const worker = await startWorker({ ledger, handlers, schedule: { intervalMs: 20 } });
  const definition = hourly();
  await ledger.schedules.upsert(definition);
  const [tick] = await setBack(database, definition.name, 1);

  expect(await worker.event("schedule_fired", ({ name }) => name === definition.name)).toEqual({
    type: "schedule_fired",
    name: definition.name,
    organizationId: null,
    intendedAt: tick,
    jobId: expect.any(String),
    runId: null,
  });
});

test("runs start where the workflow is known, and nowhere else", async () => {
  const definition = auditing();
  await ledger.schedules.upsert(definition);
  await setBack(database, definition.name, 1);
  const blind = await startWorker({ ledger, handlers, schedule: { intervalMs: 10 } });
  const seeing = await startWorker({ ledger, handlers, schedule, workflows: [audit] });
  const { runId } = await seeing.event("schedule_fired", ({ name }) => name === definition.name);

  expect(runId).not.toBeNull();
  expect(blind.events.filter(({ type }) => type === "schedule_fired")).toEqual([]);
});

test("what cannot be fired, and what is passed over, is told", async () => {
  const broken = defineWorkflow("broken", {
    build() {
      throw new Error("broken");
    },
  });
  const bad = defineSchedule(newName(), { cron: "0 * * * *", workflow: broken, input: null });
  const busy = hourly({ overlap: "skip" });
  await ledger.schedules.sync([bad, busy]);
  await ledger.schedules.triggerNow(busy.name, { scope: global });
  for (const { name } of [bad, busy]) await setBack(database, name, 1);
  const worker = await startWorker({ ledger, handlers, schedule, workflows: [broken] });

  expect(await worker.event("schedule_set_aside")).toMatchObject({
    name: bad.name,
    error: { code: "schedule.build_failed" },
  });
  expect(await worker.event("schedule_skipped")).toMatchObject({ name: busy.name });
});

test("a worker told not to fires nothing", async () => {
  const definition = hourly();
  await ledger.schedules.upsert(definition);
  await setBack(database, definition.name, 1);
  const idle = await startWorker({ ledger, handlers, schedule: false });
  const other = await startWorker({ ledger, handlers, schedule });
  await other.event("schedule_fired", ({ name }) => name === definition.name);
  await idle.worker.stop();

  expect(idle.events.map(({ type }) => type)).toEqual(["stopped"]);
});

test("firing goes on when the database was away", async () => {
  const worker = await startWorker({ ledger, handlers, schedule: { intervalMs: 20 } });
  const outage = await beginOutage(database);
  await worker.event("error", ({ during, fatal }) => during === "schedule" && !fatal);
  await outage.end();
  const definition = hourly();
  await ledger.schedules.upsert(definition);
  await setBack(database, definition.name, 1);

  await worker.event("schedule_fired", ({ name }) => name === definition.name);
});

test.each([
  { schedule: { intervalMs: 1 } },
  { schedule: "yes" as never },
  { workflows: [{}] as never },
  { workflows: "all" as never },
])("the options %p are refused", async (options) => {
  await expect(startWorker({ ledger, handlers, ...options })).rejects.toMatchObject({ code: "config.invalid" });
});
