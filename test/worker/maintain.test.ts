/** A worker that maintains keeps the ledger in order, and deletes what it was given policies for (FEATURES F-H2, F-R2). */
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, expect, test } from "@jest/globals";
import { createWorker, handle, type WorkerOptions } from "../../src/worker/index.ts";
import { expectInvariants } from "../invariants.ts";
import { codeOf } from "../jobs/fixtures.ts";
import { createTestDatabase } from "../support/database.ts";
import { beginOutage, ledgerOn, outliveCuts, startWorker } from "./support.ts";

const database = await createTestDatabase();
const ledger = ledgerOn(database);
outliveCuts(database);
const handlers = [handle("nothing", () => {})];
const often = { intervalMs: 20, retentionIntervalMs: 20 };

afterEach(() => expectInvariants(database));

test("counts are folded, expired keys go and partitions are made, and nothing else is touched", async () => {
  const { id } = await ledger.jobs.enqueue("nothing", {}, { idempotencyKey: "over" });
  await database.pool.query("update runledger.job_idempotency_keys set expires_at = now()");
  const { rows } = await database.pool.query(
    "select inhrelid::regclass::text as name from pg_inherits where inhparent = 'runledger.job_ledger'::regclass order by 1",
  );
  const last = rows.filter(({ name }) => /\d$/.test(name)).at(-1)?.name;
  await database.pool.query(`drop table ${last}`);

  const worker = await startWorker({ ledger, handlers, maintain: often });
  await worker.event("succeeded");

  expect(await worker.event("partitions_made")).toEqual({
    type: "partitions_made",
    partitions: [last.replace("runledger.", "")],
  });
  expect(await worker.event("retained")).toMatchObject({ keys: 1, jobs: 0, runs: 0 });
  await seen(async () => (await database.pool.query("select from runledger.status_count_deltas")).rowCount === 0);
  expect(await ledger.jobs.get(id, { admin: true })).toMatchObject({ status: "SUCCEEDED" });
});

test("with policies, what is past goes while the worker works", async () => {
  const worker = await startWorker({
    ledger,
    handlers,
    maintain: { ...often, retention: { jobs: { SUCCEEDED: 0 } } },
  });
  const { id } = await ledger.jobs.enqueue("nothing", {});

  await worker.event("retained", ({ jobs }) => jobs > 0);
  await seen(async () => (await codeOf(() => ledger.jobs.get(id, { admin: true }))) === "job.not_found");
});

test("a worker without handlers has the role, and claims nothing", async () => {
  const { id } = await ledger.jobs.enqueue("nothing", {}, { idempotencyKey: "apart" });
  await database.pool.query("update runledger.job_idempotency_keys set expires_at = now()");
  const { statements } = await database.record(async () => {
    const worker = await startWorker({ ledger, handlers: [], maintain: often });
    await worker.event("retained", ({ keys }) => keys > 0);
    await worker.worker.stop();
  });

  expect(statements.filter((text) => text.includes("claim"))).toEqual([]);
  expect(await ledger.jobs.get(id, { admin: true })).toMatchObject({ status: "PENDING" });
  await ledger.jobs.cancel(id, { scope: { admin: true } });
});

test("a worker without the role keeps nothing in order", async () => {
  const { statements } = await database.record(async () => {
    const worker = await startWorker({ ledger, handlers, maintain: false });
    await ledger.jobs.enqueue("nothing", {});
    await worker.event("succeeded");
    await worker.worker.stop();
  });

  expect(statements.filter((text) => /compact|forget|ensure/.test(text))).toEqual([]);
});

test("a role that may not make tables maintains the rest", async () => {
  await database.pool.query("revoke execute on function runledger.ensure_job_ledger_partitions from public");
  await database.pool.query(
    "create or replace function runledger.ensure_job_ledger_partitions(weeks_ahead integer default 8) returns setof text language plpgsql as $$ begin raise insufficient_privilege; end $$",
  );
  const worker = await startWorker({ ledger, handlers, maintain: often });

  expect(await worker.event("error", ({ during }) => during === "maintain")).toMatchObject({
    fatal: false,
    error: { code: "db.forbidden" },
  });
  await seen(async () => (await database.pool.query("select from runledger.status_count_deltas")).rowCount === 0);
});

test("a turn that fails for want of the database is told as an error of maintaining, and made again", async () => {
  const worker = await startWorker({ ledger, handlers, maintain: often });
  const outage = await beginOutage(database);
  expect(
    await worker.event("error", ({ during, error }) => during === "maintain" && !`${error}`.includes("privilege")),
  ).toMatchObject({ fatal: false });
  await outage.end();

  await ledger.jobs.enqueue("nothing", {});
  await seen(async () => (await database.pool.query("select from runledger.status_count_deltas")).rowCount === 0);
});

test.each<[string, unknown]>([
  ["a word", "yes"],
  ["an unknown option", { interval: 1 }],
  ["an interval that is too short", { intervalMs: 1 }],
  ["a policy that is misspelt", { retention: { job: {} } }],
  ["a policy of an unknown outcome", { retention: { runs: { FAILED: 1 } } }],
])("%s is refused when the worker is made", (_what, maintain) => {
  const options = { ledger, handlers, maintain } as unknown as WorkerOptions;

  expect(() => createWorker(options)).toThrow(expect.objectContaining({ code: "config.invalid" }));
});

/** Resolves once it is so; the test's own time limit is the bound. */
async function seen(isSo: () => Promise<boolean>): Promise<void> {
  while (!(await isSo())) await sleep(10);
}
