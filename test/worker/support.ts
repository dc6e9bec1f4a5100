/** Workers under test: started, watched through their events, and stopped after each test. */
import { afterEach } from "@jest/globals";
import pg from "pg";
import { createLedger, type Ledger } from "../../src/index.ts";
import { createWorker, type Worker, type WorkerEvent, type WorkerOptions } from "../../src/worker/index.ts";
import { type TestDatabase, testServer } from "../support/database.ts";

const DEADLINE_MS = 15_000;
export const everywhere = { admin: true } as const;

export interface WatchedWorker {
  readonly worker: Worker;
  readonly events: readonly WorkerEvent[];
  /** The first event of this type, past or to come, that fits. */
  event<T extends WorkerEvent["type"]>(
    type: T,
    fits?: (event: Extract<WorkerEvent, { type: T }>) => boolean,
  ): Promise<Extract<WorkerEvent, { type: T }>>;
  /** Resolves when there have been so many events of this type. */
  count(type: WorkerEvent["type"], count: number): Promise<void>;
}

/** A ledger that polls; with `listen`, one that is told. */
export function ledgerOn(
  database: TestDatabase,
  options: { readonly listen?: boolean; readonly lockWaitMs?: number } = {},
): Ledger {
  const { listen = false, lockWaitMs = 5000 } = options;
  if (!listen) return createLedger({ db: database.db, lockWaitMs });
  return createLedger({
    db: database.db,
    lockWaitMs,
    listen: () => new pg.Client({ connectionString: database.url }),
    onListenError: () => {},
  });
}

const workers: Worker[] = [];
afterEach(async () => {
  await Promise.all(workers.splice(0).map((worker) => worker.stop({ timeoutMs: 0 })));
});

/** Started, polling quickly; it does not reap, fire schedules or maintain unless told otherwise. */
export async function startWorker(options: WorkerOptions): Promise<WatchedWorker> {
  const watched = makeWorker(options);
  await watched.worker.start();
  return watched;
}

export function makeWorker(options: WorkerOptions): WatchedWorker {
  const events: WorkerEvent[] = [];
  const looks = new Set<() => void>();
  const worker = createWorker({
    pollIntervalMs: 20,
    reap: false,
    schedule: false,
    maintain: false,
    ...options,
    onEvent: (event) => {
      options.onEvent?.(event);
      events.push(event);
      for (const look of looks) look();
    },
  });
  workers.push(worker);

  const seen = <T>(what: string, find: () => T | undefined) =>
    new Promise<T>((resolve, reject) => {
      const timer = setTimeout(() => {
        looks.delete(look);
        reject(new Error(`${what} was not seen. Events:\n${events.map(shown).join("\n")}`));
      }, DEADLINE_MS);
      const look = () => {
        const found = find();
        if (found === undefined) return;
        clearTimeout(timer);
        looks.delete(look);
        resolve(found);
      };
      looks.add(look);
      look();
    });

  return {
    worker,
    events,
    event: (type, fits = () => true) => {
      const isIt = (event: WorkerEvent): event is Extract<WorkerEvent, { type: typeof type }> => event.type === type;
      return seen(`The event ${type}`, () => events.filter(isIt).find(fits));
    },
    count: async (type, count) => {
      const enough = () => events.filter((event) => event.type === type).length >= count || undefined;
      await seen(`${count} events ${type}`, enough);
    },
  };
}

function shown(event: WorkerEvent): string {
  const error = "error" in event ? ` ${event.error} ${event.error instanceof Error ? event.error.cause : ""}` : "";
  return `  ${event.type}${"job" in event ? ` ${event.job.type}` : ""}${error}`;
}

/** A promise that the test settles. */
export function gate<T = void>() {
  let open: (value: T) => void = () => {};
  const opened = new Promise<T>((resolve) => {
    open = resolve;
  });
  return { opened, open };
}

/** Rejects with the signal's reason when it is aborted: a handler with manners. */
export function aborted(signal: AbortSignal): Promise<never> {
  return new Promise((_resolve, reject) => {
    if (signal.aborted) reject(signal.reason);
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
}

/** A test that cuts connections needs this: pg ends the process for a client that breaks while it is in use and has no listener. */
export function outliveCuts(database: TestDatabase): void {
  database.pool.on("connect", (client) => {
    client.on("error", () => {});
  });
}

/** Ends every connection to this database, as a restart of the server does. */
export async function cutConnections(database: TestDatabase): Promise<void> {
  await onServer((server) => terminate(server, database));
}

/** Ends every connection, and lets none be made until the outage is over. */
export async function beginOutage(database: TestDatabase): Promise<{ end(): Promise<void> }> {
  const allow = (allowed: boolean) =>
    `alter database ${pg.escapeIdentifier(nameOf(database))} allow_connections ${allowed}`;
  await onServer(async (server) => {
    await server.query(allow(false));
    await terminate(server, database);
  });
  return {
    end: () =>
      onServer(async (server) => {
        await server.query(allow(true));
      }),
  };
}

async function terminate(server: pg.Client, database: TestDatabase): Promise<void> {
  await server.query("select pg_terminate_backend(pid) from pg_stat_activity where datname = $1", [nameOf(database)]);
}

function nameOf(database: TestDatabase): string {
  return decodeURIComponent(new URL(database.url).pathname.slice(1));
}

async function onServer(action: (server: pg.Client) => Promise<void>): Promise<void> {
  const server = new pg.Client({ connectionString: testServer() });
  await server.connect();
  try {
    await action(server);
  } finally {
    await server.end();
  }
}
