/** How a live job becomes a row of the ledger: the one list of columns that moves. */
import { type QueryCreator, type RawBuilder, sql } from "kysely";
import type { JsonColumn } from "../database/column-types.ts";
import type { JobStatus } from "../database/statuses.ts";
import type { LedgerTables } from "../database/tables.ts";
import { limitColumns } from "./limits.ts";

/** What a job has in all of its runs, and a job that replays it too. */
export const settingColumns = [
  "type",
  "organization_id",
  "priority",
  "max_attempts",
  "timeout_seconds",
  "tags",
  "metadata",
  ...limitColumns,
  "active_key",
] as const;

/** What a job has in all of its runs; only a requeue may correct the payload. */
const jobColumns = [
  "id",
  ...settingColumns,
  "workflow_run_id",
  "workflow_step_id",
  "payload",
  "source_job_id",
  "source_run_number",
] as const;

/** What each run of a job has of its own. */
const runColumns = [
  "run_number",
  "run_at",
  "attempt",
  "worker_id",
  "leased_at",
  "lease_expires_at",
  "enqueued_at",
  "progress_done",
  "progress_total",
  "checkpoint",
] as const;

export type RunColumn = (typeof runColumns)[number];

/** The columns of job_queue that the ledger keeps as they are. */
const keptColumns = [...jobColumns, ...runColumns] as const;

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

/** The same with the end of a job that succeeded and whose output, if it has one, its step keeps. */
export function succeededOfQueue(schema: string) {
  return endedOfQueue(schema, "SUCCEEDED", sql<null>`null::text`);
}

/** The same with the end of a job that is cancelled. */
export function canceledOfQueue(schema: string, reason: RawBuilder<string | null>) {
  return endedOfQueue(schema, "CANCELED", sql<string | null>`${reason}`);
}

/** The same with any end but a failure. */
export function endedOfQueue<Reason extends string | null>(
  schema: string,
  status: "SUCCEEDED" | "CANCELED",
  reason: RawBuilder<Reason>,
  output: RawBuilder<JsonColumn | null> = sql<null>`null::jsonb`,
) {
  return [
    ...keptOfQueue,
    sql<JobStatus>`${sql.lit(status)}::${sql.id(schema, "job_status")}`.as("status"),
    sql<Date>`clock_timestamp()`.as("ended_at"),
    sql<null>`null::${sql.id(schema, "failure_kind")}`.as("failure_kind"),
    sql<null>`null::text`.as("error_code"),
    sql<null>`null::text`.as("error_message"),
    reason.as("canceled_reason"),
    output.as("output"),
  ] as const;
}

/**
 * For the RETURNING of an update of `job_queue as q` that makes a finished run's row that of the next run; `finished`
 * names the CTE with the columns of the finished one.
 */
export function finishedOfQueue<Finished extends string>(finished: Finished) {
  return [
    ...jobColumns.map((column) => `q.${column}` as const),
    ...runColumns.map((column) => `${finished}.${column}` as const),
  ];
}

type EndedRow = { [K in (typeof keptColumns)[number]]: LedgerTables["job_queue"][K] } & {
  [K in (typeof endingColumns)[number]]: LedgerTables["job_ledger"][K];
};

/** Appends the finished runs of the CTE `slice`, whose jobs have gone on as their next runs, to the ledger. */
export function appendSlices(qb: QueryCreator<LedgerTables & { slice: EndedRow }>) {
  return qb
    .insertInto("job_ledger")
    .columns([...keptColumns, ...endingColumns, "continued"])
    .expression((eb) =>
      eb
        .selectFrom("slice")
        .select([...keptColumns, ...endingColumns])
        .select(sql<boolean>`true`.as("continued")),
    );
}

/** Appends the rows of the CTE `ended` to the ledger. */
export function appendEnded(qb: QueryCreator<LedgerTables & { ended: EndedRow }>) {
  return qb
    .insertInto("job_ledger")
    .columns([...keptColumns, ...endingColumns])
    .expression((eb) => eb.selectFrom("ended").select([...keptColumns, ...endingColumns]));
}
