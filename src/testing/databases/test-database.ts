/** testDatabase(): a migrated database of its own for a test, with a ledger on it. */
import { randomBytes } from "node:crypto";
import { Kysely, type KyselyPlugin, PostgresDialect } from "kysely";
import pg from "pg";
import { migrate } from "../../../db/index.ts";
import { createLedger, type LedgerOptions, type RunledgerDatabase } from "../../index.ts";
import { TestKit } from "../kit/kit.ts";
import { databaseName } from "../run/leftovers.ts";
import { currentRun } from "../run/test-run.ts";
import { cloneDatabase, type TestDatabase } from "./databases.ts";
import { templateFor } from "./template.ts";

export interface TestDatabaseOptions<Tables = unknown> {
  /**
   * Puts into the template what the service needs besides the ledger's schema: its own tables, reference data. Once for each test
   * run, whatever the number of processes.
   */
  readonly prepare?: (db: Kysely<RunledgerDatabase & Tables>) => Promise<unknown>;
  /**
   * Says what `prepare` amounts to, such as a hash of the service's migrations: with it the template is kept for later
   * runs on the same server. Default: the text of the function `prepare`, and the template is of this run only.
   */
  readonly prepareKey?: string;
  /** Options of the ledger, such as `schema`. */
  readonly ledger?: Omit<LedgerOptions, "db">;
  /** The plugins of the service's Kysely instance. Default: none. */
  readonly plugins?: KyselyPlugin[];
  /** Connections of the pool at most. Default 10. */
  readonly max?: number;
}

const DEFAULT_MAX = 10;

/**
 * Makes a database for a test, or for a test file: a copy of a migrated template, in a few dozen milliseconds. `Tables` are those of
 * the service, as in `Kysely<RunledgerDatabase & Tables>`. Needs the server of a global set-up, see `startTestServer`.
 *
 * ```ts
 * const kit = await testDatabase<ShopTables>({ prepare: createShopTables });
 * afterAll(() => kit.drop());
 * // or, where the language has it: await using kit = await testDatabase();
 * ```
 */
export async function testDatabase<Tables = unknown>(
  options: TestDatabaseOptions<Tables> = {},
): Promise<TestDatabaseKit<RunledgerDatabase & Tables>> {
  const run = currentRun();
  const { prepare, prepareKey = prepare?.toString(), ledger: ledgerOptions = {}, max = DEFAULT_MAX } = options;
  const { schema } = ledgerOptions;
  const connect = (url: string) => connected<RunledgerDatabase & Tables>(url, max, options.plugins ?? []);
  const template = await templateFor(run, {
    schema,
    key: prepareKey,
    lasting: prepare === undefined || options.prepareKey !== undefined,
    prepare: async (url) => {
      const db = connect(url);
      try {
        await migrate(db, schema === undefined ? {} : { schema });
        await prepare?.(db);
      } finally {
        await db.destroy();
      }
    },
  });
  const database = await cloneDatabase(run.url, template, databaseName(run, randomBytes(6).toString("hex")));
  const db = connect(database.url);
  return new TestDatabaseKit({ db, ledger: createLedger({ ...ledgerOptions, db }) }, database);
}

/** A {@link TestKit} on a database that was made for it. */
export class TestDatabaseKit<DB> extends TestKit<DB> implements TestDatabase, AsyncDisposable {
  readonly name: string;
  /** Connection string of the database. */
  readonly url: string;
  readonly #database: TestDatabase;

  /** @internal Use `testDatabase`. */
  constructor(parts: ConstructorParameters<typeof TestKit<DB>>[0], database: TestDatabase) {
    super(parts);
    this.#database = database;
    this.name = database.name;
    this.url = database.url;
  }

  /** Closes `db` and drops the database, under the connections that others still hold to it. May be called more than once. */
  async drop(): Promise<void> {
    await this.db.destroy();
    await this.#database.drop();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.drop();
  }
}

function connected<DB>(connectionString: string, max: number, plugins: KyselyPlugin[]): Kysely<DB> {
  const pool = new pg.Pool({ connectionString, max, allowExitOnIdle: true });
  // A connection that breaks tells the query that uses it; without a listener it would end the process.
  pool.on("error", () => {});
  pool.on("connect", (client) => client.on("error", () => {}));
  return new Kysely<DB>({ dialect: new PostgresDialect({ pool }), plugins });
}
