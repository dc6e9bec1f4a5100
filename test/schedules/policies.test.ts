/** What becomes of ticks that nobody fired in time, and of those that come while the fire before lives (FEATURES F-S2). */
import { describe, expect, test } from "@jest/globals";
import { type DueSchedule, plan } from "../../src/schedules/plan.ts";
import { createTestDatabase } from "../support/database.ts";
import { audit, auditing, finish, firesOf, global, globally, jobsOf, ledgerOf, missed, setBack } from "./fixtures.ts";

const database = await createTestDatabase();
const ledger = ledgerOf(database);
const HOUR = 3_600_000;

describe("after downtime", () => {
  test("once: the last tick is fired, with its own time", async () => {
    const { name, ticks } = await missed(database, ledger, 30);
    await ledger.schedules.fireDue();

    expect((await firesOf(ledger, name)).map(({ intendedAt }) => intendedAt)).toEqual(ticks.slice(-1));
  });

  test("backfill: all ticks are fired, oldest first, each with a job of its own", async () => {
    const { name, ticks } = await missed(database, ledger, 30, { catchUp: "backfill" });
    const { fired } = await ledger.schedules.fireDue();

    expect(fired.map(({ intendedAt }) => intendedAt)).toEqual(ticks);
    expect((await jobsOf(database, name)).map(({ intendedAt }) => intendedAt)).toEqual(ticks);
  });

  test("backfill keeps to its limit: the oldest are left out", async () => {
    const { ticks } = await missed(database, ledger, 30, { catchUp: "backfill", backfillLimit: 4 });
    const { fired } = await ledger.schedules.fireDue();

    expect(fired.map(({ intendedAt }) => intendedAt)).toEqual(ticks.slice(-4));
  });

  test("skip: what is later than the grace is not fired, and the schedule goes on", async () => {
    const late = await missed(database, ledger, 30, { catchUp: "skip", graceSeconds: 0 });
    const within = await missed(database, ledger, 30, { catchUp: "skip", graceSeconds: 3600 });
    const { fired } = await ledger.schedules.fireDue();
    const { nextAt } = await ledger.schedules.get(late.name, global);

    expect(fired).toMatchObject([{ name: within.name, intendedAt: within.ticks.at(-1) }]);
    expect(nextAt?.getTime()).toBe((late.ticks.at(-1)?.getTime() ?? 0) + HOUR);
    expect(await jobsOf(database, late.name)).toEqual([]);
  });

  test("a schedule that ended meanwhile fires what was before its end, and has no next time", async () => {
    const { name } = await missed(database, ledger, 1, { catchUp: "backfill" });
    await database.pool.query(
      `update runledger.job_schedules
       set intended_at = date_trunc('hour', now()) - interval '5 hours', ends_at = date_trunc('hour', now()) - interval '2 hours'
       where name = $1`,
      [name],
    );
    const { fired } = await ledger.schedules.fireDue();

    expect(fired).toHaveLength(3);
    expect(await ledger.schedules.get(name, global)).toMatchObject({ nextAt: null, dueAt: null });
    expect((await ledger.schedules.fireDue()).fired).toEqual([]);
  });
});

describe("while the job of the fire before lives", () => {
  test("allow: the tick is fired", async () => {
    const { name } = await missed(database, ledger, 1);
    await ledger.schedules.fireDue();
    await setBackAfterFires(name, 3);
    await ledger.schedules.fireDue();

    expect(await jobsOf(database, name)).toHaveLength(2);
  });

  test("skip: the tick is passed over, and the history says so", async () => {
    const { name } = await missed(database, ledger, 3, { overlap: "skip" });
    await ledger.schedules.fireDue();
    const tick = (await setBackAfterFires(name, 2)).at(-1);
    const { fired, skipped } = await ledger.schedules.fireDue();
    const history = await firesOf(ledger, name);

    expect({ fired, skipped }).toEqual({ fired: [], skipped: [{ name, organizationId: null, intendedAt: tick }] });
    expect(history).toMatchObject([
      { outcome: "fired", jobId: expect.any(String) },
      { outcome: "skipped", intendedAt: tick, jobId: null, runId: null },
    ]);
  });

  test("skip: the next tick after it has ended is fired", async () => {
    const { name } = await missed(database, ledger, 3, { overlap: "skip" });
    await ledger.schedules.fireDue();
    await finish(ledger, name);
    await setBackAfterFires(name, 2);

    expect(await ledger.schedules.fireDue()).toMatchObject({ fired: { length: 1 }, skipped: [] });
  });

  test("queue: the schedule waits, and the last tick since is fired when it has ended", async () => {
    const { name } = await missed(database, ledger, 9, { overlap: "queue" });
    await ledger.schedules.fireDue();
    const waiting = await setBackAfterFires(name, 4);
    const blocked = await ledger.schedules.fireDue();
    const shown = await ledger.schedules.get(name, global);
    await finish(ledger, name);
    await lookAgain(name);
    const { fired } = await ledger.schedules.fireDue();

    expect(blocked).toMatchObject({ fired: [], skipped: [] });
    expect(blocked.nextInMs).toBeGreaterThan(0);
    expect(shown.nextAt).toEqual(waiting[0]);
    expect(shown.dueAt?.getTime()).toBeGreaterThan(Date.now() - 60_000);
    expect(fired.map(({ intendedAt }) => intendedAt)).toEqual(waiting.slice(-1));
  });

  test("queue with backfill: every tick is fired, oldest first, one at a time", async () => {
    const { name, ticks } = await missed(database, ledger, 3, { overlap: "queue", catchUp: "backfill" });
    const order: Date[] = [];
    for (const _ of ticks) {
      const { fired } = await ledger.schedules.fireDue();
      order.push(...fired.map(({ intendedAt }) => intendedAt));
      await lookAgain(name);
      expect((await ledger.schedules.fireDue()).fired).toEqual([]);
      expect(await jobsOf(database, name)).toHaveLength(1);
      await finish(ledger, name);
      await lookAgain(name);
    }

    expect(order).toEqual(ticks);
    expect((await ledger.schedules.fireDue()).fired).toEqual([]);
  });

  test("a job that is tried again lives, and one that was triggered by hand counts as the fire before", async () => {
    const { name } = await missed(database, ledger, 3, { overlap: "skip" });
    const { jobId } = await ledger.schedules.triggerNow(name, globally);
    const first = await ledger.schedules.fireDue();
    const [job] = await ledger.jobs.claim({ workerId: "w", limit: 1, types: [name] });
    if (job === undefined) throw new Error("the trigger's job is due");
    await ledger.jobs.fail(job.lease, { code: "again", message: "again" });
    await setBackAfterFires(name, 1);
    const second = await ledger.schedules.fireDue();

    expect(job.lease.jobId).toBe(jobId);
    expect([first, second]).toMatchObject([
      { fired: [], skipped: { length: 1 } },
      { fired: [], skipped: { length: 1 } },
    ]);
  });
});

describe("while the run of the fire before lives", () => {
  test("skip passes over, and fires when the run has ended", async () => {
    const definition = auditing({ overlap: "skip" });
    await ledger.schedules.upsert(definition);
    await setBack(database, definition.name, 5);
    const fire = () => ledger.schedules.fireDue({ workflows: [audit] });
    const first = await fire();
    await setBackAfterFires(definition.name, 3);
    const second = await fire();
    await ledger.runs.cancel(first.fired[0]?.runId ?? "", globally);
    await setBackAfterFires(definition.name, 2);
    const third = await fire();

    expect([first, second, third].map(({ fired, skipped }) => [fired.length, skipped.length])).toEqual([
      [1, 0],
      [0, 1],
      [1, 0],
    ]);
  });
});

describe("a plan", () => {
  const now = new Date("2026-05-01T12:00:30Z");
  const at = (time: string) => new Date(`2026-05-01T${time}:00Z`);
  const schedule = (over: Partial<DueSchedule> = {}): DueSchedule => ({
    cron: "0 * * * *",
    timeZone: "UTC",
    startsAt: null,
    endsAt: null,
    catchUp: "once",
    backfillLimit: 100,
    graceSeconds: 60,
    overlap: "allow",
    intendedAt: at("12:00"),
    busy: false,
    fired: [],
    forgottenUntil: null,
    ...over,
  });

  test("of one tick is that tick, and the next hour", () => {
    expect(plan(schedule(), now, 10)).toEqual({ fire: [at("12:00")], skip: [], next: at("13:00"), dueAt: at("13:00") });
  });

  test("leaves out what was fired before, when somebody set the time back", () => {
    const back = schedule({ catchUp: "backfill", intendedAt: at("10:00"), fired: [at("11:00"), at("12:00")] });

    expect(plan(back, now, 10)).toMatchObject({ fire: [at("10:00")], next: at("13:00") });
  });

  test("fires a time that somebody set as it is, whatever the expression says", () => {
    expect(plan(schedule({ intendedAt: at("11:47") }), at("11:50"), 10)).toMatchObject({
      fire: [at("11:47")],
      next: at("12:00"),
    });
  });

  test("leaves what there is no room for due", () => {
    const many = schedule({ catchUp: "backfill", intendedAt: at("08:00") });

    expect(plan(many, now, 2)).toEqual({ fire: [at("08:00"), at("09:00")], skip: [], next: at("10:00"), dueAt: now });
    expect(plan(many, now, 0)).toEqual({ fire: [], skip: [], next: at("08:00"), dueAt: now });
  });

  test("with skip and backfill fires one, and passes the others over: they would overlap", () => {
    const both = schedule({ catchUp: "backfill", overlap: "skip", intendedAt: at("10:00") });

    expect(plan(both, now, 10)).toMatchObject({ fire: [at("10:00")], skip: [at("11:00"), at("12:00")] });
  });

  test("is not led astray by a server whose clock was set back", () => {
    const { fire, next } = plan(schedule({ intendedAt: at("13:00") }), now, 10);

    expect({ fire, next }).toEqual({ fire: [at("13:00")], next: at("14:00") });
  });
});

/** So many hourly ticks are due, all before those that were fired already: as if there had been no fire. */
async function setBackAfterFires(name: string, hours: number): Promise<Date[]> {
  await database.pool.query(
    `update runledger.job_schedule_fires set intended_at = intended_at - interval '100 days'
     where schedule_id = (select id from runledger.job_schedules where name = $1)`,
    [name],
  );
  return setBack(database, name, hours);
}

/** The time after which a waiting schedule is looked at again has passed. */
async function lookAgain(name: string): Promise<void> {
  await database.pool.query(
    "update runledger.job_schedules set due_at = least(due_at, now()) where name = $1 and intended_at <= now()",
    [name],
  );
}
