/** The backoff policy: exponential with random jitter, per type and error code (FEATURES F-J7). */
import { type RawBuilder, sql } from "kysely";

export const backoffDefaults = { initialSeconds: 1, factor: 2, maxSeconds: 3600, jitter: 0.5 } as const;

/** Past this exponent every policy has reached its maximum; the power would overflow. */
const MAX_EXPONENT = 60;

/**
 * When the job of a failed attempt is due again, by the database's clock: `initial * factor ^ (attempt - 1)`
 * up to the maximum, less a random share of up to `jitter`, and not before `notBefore`. `definition` names
 * the joined row of job_definitions, which may be missing, and `failure` the row with the attempt that failed.
 */
export function retryTime(definition: string, failure: string): RawBuilder<Date> {
  const byCode = sql`${sql.ref(`${definition}.backoff_by_code`)} -> ${sql.ref(`${failure}.error_code`)}`;
  const policy = (column: string, setting: keyof typeof backoffDefaults) =>
    sql`coalesce((${byCode} ->> ${sql.lit(setting)})::float8, ${sql.ref(`${definition}.${column}`)},
      ${sql.lit(backoffDefaults[setting])}::float8)`;
  const initial = policy("backoff_initial_seconds", "initialSeconds");
  const factor = policy("backoff_factor", "factor");
  const maximum = policy("backoff_max_seconds", "maxSeconds");
  const jitter = policy("backoff_jitter", "jitter");
  const exponent = sql`least(${sql.ref(`${failure}.attempt`)} - 1, ${sql.lit(MAX_EXPONENT)})`;
  return sql<Date>`greatest(
    clock_timestamp()
      + make_interval(secs => least(${maximum}, ${initial} * power(${factor}, ${exponent})) * (1 - ${jitter} * random())),
    ${sql.ref(`${failure}.not_before`)}
  )`;
}
