import type { Kysely } from "kysely";
import type { RunledgerDatabase } from "../../src/database/tables.ts";

/** Job definitions to try things on in a development database. May be run again: what is there stays as it is. */
export async function seed(db: Kysely<RunledgerDatabase>): Promise<void> {
  await db
    .insertInto("runledger.job_definitions")
    .values([
      { type: "demo.quick", timeout_seconds: 30 },
      { type: "demo.slow", timeout_seconds: 3_600, priority: 50 },
      { type: "demo.flaky", max_attempts: 20, backoff_initial_seconds: 0.1 },
      { type: "demo.paused", enabled: false },
    ])
    .onConflict((conflict) => conflict.column("type").doNothing())
    .execute();
}
