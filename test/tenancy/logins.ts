/** Row-level security on a test's database, and logins that are members of its roles: what a service would connect as. */
import { randomBytes } from "node:crypto";
import { afterAll } from "@jest/globals";
import { Kysely, PostgresDialect } from "kysely";
import pg from "pg";
import { enableRowSecurity, type RoleKind } from "../../db/index.ts";
import { createLedger, type Ledger, type RunledgerDatabase } from "../../src/index.ts";
import { type TestDatabase, testServer } from "../support/database.ts";
import { type RecordingPool, recordingPool } from "../support/statements.ts";

export interface Login {
  readonly db: Kysely<RunledgerDatabase>;
  readonly ledger: Ledger<RunledgerDatabase>;
  readonly pool: pg.Pool;
  readonly record: RecordingPool["record"];
  readonly url: string;
}

export interface Logins {
  readonly roles: Readonly<Record<RoleKind, string>>;
  /** A pool of the login's own. */
  as(kind: RoleKind, options?: { readonly max?: number }): Login;
}

/** Names of roles that no other test has: roles are the server's, not the database's. Dropped after the file. */
export function roleNames(): Readonly<Record<RoleKind, string>> {
  const prefix = `t${randomBytes(5).toString("hex")}`;
  const names = {
    enqueuer: `${prefix}_enqueuer`,
    worker: `${prefix}_worker`,
    reader: `${prefix}_reader`,
    admin: `${prefix}_admin`,
  };
  afterAll(() => onServer(Object.values(names).map((name) => `drop role if exists "${name}"`)));
  return names;
}

/** Switches row-level security on and makes a login for each role. To be called after `createTestDatabase`. */
export async function createLogins(database: TestDatabase): Promise<Logins> {
  const roles = roleNames();
  await enableRowSecurity(database.db, { roles });
  const kinds = Object.keys(roles) as RoleKind[];
  for (const kind of kinds) {
    await database.pool.query(`create role "${loginOf(roles[kind])}" login password 'secret' in role "${roles[kind]}"`);
  }
  afterAll(() => onServer(kinds.map((kind) => `drop role if exists "${loginOf(roles[kind])}"`)));
  return {
    roles,
    as: (kind, { max = 4 } = {}) => {
      const url = new URL(database.url);
      url.username = loginOf(roles[kind]);
      url.password = "secret";
      const { pool, record } = recordingPool({ connectionString: url.href, max });
      database.defer(() => pool.end());
      const db = new Kysely<RunledgerDatabase>({ dialect: new PostgresDialect({ pool }) });
      return { db, pool, record, url: url.href, ledger: createLedger({ db }) };
    },
  };
}

function loginOf(role: string): string {
  return `${role}_login`;
}

async function onServer(statements: readonly string[]): Promise<void> {
  const client = new pg.Client({ connectionString: testServer() });
  await client.connect();
  try {
    for (const statement of statements) await client.query(statement);
  } finally {
    await client.end();
  }
}
