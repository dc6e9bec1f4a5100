/** Enqueue runs: all rows of all graphs in one statement, whatever their size (FEATURES F-W2); runs with keys go by `keyed.ts`. */
import { sql } from "kysely";
import { announcing } from "../database/announce.ts";
import type { Executor } from "../database/executor.ts";
import { writing } from "../database/statement.ts";
import { decodeRunStatus } from "../database/statuses.ts";
import { LedgerError } from "../errors.ts";
import { type EnqueuedRun, insertRunRows, runArrayParameters, runArrays, runRows, withGraphs } from "./insertion.ts";
import { enqueueKeyedRuns } from "./keyed.ts";
import { type PreparedRun, prepareRun, type RunOptions } from "./prepare.ts";
import type { GraphSpec } from "./spec.ts";

export interface RunRequest extends RunOptions {
  readonly graph: GraphSpec;
}

/**
 * Enqueues runs, all or none, and answers in the order of the requests; their root steps become
 * runnable at once. One round trip; one more when a key gives a run that is there, two more when one has expired, two for a
 * transaction around several runs of which some have keys; in a caller's transaction, with keys, three for its level
 * and the bound of the wait for who takes the same key, and one for a savepoint around several. Throws
 * `workflow.invalid_dag_*`, `workflow.enqueue_conflicting_retry`, `input.invalid`, `payload.not_json`,
 * `payload.too_large`, `payload.reserved`, `payload.invalid`, `payload.unencodable`, `payload.undecodable`,
 * `payload.codec_unavailable`, `workflow.enqueue_idempotency_unsupported_isolation`,
 * `workflow.enqueue_active_key_unsupported_isolation`.
 */
export async function enqueueRuns(executor: Executor, requests: readonly RunRequest[]): Promise<EnqueuedRun[]> {
  if (requests.length === 0) return [];
  const runs: PreparedRun[] = [];
  for (const [place, { graph, ...options }] of requests.entries()) {
    const at = requests.length > 1 ? `runs[${place}].` : "";
    runs.push(await prepareRun(executor.settings.values, graph, options, { at }));
  }
  return runs.some(({ key }) => key !== null) ? enqueueKeyedRuns(executor, runs) : insertRuns(executor, runs);
}

/** Inserts prepared runs that have no keys. One round trip. */
export async function insertRuns(executor: Executor, runs: readonly PreparedRun[]): Promise<EnqueuedRun[]> {
  const news = announcing(executor);
  const inserted = await insert.execute(executor, { ...runArrays(runs), notify: news.notify });
  news.after({ jobs: inserted.some(({ due }) => due) });
  const statuses = new Map(inserted.map(({ id, status }) => [id, decodeRunStatus(status)]));
  return runs.map(({ runId: id }) => {
    const status = statuses.get(id);
    if (status === undefined) throw new LedgerError("workflow.internal_state");
    return { id, status, disposition: "inserted" };
  });
}

const insert = writing("enqueue_workflow_runs", runArrayParameters, (db, p, schema) =>
  withGraphs(
    db
      .with("input", (qb) => qb.selectFrom(runRows(p)).selectAll())
      .with("runs", (qb) => insertRunRows(qb, schema, sql`true`)),
    p,
    schema,
  ),
);
