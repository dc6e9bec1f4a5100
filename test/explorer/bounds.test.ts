/** No wait without a bound: whatever an operation waits for, it ends by itself while who holds that stays. */
import { expect, test } from "@jest/globals";
import { sql } from "kysely";
import { createLedger } from "../../src/index.ts";
import { runReleaseKey } from "../../src/locks/key.ts";
import { graphOf } from "../runs/fixtures.ts";
import { playersOf } from "./operations.ts";
import { type Actor, play } from "./play.ts";
import type { Session } from "./session.ts";
import { Stage } from "./stage.ts";
import { oneRun } from "./worlds.ts";

const stage = await Stage.open();
const { reset, operations, runId } = await oneRun(stage);
const bind = (db: Session["db"]) => createLedger({ db, lockWaitMs: 30 });

const rows = (table: string, rest = "") => `select from runledger.${table} ${rest} for update`;
const key = String(runReleaseKey(runId));
const locks: Record<string, string> = {
  "a job that runs": rows("job_queue", "where type = 'one.a'"),
  "every job": rows("job_queue"),
  "a step": rows("workflow_steps", "where step_key = 'both'"),
  "every step": rows("workflow_steps"),
  "the run": rows("workflow_runs"),
  "the release lock": `select pg_advisory_xact_lock(${key})`,
  "the release lock, shared": `select pg_advisory_xact_lock_shared(${key})`,
};
const obstacles: Actor[] = [
  ...Object.entries(locks).map(
    ([name, lock]): Actor => ({
      name,
      obstacle: "until all others have ended",
      run: ({ db }) =>
        db.transaction().execute((trx) =>
          sql
            .raw(lock)
            .execute(trx)
            .then(() => null),
        ),
    }),
  ),
  {
    name: "the idempotency keys",
    obstacle: "until all others have ended",
    run: ({ db }) =>
      db.transaction().execute(async (trx) => {
        const ledger = bind(db).in(trx);
        await ledger.runs.enqueue(graphOf("keyed", { x: [], y: ["x"] }), { idempotencyKey: "k" });
      }),
  },
];

test.each(obstacles.map((obstacle) => [obstacle.name, obstacle] as const))(
  "%s",
  async (_, obstacle) => {
    const unbounded: string[] = [];
    for (const player of Object.values(operations).flatMap((operation) => playersOf(operation, bind))) {
      await reset();
      const { faults, waits, outcomes } = await play(stage, [player, obstacle], (options) => options[0] ?? null);
      process.stderr.write(
        `${obstacle.name} | ${player.name} | ${waits.map(({ statement }) => statement)} | ${faults} | ${JSON.stringify(outcomes?.[0], (k, v) => (k === "cause" ? undefined : v))}\n`,
      );
      unbounded.push(...faults);
    }
    expect(unbounded).toEqual([]);
  },
  300_000,
);
