/** The lease: one value that names who works on which attempt; every later write is fenced by it (FEATURES F-J5). */
import { type QueryCreator, type RawBuilder, sql } from "kysely";
import type { Executor } from "../database/executor.ts";
import { validUuid } from "../database/ids.ts";
import { type Placeholders, rowsOf } from "../database/parameters.ts";
import type { LedgerTables } from "../database/tables.ts";
import { LedgerError } from "../errors.ts";
import { boundedHere, lockWaitFor } from "../locks/wait.ts";
import { validInteger, validName } from "./arguments.ts";

/** The right to work on one attempt of a job, as a claim gave it. */
export interface Lease {
  readonly jobId: string;
  readonly runNumber: number;
  readonly attempt: number;
  readonly workerId: string;
  /** The workflow run that the job belongs to, or null. */
  readonly workflowRunId: string | null;
}

/** Tells leases apart, those of one job too: one that was lost must not pass for the one that is held. */
export function leaseKey({ jobId, runNumber, attempt, workerId }: Omit<Lease, "workflowRunId">): string {
  return `${jobId.toLowerCase()} ${runNumber} ${attempt} ${workerId}`;
}

/** The same in a statement, of a row of `input`. */
export function leaseKeyOf(input: string): RawBuilder<string> {
  const given = sql.id(input);
  return sql<string>`concat_ws(' ', ${given}.job_id, ${given}.run_number, ${given}.attempt, ${given}.worker_id)`;
}

/** Parameters of every statement that takes leases. */
export const leaseParameters = {
  jobIds: "uuid[]",
  runNumbers: "int4[]",
  attempts: "int4[]",
  workers: "text[]",
  lockWait: "int4?",
} as const;

/** Throws `input.invalid` for a value that is not a lease. */
export function leaseArguments(executor: Executor, leases: readonly Lease[]) {
  return {
    lockWait: lockWaitFor(executor),
    jobIds: leases.map(({ jobId }) => validUuid(jobId, "lease.jobId")),
    runNumbers: leases.map(({ runNumber }) =>
      required(validInteger(runNumber, "lease.runNumber", 1), "lease.runNumber"),
    ),
    attempts: leases.map(({ attempt }) => required(validInteger(attempt, "lease.attempt", 1), "lease.attempt")),
    workers: leases.map(({ workerId }) => validName(workerId, "lease.workerId")),
  };
}

function required(value: number | null, argument: string): number {
  if (value === null) throw new LedgerError("input.invalid", { message: `${argument} is missing.` });
  return value;
}

/** Columns of the input rows that carry the leases. */
export function leaseColumns(p: Placeholders<typeof leaseParameters>) {
  return { job_id: p.jobIds, run_number: p.runNumbers, attempt: p.attempts, worker_id: p.workers };
}

/**
 * The lease of row `q` is exactly the one of row `input`. Whether it has expired is asked after the lock: see `unexpired`.
 *
 * The status is not asked for: only a LEASED row has a worker (job_queue_lease_has_owner). Naming it would offer the
 * reaper's index of all leased rows, which looks empty to statistics of a quieter time, in place of the primary key.
 */
export function sameLease(q: string, input: string): RawBuilder<boolean> {
  const [held, given] = [sql.id(q), sql.id(input)];
  return sql<boolean>`coalesce(${held}.run_number = ${given}.run_number
    and ${held}.attempt = ${given}.attempt and ${held}.worker_id = ${given}.worker_id, false)`;
}

/**
 * The lease of a row of `held` still lives. Only for a materialized CTE that locked its rows: the
 * clock is then read after the lock was obtained, however long that took.
 */
export function unexpired(held: string): RawBuilder<boolean> {
  return sql<boolean>`${sql.id(held)}.lease_expires_at > clock_timestamp()`;
}

/**
 * Starts a statement that changes leased jobs: `fenced` has the jobs whose leases are exactly those
 * given and still live, their rows locked in id order.
 */
export function withFencedLeases(db: QueryCreator<LedgerTables>, p: Placeholders<typeof leaseParameters>) {
  return db
    .with("input", (qb) => qb.selectFrom(rowsOf("given", leaseColumns(p))).selectAll())
    .with(
      (cte) => cte("held").materialized(),
      (qb) =>
        qb
          .selectFrom("job_queue as q")
          .innerJoin("input", "input.job_id", "q.id")
          .where(sameLease("q", "input"))
          .where(boundedHere(p.lockWait))
          .select([
            "q.id",
            "q.run_number",
            "q.attempt",
            "q.worker_id",
            "q.leased_at",
            "q.lease_expires_at",
            "q.progress_done",
            "q.progress_total",
          ])
          .orderBy("q.id")
          .forUpdate("q"),
    )
    .with(
      (cte) => cte("fenced").materialized(),
      (qb) => qb.selectFrom("held").where(unexpired("held")).selectAll(),
    );
}

export function leaseLost(): LedgerError {
  return new LedgerError("job.lease_owner_mismatch");
}
