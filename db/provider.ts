import { DEFAULT_SCHEMA, validSchemaName } from "../src/database/schema.ts";
import { jobs } from "./migrations/0001_jobs.ts";
import { workflows } from "./migrations/0002_workflows.ts";
import { schedules } from "./migrations/0003_schedules.ts";
import { workflowFeatures } from "./migrations/0004_workflow_features.ts";
import { outcomes } from "./migrations/0005_outcomes.ts";
import { limits } from "./migrations/0006_limits.ts";
import { scheduleFeatures } from "./migrations/0007_schedule_features.ts";
import { history } from "./migrations/0008_history.ts";
import { activeKeys } from "./migrations/0009_active_keys.ts";
import { sqlClient } from "./migrations/0010_sql_client.ts";
import { leanCounts } from "./migrations/0011_lean_counts.ts";
import type { SchemaMigration } from "./migrations/names.ts";

export interface SchemaOptions {
  /** The schema that holds every object of the ledger. Default `runledger`. */
  readonly schema?: string;
}

/** Kysely's names for where a migrator keeps its books. */
export interface MigrationTables {
  readonly migrationTableSchema: string;
  readonly migrationTableName: string;
  readonly migrationLockTableName: string;
}

/** Every migration by name, in the order of their names. */
export function migrations(options: SchemaOptions = {}): Record<string, SchemaMigration> {
  const schema = validSchemaName(options.schema ?? DEFAULT_SCHEMA);
  return {
    "0001_jobs": jobs(schema),
    "0002_workflows": workflows(schema),
    "0003_schedules": schedules(schema),
    "0004_workflow_features": workflowFeatures(schema),
    "0005_outcomes": outcomes(schema),
    "0006_limits": limits(schema),
    "0007_schedule_features": scheduleFeatures(schema),
    "0008_history": history(schema),
    "0009_active_keys": activeKeys(schema),
    "0010_sql_client": sqlClient(schema),
    "0011_lean_counts": leanCounts(schema),
  };
}

/** A provider for Kysely's Migrator or kysely-ctl: no file access, so it works from a bundle too. */
export function migrationProvider(options: SchemaOptions = {}): {
  getMigrations(): Promise<Record<string, SchemaMigration>>;
} {
  return { getMigrations: async () => migrations(options) };
}

/** Where the ledger's migrations are recorded: in its own schema, apart from the service's. */
export function migrationTables(options: SchemaOptions = {}): MigrationTables {
  return {
    migrationTableSchema: options.schema ?? DEFAULT_SCHEMA,
    migrationTableName: "schema_migrations",
    migrationLockTableName: "schema_migrations_lock",
  };
}
