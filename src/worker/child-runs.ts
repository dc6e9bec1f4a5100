/** The handler that every worker has: it starts child runs, and ends the steps that stand for them. */
import { CHILD_RUN_JOB, type Ledger } from "../index.ts";
import type { Handler } from "./handlers.ts";

export function childRuns(ledger: Ledger): Handler {
  return {
    type: CHILD_RUN_JOB,
    endsItself: true,
    run: ({ job }) => ledger.runs.advanceChild(job),
  };
}
