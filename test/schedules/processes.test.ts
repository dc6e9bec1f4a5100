/** Once per tick, whatever the number of processes and whatever their clocks show (FEATURES F-S1). */
import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { join, resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { pathToFileURL } from "node:url";
import { expect, test } from "@jest/globals";
import { createTestDatabase } from "../support/database.ts";
import { hourly, ledgerOf, newName, setBack } from "./fixtures.ts";

const ROOT = resolve(import.meta.dirname, "../..");
const TSX = pathToFileURL(join(ROOT, "node_modules/tsx/dist/loader.mjs")).href;
const CLOCK = pathToFileURL(join(import.meta.dirname, "processes/shifted-clock.mjs")).href;
const HOUR = 3_600_000;
/** As wrong as clocks are that nobody looks after, and some that are right. */
const shifts = [0, 0, -48, -12, -3, -1, 1, 5, 24, 400].map((hours) => hours * HOUR);

const database = await createTestDatabase();
const ledger = ledgerOf(database);

test("ten processes with clocks that differ by days fire each tick exactly once", async () => {
  const backfills = Array.from({ length: 30 }, () => hourly({ catchUp: "backfill" }));
  const everySecond = hourly({ cron: "* * * * * *", catchUp: "backfill" }, newName());
  await ledger.schedules.sync(backfills);
  const expected: string[] = [];
  for (const { name } of backfills) {
    for (const tick of await setBack(database, name, 20)) expected.push(`${name} ${tick.toISOString()}`);
  }
  const processes = shifts.map(started);
  const clocks = await Promise.all(processes.map(async (child) => (await told(child)).now - Date.now()));
  await ledger.schedules.upsert(everySecond);
  await firesReach(everySecond.name, 4);
  await firesReach(backfills.map(({ name }) => name).join(","), expected.length);
  const counts = await Promise.all(processes.map(ended));

  // The clocks were as wrong as they should have been, give or take the time it took to say so.
  expect(clocks.map((off) => Math.round(off / HOUR) * HOUR + 0)).toEqual(shifts);
  const { rows: jobs } = await database.pool.query<{ name: string; intended: string; count: number }>(
    `select metadata->'schedule'->>'name' as name, metadata->'schedule'->>'intendedAt' as intended, count(*)::int
     from runledger.job_queue group by 1, 2 order by 1, 2`,
  );
  expect(jobs.filter(({ count }) => count !== 1)).toEqual([]);
  const seconds = jobs.filter(({ name }) => name === everySecond.name).map(({ intended }) => new Date(intended));
  expect(seconds.map((tick) => tick.getTime())).toEqual(
    seconds.map((_, place) => (seconds[0]?.getTime() ?? 0) + place * 1000),
  );
  expect(
    jobs
      .filter(({ name }) => name !== everySecond.name)
      .map(({ name, intended }) => `${name} ${intended}`)
      .sort(),
  ).toEqual(expected.sort());
  expect(counts.reduce((sum, count) => sum + count, 0)).toBe(expected.length + seconds.length);
}, 240_000);

function started(shiftMs: number): ChildProcess {
  const child = fork(join(import.meta.dirname, "processes/firer.ts"), [], {
    execArgv: ["--import", CLOCK, "--import", TSX],
    env: { ...process.env, NODE_OPTIONS: "", CLOCK_SHIFT_MS: `${shiftMs}`, RUNLEDGER_TEST_DATABASE_URL: database.url },
  });
  database.defer(() => child.kill());
  return child;
}

interface Told {
  readonly now: number;
  readonly fired: number;
}

/** The next message of the process; its end is an error. */
async function told(child: ChildProcess): Promise<Told> {
  const gone = new AbortController();
  const end = once(child, "exit", { signal: gone.signal }).then(([code]) => {
    throw new Error(`the process ended with ${code}`);
  });
  try {
    const [message] = await Promise.race([once(child, "message"), end]);
    return message;
  } finally {
    gone.abort();
    end.catch(() => {});
  }
}

async function ended(child: ChildProcess): Promise<number> {
  const exit = once(child, "exit");
  const last = told(child);
  child.send("stop");
  const { fired } = await last;
  expect(await exit).toEqual([0, null]);
  return fired;
}

/** Resolves when the schedules, given by name and comma, have so many fires between them. */
async function firesReach(names: string, count: number): Promise<void> {
  for (;;) {
    const { rows } = await database.pool.query<{ fires: number }>(
      `select count(*)::int as fires from runledger.job_schedule_fires as f
       join runledger.job_schedules as s on s.id = f.schedule_id where s.name = any(string_to_array($1, ','))`,
      [names],
    );
    if ((rows[0]?.fires ?? 0) >= count) return;
    await sleep(50);
  }
}
