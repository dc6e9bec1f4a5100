/** Databases on a server that outlives the run: what they are called, and when they go. */
import pg from "pg";
import type { TestRun } from "./test-run.ts";

const PREFIX = "runledger_test_";
const TEMPLATE_PREFIX = "runledger_template_";
const KEPT_DAYS = 7;

/** `application_name` of the session that a run holds while it lives. */
export function sessionName({ id }: TestRun): string {
  return `${PREFIX}${id}`;
}

/** The name of a database that goes with the run. */
export function databaseName(run: TestRun, suffix: string): string {
  return `${sessionName(run)}_${suffix}`;
}

/** The name of a template that any run may use. */
export function sharedTemplateName(fingerprint: string): string {
  return `${TEMPLATE_PREFIX}${fingerprint}`;
}

/** Remembers the day, so that templates that nobody uses any more can go. */
export async function noteUse(client: pg.Client, template: string): Promise<void> {
  const today = new Date().toISOString().slice(0, 10);
  await client.query(`comment on database ${pg.escapeIdentifier(template)} is 'used ${today}'`);
}

/** Drops the run's own databases, whoever is still connected to them. */
export async function dropDatabasesOf(client: pg.Client, run: TestRun): Promise<void> {
  const { rows } = await client.query<{ name: string }>(
    "select datname as name from pg_database where starts_with(datname, $1)",
    [databaseName(run, "")],
  );
  for (const { name } of rows) await drop(client, name, "with (force)");
}

/** Drops databases of runs that were killed, and templates that no run has used for days. */
export async function dropLeftovers(client: pg.Client): Promise<void> {
  const { rows } = await client.query<{ name: string }>(LEFTOVERS, [PREFIX, TEMPLATE_PREFIX, KEPT_DAYS]);
  // Without force: a database that is in use is no leftover, whatever it looks like. Another run may be at it, too.
  for (const { name } of rows) await drop(client, name, "").catch(() => {});
}

const LEFTOVERS = `
  select d.datname as name
  from pg_database as d
  where (
    starts_with(d.datname, $1)
    and not exists (
      select from pg_stat_activity as a
      where starts_with(a.application_name, $1) and starts_with(d.datname, a.application_name || '_')
    )
  ) or (
    starts_with(d.datname, $2)
    and substring(shobj_description(d.oid, 'pg_database') from '^used (\\d{4}-\\d\\d-\\d\\d)$')::date < current_date - $3::int
  )`;

async function drop(client: pg.Client, name: string, how: string): Promise<void> {
  const id = pg.escapeIdentifier(name);
  await client.query(`alter database ${id} is_template false`);
  await client.query(`drop database if exists ${id} ${how}`);
}
