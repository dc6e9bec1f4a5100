/** A process that fires schedules until it is told to stop, and says when it begins and what its clock shows. */
import { setTimeout as sleep } from "node:timers/promises";
import { Kysely, PostgresDialect } from "kysely";
import pg from "pg";
import { createLedger } from "../../../src/index.ts";

const pool = new pg.Pool({ connectionString: process.env.RUNLEDGER_TEST_DATABASE_URL, max: 1 });
const ledger = createLedger({ db: new Kysely<unknown>({ dialect: new PostgresDialect({ pool }) }) });
let stopped = false;
process.on("message", () => {
  stopped = true;
});
await pool.query("select 1");
process.send?.({ now: Date.now() });

let fired = 0;
while (!stopped) {
  const answer = await ledger.schedules.fireDue({ limit: 7 });
  fired += answer.fired.length;
  if (answer.nextInMs === null || answer.nextInMs > 0) await sleep(20);
}
await pool.end();
process.send?.({ fired });
process.disconnect();
