/** The story of one job, from all that is kept of it (FEATURES F-H1). */
import { sql } from "kysely";
import type { JsonValue } from "../database/column-types.ts";
import { toDate } from "../database/decode.ts";
import type { Executor } from "../database/executor.ts";
import { validUuid } from "../database/ids.ts";
import { fromJson } from "../database/json.ts";
import { inScope, type Scope, scopeArguments, scopeParameters } from "../database/scope.ts";
import { reading } from "../database/statement.ts";
import { LedgerError } from "../errors.ts";

export interface JobEvent {
  readonly at: Date;
  readonly runNumber: number;
  /**
   * `enqueued`, `leased`, `attempt_failed`, how a run of the job ended (`succeeded`, `dead_lettered`, `canceled`), or
   * what else was done with it, such as `retried`.
   */
  readonly event: string;
  readonly attempt: number | null;
  /** The worker, or who asked for it. */
  readonly actor: string | null;
  readonly code: string | null;
  readonly message: string | null;
  readonly details: JsonValue | null;
}

/** Run by run, each in the order of time. One round trip. Throws `job.not_found`, `scope.required`, `input.invalid`. */
export async function jobTimeline(executor: Executor, jobId: string, scope: Scope): Promise<JobEvent[]> {
  const rows = await timeline.execute(executor, { id: validUuid(jobId, "jobId"), ...scopeArguments(scope) });
  // Every job has been enqueued.
  if (rows.length === 0) throw new LedgerError("job.not_found");
  return rows.map((row) => ({
    at: toDate(row.at),
    runNumber: row.run_number,
    event: row.event,
    attempt: row.attempt,
    actor: row.actor,
    code: row.code,
    message: row.message,
    details: fromJson(row.details),
  }));
}

const timeline = reading("get_job_timeline", { id: "uuid", ...scopeParameters }, (db, p) =>
  db
    .selectFrom("job_timeline as t")
    .where("t.job_id", "=", p.id)
    .where((eb) =>
      eb.exists(
        eb.selectFrom("jobs as j").where("j.id", "=", p.id).where(inScope("j.organization_id", p)).select("j.id"),
      ),
    )
    .select(["t.at", "t.run_number", "t.event", "t.attempt", "t.actor", "t.code", "t.message"])
    .select(sql<string | null>`t.details::text`.as("details"))
    .orderBy("t.run_number")
    .orderBy("t.at")
    .orderBy("t.place"),
);
