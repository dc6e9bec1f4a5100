/** The repository's own configuration of kysely-ctl, run as a developer runs it. */
import { execFile } from "node:child_process";
import { resolve } from "node:path";
import { promisify } from "node:util";
import { afterAll, expect, test } from "@jest/globals";
import pg from "pg";
import { cloneDatabase } from "../../src/testing/index.ts";
import { testServer } from "../support/database.ts";

const ROOT = resolve(import.meta.dirname, "../..");
const database = await cloneDatabase(testServer(), "template0");
afterAll(() => database.drop());

test("kysely-ctl migrates an empty database, seeds it twice, and takes everything back", async () => {
  await kysely("migrate", "latest");
  await kysely("seed", "run");
  await kysely("seed", "run");
  expect(await tables()).toContain("runledger.job_queue");

  await kysely("migrate", "down");
  await kysely("migrate", "rollback", "--all");
  expect((await tables()).filter((name) => !name.startsWith("runledger.schema_migrations"))).toEqual([]);
}, 60_000);

async function kysely(...args: string[]): Promise<void> {
  const program = resolve(ROOT, "node_modules/.bin/kysely");
  await promisify(execFile)(program, [...args, "--no-outdated-check"], {
    cwd: ROOT,
    env: { ...process.env, DATABASE_URL: database.url },
  });
}

async function tables(): Promise<string[]> {
  const client = new pg.Client({ connectionString: database.url });
  await client.connect();
  try {
    const { rows } = await client.query<{ name: string }>(
      "select schemaname || '.' || tablename as name from pg_tables where schemaname = 'runledger'",
    );
    return rows.map(({ name }) => name);
  } finally {
    await client.end();
  }
}
