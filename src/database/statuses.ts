/** The database's own words, and what happens to a word that is not one of them. */
import { LedgerError } from "../errors.ts";

export const jobStatuses = ["PENDING", "LEASED", "SUCCEEDED", "DEAD_LETTERED", "CANCELED"] as const;
export const runStatuses = [
  "RUNNING",
  "WAITING_FOR_EXTERNAL",
  "SUCCEEDED",
  "COMPLETED_WITH_ERRORS",
  "CANCELED",
] as const;
export const stepStatuses = [
  "BLOCKED",
  "WAITING_FOR_EXTERNAL",
  "ENQUEUED",
  "RUNNING",
  "SUCCEEDED",
  "FAILED",
  "CANCELED",
] as const;
export const stepKinds = ["JOB", "EXTERNAL", "MAP"] as const;
export const dependencyKinds = ["ON_SUCCESS", "ON_TERMINAL"] as const;
export const failureKinds = ["RETRYABLE", "TERMINAL", "PANICKED", "TIMEOUT", "LEASE_EXPIRED"] as const;

export type JobStatus = (typeof jobStatuses)[number];
export type RunStatus = (typeof runStatuses)[number];
export type StepStatus = (typeof stepStatuses)[number];
export type StepKind = (typeof stepKinds)[number];
export type DependencyKind = (typeof dependencyKinds)[number];
export type FailureKind = (typeof failureKinds)[number];

export const decodeJobStatus = decoder("job status", jobStatuses);
export const decodeRunStatus = decoder("run status", runStatuses);
export const decodeStepStatus = decoder("step status", stepStatuses);
export const decodeStepKind = decoder("step kind", stepKinds);
export const decodeFailureKind = decoder("failure kind", failureKinds);

export function isTerminalRun(status: RunStatus): boolean {
  return status === "SUCCEEDED" || status === "COMPLETED_WITH_ERRORS" || status === "CANCELED";
}

export function isTerminalStep(status: StepStatus): boolean {
  return status === "SUCCEEDED" || status === "FAILED" || status === "CANCELED";
}

/** A decoder that throws `workflow.internal_state` for an unknown word: an error, never a guess. */
function decoder<W extends string>(what: string, words: readonly W[]): (value: unknown) => W {
  return (value) => {
    const word = words.find((candidate) => candidate === value);
    if (word === undefined)
      throw new LedgerError("workflow.internal_state", { message: `Unknown ${what} in the database.` });
    return word;
  };
}
