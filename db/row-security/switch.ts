/** The switch: row-level security on or off, in one transaction, by one process at a time. */
import { type Kysely, sql } from "kysely";
import { DEFAULT_SCHEMA, validSchemaName } from "../../src/database/schema.ts";
import { codeOf, driverFacts, isDriverError } from "../../src/database/sqlstate.ts";
import { LedgerError } from "../../src/errors.ts";
import { migrations, type SchemaOptions } from "../provider.ts";
import { type RoleKind, roleKinds } from "./rules.ts";
import { MARKED, markerOf, type RoleNames, statementsOff, statementsOn } from "./statements.ts";

export interface RowSecurityOptions extends SchemaOptions {
  /**
   * The group roles that the rights are granted to; those that do not exist are made, NOLOGIN. Default: the schema's name
   * and `_enqueuer`, `_worker`, `_reader`, `_admin`.
   */
  readonly roles?: Partial<Record<RoleKind, string>>;
}

// biome-ignore lint/suspicious/noExplicitAny: Kysely is invariant in its database type, no other type takes every handle
type AnyKysely = Kysely<any>;

/**
 * Puts policies on the tables with tenants' rows and grants the four roles what each needs. To be called after every
 * `migrate`, or by it (`migrate(db, { rowSecurity })`); each call does all of it anew. It needs the tables' owner, and CREATEROLE where a
 * role does not exist. Takes each table's ACCESS EXCLUSIVE lock and waits for it 5 s at most: in a caller's transaction too. Throws
 * `config.invalid` and the codes of the database's errors (`db.*`), of which `db.lock_timeout` can be tried again.
 */
export async function enableRowSecurity(db: AnyKysely, options: RowSecurityOptions = {}): Promise<void> {
  const statements = rowSecurityStatements(options);
  await exclusively(db, schemaOf(options), (trx) => sendAll(trx, statements));
}

/** Takes it back: policies, rights, triggers. The roles stay and own nothing. Does nothing where it is not on. As `enableRowSecurity`. */
export async function disableRowSecurity(db: AnyKysely, options: SchemaOptions = {}): Promise<void> {
  const schema = schemaOf(options);
  await exclusively(db, schema, async (trx) => {
    if ((await markerIn(trx, schema)) !== null) await sendAll(trx, rowSecurityOffStatements(options));
  });
}

/** As `enableRowSecurity`, unless exactly that is on already: then no lock is taken. */
export async function ensureRowSecurity(db: AnyKysely, options: RowSecurityOptions): Promise<void> {
  const schema = schemaOf(options);
  const wanted = markerFor(schema, rolesOf(options));
  if ((await markerIn(db, schema)) === wanted) return;
  await exclusively(db, schema, async (trx) => {
    if ((await markerIn(trx, schema)) !== wanted) await sendAll(trx, rowSecurityStatements(options));
  });
}

/** What `enableRowSecurity` sends, for who applies DDL by other means: in one transaction, in this order. Throws `config.invalid`. */
export function rowSecurityStatements(options: RowSecurityOptions = {}): string[] {
  const schema = schemaOf(options);
  const roles = rolesOf(options);
  return statementsOn(schema, roles, markerFor(schema, roles));
}

/** What `disableRowSecurity` sends. Throws `config.invalid`. */
export function rowSecurityOffStatements(options: SchemaOptions = {}): string[] {
  return statementsOff(schemaOf(options));
}

function schemaOf({ schema }: SchemaOptions): string {
  return validSchemaName(schema ?? DEFAULT_SCHEMA);
}

function rolesOf({ roles = {}, ...options }: RowSecurityOptions): RoleNames {
  const schema = schemaOf(options);
  const nameOf = (kind: RoleKind) => validRoleName(roles[kind] ?? `${schema}_${kind}`);
  const names = {
    enqueuer: nameOf("enqueuer"),
    worker: nameOf("worker"),
    reader: nameOf("reader"),
    admin: nameOf("admin"),
  };
  if (new Set(Object.values(names)).size < roleKinds.length) {
    throw new LedgerError("config.invalid", {
      message: "The roles of row-level security must be four different ones.",
    });
  }
  return names;
}

/** It becomes part of DDL; PostgreSQL cuts what is longer than 63 bytes, and keeps `pg_` for itself. */
function validRoleName(name: string): string {
  const words = /^(?!pg_)(?!public$|none$|session_user$|current_user$|current_role$)[\p{L}\p{N}_.@-]+$/u;
  if (!words.test(name) || Buffer.byteLength(name) > 63) {
    throw new LedgerError("config.invalid", {
      message: "A role's name is 1 to 63 bytes of letters, digits and _.@- and is not one of PostgreSQL's own.",
    });
  }
  return name;
}

function markerFor(schema: string, roles: RoleNames): string {
  return markerOf(statementsOn(schema, roles, ""), Object.keys(migrations({ schema })));
}

/** Null where row-level security is not on. */
async function markerIn(db: AnyKysely, schema: string): Promise<string | null> {
  const { rows } = await sql<{ marker: string | null }>`
    select coalesce(obj_description(oid, 'pg_policy'), '') as marker
    from pg_policy where polname = ${MARKED.policy} and polrelid = to_regclass(${`"${schema}".${MARKED.table}`})`.execute(
    db.withoutPlugins(),
  );
  return rows[0]?.marker ?? null;
}

async function exclusively(db: AnyKysely, schema: string, body: (trx: AnyKysely) => Promise<void>): Promise<void> {
  const plain = db.withoutPlugins();
  const locked = async (trx: AnyKysely) => {
    await sql`select pg_advisory_xact_lock(hashtextextended(${`${schema}.row_security`}, 0))`.execute(trx);
    const before = await capLockTimeout(trx);
    await body(trx);
    await sql`select set_config('lock_timeout', ${before}, true)`.execute(trx);
  };
  try {
    await (db.isTransaction ? locked(plain) : plain.transaction().execute(locked));
  } catch (error) {
    if (!isDriverError(error)) throw error;
    const { sqlstate, constraint } = driverFacts(error);
    throw new LedgerError(codeOf(error), { sqlstate, constraint, cause: error });
  }
}

const LOCK_WAIT_MS = 5000;

/** A lock that is waited for holds up everybody who comes after. Returns the setting before; a stricter one stays. */
async function capLockTimeout(trx: AnyKysely): Promise<string> {
  const { rows } = await sql<{ wait: string }>`
    with before as materialized (
      select current_setting('lock_timeout') as wait, setting::integer between 1 and ${sql.lit(LOCK_WAIT_MS)} as stricter
      from pg_settings where name = 'lock_timeout'
    )
    select wait, set_config('lock_timeout', case when stricter then wait else ${sql.lit(`${LOCK_WAIT_MS}`)} end, true)
    from before`.execute(trx);
  return rows[0]?.wait ?? "0";
}

async function sendAll(trx: AnyKysely, statements: readonly string[]): Promise<void> {
  for (const statement of statements) await sql.raw(statement).execute(trx);
}
