/** Every test that changes rows ends here: whatever happened, the invariants hold, and nobody was in a deadlock. */
import { expect } from "@jest/globals";
import { createExecutor } from "../src/database/executor.ts";
import { checkInvariants } from "../src/invariants/check.ts";
import type { TestDatabase } from "./support/database.ts";

export async function expectInvariants(database: Pick<TestDatabase, "db">): Promise<void> {
  const executor = createExecutor(database.db, "runledger", { notify: false, lockWaitMs: 5000 });
  expect(await checkInvariants(executor)).toEqual([]);
}

/** The server's own count: a deadlock that a retry has hidden is seen too. */
export async function expectNoDeadlocks(database: Pick<TestDatabase, "pool">): Promise<void> {
  const { rows } = await database.pool.query<{ deadlocks: string }>(
    "select deadlocks from pg_stat_database where datname = current_database()",
  );
  expect(rows).toEqual([{ deadlocks: "0" }]);
}
