/** A change of live runs: steps end, steps are added, and all that follows is locked, resolved and written. */
import type { Executor } from "../database/executor.ts";
import { rollbackToSavepoint } from "../database/transaction.ts";
import { LedgerError } from "../errors.ts";
import type { PreparedOutcome } from "../jobs/outcome.ts";
import { type Addition, type FoundAddition, findAdditions } from "./additions.ts";
import { insertAdditions, recordAdditions } from "./append.ts";
import { applyResolution, type StepEnding } from "./apply.ts";
import { type EndingStep, lockAndResolve } from "./closure.ts";
import { writeMaps } from "./maps.ts";
import type { Resolution, ResolvableStep } from "./resolve.ts";

export interface RunChange {
  readonly ending: readonly EndingStep[];
  /** What the ending steps keep of how they ended, by step id. */
  readonly endings: ReadonlyMap<string, StepEnding>;
  /** How the jobs of the ending steps ended. */
  readonly outcomes: readonly PreparedOutcome[];
  readonly additions: readonly Addition[];
  /** Further steps whose rows are held. */
  readonly alsoLock: readonly { readonly runId: string; readonly id: string }[];
}

/** What became of a change. */
export interface ChangedRuns {
  readonly resolution: Resolution;
  /** Those of the additions that had not been applied before. */
  readonly applied: readonly FoundAddition[];
}

/** How often a change is resolved anew because one of its additions came in between. */
const MAX_ROUNDS = 4;

/**
 * Makes the change in the order of LOCKS.md §3: the caller holds the job rows, and the release locks or takes
 * them in `ready`, which runs once the step rows are locked; here come step rows and run rows. Five round trips;
 * one less when nothing depends on the steps, up to three more where map steps begin or end, five more for
 * additions. Throws `workflow.release_conflict`, `workflow.append_conflicting_retry`,
 * `workflow.append_unknown_dependency`, `workflow.append_duplicate_step_key`.
 */
export async function changeRuns(
  executor: Executor,
  change: RunChange,
  ready: (steps: readonly ResolvableStep[]) => Promise<void>,
): Promise<ChangedRuns> {
  for (let round = 1; round <= MAX_ROUNDS; round += 1) {
    const found = await findAdditions(executor, change.additions);
    const resolution = await lockAndResolve(executor, resolving(change, found), ready);
    if (await recordAdditions(executor, found, resolution)) {
      await applyResolution(executor, resolution, change.endings, change.outcomes);
      await insertAdditions(executor, found, resolution);
      await writeMaps(executor, resolution);
      return { resolution, applied: found };
    }
    await rollbackToSavepoint(executor);
  }
  throw new LedgerError("workflow.release_conflict");
}

function resolving({ ending, alsoLock }: RunChange, found: readonly FoundAddition[]) {
  return {
    ending,
    added: found.flatMap(({ steps }) => steps),
    alsoLock: [...alsoLock, ...found.flatMap(({ prerequisites }) => prerequisites)],
  };
}
