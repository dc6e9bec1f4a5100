/** No wait without a bound: whatever an operation waits for, it ends by itself while who holds that stays. */
import { expect, test } from "@jest/globals";
import { sql } from "kysely";
import { createLedger } from "../../src/index.ts";
import { runReleaseKey } from "../../src/locks/key.ts";
import { graphOf } from "../runs/fixtures.ts";
import { type LedgerOf, playersOf } from "./operations.ts";
import { type Actor, play, type Wait } from "./play.ts";
import { Stage } from "./stage.ts";
import { oneRun } from "./worlds.ts";

const stage = await Stage.open();
const { reset, operations, runId } = await oneRun(stage);
const bind: LedgerOf = (db) => createLedger({ db, notify: false, lockWaitMs: 30 });
const releaseKey = String(runReleaseKey(runId));

const locks = {
  "every job": "select from runledger.job_queue for update",
  "every step": "select from runledger.workflow_steps for update",
  "the run": "select from runledger.workflow_runs for update",
  "the release lock": `select pg_advisory_xact_lock(${releaseKey})`,
  "the release lock, shared": `select pg_advisory_xact_lock_shared(${releaseKey})`,
};

const stays = "until all others have ended";
const rows: Actor[] = Object.entries(locks).map(([name, lock]) => ({
  name,
  obstacle: stays,
  run: ({ db }) => db.transaction().execute((trx) => sql.raw(lock).execute(trx)),
}));
const keys: Actor[] = [
  {
    name: "the run's key",
    obstacle: stays,
    run: ({ db }) =>
      db.transaction().execute((trx) => {
        const graph = graphOf("keyed", { x: [], y: ["x"] });
        return bind(db).in(trx).runs.enqueue(graph, { idempotencyKey: "k" });
      }),
  },
  {
    name: "the job's key",
    obstacle: stays,
    run: ({ db }) =>
      db.transaction().execute((trx) => bind(db).in(trx).jobs.enqueue("keyed", null, { idempotencyKey: "k" })),
  },
];

const obstacles = [...rows, ...keys].map((obstacle) => [obstacle.name, obstacle] as const);

test.each(obstacles)("who waits for %s waits within the ledger's bound", async (_, obstacle) => {
  const players = Object.values(operations).flatMap((operation) => playersOf(operation, bind));
  const waited: Wait[] = [];
  for (const player of players) waited.push(...(await waitsOf(player, obstacle)));

  expect(waited).not.toEqual([]);
});

test.each(obstacles)("who waits for %s in a transaction of the service waits within its bound", async (_, obstacle) => {
  const waited: Wait[] = [];
  for (const { name, call } of Object.values(operations)) {
    const run: Actor["run"] = ({ db }) =>
      db.transaction().execute(async (trx) => {
        await sql`set local lock_timeout = 30`.execute(trx);
        return call(createLedger({ db, lockWaitMs: 60_000 }).in(trx));
      });
    waited.push(...(await waitsOf({ name, run }, obstacle)));
  }

  expect(waited).not.toEqual([]);
});

/** Plays it against who stays; fails when nothing ends a wait. */
async function waitsOf(actor: Actor, obstacle: Actor): Promise<readonly Wait[]> {
  await reset();
  const { faults, waits } = await play(stage, [actor, obstacle], (options) => options[0] ?? null);
  expect(faults).toEqual([]);
  return waits;
}
