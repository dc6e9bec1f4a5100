/**
 * Settles attempts: a job that succeeded or cannot be retried goes from the queue to the ledger, any
 * other goes back to PENDING. The end of a job of a workflow run is left to the steps' module.
 */
import { sql } from "kysely";
import { toDateOrNull } from "../database/decode.ts";
import type { Executor } from "../database/executor.ts";
import { rowsOf } from "../database/parameters.ts";
import { writing } from "../database/statement.ts";
import type { FailureKind, JobStatus } from "../database/statuses.ts";
import { boundedHere } from "../locks/wait.ts";
import { retryTime } from "./backoff.ts";
import { appendEnded, keptOfQueue } from "./ending.ts";
import { leaseArguments, leaseColumns, leaseKeyOf, leaseParameters, sameLease, unexpired } from "./lease.ts";
import type { PreparedOutcome } from "./outcome.ts";

/**
 * `LOST`: the lease is not held (any more). `STEP_ENDS`: nothing was written, the job's end is the end
 * of a step.
 */
export type AttemptState = "SUCCEEDED" | "PENDING" | "DEAD_LETTERED" | "LOST" | "STEP_ENDS";

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
  return decode(await settle.execute(executor, outcomeArguments(executor, outcomes)));
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
    kinds: outcomes.map(({ kind }) => kind),
    outputs: outcomes.map(({ output }) => output),
    codes: outcomes.map(({ code }) => code),
    messages: outcomes.map(({ message }) => message),
    notBefores: outcomes.map(({ notBefore }) => notBefore),
  };
}

function decode(rows: Awaited<ReturnType<typeof settle.execute>>): SettledAttempt[] {
  return rows.map((row) => ({ leaseKey: row.lease_key, state: row.state, runAt: toDateOrNull(row.run_at) }));
}

const settle = settling("settle_attempts", "live");
const settleExpired = settling("settle_expired_attempts", "expired");

/**
 * `held` locks the rows in id order, in their final strength; `fenced` asks for the lease's end after
 * that, so no wait can outlive a lease unnoticed. Everything else follows from `fenced` and touches
 * its table once.
 */
function settling(name: string, lease: "live" | "expired") {
  return writing(name, outcomeParameters, (db, p, schema) =>
    db
      .with("input", (qb) =>
        qb
          .selectFrom(
            rowsOf("given", {
              ...leaseColumns(p),
              kind: p.kinds,
              output: p.outputs,
              error_code: p.codes,
              error_message: p.messages,
              not_before: p.notBefores,
            }),
          )
          .selectAll(),
      )
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
              "q.leased_at",
              "q.lease_expires_at",
              "q.workflow_run_id",
              "input.run_number",
              "input.attempt",
              "input.worker_id",
              "input.output",
              "input.error_code",
              "input.error_message",
              "input.not_before",
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
            .select(sql<boolean>`coalesce(held.has_another, false) or held.workflow_run_id is null`.as("settles")),
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
      )
      .selectFrom("input")
      .leftJoin("fenced as f", (join) => join.onRef("f.id", "=", "input.job_id").on(sameLease("f", "input")))
      .leftJoin("retried as r", "r.id", "f.id")
      .select([
        leaseKeyOf("input").as("lease_key"),
        "r.run_at",
        sql<AttemptState>`case
          when f.id is null then 'LOST'
          when not f.settles then 'STEP_ENDS'
          when f.retries then 'PENDING'
          when f.kind is null then 'SUCCEEDED'
          else 'DEAD_LETTERED'
        end`.as("state"),
      ]),
  );
}
