/**
 * What a service needs in its own tests: a PostgreSQL server wherever the tests run, a migrated database for
 * each test, and a kit that runs jobs, lets time pass and asks what was enqueued.
 *
 * @packageDocumentation
 */
export { cloneDatabase, createTemplate, type TestDatabase } from "./databases/databases.ts";
export { type TestDatabaseKit, type TestDatabaseOptions, testDatabase } from "./databases/test-database.ts";
export type { Duration } from "./kit/advance.ts";
export type { Drained, DrainOptions, LeftJob } from "./kit/drain.ts";
export type {
  EnqueuedFilter,
  FoundJob,
  FoundJobFilter,
  PartialPayload,
  TestedJob,
  TestedPayload,
} from "./kit/enqueued.ts";
export type { ExpectEnqueuedOptions } from "./kit/expect.ts";
export { type EnqueuedJobs, TestKit } from "./kit/kit.ts";
export type { RanJob, RunJobOptions } from "./kit/run.ts";
export type { AttemptOutcome, FailedAttempt } from "./kit/tally.ts";
export { startTestServer } from "./run/test-server.ts";
export type { PostgresServer, PostgresServerKind, PostgresSettings } from "./servers/server.ts";
export { type StartPostgresOptions, startPostgres } from "./servers/start-postgres.ts";
