/** How many runs there are by type and status, without counting them (FEATURES F-H3). */
import { type CountsByType, countsByType, keptCounts } from "../database/counts.ts";
import { toNumber } from "../database/decode.ts";
import type { Executor } from "../database/executor.ts";
import { type Scope, scopeArguments, scopeParameters } from "../database/scope.ts";
import { reading } from "../database/statement.ts";
import { decodeRunStatus, type RunStatus, runStatuses } from "../database/statuses.ts";

export type RunCounts = CountsByType<RunStatus>;

/** The runs in scope by type and status, as of one moment. Exact; reads what is kept. One round trip. Throws `scope.required`. */
export async function countRuns(executor: Executor, scope: Scope): Promise<RunCounts> {
  const rows = await counts.execute(executor, scopeArguments(scope));
  return countsByType(
    runStatuses,
    rows.map(({ type, status, number }) => ({ type, status: decodeRunStatus(status), number: toNumber(number) })),
  );
}

const counts = reading("count_workflow_runs", scopeParameters, (db, p) => keptCounts(db, p, "run"));
