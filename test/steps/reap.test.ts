/** A reap that cannot settle a step's job sets it aside, and only what is still as it found it (FEATURES F-J10). */
import { afterEach, expect, test } from "@jest/globals";
import { Kysely, PostgresDialect } from "kysely";
import pg from "pg";
import { createLedger, type Ledger } from "../../src/index.ts";
import { runReleaseKey } from "../../src/locks/key.ts";
import { expectInvariants } from "../invariants.ts";
import { holding, ledgerOf, TestRun } from "../runs/fixtures.ts";
import { createTestDatabase } from "../support/database.ts";

const database = await createTestDatabase();
const ledger = ledgerOf(database);

afterEach(() => expectInvariants(database));

const running: pg.Client[] = [];
afterEach(async () => {
  for (const session of running.splice(0)) await session.query("rollback");
});

test("a lease that another worker has got meanwhile is not shortened", async () => {
  const run = await stuck();
  const renew =
    "update runledger.job_queue set worker_id = 'next', lease_expires_at = now() + interval '1 hour' where workflow_run_id = $1";
  const reaper = reaping(() => database.pool.query(renew, [run.id]));

  expect(await reaper.jobs.reap()).toMatchObject({ setAside: [{ error: { code: "workflow.release_conflict" } }] });

  const { rows } = await database.pool.query(
    "select worker_id, lease_expires_at > now() + interval '50 minutes' as long from runledger.job_queue where workflow_run_id = $1",
    [run.id],
  );
  expect(rows).toEqual([{ worker_id: "next", long: true }]);
});

test("a job that another session holds meanwhile is not waited for", async () => {
  const run = await stuck();
  const lock = "select from runledger.job_queue where workflow_run_id = $1 for update";
  const reaper = reaping(async () => running.push(await holding(database, [lock, [run.id]])));

  expect(await reaper.jobs.reap()).toMatchObject({ setAside: [{ error: { code: "workflow.release_conflict" } }] });
});

test("what was set aside is left alone for a while, and then reaped", async () => {
  const run = await stuck();
  const reaper = reaping(async () => {});
  expect((await reaper.jobs.reap()).setAside).toHaveLength(1);
  expect(await ledger.jobs.reap()).toEqual({ returned: 0, deadLettered: 0, setAside: [] });

  await run.release();
  await database.pool.query("update runledger.job_queue set lease_expires_at = now() where workflow_run_id = $1", [
    run.id,
  ]);
  expect(await ledger.jobs.reap()).toEqual({ returned: 0, deadLettered: 1, setAside: [] });
});

/** The id of a run whose only job has an expired lease, and whose release lock a cancel seems to hold. */
async function stuck(): Promise<{ id: string; release: () => Promise<unknown> }> {
  await database.pool.query("update runledger.job_queue set lease_expires_at = 'infinity' where status = 'LEASED'");
  const run = await TestRun.start(database, ledger, { a: [] });
  await run.claim("a");
  await database.pool.query(
    "update runledger.job_queue set lease_expires_at = '-infinity' where workflow_run_id = $1",
    [run.id],
  );
  const canceling = await holding(database, ["select pg_advisory_xact_lock($1)", [String(runReleaseKey(run.id))]]);
  running.push(canceling);
  return { id: run.id, release: () => canceling.query("rollback") };
}

/** A ledger with little patience, in which something happens between the settling of leases and the setting aside. */
function reaping(meanwhile: () => Promise<unknown>): Ledger {
  const pool = new pg.Pool({ connectionString: database.url, max: 1 });
  pool.on("connect", (client) => {
    const query = client.query;
    client.query = new Proxy(query, {
      apply: (target, self, args: unknown[]) => {
        if (!String(args[0]).includes("runledger:set_aside_leases")) return Reflect.apply(target, self, args);
        return meanwhile().then(() => Reflect.apply(target, self, args));
      },
    });
  });
  database.defer(() => pool.end());
  return createLedger({ db: new Kysely<unknown>({ dialect: new PostgresDialect({ pool }) }), lockWaitMs: 30 });
}
