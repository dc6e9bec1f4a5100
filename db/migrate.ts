import type { Kysely } from "kysely";
import { codeOf, driverFacts } from "../src/database/sqlstate.ts";
import { LedgerError } from "../src/errors.ts";
import { migrationProvider, migrationTables, type SchemaOptions } from "./provider.ts";
import { disableRowSecurity, ensureRowSecurity, type RowSecurityOptions } from "./row-security/switch.ts";

export interface MigrateOptions extends SchemaOptions {
  /** Row-level security too, see `enableRowSecurity`: `true`, or the names of its roles. Default: as it is. */
  readonly rowSecurity?: true | RowSecurityOptions["roles"];
}

/** What a run of the migrator did: the names it applied or took back, in order; empty when there was nothing to do. */
export interface MigrationOutcome {
  readonly migrations: readonly string[];
}

// biome-ignore lint/suspicious/noExplicitAny: Kysely is invariant in its database type, no other type takes every handle
type AnyKysely = Kysely<any>;

/**
 * Brings the ledger's schema up to date. Many processes may call it at once: a lock lets one work and
 * the others find nothing left to do. All pending migrations commit together. In a caller's transaction
 * (`db` is one) nothing is committed here; that needs Kysely 0.29, else `config.invalid`. Throws the codes of the
 * database's errors (`db.*`).
 */
export async function migrate(db: AnyKysely, options: MigrateOptions = {}): Promise<MigrationOutcome> {
  const { rowSecurity, ...schema } = options;
  const migrator = await migratorFor(db, schema);
  const outcome = outcomeOf(await migrator.migrateToLatest());
  if (rowSecurity !== undefined)
    await ensureRowSecurity(db, { ...schema, ...(rowSecurity === true ? {} : { roles: rowSecurity }) });
  return outcome;
}

/** Takes back every migration, and with them all data of the ledger. */
export async function rollback(db: AnyKysely, options: SchemaOptions = {}): Promise<MigrationOutcome> {
  const migrator = await migratorFor(db, options);
  await disableRowSecurity(db, options);
  return outcomeOf(await migrator.migrateTo((await noMigrations()) as never));
}

interface MigrationResults {
  readonly error?: unknown;
  readonly results?: readonly { readonly migrationName: string; readonly status: string }[] | undefined;
}

async function migratorFor(db: AnyKysely, options: SchemaOptions) {
  const { Migrator, inTransaction } = await loadMigration();
  if (db.isTransaction && !inTransaction) {
    throw new LedgerError("config.invalid", { message: "Migrating inside a transaction needs Kysely 0.29." });
  }
  return new Migrator({ db: db.withoutPlugins(), provider: migrationProvider(options), ...migrationTables(options) });
}

async function noMigrations() {
  return (await loadMigration()).NO_MIGRATIONS;
}

type MigrationModule = Pick<typeof import("kysely/migration"), "Migrator" | "NO_MIGRATIONS">;

/** Kysely 0.29 moved its migrator to a subpath that 0.28 does not have, and lets it run in a transaction. */
async function loadMigration(): Promise<MigrationModule & { readonly inTransaction: boolean }> {
  try {
    const { Migrator, NO_MIGRATIONS } = await import("kysely/migration");
    return { Migrator, NO_MIGRATIONS, inTransaction: true };
  } catch (error) {
    const root: Partial<Record<keyof MigrationModule, unknown>> = await import("kysely");
    if (root.Migrator === undefined) throw error;
    return { ...(root as MigrationModule), inTransaction: false };
  }
}

function outcomeOf({ error, results = [] }: MigrationResults): MigrationOutcome {
  if (error !== undefined) {
    const { sqlstate, constraint } = driverFacts(error);
    throw new LedgerError(sqlstate === undefined ? "schema.missing" : codeOf(error), {
      message: "The schema could not be migrated.",
      sqlstate,
      constraint,
      cause: error,
    });
  }
  return { migrations: results.filter(({ status }) => status === "Success").map(({ migrationName }) => migrationName) };
}
