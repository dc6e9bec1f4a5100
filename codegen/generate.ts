/**
 * npm run codegen           writes src/database/tables.generated.ts from the migrations
 * npm run codegen:verify    fails, with the difference, when the file is not what the migrations say
 *
 * The migrations are applied to an empty database that is made for this. RUNLEDGER_TEST_POSTGRES=15 takes
 * that server: the text must not depend on it.
 */
import { readFile, writeFile } from "node:fs/promises";
import { relative } from "node:path";
import { fileURLToPath } from "node:url";
import { Kysely, PostgresDialect } from "kysely";
import { DiffChecker } from "kysely-codegen";
import pg from "pg";
import { migrate } from "../db/index.ts";
import { cloneDatabase, startPostgres } from "../src/testing/index.ts";
import { requestedServer } from "../test/support/requested-server.ts";
import { tableTypes } from "./table-types.ts";

const file = fileURLToPath(new URL("../src/database/tables.generated.ts", import.meta.url));
const name = relative(process.cwd(), file);

const generated = await fromMigrations();
if (!process.argv.includes("--verify")) {
  await writeFile(file, generated);
  console.log(`${name} written`);
} else {
  const present = await readFile(file, "utf8").catch(() => "");
  if (present === generated) {
    console.log(`${name} is up to date`);
  } else {
    console.error(new DiffChecker().diff(generated, present));
    console.error(`${name} is not what the migrations say. Run: npm run codegen`);
    process.exitCode = 1;
  }
}

async function fromMigrations(): Promise<string> {
  const server = await startPostgres(requestedServer());
  try {
    const database = await cloneDatabase(server.url, "template0");
    const pool = new pg.Pool({ connectionString: database.url, max: 4 });
    pool.on("error", () => {});
    const db = new Kysely<unknown>({ dialect: new PostgresDialect({ pool }) });
    try {
      await migrate(db);
      return await tableTypes(db);
    } finally {
      await db.destroy();
      await database.drop();
    }
  } finally {
    await server.stop();
  }
}
