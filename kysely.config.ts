/**
 * For kysely-ctl, the tool of this repository's developers:
 *
 *   DATABASE_URL=postgres://... npx kysely migrate latest
 *   DATABASE_URL=postgres://... npx kysely seed run
 *
 * A service that uses the package brings its own tool and takes `runledger/migrations`.
 */
import { PostgresDialect } from "kysely";
import { defineConfig } from "kysely-ctl";
import pg from "pg";
import { migrationProvider, migrationTables } from "./db/index.ts";

export default defineConfig({
  dialect: new PostgresDialect({ pool: async () => connect() }),
  migrations: { provider: migrationProvider(), ...migrationTables() },
  seeds: { seedFolder: "db/seeds" },
});

function connect(): pg.Pool {
  const connectionString = process.env.DATABASE_URL;
  if (connectionString === undefined) throw new Error("DATABASE_URL is not set");
  const pool = new pg.Pool({ connectionString, max: 2 });
  pool.on("error", (error) => console.error(error.message));
  return pool;
}
