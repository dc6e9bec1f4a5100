/** Requests as TypeScript has them, enqueued by the functions in SQL. */
import { type Kysely, sql } from "kysely";
import type { EnqueuedJob, EnqueueOptions, JobOptions, JobRequest, RunledgerDatabase } from "../../src/index.ts";

type Db = Kysely<RunledgerDatabase>;
type Plain = Pick<JobRequest, "type" | "payload"> & JobOptions;

/** One job by `enqueue_job`. */
export async function bySql(db: Db, type: string, payload: unknown, options: JobOptions & EnqueueOptions = {}) {
  const { rows } = await sql<Row>`
    select * from runledger.enqueue_job(${type}, ${JSON.stringify(payload)}::text::jsonb, ${JSON.stringify(inSql(options))}::text::jsonb)`.execute(
    db,
  );
  const [row] = rows;
  if (row === undefined || rows.length !== 1) throw new Error("one row is answered");
  return enqueued(row);
}

/** Many by `enqueue_jobs`. */
export async function manyBySql(db: Db, requests: readonly Plain[]): Promise<EnqueuedJob[]> {
  const jobs = requests.map(({ type, payload, ...options }) => ({ type, payload, ...inSql(options) }));
  const { rows } = await sql<Row>`select * from runledger.enqueue_jobs(${JSON.stringify(jobs)}::text::jsonb)`.execute(
    db,
  );
  return rows.map(enqueued);
}

/** The options by their names in SQL, those within them too. */
export function inSql(options: object): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(options)
      .filter(([, value]) => value !== undefined)
      .map(([name, value]) => [name.replaceAll(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`), valueInSql(value)]),
  );
}

function valueInSql(value: unknown): unknown {
  const isObject = typeof value === "object" && value !== null && !Array.isArray(value) && !("toISOString" in value);
  return isObject ? inSql(value) : value;
}

interface Row extends Omit<EnqueuedJob, "runNumber"> {
  readonly run_number: number;
}

function enqueued({ id, status, run_number: runNumber, disposition }: Row): EnqueuedJob {
  return { id, status, runNumber, disposition };
}
