/**
 * Advancing time. All times in the ledger are the database's, and nobody can set that clock for a test; so time passes by everything
 * that is stored becoming older.
 */
import { type RawBuilder, sql } from "kysely";
import { LedgerError } from "../../index.ts";
import type { AnyKysely, KitParts } from "./tables.ts";

/** A span of time: its parts are added. */
export interface Duration {
  readonly days?: number;
  readonly hours?: number;
  readonly minutes?: number;
  readonly seconds?: number;
  readonly milliseconds?: number;
}

const SECONDS: Readonly<Record<keyof Duration, number>> = {
  days: 86_400,
  hours: 3_600,
  minutes: 60,
  seconds: 1,
  milliseconds: 0.001,
};

/** In seconds. Throws `input.invalid`. */
export function secondsOf(duration: Duration): number {
  const parts = Object.entries(duration).map(([unit, amount]) => {
    if (!isUnit(unit)) throw invalid(`There is no unit ${unit}.`);
    return SECONDS[unit] * amount;
  });
  const seconds = parts.reduce((sum, part) => sum + part, 0);
  if (!(seconds >= 0 && seconds <= MAX_SECONDS)) throw invalid("Time advances by 0 to 36 500 days.");
  return seconds;
}

const MAX_SECONDS = 36_500 * SECONDS.days;

function isUnit(unit: string): unit is keyof Duration {
  return unit in SECONDS;
}

function invalid(message: string): LedgerError {
  return new LedgerError("input.invalid", { message });
}

/**
 * Makes all that is stored so much older, in one transaction. One round trip for each table, and four. Waits for
 * whoever writes at this moment.
 */
export async function advance({ db, ledger }: KitParts, seconds: number): Promise<void> {
  for (let tries = 1; ; tries += 1) {
    try {
      await db.transaction().execute((trx) => ageAll(trx, ledger.schema, seconds));
      return;
    } catch (error) {
      // Between the locks of our tables a worker at work may hold one and want another.
      if (tries === MAX_TRIES || !isDeadlock(error)) throw error;
    }
  }
}

const MAX_TRIES = 10;

function isDeadlock(error: unknown): boolean {
  return typeof error === "object" && error !== null && "code" in error && error.code === "40P01";
}

/** So far that what is stored for this time is due now; not at all when it is due already. */
export async function advanceTo(parts: KitParts, time: Date): Promise<void> {
  if (Number.isNaN(time.getTime())) throw invalid("The time is not valid.");
  // A Date has lost the microseconds of what it was read from.
  const { rows } = await sql<{ seconds: number }>`
    select extract(epoch from ${time.toISOString()}::timestamptz - clock_timestamp())::float8 + 0.001 as seconds`.execute(
    parts.db.withoutPlugins(),
  );
  const seconds = Number(rows[0]?.seconds);
  if (seconds > 0) await advance(parts, seconds);
}

interface Table {
  readonly name: string;
  readonly columns: readonly string[];
  /** Those of the columns that a unique index is over. */
  readonly keys: readonly string[];
}

async function ageAll(trx: AnyKysely, schema: string, seconds: number): Promise<void> {
  const tables = await tablesWithTimes(trx, schema);
  if (tables.length === 0) throw new LedgerError("schema.missing");
  const names = tables.map(({ name }) => sql.id(schema, name));
  await sql`lock table ${sql.join(names)} in share row exclusive mode`.execute(trx.withoutPlugins());
  for (const table of tables) await age(trx.withoutPlugins(), sql.id(schema, table.name), table, seconds);
}

/**
 * From the catalogue, so that a table or column that comes later is not forgotten. What a caller asked for (`requested_…`) stays
 * as it was said: the same request must still be the same.
 */
async function tablesWithTimes(trx: AnyKysely, schema: string): Promise<readonly Table[]> {
  const { rows } = await sql<Table>`
    select c.relname::text as name, array_agg(a.attname::text) as columns,
      coalesce(array_agg(a.attname::text) filter (where exists (
        select from pg_index as i where i.indrelid = c.oid and i.indisunique and a.attnum = any(i.indkey)
      )), '{}') as keys
    from pg_class as c
    join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
    where c.relnamespace = (select oid from pg_namespace where nspname = ${schema})
      and c.relkind in ('r', 'p') and not c.relispartition
      and a.atttypid = 'timestamptz'::regtype and not starts_with(a.attname, 'requested_')
    group by c.relname
    order by c.relname`.execute(trx.withoutPlugins());
  return rows;
}

/** Further than any times of a ledger are apart. In hours: a day is not always as long as another. */
const FAR = sql`make_interval(hours => 24000000)`;

async function age(
  trx: AnyKysely,
  table: RawBuilder<unknown>,
  { columns, keys }: Table,
  seconds: number,
): Promise<void> {
  const by = sql`make_interval(secs => ${seconds})`;
  // A unique index looks at each row by itself: on its way a row must not meet one that has not moved yet.
  if (keys.length > 0) await sql`update ${table} set ${shifted(keys, FAR)}`.execute(trx);
  const far = keys.length > 0 ? sql`${by} - ${FAR}` : by;
  const others = columns.filter((column) => !keys.includes(column));
  const changes = [
    ...(keys.length > 0 ? [shifted(keys, far)] : []),
    ...(others.length > 0 ? [shifted(others, by)] : []),
  ];
  await sql`update ${table} set ${sql.join(changes)}`.execute(trx);
}

function shifted(columns: readonly string[], by: RawBuilder<unknown>): RawBuilder<unknown> {
  return sql.join(columns.map((column) => sql`${sql.id(column)} = ${sql.id(column)} - (${by})`));
}
