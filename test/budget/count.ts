/** Counts what an action costs on the server: figures that are the same on every machine, unlike times. */
import type { CountedServer } from "./server.ts";

/** By what is counted, such as `WAL bytes` or `job_queue inserted`, each for one unit of the work. What is 0 is left out. */
export type Figures = Readonly<Record<string, number>>;

/** Makes a call of the ledger whose statements are counted under its name. */
export type Calls = <T>(name: string, call: () => Promise<T>) => Promise<T>;

/** What the action costs, divided by the number of units that it does. Statements are for each call. */
export async function costOf(
  server: CountedServer,
  units: number,
  action: (calls: Calls) => Promise<unknown>,
): Promise<Figures> {
  const statements = new Map<string, number[]>();
  const calls: Calls = async (name, call) => {
    const { result, statements: sent } = await server.record(call);
    statements.set(name, [...(statements.get(name) ?? []), sent.length]);
    return result;
  };
  const before = await look(server);
  await action(calls);
  const after = await look(server);
  const perUnit = [...after].map(([name, value]) => [name, (value - (before.get(name) ?? 0)) / units] as const);
  const perCall = [...statements].map(([name, sent]) => [`statements for each ${name}`, mean(sent)] as const);
  return Object.fromEntries([...perCall, ...perUnit].filter(([, value]) => value !== 0));
}

/** Everything that the server has counted so far. */
async function look({ pool }: CountedServer): Promise<ReadonlyMap<string, number>> {
  const [wal] = (await pool.query("select pg_current_wal_insert_lsn() - '0/0' as bytes")).rows;
  // A session reports what it did when it is next idle; without this, at most once a second.
  await pool.query("select pg_stat_force_next_flush()");
  const [{ images }] = (await pool.query("select wal_fpi as images from pg_stat_wal")).rows;
  const { rows } = await pool.query<Record<string, string>>(`
    select coalesce(pg_partition_root(relid), relid)::regclass::name as table,
      sum(n_tup_ins) as inserted, sum(n_tup_upd) as updated, sum(n_tup_upd - n_tup_hot_upd) as "not HOT",
      sum(n_tup_del) as deleted
    from pg_stat_user_tables group by 1 order by 1`);
  const ofTables = rows.flatMap(({ table, ...counts }) =>
    Object.entries(counts).map(([name, count]) => [tidy(`${table} ${name}`), Number(count)] as const),
  );
  return new Map([["WAL bytes", Number(wal.bytes)], ["full page images", Number(images)], ...ofTables, dead(ofTables)]);
}

/** Every version that was updated or deleted is left behind for VACUUM, or for the next visitor of its page. */
function dead(counts: readonly (readonly [string, number])[]): readonly [string, number] {
  const left = counts.filter(([name]) => / (updated|deleted)$/.test(name));
  return ["dead row versions", left.reduce((sum, [, count]) => sum + count, 0)];
}

function tidy(name: string): string {
  return name.replace(/^runledger\./, "").replace(/ not HOT$/, " updated, not HOT");
}

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
