/** A ledger with a past: partitions of weeks that are over, and ids as they were made then. */
import type pg from "pg";

/** Makes `public.id_at(days, n)`, an id of so many days ago, and a partition for each of the weeks before this one. */
export async function withPast(pool: pg.Pool, weeks: number): Promise<void> {
  await pool.query(`
    create or replace function public.id_at(days float8, n bigint) returns uuid language sql as $$
      select (lpad(to_hex((extract(epoch from now() - days * interval '1 day') * 1000)::bigint), 12, '0')
        || '70008' || lpad(to_hex(n), 15, '0'))::uuid $$`);
  await pool.query(`
    do $$
    declare
      week timestamptz := date_trunc('week', now() at time zone 'utc') at time zone 'utc' - interval '${weeks} weeks';
    begin
      for n in 0..${weeks - 1} loop
        execute format('create table runledger.job_ledger_week_%s partition of runledger.job_ledger for values from (%L) to (%L)', n,
          (lpad(to_hex((extract(epoch from week + n * interval '7 days') * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid,
          (lpad(to_hex((extract(epoch from week + (n + 1) * interval '7 days') * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid);
      end loop;
    end $$`);
}
