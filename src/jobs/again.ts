/**
 * Jobs that stay in the queue whatever their attempts: snoozed ones, and those that continue as their next run
 * (FEATURES F-J7). The parts of the statement in `settle.ts`, each by the name of its CTE.
 */
import { type QueryCreator, sql } from "kysely";
import type { JsonColumn } from "../database/column-types.ts";
import type { Placeholders } from "../database/parameters.ts";
import type { JobStatus } from "../database/statuses.ts";
import type { LedgerTables } from "../database/tables.ts";
import { finishedOfQueue, type RunColumn } from "./ending.ts";
import type { PreparedOutcome } from "./outcome.ts";

/** The parameters that carry what is to be done with such jobs, besides those of every outcome. */
export const againParameters = {
  agains: "text?[]",
  delays: "float8?[]",
  checkpoints: "jsonb?[]",
  reasons: "text?[]",
  notify: "bool",
} as const;

export function againArguments(outcomes: readonly PreparedOutcome[]) {
  return {
    agains: outcomes.map(({ again }) => again?.as ?? null),
    delays: outcomes.map(({ again }) => again?.delaySeconds ?? null),
    checkpoints: outcomes.map(({ again }) => again?.checkpoint ?? null),
    reasons: outcomes.map(({ again }) => again?.reason ?? null),
  };
}

export function againColumns(p: Placeholders<typeof againParameters>) {
  return { again: p.agains, delay_seconds: p.delays, next_checkpoint: p.checkpoints, reason: p.reasons };
}

/** What an input row says of it. */
export interface AgainRow {
  readonly again: string | null;
  readonly delay_seconds: number | null;
  readonly next_checkpoint: string | null;
  readonly reason: string | null;
}

/** The same for rows of which none stays in the queue. */
export const noAgain = [
  sql<string | null>`null::text`.as("again"),
  sql<number | null>`null::float8`.as("delay_seconds"),
  sql<string | null>`null::jsonb`.as("next_checkpoint"),
  sql<string | null>`null::text`.as("reason"),
] as const;

type Queue = LedgerTables["job_queue"];
type FencedRow = AgainRow & { readonly [K in RunColumn]: Queue[K] } & {
  readonly id: string;
  readonly workflow_run_id: string | null;
  readonly workflow_step_id: string | null;
  readonly output: string | null;
  readonly not_before: Date | string | null;
};
type WithFenced = LedgerTables & { fenced: FencedRow };

/**
 * The attempts whose jobs may stay: a step's job continues only when the step was declared so. With one time for all that is
 * said of them: the second of two looks at the clock is later, at times.
 */
export function admitted(qb: QueryCreator<WithFenced>) {
  return qb
    .selectFrom("fenced as f")
    .where("f.again", "is not", null)
    .where((eb) => {
      const declared = eb
        .selectFrom("workflow_steps as s")
        .select("s.continues")
        .whereRef("s.run_id", "=", "f.workflow_run_id")
        .whereRef("s.id", "=", "f.workflow_step_id");
      return sql<boolean>`case
        when f.again = 'CONTINUED' and f.workflow_step_id is not null then coalesce((${declared}), false) else true
      end`;
    })
    .selectAll()
    .select(sql<Date>`clock_timestamp()`.as("put_back_at"));
}

type AdmittedRow = FencedRow & { readonly put_back_at: Date | string };

/** Back to PENDING: as if the attempt had not been, or as the next run of the job. */
export function putBack(qb: QueryCreator<LedgerTables & { admitted: AdmittedRow }>) {
  const continues = sql<boolean>`f.again = 'CONTINUED'`;
  return qb
    .updateTable("job_queue as q")
    .from("admitted as f")
    .whereRef("q.id", "=", "f.id")
    .set({
      status: "PENDING",
      worker_id: null,
      leased_at: null,
      lease_expires_at: null,
      run_at: sql<Date>`greatest(
        f.put_back_at + make_interval(secs => coalesce(f.delay_seconds, 0)), f.not_before)`,
      run_number: sql<number>`f.run_number + (${continues})::integer`,
      attempt: sql<number>`case when ${continues} then 0 else f.attempt - 1 end`,
      enqueued_at: sql<Date>`case when ${continues} then f.put_back_at else f.enqueued_at end`,
      checkpoint: sql<string | null>`coalesce(f.next_checkpoint, f.checkpoint)`,
      progress_done: sql<string | null>`case when not ${continues} then f.progress_done end`,
      progress_total: sql<string | null>`case when not ${continues} then f.progress_total end`,
    })
    .returning([
      ...finishedOfQueue("f"),
      "q.run_number as next_run_number",
      "q.run_at as due_at",
      "f.again",
      "f.output",
      "f.reason",
    ]);
}

type PutBackRow = Omit<FencedRow, keyof Queue> & { readonly [K in keyof Queue]: Queue[K] } & {
  readonly next_run_number: number;
  readonly due_at: Date | string;
};

/** The runs that have ended, for the ledger. */
export function slices(qb: QueryCreator<LedgerTables & { put_back: PutBackRow }>, schema: string) {
  return qb
    .selectFrom("put_back as b")
    .where("b.again", "=", "CONTINUED")
    .selectAll("b")
    .select([
      sql<JobStatus>`'SUCCEEDED'::${sql.id(schema, "job_status")}`.as("status"),
      sql<Date>`clock_timestamp()`.as("ended_at"),
      sql<null>`null::${sql.id(schema, "failure_kind")}`.as("failure_kind"),
      sql<null>`null::text`.as("error_code"),
      sql<null>`null::text`.as("error_message"),
      sql<null>`null::text`.as("canceled_reason"),
    ]);
}

/** What no row of the job says: that it was put back, until when and why. */
export function noteAgain(qb: QueryCreator<LedgerTables & { put_back: PutBackRow }>) {
  return qb
    .insertInto("job_events")
    .columns(["job_id", "run_number", "event", "details"])
    .expression((eb) =>
      eb
        .selectFrom("put_back as b")
        .select([
          "b.id",
          "b.next_run_number",
          sql<string>`lower(b.again)`.as("event"),
          sql<JsonColumn>`jsonb_strip_nulls(jsonb_build_object('run_at', b.due_at, 'reason', b.reason))`.as("details"),
        ]),
    );
}
