/** How often a worker asks for jobs: rarely where it hears of them, and where it cannot, often while there are some (FEATURES F-R1). */
import { expect, test } from "@jest/globals";
import pg from "pg";
import { createLedger, type Ledger } from "../../src/index.ts";
import { handle } from "../../src/worker/index.ts";
import { pollDelayMs } from "../../src/worker/polling.ts";
import { createTestDatabase } from "../support/database.ts";
import { waitForBackend } from "../support/waiting.ts";
import { gate, ledgerOn, outliveCuts, startWorker } from "./support.ts";

const database = await createTestDatabase();
const deaf = ledgerOn(database);
outliveCuts(database);

/** Longer than any test may take: whoever asks again does so of his own accord. */
const NEVER_MS = 3_600_000;

test("after jobs were found the delays double, up to the interval", () => {
  const delays = [0];
  for (let since = 0; delays.length < 10; since += delays.at(-1) ?? 0) delays.push(pollDelayMs(since, 1000));

  expect(delays.slice(1)).toEqual([50, 50, 100, 200, 400, 800, 1000, 1000, 1000]);
  expect(pollDelayMs(0, 20)).toBe(20);
  expect(pollDelayMs(Number.POSITIVE_INFINITY, 1000)).toBe(1000);
});

test("where nobody announces jobs, those that follow others are found long before the interval is over", async () => {
  await deaf.jobs.enqueue("followed", {});
  const began = performance.now();
  const { statements } = await database.record(async () => {
    const worker = await startWorker({
      ledger: deaf,
      pollIntervalMs: NEVER_MS,
      handlers: [handle("followed", () => {})],
    });
    for (let found = 1; found <= 3; found += 1) {
      await worker.count("succeeded", found);
      if (found < 3) await deaf.jobs.enqueue("followed", {});
    }
    await database.pool.query("select pg_sleep(0.5)");
    await worker.worker.stop();
  });
  const ms = performance.now() - began;

  // For each job found one claim at once, and the delays of all this time at most.
  expect(claims(statements).length).toBeLessThanOrEqual(3 * (2 + Math.ceil(Math.log2(ms / 50))));
});

test("a worker that has found nothing yet asks once an interval", async () => {
  const { statements } = await database.record(async () => {
    const worker = await startWorker({ ledger: deaf, pollIntervalMs: NEVER_MS, handlers: [handle("none", () => {})] });
    await database.pool.query("select pg_sleep(0.3)");
    await worker.worker.stop();
  });

  expect(claims(statements)).toHaveLength(1);
});

test("a worker that hears of jobs does not ask for more of them", async () => {
  const { ledger } = switchable();
  const worker = await startWorker({ ledger, pollIntervalMs: NEVER_MS, handlers: [handle("heard", () => {})] });
  await listens(ledger);
  await deaf.jobs.enqueue("heard", {});
  await worker.event("succeeded");
  const { statements } = await database.record(() => database.pool.query("select pg_sleep(0.5)"));

  // The job may have been found before its announcement was heard; who asked would have done so four times.
  expect(claims(statements).length).toBeLessThanOrEqual(1);
});

test("one whose LISTEN is away asks, as if it had none", async () => {
  const { ledger, away } = switchable();
  const [started, finish] = [gate(), gate()];
  const worker = await startWorker({
    ledger,
    concurrency: 1,
    pollIntervalMs: NEVER_MS,
    handlers: [
      handle("before", async () => {
        started.open();
        await finish.opened;
      }),
      handle("after", () => {}),
    ],
  });
  await listens(ledger);
  await deaf.jobs.enqueue("before", {});
  await started.opened;
  await away(true);
  finish.open();
  await worker.event("succeeded", ({ job }) => job.type === "before");
  await deaf.jobs.enqueue("after", {});

  await worker.event("succeeded", ({ job }) => job.type === "after");
});

test("LISTEN that was lost is made anew: what was missed is found, and what is announced then is heard", async () => {
  const { ledger, away } = switchable();
  const worker = await startWorker({ ledger, pollIntervalMs: NEVER_MS, handlers: [handle("missed", () => {})] });
  await listens(ledger);
  await away(true);
  await deaf.jobs.enqueue("missed", {});
  await away(false);
  await worker.count("succeeded", 1);
  await deaf.jobs.enqueue("missed", {});

  await worker.count("succeeded", 2);
});

test("a hundred announcements during a claim make one more claim", async () => {
  const { ledger } = switchable();
  await deaf.jobs.enqueue("crowded", {});
  const holder = await database.connect();
  await holder.query("begin; lock table runledger.job_queue in access exclusive mode");
  const { statements } = await database.record(async () => {
    const worker = await startWorker({ ledger, pollIntervalMs: NEVER_MS, handlers: [handle("crowded", () => {})] });
    await waitForBackend({ client: holder, marker: "claim_jobs" });
    await announce(ledger, 100);
    await holder.query("rollback");
    await worker.event("succeeded");
    await database.pool.query("select pg_sleep(0.2)");
    await worker.worker.stop();
  });

  expect(claims(statements)).toHaveLength(2);
});

test("a ledger knows whether it hears of jobs", async () => {
  const { ledger, away } = switchable();
  expect([deaf.hearsJobs, ledger.hearsJobs]).toEqual([false, false]);
  const told = announcementsTo(ledger);
  await told.next();
  expect([ledger.hearsJobs, quiet.hearsJobs]).toEqual([true, false]);

  await away(true);
  expect(ledger.hearsJobs).toBe(false);
  await away(false);
  await told.next();
  expect(ledger.hearsJobs).toBe(true);
  told.end();
  expect(ledger.hearsJobs).toBe(false);
});

test("one that announces nothing does not count on others who may", async () => {
  const told = announcementsTo(quiet);
  await told.next();

  expect(quiet.hearsJobs).toBe(false);
  told.end();
});

const listen = () => new pg.Client({ connectionString: database.url });
const quiet = createLedger({ db: database.db, notify: false, listen });

function claims(statements: readonly string[]): string[] {
  return statements.filter((text) => text.includes("runledger:claim_jobs"));
}

/** Resolves when what is announced now is heard. */
async function listens(ledger: Ledger): Promise<void> {
  const told = announcementsTo(ledger);
  await told.next();
  told.end();
}

/** A ledger whose LISTEN can be taken away, and given back. */
function switchable() {
  let isAway = false;
  let noticed: () => void = () => {};
  const ledger = createLedger({
    db: database.db,
    listen: () => {
      if (isAway) throw new Error("no connection for LISTEN");
      return listen();
    },
    onListenError: () => noticed(),
  });
  const away = async (next: boolean) => {
    isAway = next;
    if (!next) return;
    const loss = new Promise<void>((resolve) => {
      noticed = resolve;
    });
    await database.pool.query(
      "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and query like 'listen \"%'",
    );
    await loss;
  };
  return { ledger, away };
}

/** Sends so many, and resolves when the ledger has heard the last. */
async function announce(ledger: Ledger, count: number): Promise<void> {
  const told = announcementsTo(ledger);
  await told.next();
  await database.pool.query("select pg_notify('runledger_jobs', n::text) from generate_series(1, $1) as n", [count]);
  while ((await told.next()) !== String(count));
  told.end();
}

function announcementsTo(ledger: Ledger) {
  const heard: (string | null)[] = [];
  let wake: () => void = () => {};
  const unsubscribe = ledger.onJobs((payload) => {
    heard.push(payload);
    wake();
  });
  const next = async () => {
    while (heard.length === 0) {
      await new Promise<void>((resolve) => {
        wake = resolve;
      });
    }
    return heard.shift();
  };
  return { next, end: () => unsubscribe?.() };
}
