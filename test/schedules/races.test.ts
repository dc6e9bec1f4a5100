/** Firing against everything that changes a schedule, and against itself: two sessions, in both orders. */
import { afterEach, describe, expect, test } from "@jest/globals";
import { createLedger } from "../../src/index.ts";
import { openTransaction } from "../runs/fixtures.ts";
import { createTestDatabase } from "../support/database.ts";
import { waitForBackend } from "../support/waiting.ts";
import { firesOf, global, globally, hourly, jobsOf, ledgerOf, missed } from "./fixtures.ts";

const database = await createTestDatabase();
const ledger = ledgerOf(database);

afterEach(async () => {
  const { rows } = await database.pool.query(`
    select f.schedule_id, f.intended_at from runledger.job_schedule_fires as f
    where f.outcome = 'FIRED' and not exists (select from runledger.job_queue as q where q.id = f.job_id)
    union all
    select s.id, (q.metadata->'schedule'->>'intendedAt')::timestamptz
    from runledger.job_queue as q join runledger.job_schedules as s on s.name = q.metadata->'schedule'->>'name'
    where not exists (select from runledger.job_schedule_fires as f where f.job_id = q.id)`);
  // Every fire has its job, and every job of a schedule that is still there its fire.
  expect(rows).toEqual([]);
});

type Change = (name: string) => (l: typeof ledger) => Promise<unknown>;
const changes: Record<string, Change> = {
  pause: (name) => (l) => l.schedules.pause([name], globally),
  remove: (name) => (l) => l.schedules.remove(name, globally),
  retime: (name) => (l) => l.schedules.retime(name, globally),
  "a sync that times it anew": (name) => (l) => l.schedules.sync([hourly({ cron: "30 * * * *" }, name)]),
  "an exact sync without it": (name) => async (l) => {
    await l.schedules.sync([], { mode: "exact", catalogue: name });
  },
};

/** A schedule of a catalogue of its own whose last three ticks are due. */
async function missedOfCatalogue() {
  const schedule = await missed(database, ledger, 3);
  await database.pool.query("update runledger.job_schedules set catalogue = name where name = $1", [schedule.name]);
  return schedule;
}

describe("who changes a schedule first keeps it from being fired:", () => {
  test.each(Object.keys(changes))("%s", async (what) => {
    const { name } = await missedOfCatalogue();
    const trx = await openTransaction(database);
    await changes[what]?.(name)(ledger.in(trx));
    const meanwhile = await ledger.schedules.fireDue();
    await trx.commit().execute();
    const after = await ledger.schedules.fireDue();

    expect([meanwhile.fired, meanwhile.setAside, after.fired]).toEqual([[], [], []]);
    expect(await jobsOf(database, name)).toEqual([]);
  });

  test.each(Object.keys(changes))("%s, unless that is taken back", async (what) => {
    const { name } = await missedOfCatalogue();
    const trx = await openTransaction(database);
    await changes[what]?.(name)(ledger.in(trx));
    expect((await ledger.schedules.fireDue()).fired).toEqual([]);
    await trx.rollback().execute();

    expect((await ledger.schedules.fireDue()).fired).toMatchObject([{ name }]);
  });
});

describe("who changes a schedule that is being fired waits, and changes what is there then:", () => {
  test.each(Object.keys(changes))("%s", async (what) => {
    const { name, ticks } = await missedOfCatalogue();
    const trx = await openTransaction(database);
    await ledger.in(trx).schedules.fireDue();
    const change = changes[what]?.(name)(ledger);
    await waitForBackend({
      client: database.pool,
      marker: what.includes("sync") ? "sync_schedules" : "hold_schedules",
    });
    await trx.commit().execute();
    await change;

    expect((await jobsOf(database, name)).map(({ intendedAt }) => intendedAt)).toEqual(ticks.slice(-1));
    expect((await ledger.schedules.fireDue()).fired).toEqual([]);
    if (what !== "remove") expect(await firesOf(ledger, name)).toHaveLength(1);
  });
});

test("who fires what another session is firing gets nothing, and does not wait", async () => {
  const { name } = await missed(database, ledger, 3);
  const trx = await openTransaction(database);
  const first = await ledger.in(trx).schedules.fireDue();
  const second = await ledger.schedules.fireDue();
  await trx.commit().execute();
  const third = await ledger.schedules.fireDue();

  expect([first, second, third].map(({ fired }) => fired.length)).toEqual([1, 0, 0]);
  expect(await jobsOf(database, name)).toHaveLength(1);
});

test("many at once fire each tick once, between them", async () => {
  const all = await Promise.all(Array.from({ length: 12 }, () => missed(database, ledger, 4, { catchUp: "backfill" })));
  const outcomes = await Promise.all(Array.from({ length: 8 }, () => ledger.schedules.fireDue({ limit: 3 })));
  let left = 1;
  while (left > 0) left = (await ledger.schedules.fireDue()).fired.length;

  expect(outcomes.every(({ setAside }) => setAside.length === 0)).toBe(true);
  for (const { name, ticks } of all) {
    expect((await jobsOf(database, name)).map(({ intendedAt }) => intendedAt)).toEqual(ticks);
  }
});

test("a trigger while a tick is fired waits, and both are started", async () => {
  const { name } = await missed(database, ledger, 1);
  const trx = await openTransaction(database);
  await ledger.in(trx).schedules.fireDue();
  const triggered = ledger.schedules.triggerNow(name, globally);
  await waitForBackend({ client: database.pool, marker: "hold_schedules" });
  await trx.commit().execute();
  await triggered;

  expect(await jobsOf(database, name)).toHaveLength(2);
  expect((await ledger.schedules.get(name, global)).lastJobId).toBe((await triggered).jobId);
});

test("two syncs of the same new schedule at once make one", async () => {
  const definition = hourly();
  const trx = await openTransaction(database);
  await ledger.in(trx).schedules.sync([definition]);
  const second = ledger.schedules.sync([definition]);
  await waitForBackend({ client: database.pool, marker: "sync_schedules" });
  await trx.commit().execute();

  expect(await second).toEqual({ written: [], disabled: [] });
});

test("who waits for a schedule gives up at the ledger's bound", async () => {
  const { name } = await missed(database, ledger, 1);
  const impatient = createLedger({ db: database.db, lockWaitMs: 20 });
  const trx = await openTransaction(database);
  await ledger.in(trx).schedules.pause([name], globally);

  await expect(impatient.schedules.pause([name], globally)).rejects.toMatchObject({ code: "db.lock_timeout" });
  await expect(impatient.schedules.sync([hourly({ cron: "@daily" }, name)])).rejects.toMatchObject({
    code: "db.lock_timeout",
  });
  await trx.rollback().execute();
});
