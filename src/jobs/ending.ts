/** How a live job becomes a row of the ledger: the one list of columns that moves. */
import type { QueryCreator } from "kysely";
import type { LedgerTables } from "../database/tables.ts";

/** The columns of job_queue that the ledger keeps as they are. */
const keptColumns = [
  "id",
  "run_number",
  "type",
  "organization_id",
  "priority",
  "run_at",
  "attempt",
  "max_attempts",
  "timeout_seconds",
  "worker_id",
  "leased_at",
  "lease_expires_at",
  "enqueued_at",
  "workflow_run_id",
  "workflow_step_id",
  "progress_done",
  "progress_total",
  "payload",
  "checkpoint",
  "tags",
] as const;

/** The columns that an ending adds. */
const endingColumns = [
  "status",
  "ended_at",
  "failure_kind",
  "error_code",
  "error_message",
  "canceled_reason",
  "output",
] as const;

/** For the RETURNING of a delete from `job_queue as q`. */
export const keptOfQueue = keptColumns.map((column) => `q.${column}` as const);

type EndedRow = { [K in (typeof keptColumns)[number]]: LedgerTables["job_queue"][K] } & {
  [K in (typeof endingColumns)[number]]: LedgerTables["job_ledger"][K];
};

/** Appends the rows of the CTE `ended` to the ledger. */
export function appendEnded(qb: QueryCreator<LedgerTables & { ended: EndedRow }>) {
  return qb
    .insertInto("job_ledger")
    .columns([...keptColumns, ...endingColumns])
    .expression((eb) => eb.selectFrom("ended").select([...keptColumns, ...endingColumns]));
}
