/** Limits under a worker (FEATURES F-J11): a slot that comes free is used at once, whoever freed it. */
import { expect, test } from "@jest/globals";
import { createLedger, defineJob } from "../../src/index.ts";
import { handle } from "../../src/worker/index.ts";
import { createTestDatabase } from "../support/database.ts";
import { ledgerOn, startWorker } from "./support.ts";

const database = await createTestDatabase();
const never = 3_600_000;
const limited = (type: string) => defineJob(type, { limit: { key: "shared", concurrency: 1 } });

test("the next job of a key starts when the one before has ended, not at the next poll", async () => {
  const job = limited("chain");
  const ledger = ledgerOn(database);
  await ledger.jobs.enqueueMany(Array.from({ length: 20 }, (_, n) => job.request(n)));
  let running = 0;
  let most = 0;
  const run = handle(job, async () => {
    running += 1;
    most = Math.max(most, running);
    await new Promise(setImmediate);
    running -= 1;
  });

  const worker = await startWorker({ ledger, handlers: [run], pollIntervalMs: never });
  await worker.count("succeeded", 20);

  expect(most).toBe(1);
});

test("a worker that frees a key tells those that take the other types of it", async () => {
  const ledger = ledgerOn(database, { listen: true });
  const [first, second] = [limited("first"), limited("second")];
  const other = await startWorker({
    ledger,
    handlers: [handle(second, async () => {})],
    pollIntervalMs: never,
  });
  await createLedger({ db: database.db, notify: false }).jobs.enqueueMany([first.request(1), second.request(2)]);

  await startWorker({ ledger, handlers: [handle(first, async () => {})], pollIntervalMs: never });

  await other.event("succeeded", ({ job }) => job.type === "second");
});
