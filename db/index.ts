/**
 * runledger/migrations: the schema as Kysely migrations, for whichever tool applies them.
 *
 * `migrate(db)` is the short way. `migrationProvider()` with `migrationTables()` fits Kysely's own
 * Migrator and kysely-ctl.
 */
export { type MigrateOptions, type MigrationOutcome, migrate, rollback } from "./migrate.ts";
export type { SchemaMigration } from "./migrations/names.ts";
export { type MigrationTables, migrationProvider, migrations, migrationTables } from "./provider.ts";
export type { RoleKind } from "./row-security/rules.ts";
export {
  disableRowSecurity,
  enableRowSecurity,
  type RowSecurityOptions,
  rowSecurityOffStatements,
  rowSecurityStatements,
} from "./row-security/switch.ts";
