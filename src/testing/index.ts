/**
 * What a service needs in its own tests: a PostgreSQL server wherever the tests run, and a database of
 * its own for each test file.
 *
 * @packageDocumentation
 */
export { cloneDatabase, createTemplate, type TestDatabase } from "./databases/databases.ts";
export type { PostgresServer, PostgresServerKind, PostgresSettings } from "./servers/server.ts";
export { type StartPostgresOptions, startPostgres } from "./servers/start-postgres.ts";
