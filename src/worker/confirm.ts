/** What really became of an attempt whose lease is said to be gone. */
import { isLedgerError, type Job, type Lease, type Ledger } from "../index.ts";
import type { Outcome } from "./attempt.ts";

export type Fate = "succeeded" | "snoozed" | "continued" | "retried" | "failed" | "canceled" | "lost";

/**
 * A refused lease may mean that the outcome is stored already: by an earlier try whose answer was lost, or
 * by the handler in its own transaction. One round trip.
 */
export async function fateOf(ledger: Ledger, lease: Lease, outcome: Outcome): Promise<Fate> {
  try {
    return fateIn(await ledger.jobs.get(lease.jobId, { admin: true }, { values: "omitted" }), lease, outcome);
  } catch (error) {
    if (isLedgerError(error)) return "lost";
    throw error;
  }
}

function fateIn(job: Job, lease: Lease, outcome: Outcome): Fate {
  if (job.runNumber > lease.runNumber) return "continued";
  // A snooze takes its attempt back, and nothing else does that to one that was started.
  if (isPutBack(job, lease)) return "snoozed";
  if (job.runNumber !== lease.runNumber || job.attempt !== lease.attempt) return "lost";
  if (job.status === "SUCCEEDED") return "succeeded";
  if (job.status === "CANCELED") return "canceled";
  if (!("failure" in outcome)) return "lost";
  // Back in the queue, by this failure or by the reaper's: it is tried again in either case.
  if (job.status === "PENDING") return "retried";
  return job.status === "DEAD_LETTERED" && job.errorCode === outcome.failure.code ? "failed" : "lost";
}

function isPutBack({ status, runNumber, attempt }: Job, lease: Lease): boolean {
  return status === "PENDING" && runNumber === lease.runNumber && attempt === lease.attempt - 1;
}
