/** A database for one test file: a copy of the migrated template, gone when the file is done. */
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll } from "@jest/globals";
import { Kysely, PostgresDialect } from "kysely";
import pg from "pg";
import type { RunledgerDatabase } from "../../src/database/tables.ts";
import { cloneDatabase } from "../../src/testing/index.ts";
import { type Recording, recordingPool } from "./statements.ts";

export interface TestDatabase {
  readonly url: string;
  readonly pool: pg.Pool;
  readonly db: Kysely<RunledgerDatabase>;
  /** A connection of its own, for a second session; closed with the database. */
  connect(): Promise<pg.Client>;
  /** Runs when the file is done, before the connections are counted: for whatever a test leaves running. */
  defer(cleanUp: () => unknown): void;
  /** The statements that go through `pool` and `db` while the action runs, in order; each is one round trip. */
  record<T>(action: () => Promise<T>): Promise<Recording<T>>;
  /** Closes and drops everything now. Fails when a connection was left open. Happens by itself after the file. */
  destroy(): Promise<void>;
}

export interface TestDatabaseOptions {
  /** Connections of the pool at most. Default 20. */
  readonly max?: number;
}

/** Call it at the top of a test file: `const database = await createTestDatabase();` */
export async function createTestDatabase(options: TestDatabaseOptions = {}): Promise<TestDatabase> {
  const server = fromSetup("RUNLEDGER_TEST_SERVER");
  const copy = await cloneDatabase(server, fromSetup("RUNLEDGER_TEST_TEMPLATE"));
  const { pool, record } = recordingPool({ connectionString: copy.url, max: options.max ?? 20 });
  const db = new Kysely<RunledgerDatabase>({ dialect: new PostgresDialect({ pool }) });
  const clients: pg.Client[] = [];
  const cleanUps: (() => unknown)[] = [];
  let destroyed: Promise<void> | undefined;

  const destroy = async () => {
    try {
      for (const cleanUp of cleanUps.reverse()) await cleanUp();
      await Promise.all(clients.map((client) => client.end()));
      await pool.end();
      await expectNoConnections(server, copy.name);
    } finally {
      await copy.drop();
    }
  };
  const database: TestDatabase = {
    url: copy.url,
    pool,
    db,
    connect: async () => {
      const client = new pg.Client({ connectionString: copy.url });
      client.on("error", () => {});
      await client.connect();
      clients.push(client);
      return client;
    },
    defer: (cleanUp) => {
      cleanUps.push(cleanUp);
    },
    record,
    destroy: () => {
      destroyed ??= destroy();
      return destroyed;
    },
  };
  afterAll(() => database.destroy());
  return database;
}

/** The run's server, for tests that make databases themselves. */
export function testServer(): string {
  return fromSetup("RUNLEDGER_TEST_SERVER");
}

function fromSetup(name: "RUNLEDGER_TEST_SERVER" | "RUNLEDGER_TEST_TEMPLATE"): string {
  const value = process.env[name];
  if (value === undefined) throw new Error(`${name} is not set: run the tests with npm test`);
  return value;
}

/** A closed connection is visible for a moment longer; one that is still there after two seconds was left open. */
async function expectNoConnections(server: string, name: string): Promise<void> {
  const observer = new pg.Client({ connectionString: server });
  observer.on("error", () => {});
  await observer.connect();
  try {
    const deadline = Date.now() + 2_000;
    for (;;) {
      const { rows } = await observer.query<{ pid: number; state: string; query: string }>(
        "select pid, state, query from pg_stat_activity where datname = $1 and backend_type = 'client backend'",
        [name],
      );
      if (rows.length === 0) return;
      if (Date.now() > deadline) {
        const left = rows.map(({ pid, state, query }) => `  ${pid} ${state}: ${query}`).join("\n");
        throw new Error(`Connections were left open; the last statement of each:\n${left}`);
      }
      await sleep(20);
    }
  } finally {
    await observer.end();
  }
}
