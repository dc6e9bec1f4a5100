/** The lean way of a success: what it leaves is settled all the same (FEATURES F-J5, F-J7). */
import { expect, test } from "@jest/globals";
import { createLedger } from "../../src/index.ts";
import { createTestDatabase } from "../support/database.ts";
import { waitForBackend } from "../support/waiting.ts";
import { codeOf, expire, failure, globally, leased, success } from "./fixtures.ts";

const database = await createTestDatabase();
const ledger = createLedger({ db: database.db });

test("a batch of successes takes one statement", async () => {
  const jobs = [await leased(ledger, "plain"), await leased(ledger, "plain")];
  const { result, statements } = await database.record(() =>
    ledger.jobs.settle(jobs.map(({ lease }, n) => ({ lease, success: { output: n } }))),
  );

  expect(result).toEqual(jobs.map(() => ({ ok: true, status: "SUCCEEDED", runAt: null })));
  expect(statements.map((text) => /runledger:(\w+)/.exec(text)?.[1])).toEqual(["complete_jobs"]);
  for (const [n, { lease }] of jobs.entries()) {
    expect(await ledger.jobs.get(lease.jobId, globally)).toMatchObject({ status: "SUCCEEDED", output: n });
  }
});

test("a row that changed while the statement waited for it is completed with what it has become", async () => {
  const { lease } = await leased(ledger, "changes");
  const holder = await database.connect();
  await holder.query("begin");
  await holder.query("update runledger.job_queue set progress_done = 7, progress_total = 9 where id = $1", [
    lease.jobId,
  ]);
  const completing = ledger.jobs.complete(lease, { output: "done" });
  await waitForBackend({ client: database.pool, marker: "/* runledger:complete_jobs */" });
  await holder.query("commit");

  expect(await completing).toEqual({ status: "SUCCEEDED", runAt: null });
  expect(await ledger.jobs.get(lease.jobId, globally)).toMatchObject({
    status: "SUCCEEDED",
    output: "done",
    progress: { done: 7, total: 9 },
  });
});

test("a lease that ends while the statement waits is lost", async () => {
  const { lease } = await leased(ledger, "ends");
  const holder = await database.connect();
  await holder.query("begin");
  await holder.query("update runledger.job_queue set lease_expires_at = clock_timestamp() where id = $1", [
    lease.jobId,
  ]);
  const code = codeOf(() => ledger.jobs.complete(lease));
  await waitForBackend({ client: database.pool, marker: "/* runledger:complete_jobs */" });
  await holder.query("commit");

  expect(await code).toBe("job.lease_owner_mismatch");
});

test("of several outcomes for one lease the first counts, whichever statement stores it", async () => {
  const [failed, succeeded] = [await leased(ledger, "twice"), await leased(ledger, "twice")];
  const results = await ledger.jobs.settle([
    failure(failed.lease),
    success(failed.lease),
    success(succeeded.lease),
    failure(succeeded.lease),
  ]);

  expect(results.map((result) => (result.ok ? result.status : result.error.code))).toEqual([
    "PENDING",
    "job.lease_owner_mismatch",
    "SUCCEEDED",
    "job.lease_owner_mismatch",
  ]);
});

test("leases that were lost do not keep the others from their ledger", async () => {
  const [lost, held] = [await leased(ledger, "mixed"), await leased(ledger, "mixed")];
  await expire(database, [lost.lease.jobId]);
  const results = await ledger.jobs.settle([success(lost.lease), success(held.lease)]);

  expect(results.map(({ ok }) => ok)).toEqual([false, true]);
});
