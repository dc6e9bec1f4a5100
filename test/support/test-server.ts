/** One server and one migrated template database for the whole run; each test file gets a copy. */
import { randomBytes } from "node:crypto";
import { Kysely, PostgresDialect } from "kysely";
import pg from "pg";
import { migrate } from "../../db/index.ts";
import { createTemplate, startPostgres } from "../../src/testing/index.ts";
import { requestedServer } from "./requested-server.ts";

declare global {
  var stopTestServer: (() => Promise<void>) | undefined;
}

export async function startTestServer(): Promise<void> {
  const server = await startPostgres(requestedServer());
  try {
    const template = await createTemplate(server.url, `runledger_${randomBytes(6).toString("hex")}`, migrateDatabase);
    process.env.RUNLEDGER_TEST_SERVER = server.url;
    process.env.RUNLEDGER_TEST_TEMPLATE = template.name;
    globalThis.stopTestServer = async () => {
      // A server that was there before the run is left as it was.
      if (server.kind === "url") await template.drop();
      await server.stop();
    };
  } catch (error) {
    await server.stop();
    throw error;
  }
}

async function migrateDatabase(url: string): Promise<void> {
  const pool = new pg.Pool({ connectionString: url, max: 2 });
  pool.on("error", () => {});
  const db = new Kysely<unknown>({ dialect: new PostgresDialect({ pool }) });
  try {
    await migrate(db);
  } finally {
    await db.destroy();
  }
}
