/** How many jobs there are by type and status, without counting them (FEATURES F-H3). */
import { sql } from "kysely";
import { type CountsByType, countsByType, keptCounts } from "../database/counts.ts";
import { toNumber } from "../database/decode.ts";
import type { Executor } from "../database/executor.ts";
import { inScope, type Scope, scopeArguments, scopeParameters } from "../database/scope.ts";
import { reading } from "../database/statement.ts";
import { decodeJobStatus, type JobStatus, jobStatuses } from "../database/statuses.ts";

export type JobCounts = CountsByType<JobStatus>;

/**
 * The jobs in scope by type and status, each once, as of one moment. Exact; reads what is kept, and the jobs under
 * lease. One round trip. Throws `scope.required`.
 */
export async function countJobs(executor: Executor, scope: Scope): Promise<JobCounts> {
  const rows = await counts.execute(executor, scopeArguments(scope));
  return countsByType(
    jobStatuses,
    rows.map(({ type, status, number }) => ({ type, status: decodeJobStatus(status), number: toNumber(number) })),
  );
}

// A claim does not touch what is kept, where PENDING and LEASED are one: the leased ones are few, and have an index.
const counts = reading("count_jobs", scopeParameters, (db, p) =>
  db
    .with("kept", (qb) => keptCounts(qb, p, "job"))
    .with("leased", (qb) =>
      qb
        .selectFrom("job_queue as q")
        .where("q.status", "=", "LEASED")
        .where(inScope("q.organization_id", p))
        .groupBy("q.type")
        .select(["q.type", sql<string>`count(*)`.as("number")]),
    )
    .selectFrom("kept as k")
    .select([
      "k.type",
      sql<string>`case k.status when 'LIVE' then 'PENDING' else k.status end`.as("status"),
      "k.number",
    ])
    .unionAll((eb) =>
      eb
        .selectFrom("leased as l")
        .select(["l.type", sql<string>`'LEASED'`.as("status"), sql<string>`l.number`.as("number")]),
    )
    .unionAll((eb) =>
      eb
        .selectFrom("leased as l")
        .select(["l.type", sql<string>`'PENDING'`.as("status"), sql<string>`-l.number`.as("number")]),
    ),
);
