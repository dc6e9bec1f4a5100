/** A server of the test's own: WAL is counted by the server, and other test files write some too. */
import { afterAll } from "@jest/globals";
import { Kysely, PostgresDialect } from "kysely";
import type pg from "pg";
import { migrate } from "../../db/index.ts";
import { createLedger, type Ledger } from "../../src/index.ts";
import { startPostgres } from "../../src/testing/index.ts";
import { requestedServer } from "../support/requested-server.ts";
import { type RecordingPool, recordingPool } from "../support/statements.ts";

export interface CountedServer {
  readonly ledger: Ledger;
  /** One connection: what it did is in the statistics once it says so. */
  readonly pool: pg.Pool;
  readonly record: RecordingPool["record"];
}

/** What runs by itself writes WAL too, or takes dead rows out of the count. */
const settings = {
  autovacuum: "off",
  checkpoint_timeout: "1h",
  max_wal_size: "4GB",
  full_page_writes: "off",
  // The server's activity statistics are what is read.
  track_counts: "on",
};

export async function startCountedServer(): Promise<CountedServer> {
  const server = await startPostgres({ ...requestedServer(), url: false, settings });
  const { pool, record } = recordingPool({ connectionString: server.url, max: 1 });
  const db = new Kysely<unknown>({ dialect: new PostgresDialect({ pool }) });
  afterAll(async () => {
    await db.destroy();
    await server.stop();
  });
  await migrate(db);
  return { ledger: createLedger({ db }), pool, record };
}
