/** Databases for tests: prepared once as a template, then copied in a few dozen milliseconds each. */
import { randomBytes } from "node:crypto";
import pg from "pg";

/** A database that was made for a test. */
export interface TestDatabase {
  readonly name: string;
  /** Connection string of the database. */
  readonly url: string;
  /** Drops the database, and the connections that others still hold to it. */
  drop(): Promise<void>;
}

/**
 * Makes a database, prepares it (migrations, reference data) and closes it to connections, so that it
 * can be copied at any time with {@link cloneDatabase}.
 *
 * @param server - Connection string of a user who may create databases.
 * @param name - The template's name.
 * @param prepare - Receives the connection string of the new database; must close its connections.
 */
export async function createTemplate(
  server: string,
  name: string,
  prepare: (url: string) => Promise<void>,
): Promise<TestDatabase> {
  const id = pg.escapeIdentifier(name);
  await onServer(server, [`create database ${id}`]);
  const template = databaseAt(server, name, [`alter database ${id} is_template false`]);
  try {
    await prepare(template.url);
    await onServer(server, [`alter database ${id} is_template true allow_connections false`]);
    return template;
  } catch (error) {
    await template.drop();
    throw error;
  }
}

/** Copies a template into a new database; of random name, unless one is given. */
export async function cloneDatabase(
  server: string,
  template: string,
  name: string = `test_${randomBytes(8).toString("hex")}`,
): Promise<TestDatabase> {
  await onServer(server, [`create database ${pg.escapeIdentifier(name)} template ${pg.escapeIdentifier(template)}`]);
  return databaseAt(server, name, []);
}

function databaseAt(server: string, name: string, beforeDrop: readonly string[]): TestDatabase {
  const url = new URL(server);
  url.pathname = `/${encodeURIComponent(name)}`;
  return {
    name,
    url: url.href,
    drop: () => onServer(server, [...beforeDrop, `drop database if exists ${pg.escapeIdentifier(name)} with (force)`]),
  };
}

/** One connection for a few statements: none of them may run inside a transaction. */
async function onServer(server: string, statements: readonly string[]): Promise<void> {
  const client = new pg.Client({ connectionString: server });
  client.on("error", () => {});
  await client.connect();
  try {
    for (const statement of statements) await client.query(statement);
  } finally {
    await client.end();
  }
}
