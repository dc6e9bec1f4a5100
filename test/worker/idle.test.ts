/** What a worker costs that has nothing to do: one statement a poll, and few besides (DESIGN §7, docs/worker.md). */
import { readFile } from "node:fs/promises";
import { resolve } from "node:path";
import { beforeAll, describe, expect, test } from "@jest/globals";
import { sql } from "kysely";
import type { Ledger } from "../../src/index.ts";
import { createWorker, handle, type WorkerOptions } from "../../src/worker/index.ts";
import { Maintainer } from "../../src/worker/maintain.ts";
import { settingsOf } from "../../src/worker/options.ts";
import { reapOnce } from "../../src/worker/reaper.ts";
import { fireSchedulesOnce } from "../../src/worker/schedules.ts";
import { fireTimersOnce } from "../../src/worker/timers.ts";
import { createTestDatabase } from "../support/database.ts";
import { ledgerOn } from "./support.ts";

const database = await createTestDatabase();
const ledger = ledgerOn(database);
const handlers = [handle("rare", () => {})];

/** An ordinary ledger: jobs have ended in it, and one is due in an hour. */
beforeAll(async () => {
  await ledger.jobs.enqueueMany(Array.from({ length: 20 }, () => ({ type: "rare", payload: {} })));
  for (const { lease } of await ledger.jobs.claim({ workerId: "before", limit: 20 })) await ledger.jobs.complete(lease);
  await ledger.jobs.enqueue("rare", {}, { runAt: new Date(Date.now() + 3_600_000) });
  await turns.maintain?.(ledger);
});

const { reapIntervalMs, scheduleIntervalMs, pollIntervalMs, maintain } = settingsOf({ ledger, handlers });
const ignored = () => {};

/** What the loops of a worker do when it is time, and how often that is. */
const turns: Readonly<Record<string, (on: Ledger) => Promise<unknown>>> = {
  claim: (on) => on.jobs.claim({ workerId: "idle", limit: 10, types: ["rare", "runledger.child_run"] }),
  reap: (on) => reapOnce(on, ignored, 1000),
  timers: (on) => fireTimersOnce(on, ignored, 1000),
  schedule: (on) => fireSchedulesOnce(on, [], ignored, 1000),
  maintain: (on) => (maintain === null ? Promise.resolve() : new Maintainer(on, ignored, maintain).turn()),
};
const intervalsMs: Readonly<Record<string, number | null | undefined>> = {
  claim: pollIntervalMs,
  reap: reapIntervalMs,
  timers: reapIntervalMs,
  schedule: scheduleIntervalMs,
  maintain: maintain?.intervalMs,
};

test("an idle worker with all roles claims once an interval, and sends no heartbeats", async () => {
  const began = performance.now();
  const { statements } = await database.record(async () => {
    const worker = createWorker({ ledger, handlers, pollIntervalMs: 100, leaseSeconds: 1 });
    await worker.start();
    await database.pool.query("select pg_sleep(1.2)");
    await worker.stop();
  });
  const polls = 1 + (performance.now() - began) / 100;
  const [claims, others] = [namesIn(statements).filter(isClaim), namesIn(statements).filter((name) => !isClaim(name))];

  expect(claims.length).toBeGreaterThan(1);
  expect(claims.length).toBeLessThanOrEqual(polls);
  // The first look at timers and schedules comes within a second; maintaining may fall into the time, too.
  expect(others.filter((name) => name.startsWith("look_at")).sort()).toEqual(["look_at_schedules", "look_at_timers"]);
  expect(others.filter((name) => name.includes("heartbeat"))).toEqual([]);
});

const off = { handlers: [], reap: false, schedule: false, maintain: false };
const often = { intervalMs: 20 };
const roles: readonly [string, Partial<WorkerOptions>, readonly string[]][] = [
  ["none", {}, []],
  ["handlers", { handlers, pollIntervalMs: 20 }, ["claim_jobs"]],
  ["reap", { reap: often }, ["expired_leases", "look_at_timers"]],
  ["schedule", { schedule: often }, ["look_at_schedules"]],
  [
    "maintain",
    { maintain: often },
    [
      "cap_lock_timeout",
      "compact_status_counts",
      "ensure_job_ledger_partitions",
      "forget_expired_job_idempotency_keys",
      "forget_expired_workflow_idempotency_keys",
      "restore_lock_timeout",
      "sweep_job_limits",
    ],
  ],
];

test.each(roles)("roles apart: a process with %s alone sends nothing else", async (_role, options, names) => {
  const { statements } = await database.record(async () => {
    const worker = createWorker({ ledger, ...off, ...options });
    await worker.start();
    await database.pool.query("select pg_sleep(0.2)");
    await worker.stop();
  });

  expect([...new Set(namesIn(statements))].sort()).toEqual(names);
});

test.each(["claim", "reap", "timers", "schedule"])("a turn that finds nothing writes nothing: %s", async (name) => {
  await database.db.transaction().execute(async (trx) => {
    await turns[name]?.(ledger.in(trx));
    const { rows } = await sql<{ id: string | null }>`select pg_current_xact_id_if_assigned()::text as id`.execute(trx);

    expect(rows).toEqual([{ id: null }]);
  });
});

describe("the table in docs/worker.md", () => {
  test("has the statements that each turn sends, and how often it comes", async () => {
    for (const { name, seconds, statements, perMinute } of await documented()) {
      const sent = await database.record(async () => turns[name]?.(ledger));

      expect([name, sent.statements.length, intervalsMs[name]]).toEqual([name, statements, seconds * 1000]);
      expect([name, perMinute]).toEqual([name, (statements * 60) / seconds]);
    }
  });

  test("has all that a worker does, and its sum", async () => {
    const rows = await documented();
    const sum = rows.reduce((total, { perMinute }) => total + perMinute, 0);

    expect(rows.map(({ name }) => name)).toEqual(Object.keys(turns));
    expect(await page()).toContain(`${sum} statements a minute`);
  });
});

function namesIn(statements: readonly string[]): string[] {
  return statements.flatMap((text) => /runledger:(\w+)/.exec(text)?.[1] ?? []);
}

function isClaim(name: string): boolean {
  return name === "claim_jobs";
}

function page(): Promise<string> {
  return readFile(resolve(import.meta.dirname, "../../docs/worker.md"), "utf8");
}

async function documented() {
  const rows = [...(await page()).matchAll(/^\| (\w+) +\|.*?\| +(\d+) s +\| +(\d+) +\| +(\d+) +\|$/gm)];
  return rows.map(([, name = "", ...numbers]) => {
    const [seconds = 0, statements = 0, perMinute = 0] = numbers.map(Number);
    return { name, seconds, statements, perMinute };
  });
}
