/** Round trips of each function of schedules, as their doc comments have them: alone, and in the caller's transaction. */
import { beforeEach, expect, test } from "@jest/globals";
import { defineSchedule, defineWorkflow, type Ledger } from "../../src/index.ts";
import { createTestDatabase } from "../support/database.ts";
import { audit, auditing, global, globally, hourly, ledgerOf, missed, setBack } from "./fixtures.ts";

const database = await createTestDatabase({ max: 3 });
const ledger = ledgerOf(database);

type Call = (ledger: Ledger) => Promise<unknown>;

beforeEach(() => database.pool.query("delete from runledger.job_schedules"));

const one = async () => {
  const definition = hourly();
  await ledger.schedules.upsert(definition);
  return definition.name;
};
const dueJobs = async (count: number) => {
  for (let n = 0; n < count; n += 1) await missed(database, ledger, 10, { catchUp: "backfill" });
};
const dueRuns = async (count: number) => {
  const definitions = Array.from({ length: count }, () => auditing());
  await ledger.schedules.sync(definitions);
  for (const { name } of definitions) await setBack(database, name, 3);
};
const fire: Call = (l) => l.schedules.fireDue({ workflows: [audit] });

/** What is called, what is prepared for it, statements alone with begin and commit, statements in the caller's transaction. */
const table: readonly [what: string, prepare: () => Promise<Call> | Call, alone: number, inCallers: number][] = [
  ["fireDue when nothing is due", () => fire, 1, 2],
  ["fireDue of one job", async () => dueJobs(1).then(() => fire), 6, 5],
  ["fireDue of 200 ticks of 20 schedules", async () => dueJobs(20).then(() => fire), 6, 5],
  ["fireDue of ten runs", async () => dueRuns(10).then(() => fire), 6, 5],
  [
    "fireDue of jobs and runs",
    async () => {
      await dueJobs(10);
      await dueRuns(10);
      return fire;
    },
    7,
    6,
  ],
  ["sync", () => (l) => l.schedules.sync([hourly(), auditing()], { mode: "exact" }), 2, 4],
  ["upsert", () => (l) => l.schedules.upsert(hourly()), 3, 5],
  ["pause", async () => of(await one(), (l, name) => l.schedules.pause([name], globally)), 4, 4],
  ["resume", async () => of(await one(), (l, name) => l.schedules.resume([name], globally)), 4, 4],
  ["retime", async () => of(await one(), (l, name) => l.schedules.retime(name, globally)), 4, 4],
  ["triggerNow", async () => of(await one(), (l, name) => l.schedules.triggerNow(name, globally)), 5, 5],
  ["remove", async () => of(await one(), (l, name) => l.schedules.remove(name, globally)), 4, 4],
  ["get", async () => of(await one(), (l, name) => l.schedules.get(name, global)), 1, 1],
  ["list", () => (l) => l.schedules.list(globally), 1, 1],
  ["fires", async () => of(await one(), (l, name) => l.schedules.fires(name, globally)), 2, 2],
];

test.each(table)("%s", async (_, prepare, alone) => {
  const call = await prepare();
  const { statements } = await database.record(() => call(ledger));

  expect(named(statements)).toHaveLength(alone);
});

test.each(table)("%s, in the caller's transaction", async (_, prepare, __, inCallers) => {
  const call = await prepare();
  const { statements } = await database.record(() => database.db.transaction().execute((trx) => call(ledger.in(trx))));

  expect(named(statements.slice(1, -1))).toHaveLength(inCallers);
});

test("what cannot be fired costs a search by halves, and one statement for all of it", async () => {
  const broken = defineWorkflow("broken", {
    build() {
      throw new Error("broken");
    },
  });
  const bad = defineSchedule("bad", { cron: "0 * * * *", workflow: broken, input: null });
  await ledger.schedules.sync([bad, ...Array.from({ length: 7 }, () => hourly())]);
  await database.pool.query("update runledger.job_schedules set intended_at = now(), due_at = now()");
  const { result, statements } = await database.record(() => ledger.schedules.fireDue({ workflows: [broken] }));

  expect(result).toMatchObject({ fired: { length: 7 }, setAside: { length: 1 } });
  expect(named(statements).filter((name) => name === "hold_due_schedules")).toHaveLength(7);
  expect(named(statements).filter((name) => name === "put_schedules_off")).toHaveLength(1);
});

function of(name: string, call: (ledger: Ledger, name: string) => Promise<unknown>): Call {
  return (l) => call(l, name);
}

/** The statements' names, so that a wrong count shows what was sent. */
function named(statements: readonly string[]): string[] {
  return statements.map((text) => /runledger:(\w+)/.exec(text)?.[1] ?? text);
}
