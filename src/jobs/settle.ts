/**
 * Settles attempts: a job that succeeded or cannot be retried goes from the queue to the ledger, any
 * other goes back to PENDING. The end of a job of a workflow run is left to the steps' module.
 */
import { type QueryCreator, type RawBuilder, sql } from "kysely";
import { announceJobs } from "../database/announce.ts";
import { toDateOrNull } from "../database/decode.ts";
import type { Executor } from "../database/executor.ts";
import { type Placeholders, type RowOf, rowsOf, sparse } from "../database/parameters.ts";
import { writing } from "../database/statement.ts";
import type { FailureKind, JobStatus } from "../database/statuses.ts";
import type { LedgerTables } from "../database/tables.ts";
import { boundedHere } from "../locks/wait.ts";
import {
  type AgainRow,
  admitted,
  againArguments,
  againColumns,
  againParameters,
  noAgain,
  noteAgain,
  putBack,
  slices,
} from "./again.ts";
import { retryTime } from "./backoff.ts";
import { appendEnded, appendSlices, keptOfQueue } from "./ending.ts";
import { leaseArguments, leaseColumns, leaseKeyOf, leaseParameters, sameLease, unexpired } from "./lease.ts";
import type { PreparedOutcome } from "./outcome.ts";

/**
 * `LOST`: the lease is not held (any more). `STEP_ENDS`: nothing was written, the job's end is the end
 * of a step. `REFUSED`: nothing was written, the step was not declared to continue.
 */
export type AttemptState = "SUCCEEDED" | "PENDING" | "DEAD_LETTERED" | "LOST" | "STEP_ENDS" | "REFUSED";

export interface SettledAttempt {
  /** As `leaseKey` makes it. */
  readonly leaseKey: string;
  readonly state: AttemptState;
  readonly runAt: Date | null;
}

/** Settles attempts under live leases, waiting for row locks in id order. One round trip. */
export async function settleAttempts(
  executor: Executor,
  outcomes: readonly PreparedOutcome[],
): Promise<SettledAttempt[]> {
  const args = outcomeArguments(executor, outcomes);
  // Batches without a job that stays in the queue are spared the planning of what is done with such.
  if (outcomes.every(({ again }) => again === undefined)) return decode(await settle.execute(executor, args));
  const { notify } = executor.settings;
  return decode(await settleWithAgain.execute(executor, { ...args, ...againArguments(outcomes), notify }));
}

/** Settles attempts whose leases have expired, passing over rows that other sessions hold. One round trip. */
export async function settleExpiredAttempts(
  executor: Executor,
  outcomes: readonly PreparedOutcome[],
): Promise<SettledAttempt[]> {
  return decode(await settleExpired.execute(executor, outcomeArguments(executor, outcomes)));
}

export const outcomeParameters = {
  ...leaseParameters,
  kinds: "text?[]",
  outputs: "jsonb?[]",
  codes: "text?[]",
  messages: "text?[]",
  notBefores: "timestamptz?[]",
} as const;

export function outcomeArguments(executor: Executor, outcomes: readonly PreparedOutcome[]) {
  return {
    ...leaseArguments(
      executor,
      outcomes.map(({ lease }) => lease),
    ),
    kinds: sparse(outcomes, ({ kind }) => kind),
    outputs: sparse(outcomes, ({ output }) => output),
    codes: sparse(outcomes, ({ code }) => code),
    messages: sparse(outcomes, ({ message }) => message),
    notBefores: sparse(outcomes, ({ notBefore }) => notBefore),
  };
}

function decode(rows: Awaited<ReturnType<typeof settle.execute>>): SettledAttempt[] {
  return rows.map((row) => ({ leaseKey: row.lease_key, state: row.state, runAt: toDateOrNull(row.run_at) }));
}

const settle = settlingWithoutAgain("settle_attempts", "live");
const settleExpired = settlingWithoutAgain("settle_expired_attempts", "expired");

function settlingWithoutAgain(name: string, lease: "live" | "expired") {
  return writing(name, outcomeParameters, (db, p, schema) =>
    settling(
      db.with("input", (qb) => qb.selectFrom(outcomeRows(p)).selectAll("given").select(noAgain)),
      p,
      schema,
      lease,
    )
      .selectFrom("input")
      .leftJoin("fenced as f", (join) => join.onRef("f.id", "=", "input.job_id").on(sameLease("f", "input")))
      .leftJoin("retried as r", "r.id", "f.id")
      .select([leaseKeyOf("input").as("lease_key"), "r.run_at", stateOr(sql`'STEP_ENDS'`)]),
  );
}

const settleWithAgain = writing(
  "settle_attempts_with_again",
  { ...outcomeParameters, ...againParameters },
  (db, p, schema) =>
    settling(
      db.with("input", (qb) =>
        qb.selectFrom(rowsOf("given", { ...outcomeColumns(p), ...againColumns(p) })).selectAll(),
      ),
      p,
      schema,
      "live",
    )
      .with("admitted", (qb) => admitted(qb))
      .with("put_back", (qb) => putBack(qb))
      .with("slice", (qb) => slices(qb, schema))
      .with("kept", (qb) => appendSlices(qb))
      .with("noted", (qb) => noteAgain(qb))
      .with(
        (cte) => cte("announced").materialized(),
        (qb) => {
          const runnable = sql`select from put_back where due_at <= clock_timestamp()`;
          return qb.selectNoFrom(announceJobs(p.notify, schema, runnable).as("jobs"));
        },
      )
      .selectFrom("input")
      .innerJoin("announced", (join) => join.onTrue())
      .leftJoin("fenced as f", (join) => join.onRef("f.id", "=", "input.job_id").on(sameLease("f", "input")))
      .leftJoin("retried as r", "r.id", "f.id")
      .leftJoin("put_back as b", "b.id", "f.id")
      .select([
        leaseKeyOf("input").as("lease_key"),
        sql<Date | null>`coalesce(r.run_at, b.due_at)`.as("run_at"),
        stateOr(sql`case
          when b.id is not null then 'PENDING' when f.again is not null then 'REFUSED' else 'STEP_ENDS'
        end`),
      ]),
);

function outcomeColumns(p: Placeholders<typeof outcomeParameters>) {
  return {
    ...leaseColumns(p),
    kind: p.kinds,
    output: p.outputs,
    error_code: p.codes,
    error_message: p.messages,
    not_before: p.notBefores,
  };
}

function outcomeRows(p: Placeholders<typeof outcomeParameters>) {
  return rowsOf("given", outcomeColumns(p));
}

/** What became of an attempt, or of one that was not `settled` here, `unsettled`. */
function stateOr(unsettled: RawBuilder<unknown>) {
  return sql<AttemptState>`case
    when f.id is null then 'LOST'
    when not f.settles then ${unsettled}
    when f.retries then 'PENDING'
    when f.kind is null then 'SUCCEEDED'
    else 'DEAD_LETTERED'
  end`.as("state");
}

type InputRow = RowOf<ReturnType<typeof outcomeRows>> & AgainRow;

/**
 * `held` locks the rows in id order, in their final strength; `fenced` asks for the lease's end after
 * that, so no wait can outlive a lease unnoticed. Everything else follows from `fenced` and touches
 * its table once. An attempt `settles` when its job is tried again, or ends and is no step.
 */
function settling(
  db: QueryCreator<LedgerTables & { input: InputRow }>,
  p: Placeholders<typeof outcomeParameters>,
  schema: string,
  lease: "live" | "expired",
) {
  return db
    .with(
      (cte) => cte("held").materialized(),
      (qb) =>
        qb
          .selectFrom("job_queue as q")
          .innerJoin("input", "input.job_id", "q.id")
          .where(sameLease("q", "input"))
          .where(boundedHere(p.lockWait))
          .select([
            "q.id",
            "q.type",
            "q.max_attempts",
            "q.run_at",
            "q.enqueued_at",
            "q.leased_at",
            "q.lease_expires_at",
            "q.progress_done",
            "q.progress_total",
            "q.checkpoint",
            "q.workflow_run_id",
            "q.workflow_step_id",
            "input.run_number",
            "input.attempt",
            "input.worker_id",
            "input.output",
            "input.error_code",
            "input.error_message",
            "input.not_before",
            "input.again",
            "input.delay_seconds",
            "input.next_checkpoint",
            "input.reason",
            sql<FailureKind | null>`input.kind::${sql.id(schema, "failure_kind")}`.as("kind"),
            sql<boolean>`input.kind in ('RETRYABLE', 'TIMEOUT', 'LEASE_EXPIRED') and q.attempt < q.max_attempts`.as(
              "has_another",
            ),
          ])
          .orderBy("q.id")
          .forUpdate("q")
          .$if(lease === "expired", (query) => query.skipLocked()),
    )
    .with(
      (cte) => cte("fenced").materialized(),
      (qb) =>
        qb
          .selectFrom("held")
          .where(lease === "live" ? unexpired("held") : sql<boolean>`not ${unexpired("held")}`)
          .selectAll("held")
          .select(sql<boolean>`coalesce(held.has_another, false)`.as("retries"))
          .select(
            sql<boolean>`coalesce(held.has_another, false) or (held.workflow_run_id is null and held.again is null)`.as(
              "settles",
            ),
          ),
    )
    .with("retried", (qb) =>
      qb
        .updateTable("job_queue as q")
        .from("fenced as f")
        .leftJoin("job_definitions as d", "d.type", "f.type")
        .whereRef("q.id", "=", "f.id")
        .where("f.retries", "=", true)
        .set({
          status: "PENDING",
          worker_id: null,
          leased_at: null,
          lease_expires_at: null,
          run_at: retryTime("d", "f"),
        })
        .returning(["q.id", "q.run_at"]),
    )
    .with("ended", (qb) =>
      qb
        .deleteFrom("job_queue as q")
        .using("fenced as f")
        .whereRef("q.id", "=", "f.id")
        .where("f.retries", "=", false)
        .where("f.settles", "=", true)
        .returning([
          ...keptOfQueue,
          sql<JobStatus>`(case when f.kind is null then 'SUCCEEDED' else 'DEAD_LETTERED' end)::${sql.id(schema, "job_status")}`.as(
            "status",
          ),
          sql<Date>`clock_timestamp()`.as("ended_at"),
          "f.kind as failure_kind",
          "f.error_code",
          "f.error_message",
          sql<null>`null::text`.as("canceled_reason"),
          "f.output",
        ]),
    )
    .with("appended", (qb) => appendEnded(qb))
    .with("failed", (qb) =>
      qb
        .insertInto("job_attempts")
        .columns([
          "job_id",
          "run_number",
          "attempt",
          "worker_id",
          "started_at",
          "ended_at",
          "failure_kind",
          "error_code",
          "error_message",
        ])
        .expression((eb) =>
          eb
            .selectFrom("fenced as f")
            .where("f.kind", "is not", null)
            .where("f.settles", "=", true)
            .select([
              "f.id",
              "f.run_number",
              "f.attempt",
              "f.worker_id",
              "f.leased_at",
              sql<Date>`clock_timestamp()`.as("ended_at"),
              "f.kind",
              "f.error_code",
              "f.error_message",
            ]),
        ),
    );
}
