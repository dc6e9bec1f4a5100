/** What a program stands on: a server, a migrated database, a ledger and its workers; all of it can be closed. */
import { relative } from "node:path";
import { Kysely, PostgresDialect } from "kysely";
import pg from "pg";
import { migrate } from "../../db/index.ts";
import { createLedger, type Ledger, prepared, type RunledgerDatabase } from "../../src/index.ts";
import { type PostgresServer, startPostgres } from "../../src/testing/index.ts";
import { createWorker, type Handler, type Worker, type WorkerEvent } from "../../src/worker/index.ts";

/** `Tables` are the program's own, beside the ledger's in the same database. */
export interface Service<Tables = unknown> {
  /** Which server this is, for people. */
  readonly where: string;
  readonly db: Kysely<RunledgerDatabase & Tables>;
  readonly ledger: Ledger<RunledgerDatabase & Tables>;
  close(): Promise<void>;
}

const POOL_SIZE = 20;

/** Boots PostgreSQL with its data in the folder, or takes the server that the environment names. */
export async function startService<Tables = unknown>(dataDirectory: string): Promise<Service<Tables>> {
  const server = await startPostgres({ dataDirectory });
  const pool = prepared(new pg.Pool({ connectionString: server.url, max: POOL_SIZE }));
  // A broken connection is reported by the query that used it; without a listener it would end the process.
  pool.on("error", () => {});
  pool.on("connect", (client) => client.on("error", () => {}));
  const db = new Kysely<RunledgerDatabase & Tables>({ dialect: new PostgresDialect({ pool }) });
  const close = async () => {
    await db.destroy();
    await server.stop();
  };
  try {
    await migrate(db);
    const version = await pool.query<{ server_version: string }>("show server_version");
    const where = `PostgreSQL ${version.rows[0]?.server_version ?? ""}, ${whereabouts(server, dataDirectory)}`;
    const ledger = createLedger({ db, listen: () => new pg.Client({ connectionString: server.url }) });
    return { where, db, ledger, close };
  } catch (error) {
    await close();
    throw error;
  }
}

/** Without the user and the password of the connection string. */
function whereabouts({ kind, url }: PostgresServer, dataDirectory: string): string {
  if (kind !== "url") return `started for this, data in ${relative("", dataDirectory)}`;
  const { host, pathname } = new URL(url);
  return `${host}${pathname}, as RUNLEDGER_TEST_DATABASE_URL says`;
}

export interface WorkersOptions {
  readonly workers: number;
  readonly concurrency: number;
  readonly onEvent?: (event: WorkerEvent) => void;
}

/** Short leases: what a killed program was at is taken up again ten seconds later, when the next one runs. */
const LEASE_SECONDS = 10;
const REAP_MS = 2000;

export async function startWorkers(
  ledger: Ledger,
  handlers: readonly Handler[],
  { workers, ...options }: WorkersOptions,
): Promise<Worker[]> {
  const started = Array.from({ length: workers }, () =>
    createWorker({ ledger, handlers, leaseSeconds: LEASE_SECONDS, reap: { intervalMs: REAP_MS }, ...options }),
  );
  for (const worker of started) await worker.start();
  return started;
}

/** How long running handlers may take to finish when the program stops. */
const STOP_MS = 5000;

export async function stopWorkers(workers: readonly Worker[]): Promise<void> {
  await Promise.all(workers.map((worker) => worker.stop({ timeoutMs: STOP_MS })));
}
