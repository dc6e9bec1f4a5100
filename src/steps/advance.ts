/**
 * The common case of a completion, in one statement: jobs of steps that succeeded, in runs where all that
 * follows is that dependents lose a prerequisite and are released. Whatever else would follow, and
 * whoever would have to wait for a release lock, is left untouched for `cascade.ts`.
 */
import { type RawBuilder, sql } from "kysely";
import { announcing } from "../database/announce.ts";
import type { Executor } from "../database/executor.ts";
import { sparse } from "../database/parameters.ts";
import { writing } from "../database/statement.ts";
import { type ClaimedJob, claimedJobs, inClaimOrder, isClaimed } from "../jobs/claimed.ts";
import { type EagerClaim, eagerParameters, insertReleasedEagerly } from "../jobs/eager.ts";
import { insertReleased } from "../jobs/insertion.ts";
import { leaseArguments, leaseKey } from "../jobs/lease.ts";
import type { PreparedOutcome } from "../jobs/outcome.ts";
import { runReleaseKey } from "../locks/key.ts";
import { advanced, advancedColumns, advanceParameters, announced } from "./advance-rows.ts";

export interface AdvancedJob {
  /** As `leaseKey` makes it. */
  readonly leaseKey: string;
  /** `HELD_BACK`: nothing was written for this job. */
  readonly state: "SUCCEEDED" | "LOST" | "HELD_BACK";
}

export interface EagerlyAdvanced {
  readonly jobs: readonly AdvancedJob[];
  readonly claimed: readonly ClaimedJob[];
  /** Jobs are due that a claim could take: released ones that were not claimed, or others that are before them. */
  readonly more: boolean;
}

/** Completes what can be completed without waiting for a release lock. One round trip. */
export async function advance(executor: Executor, successes: readonly PreparedOutcome[]): Promise<AdvancedJob[]> {
  const news = announcing(executor);
  const row = await complete.executeFirst(executor, { ...advanceArguments(executor, successes), notify: news.notify });
  news.after({ jobs: row?.released === true, runs: row?.ended_runs ?? [] });
  return stated(successes, row);
}

/** The same, and leases jobs that it releases to who completes, where nothing else is before them. One round trip. */
export async function advanceEagerly(
  executor: Executor,
  successes: readonly PreparedOutcome[],
  claim: EagerClaim,
): Promise<EagerlyAdvanced> {
  const news = announcing(executor);
  const given = { ...advanceArguments(executor, successes), notify: news.notify };
  const rows = await completeEagerly.execute(executor, { ...given, ...claim });
  const [row] = rows;
  news.after({ jobs: row?.released === true, runs: row?.ended_runs ?? [] });
  return {
    jobs: stated(successes, row),
    claimed: await claimedJobs(executor, claim.workerId, rows.filter(isClaimed).sort(inClaimOrder)),
    more: row?.more === true,
  };
}

function advanceArguments(executor: Executor, successes: readonly PreparedOutcome[]) {
  const runIds = successes.map(({ lease }) => lease.workflowRunId ?? "");
  const leases = leaseArguments(
    executor,
    successes.map(({ lease }) => lease),
  );
  return {
    ...leases,
    runIds,
    releaseKeys: runIds.map((runId) => String(runReleaseKey(runId))),
    outputs: sparse(successes, ({ output }) => output),
  };
}

interface Answer {
  readonly held: readonly string[] | null;
  readonly done: readonly string[] | null;
}

function stated(successes: readonly PreparedOutcome[], answer: Answer | undefined): AdvancedJob[] {
  const [held, done] = [new Set(answer?.held), new Set(answer?.done)];
  const stateOf = ({ lease }: PreparedOutcome) => {
    if (!held.has(leaseKey(lease))) return "LOST";
    return done.has(lease.jobId) ? "SUCCEEDED" : "HELD_BACK";
  };
  return successes.map((success) => ({ leaseKey: leaseKey(success.lease), state: stateOf(success) }));
}

const complete = writing("complete_step_jobs", advanceParameters, (db, p, schema) =>
  advanced(db, p, schema)
    .with("inserted", (qb) => insertReleased(qb))
    .with("announced", (qb) => announced(qb, p, schema, sql`select from inserted`))
    .selectFrom("announced")
    .select([
      advancedColumns.held.as("held"),
      advancedColumns.done.as("done"),
      advancedColumns.endedRuns.as("ended_runs"),
      sql<boolean>`exists (select from inserted)`.as("released"),
    ]),
);

/** The first row says what became of all: in each it would be the square of the batch. */
function inFirstRow<T>(value: RawBuilder<T>) {
  return sql<T | null>`case when row_number() over () = 1 then ${value} end`;
}

const completeEagerly = writing(
  "complete_step_jobs_eagerly",
  { ...advanceParameters, ...eagerParameters },
  (db, p, schema) => {
    const left = sql`select from inserted where status = 'PENDING'`;
    return insertReleasedEagerly(advanced(db, p, schema), p, schema)
      .with("announced", (qb) => announced(qb, p, schema, left))
      .selectFrom("announced")
      .leftJoin("inserted as i", (join) => join.on("i.status", "=", "LEASED"))
      .selectAll("i")
      .select([
        inFirstRow(advancedColumns.held).as("held"),
        inFirstRow(advancedColumns.done).as("done"),
        inFirstRow(advancedColumns.endedRuns).as("ended_runs"),
        sql<boolean>`exists (${left})`.as("released"),
        sql<boolean>`exists (${left}) or (select o.due from others as o)`.as("more"),
      ]);
  },
);
