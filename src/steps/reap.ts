/** Reap: expired leases go back to the queue or are dead-lettered, wherever and however often it runs (FEATURES F-J10). */
import { sql } from "kysely";
import type { Executor } from "../database/executor.ts";
import { inHalves } from "../database/halves.ts";
import { reading, writing } from "../database/statement.ts";
import { requireReadCommitted } from "../database/transaction.ts";
import type { LedgerError } from "../errors.ts";
import { validInteger } from "../jobs/arguments.ts";
import { type Lease, leaseKey } from "../jobs/lease.ts";
import type { PreparedOutcome } from "../jobs/outcome.ts";
import { settleExpiredAttempts } from "../jobs/settle.ts";
import { boundedInCaller } from "../locks/wait.ts";
import { endStepJobs } from "./cascade.ts";

export interface ReapOptions {
  /** At most this many leases. Default 500. */
  readonly limit?: number;
}

export interface Reaped {
  /** Jobs that will be tried again. */
  readonly returned: number;
  /** Jobs whose attempts were used up. */
  readonly deadLettered: number;
  /** Jobs that could not be settled: set aside for a while, so that they do not stop the others. */
  readonly setAside: readonly { readonly jobId: string; readonly error: LedgerError }[];
}

const DEFAULT_LIMIT = 500;
const SET_ASIDE_SECONDS = 300;

/**
 * Settles leases that have expired, as failures of kind LEASE_EXPIRED. Two round trips, and those of
 * `endStepJobs` when steps end; in a caller's transaction one more, for its level. Rows that other
 * sessions hold are passed over. Throws `db.*` when the database is gone, `input.invalid`,
 * `workflow.terminal_completion_unsupported_isolation`.
 */
export async function reap(executor: Executor, options: ReapOptions = {}): Promise<Reaped> {
  const limit = validInteger(options.limit, "limit", 1) ?? DEFAULT_LIMIT;
  // Before it is known whether a step ends: at another level nothing may have been sent.
  await requireReadCommitted(executor, "workflow.terminal_completion_unsupported_isolation");
  const rows = await expired.execute(executor, { limit });
  const tally: Tally = { returned: 0, deadLettered: 0, setAside: [] };
  await inHalves(
    executor,
    rows.map(expiredOutcome),
    (outcomes) => settleAll(executor, outcomes, tally),
    ({ lease }, error) => tally.setAside.push({ jobId: lease.jobId, error }),
  );
  if (tally.setAside.length > 0) {
    await setAside.execute(executor, { ids: tally.setAside.map(({ jobId }) => jobId), seconds: SET_ASIDE_SECONDS });
  }
  return tally;
}

interface Tally {
  returned: number;
  deadLettered: number;
  readonly setAside: { jobId: string; error: LedgerError }[];
}

async function settleAll(executor: Executor, outcomes: readonly PreparedOutcome[], tally: Tally): Promise<void> {
  const attempts = await settleExpiredAttempts(executor, outcomes);
  const stepEnds = new Set(attempts.filter(({ state }) => state === "STEP_ENDS").map(({ leaseKey: key }) => key));
  tally.returned += attempts.filter(({ state }) => state === "PENDING").length;
  tally.deadLettered += attempts.filter(({ state }) => state === "DEAD_LETTERED").length;
  const ending = outcomes.filter(({ lease }) => stepEnds.has(leaseKey(lease)));
  if (ending.length === 0) return;
  const end = () => endStepJobs(executor, ending, "expired");
  tally.deadLettered += (await boundedInCaller(executor, end)).size;
}

function expiredOutcome(row: Awaited<ReturnType<typeof expired.execute>>[number]): PreparedOutcome {
  const lease: Lease = {
    jobId: row.id,
    runNumber: row.run_number,
    attempt: row.attempt,
    workerId: row.worker_id ?? "",
    workflowRunId: row.workflow_run_id,
  };
  return {
    lease,
    kind: "LEASE_EXPIRED",
    output: null,
    code: "job.lease_expired",
    message: "The lease expired before the attempt ended.",
    notBefore: null,
  };
}

const expired = reading("expired_leases", { limit: "int4" }, (db, p) =>
  db
    .selectFrom("job_queue as q")
    .where("q.status", "=", "LEASED")
    .where("q.lease_expires_at", "<=", sql<Date>`clock_timestamp()`)
    .select(["q.id", "q.run_number", "q.attempt", "q.worker_id", "q.workflow_run_id"])
    .orderBy("q.id")
    .limit(p.limit),
);

// Only leases that are still expired: somebody else may have settled a job meanwhile, and its next worker's
// lease must not be cut short. A row that is held is left for the next reap.
const setAside = writing("set_aside_leases", { ids: "uuid[]", seconds: "int4" }, (db, p) =>
  db
    .updateTable("job_queue as q")
    .where((eb) => {
      const stuck = eb
        .selectFrom("job_queue as stuck")
        .select("stuck.id")
        .where(sql<boolean>`stuck.id = any(${p.ids})`)
        .where("stuck.status", "=", "LEASED")
        .where("stuck.lease_expires_at", "<=", sql<Date>`clock_timestamp()`)
        .orderBy("stuck.id")
        .forUpdate("stuck")
        .skipLocked();
      return sql<boolean>`q.id = any(array(${stuck}))`;
    })
    .set({ lease_expires_at: sql<Date>`clock_timestamp() + make_interval(secs => ${p.seconds})` }),
);
