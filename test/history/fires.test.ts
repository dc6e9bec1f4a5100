/** Retention of the fires of schedules: what is past goes, and no tick is fired again for it (FEATURES F-H2, F-S1). */
import { afterEach, expect, test } from "@jest/globals";
import type { RetainOptions, RetainProgress } from "../../src/index.ts";
import { expectInvariants } from "../invariants.ts";
import { firesOf, globally, hourly, jobsOf, ledgerOf, missed, setBack } from "../schedules/fixtures.ts";
import { createTestDatabase } from "../support/database.ts";

const database = await createTestDatabase();
const ledger = ledgerOf(database);
const backfill = { catchUp: "backfill" } as const;

afterEach(async () => {
  await expectInvariants(database);
  await database.pool.query("delete from runledger.job_schedules");
});

/** With fires older than so many hours going. */
const retain = (hours: number, options: Partial<RetainOptions> = {}) =>
  ledger.maintenance.retain({ policies: { fires: hours / 24 }, ...options });
const fired = async () => (await ledger.schedules.fireDue()).fired.map(({ intendedAt }) => intendedAt);
const kept = async (name: string) => (await firesOf(ledger, name)).map(({ intendedAt }) => intendedAt);

test("fires go by their age; without a policy none does", async () => {
  const { name, ticks } = await missed(database, ledger, 9, backfill);
  await fired();

  expect(await ledger.maintenance.retain({ policies: {} })).toMatchObject({ fires: 0 });
  expect(await kept(name)).toEqual(ticks);
  expect(await retain(5)).toMatchObject({ fires: 4, complete: true });
  expect(await kept(name)).toEqual(ticks.slice(4));
  expect(await retain(5)).toMatchObject({ fires: 0 });
});

test("the last fire of a schedule is kept, however old it is", async () => {
  const { name, ticks } = await missed(database, ledger, 3, backfill);
  await fired();

  expect(await retain(0)).toMatchObject({ fires: 2 });
  expect(await kept(name)).toEqual(ticks.slice(-1));
});

test("a schedule that is retimed to ticks whose fires are gone does not fire them again", async () => {
  const { name, ticks } = await missed(database, ledger, 6, backfill);
  await fired();
  await retain(3);
  await ledger.schedules.retime(name, { ...globally, at: ticks[0] ?? "" });

  expect(await fired()).toEqual([]);
  expect(await jobsOf(database, name)).toHaveLength(6);
  await setBack(database, name, 1);
  expect(await fired()).toEqual([]);
});

test("ticks that a retime made due again keep their fires until they have been looked at", async () => {
  const { name, ticks } = await missed(database, ledger, 6, backfill);
  await fired();
  await ledger.schedules.retime(name, { ...globally, at: ticks[2] ?? "" });

  expect(await retain(0)).toMatchObject({ fires: 2 });
  expect(await kept(name)).toEqual(ticks.slice(2));
  expect(await fired()).toEqual([]);
  expect(await retain(0)).toMatchObject({ fires: 3 });
  expect(await jobsOf(database, name)).toHaveLength(6);
});

test("ticks that are due and were never fired are fired, however old what was forgotten is", async () => {
  const { name, ticks } = await missed(database, ledger, 6, backfill);
  await fired();
  await database.pool.query("delete from runledger.job_schedule_fires where intended_at >= $1", [ticks[3]]);
  await database.pool.query("update runledger.job_schedules set last_intended_at = $1", [ticks[2]]);
  await setBack(database, name, 3);
  await retain(0);

  expect(await fired()).toEqual(ticks.slice(3));
});

test("a schedule that somebody holds is left for another time, and the others are not", async () => {
  const held = await missed(database, ledger, 4, backfill);
  const other = await missed(database, ledger, 4, backfill);
  await fired();
  const trx = await database.db.startTransaction().execute();
  await ledger.in(trx).schedules.retime(held.name, { ...globally, at: held.ticks[0] ?? "" });

  expect(await retain(2)).toMatchObject({ fires: 2 });
  await trx.commit().execute();
  expect([await kept(held.name), await kept(other.name)]).toEqual([held.ticks, other.ticks.slice(2)]);
  expect(await fired()).toEqual([]);
  expect(await jobsOf(database, held.name)).toHaveLength(4);
});

test("a batch looks at so many schedules, and deletes so many fires, at most", async () => {
  const definitions = Array.from({ length: 5 }, () => hourly(backfill));
  await ledger.schedules.sync(definitions);
  for (const { name } of definitions) await setBack(database, name, 6);
  await fired();
  const steps: number[] = [];
  const onProgress = ({ fires }: RetainProgress) => void steps.push(fires);
  const { result, statements } = await database.record(() => retain(2, { batchSize: 3, onProgress }));

  expect(result).toMatchObject({ fires: 20, complete: true });
  expect(steps.map((sum, place) => sum - (steps[place - 1] ?? 0)).every((step) => step <= 3)).toBe(true);
  // Of three schedules four batches and a rest, which is none; of two more two, and a rest.
  expect(statements.filter((text) => text.includes("forget_schedule_fires"))).toHaveLength(8);
  for (const { name } of definitions) expect(await kept(name)).toHaveLength(2);
});

test("a signal ends the walk after its batch", async () => {
  await missed(database, ledger, 6, backfill);
  await fired();
  const stop = new AbortController();

  const result = await retain(1, { batchSize: 2, signal: stop.signal, onProgress: () => stop.abort() });
  expect(result).toMatchObject({ fires: 2, complete: false });
});
