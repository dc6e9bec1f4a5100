/** Success of jobs outside of runs, the most frequent end: from the queue into the ledger and nothing else. */
import { type QueryCreator, sql } from "kysely";
import { toNumber } from "../database/decode.ts";
import type { Executor } from "../database/executor.ts";
import { numberedRowsOf, type Placeholders, sparse } from "../database/parameters.ts";
import { writing } from "../database/statement.ts";
import type { LedgerTables } from "../database/tables.ts";
import { boundedHere } from "../locks/wait.ts";
import { appendEnded, endedOfQueue } from "./ending.ts";
import { rowPlace } from "./lanes.ts";
import { leaseArguments, leaseColumns, leaseParameters, sameLease, unexpired } from "./lease.ts";
import type { PreparedOutcome } from "./outcome.ts";

/**
 * Stores the successes among `outcomes` that are the end of a job outside of runs, and answers the places of those
 * stored. Nothing is written for the others: lost leases, other outcomes, steps. One round trip, none where nothing is to be tried.
 */
export async function completeJobs(
  executor: Executor,
  outcomes: readonly PreparedOutcome[],
): Promise<ReadonlySet<number>> {
  const jobs = new Set<string>();
  const places: number[] = [];
  for (const [place, { lease, kind, again }] of outcomes.entries()) {
    // Of several outcomes for one lease the first counts, whatever it is.
    const isFirst = jobs.size < jobs.add(lease.jobId).size;
    if (isFirst && kind === null && again === undefined && lease.workflowRunId === null) places.push(place);
  }
  if (places.length === 0) return new Set();
  const tried = places.length === outcomes.length ? outcomes : places.flatMap((place) => outcomes[place] ?? []);
  const leases = leaseArguments(
    executor,
    tried.map(({ lease }) => lease),
  );
  const rows = await complete.execute(executor, { ...leases, outputs: sparse(tried, ({ output }) => output) });
  return new Set(rows.flatMap(({ place }) => places[toNumber(place) - 1] ?? []));
}

const parameters = { ...leaseParameters, outputs: "jsonb?[]" } as const;

/**
 * `held` locks the rows in id order; the lease's end is asked for after that. They are deleted by where they are stored,
 * not by id: they need not be looked up again. A row that another session changed between the snapshot and the lock is
 * left for the statement that settles whatever there is.
 */
const complete = writing("complete_jobs", parameters, (db, p, schema) =>
  db
    .with(
      (cte) => cte("held").materialized(),
      (qb) => held(qb, p),
    )
    .with("ended", (qb) =>
      qb
        .deleteFrom("job_queue as q")
        .using("held")
        .where(sql<boolean>`q.ctid = held.tid`)
        .where(unexpired("held"))
        .returning([...endedOfQueue(schema, "SUCCEEDED", sql<null>`null::text`, sql`held.output`), "held.place"]),
    )
    .with("appended", (qb) => appendEnded(qb))
    .selectFrom("ended")
    .select("ended.place"),
);

function held(qb: QueryCreator<LedgerTables>, p: Placeholders<typeof parameters>) {
  const input = numberedRowsOf("input", { ...leaseColumns(p), output: p.outputs });
  return qb
    .selectFrom(input)
    .innerJoin("job_queue as q", "q.id", "input.job_id")
    .where(sameLease("q", "input"))
    .where("q.workflow_run_id", "is", null)
    .where(boundedHere(p.lockWait))
    .select([rowPlace, "q.lease_expires_at", "input.output", sql<number>`input.place::int4`.as("place")])
    .orderBy("q.id")
    .forUpdate("q");
}
