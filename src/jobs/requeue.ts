/** Requeue: a dead-lettered or cancelled job goes back into the queue as its next run (FEATURES F-J9). */
import { sql } from "kysely";
import { announceJobs } from "../database/announce.ts";
import type { JsonColumn } from "../database/column-types.ts";
import { toDate } from "../database/decode.ts";
import type { Executor } from "../database/executor.ts";
import { validUuid } from "../database/ids.ts";
import type { StoredJson } from "../database/json.ts";
import { rowsOf } from "../database/parameters.ts";
import { inScope, type Scope, scopeArguments, scopeParameters } from "../database/scope.ts";
import { writing } from "../database/statement.ts";
import type { JobStatus } from "../database/statuses.ts";
import { requireReadCommitted } from "../database/transaction.ts";
import { storedValue, valueText } from "../database/values/write.ts";
import { LedgerError } from "../errors.ts";
import { boundedHere, boundedInCaller, lockWaitFor } from "../locks/wait.ts";
import { activeKeyTaken, endedRun } from "./active-again.ts";
import { validInteger, validName } from "./arguments.ts";
import { settingColumns } from "./ending.ts";
import { withLatest } from "./latest.ts";
import { storableText } from "./outcome.ts";

/** How a job ended that can be requeued. */
export type RequeueableStatus = Extract<JobStatus, "DEAD_LETTERED" | "CANCELED">;

export const requeueableStatuses: readonly RequeueableStatus[] = ["DEAD_LETTERED", "CANCELED"];

export interface RequeueSettings {
  /** Drops progress and checkpoint. Default false: the next run goes on from the checkpoint of the last. */
  readonly reset?: boolean;
  /** Who requeues; kept with the job's event. */
  readonly requeuedBy?: string;
  /** Kept with the job's event. */
  readonly reason?: string;
}

export interface RequeueOptions extends RequeueSettings {
  readonly scope: Scope;
  /** How the caller saw the job: another status or run by now is a conflict. */
  readonly expected: { readonly status: RequeueableStatus; readonly runNumber: number };
  /** In place of the job's payload; the event says that it was corrected, without the values. */
  readonly payload?: unknown;
}

export interface RequeuedJob {
  readonly id: string;
  readonly status: "PENDING";
  /** That of the new run: the run that ended stays in the ledger. */
  readonly runNumber: number;
}

/**
 * Puts an ended job back into the queue under the next run number, with fresh attempts, if it is still as
 * the caller expects. Of several that do so at once one wins. One round trip; three more in a caller's
 * transaction. Throws `job.not_found`, `job.requeue_conflict`, `job.cancellation_not_quiesced` with the
 * time in its details, `job.active_key_taken`, `job.workflow_requeue_not_supported`, `job.requeue_unsupported_isolation`,
 * `scope.required`, `input.invalid`, `payload.not_json`, `payload.too_large`, `payload.reserved`,
 * `payload.unencodable`, `payload.codec_unavailable`.
 */
export async function requeueJob(executor: Executor, jobId: string, options: RequeueOptions): Promise<RequeuedJob> {
  const job = { id: validUuid(jobId, "jobId"), ...validExpectation(options.expected) };
  const [answer] = await requeueJobs(executor, [job], options, await storedPayload(executor, options.payload));
  if (answer === undefined) throw new LedgerError("job.not_found");
  if (!answer.ok) throw answer.error;
  return { id: job.id, status: "PENDING", runNumber: job.runNumber + 1 };
}

/** A payload that stands in place of a job's own, in the form that is stored; null when there is none. */
async function storedPayload({ settings }: Executor, payload: unknown): Promise<StoredJson | null> {
  if (payload === undefined) return null;
  return storedValue(settings.values, "payload", valueText(settings.values, payload, "payload"));
}

function validExpectation(expected: Partial<RequeueOptions["expected"]> = {}) {
  const { status, runNumber } = expected;
  if (status === undefined || !requeueableStatuses.includes(status)) {
    throw new LedgerError("input.invalid", { message: "expected.status must be DEAD_LETTERED or CANCELED." });
  }
  const number = validInteger(runNumber, "expected.runNumber", 1);
  if (number === null) throw new LedgerError("input.invalid", { message: "expected.runNumber is missing." });
  return { status, runNumber: number };
}

/** A job as it was seen. */
export interface ExpectedJob {
  readonly id: string;
  readonly status: RequeueableStatus;
  readonly runNumber: number;
}

export type RequeueAnswer = { readonly id: string } & (
  | { readonly ok: true }
  | { readonly ok: false; readonly error: LedgerError }
);

/** Requeues each of the jobs that is still as it was seen, and answers for each. Round trips and errors as `requeueJob`. */
export async function requeueJobs(
  executor: Executor,
  jobs: readonly ExpectedJob[],
  { scope, reset = false, requeuedBy, reason }: RequeueSettings & { readonly scope: Scope },
  payload: StoredJson | null = null,
): Promise<RequeueAnswer[]> {
  if (typeof reset !== "boolean") throw new LedgerError("input.invalid", { message: "reset must be true or false." });
  const given = {
    ids: jobs.map(({ id }) => id),
    statuses: jobs.map(({ status }) => status),
    runNumbers: jobs.map(({ runNumber }) => runNumber),
    payload,
    reset,
    requeuedBy: requeuedBy === undefined ? null : validName(requeuedBy, "requeuedBy"),
    reason: reason === undefined ? null : storableText(reason),
    ...scopeArguments(scope),
    lockWait: lockWaitFor(executor),
    notify: executor.settings.notify,
  };
  await requireReadCommitted(executor, "job.requeue_unsupported_isolation");
  const rows = await boundedInCaller(executor, () => requeue.execute(executor, given));
  return rows.map((row) => (row.state === "REQUEUED" ? { id: row.job_id, ok: true } : refused(row)));
}

type RequeueState = "REQUEUED" | "NOT_FOUND" | "OF_RUN" | "CONFLICT" | "NOT_QUIESCED" | "KEY_TAKEN";

interface RefusedRow {
  readonly job_id: string;
  readonly state: RequeueState;
  readonly lease_expires_at: Date | null;
}

function refused({ job_id, state, lease_expires_at }: RefusedRow): RequeueAnswer {
  if (state === "NOT_FOUND") return { id: job_id, ok: false, error: new LedgerError("job.not_found") };
  if (state === "OF_RUN") {
    return { id: job_id, ok: false, error: new LedgerError("job.workflow_requeue_not_supported") };
  }
  if (state === "CONFLICT") return { id: job_id, ok: false, error: new LedgerError("job.requeue_conflict") };
  if (state === "KEY_TAKEN") return { id: job_id, ok: false, error: new LedgerError("job.active_key_taken") };
  const details = { leaseExpiresAt: toDate(lease_expires_at).toISOString() };
  return { id: job_id, ok: false, error: new LedgerError("job.cancellation_not_quiesced", { details }) };
}

const requeueParameters = {
  ids: "uuid[]",
  statuses: "text[]",
  runNumbers: "int4[]",
  payload: "jsonb?",
  reset: "bool",
  requeuedBy: "text?",
  reason: "text?",
  lockWait: "int4?",
  notify: "bool",
  ...scopeParameters,
} as const;

/**
 * The event comes first, in id order: its index lets a run of a job follow on an ended one once (job_events_requeued),
 * also when the run that another session made of it meanwhile has ended already, which this one's snapshot does not show.
 * The jobs follow in the order in which an enqueue takes active keys.
 */
const requeue = writing("requeue_jobs", requeueParameters, (db, p, schema) =>
  db
    .with("input", (qb) =>
      qb.selectFrom(rowsOf("given", { job_id: p.ids, status: p.statuses, run_number: p.runNumbers })).selectAll(),
    )
    .with(
      (cte) => cte("looked").materialized(),
      (qb) =>
        withLatest(qb).select([
          "input.job_id",
          "latest.status",
          "latest.run_number",
          "latest.lease_expires_at",
          "latest.type",
          "latest.organization_id",
          "latest.active_key",
          sql<RequeueState>`case
            when latest.run_number is null or not ${inScope("latest.organization_id", p)} then 'NOT_FOUND'
            when latest.workflow_run_id is not null then 'OF_RUN'
            when latest.live or latest.status::text <> input.status or latest.run_number <> input.run_number
              then 'CONFLICT'
            when latest.status = 'CANCELED' and latest.lease_expires_at > clock_timestamp() then 'NOT_QUIESCED'
            else 'REQUEUED'
          end`.as("state"),
        ]),
    )
    .with(
      (cte) => cte("judged").materialized(),
      (qb) =>
        qb
          .selectFrom("looked as k")
          .select(["k.job_id", "k.status", "k.run_number", "k.lease_expires_at"])
          .select(
            sql<RequeueState>`case
              when k.state = 'REQUEUED' and ${activeKeyTaken(qb, "k")} then 'KEY_TAKEN' else k.state
            end`.as("state"),
          ),
    )
    .with("noted", (qb) =>
      qb
        .insertInto("job_events")
        .columns(["job_id", "run_number", "event", "actor", "details"])
        .expression((eb) =>
          eb
            .selectFrom("judged as k")
            .where("k.state", "=", "REQUEUED")
            .where(boundedHere(p.lockWait))
            .select([
              "k.job_id",
              sql<number>`k.run_number + 1`.as("run_number"),
              sql<string>`'requeued'`.as("event"),
              sql<string | null>`${p.requeuedBy}`.as("actor"),
              sql<JsonColumn>`jsonb_strip_nulls(jsonb_build_object(
                'from', k.status, 'reason', ${p.reason},
                'reset', case when ${p.reset} then true end, 'corrected', case when ${p.payload} is not null then true end
              ))`.as("details"),
            ])
            .orderBy("k.job_id"),
        )
        .onConflict((conflict) => conflict.doNothing())
        .returning(["job_id", "run_number"]),
    )
    .with("inserted", (qb) =>
      qb
        .insertInto("job_queue")
        .columns([
          "id",
          "run_number",
          ...settingColumns,
          "source_job_id",
          "source_run_number",
          "run_at",
          "payload",
          "checkpoint",
          "progress_done",
          "progress_total",
        ])
        .expression((eb) =>
          eb
            .selectFrom("noted as n")
            .innerJoinLateral(
              () => endedRun(qb, sql<boolean>`id = n.job_id and run_number = n.run_number - 1`).as("l"),
              (join) => join.onTrue(),
            )
            .select([
              "l.id",
              "n.run_number",
              ...settingColumns.map((column) => `l.${column}` as const),
              "l.source_job_id",
              "l.source_run_number",
              sql<Date>`now()`.as("run_at"),
              sql<string>`coalesce(${p.payload}, l.payload)`.as("payload"),
              sql<string | null>`case when not ${p.reset} then l.checkpoint end`.as("checkpoint"),
              sql<string | null>`case when not ${p.reset} then l.progress_done end`.as("progress_done"),
              sql<string | null>`case when not ${p.reset} then l.progress_total end`.as("progress_total"),
            ])
            .orderBy("l.type")
            .orderBy("l.organization_id")
            .orderBy("l.active_key")
            .orderBy("l.id"),
        )
        .returning("id"),
    )
    .with(
      (cte) => cte("announced").materialized(),
      (qb) => qb.selectNoFrom(announceJobs(p.notify, schema, sql`select from inserted`).as("jobs")),
    )
    .selectFrom("judged as k")
    .innerJoin("announced", (join) => join.onTrue())
    .select([
      "k.job_id",
      "k.lease_expires_at",
      sql<RequeueState>`case
        when k.state = 'REQUEUED' and not coalesce(k.job_id in (select id from inserted), false) then 'CONFLICT'
        else k.state
      end`.as("state"),
    ])
    .orderBy("k.job_id"),
);
