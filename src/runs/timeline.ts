/** The story of one run, its steps and, if asked for, the attempts of their jobs (FEATURES F-H1). */
import { type QueryCreator, sql } from "kysely";
import type { JsonValue } from "../database/column-types.ts";
import { toDate } from "../database/decode.ts";
import type { Executor } from "../database/executor.ts";
import { validUuid } from "../database/ids.ts";
import { fromJson } from "../database/json.ts";
import type { Placeholders } from "../database/parameters.ts";
import { inScope, type Scope, scopeArguments, scopeParameters } from "../database/scope.ts";
import { reading } from "../database/statement.ts";
import type { LedgerTables } from "../database/tables.ts";
import { LedgerError } from "../errors.ts";

export interface RunTimelineOptions {
  /** Whether the steps' jobs tell theirs too: leases, failed attempts, retries. Default false. */
  readonly attempts?: boolean;
}

export interface RunEvent {
  readonly at: Date;
  /**
   * Of the run: `created`, a change that was asked for (`append`, `retry`, `recover`, `rerun`), and how it ended
   * (`succeeded`, `completed_with_errors`, `canceled`). Of a step: `released` or of a gate `opened`, `started`, and how it ended
   * (`succeeded`, `failed`, `canceled`). Of a step's job: as in the job's timeline.
   */
  readonly event: string;
  /** Null: it is the run's own. */
  readonly stepKey: string | null;
  /** Of an event of the step's job. */
  readonly jobId: string | null;
  readonly runNumber: number | null;
  readonly attempt: number | null;
  /** The worker, or who completed the gate or asked for it. */
  readonly actor: string | null;
  readonly code: string | null;
  /** An error's message, or the reason that was given. */
  readonly message: string | null;
  readonly details: JsonValue | null;
}

/**
 * In the order of time; the end of a step and the release of what depends on it are one moment, in any order. A step that was retried in place has the times of its latest try; the ones before are those of its
 * job. One round trip. Throws `workflow.run_not_found`, `scope.required`, `input.invalid`.
 */
export async function runTimeline(
  executor: Executor,
  runId: string,
  scope: Scope,
  options: RunTimelineOptions = {},
): Promise<RunEvent[]> {
  const statement = options.attempts === true ? withAttempts : plain;
  const rows = await statement.execute(executor, { id: validUuid(runId, "runId"), ...scopeArguments(scope) });
  // Every run was created.
  if (rows.length === 0) throw new LedgerError("workflow.run_not_found");
  return rows.map((row) => ({
    at: toDate(row.at),
    event: row.event,
    stepKey: row.step_key,
    jobId: row.job_id,
    runNumber: row.run_number,
    attempt: row.attempt,
    actor: row.actor,
    code: row.code,
    message: row.message,
    details: fromJson(row.details),
  }));
}

const parameters = { id: "uuid", ...scopeParameters } as const;

const plain = reading("get_workflow_timeline", parameters, (db, p) => inOrder(db, ownEvents(db, p)));

const withAttempts = reading("get_workflow_timeline_with_attempts", parameters, (db, p) =>
  inOrder(db, ownEvents(db, p).unionAll(jobEvents(db, p))),
);

const ownEvents = (db: QueryCreator<LedgerTables>, p: RunPlaceholders) =>
  db
    .selectFrom("workflow_timeline as t")
    .where("t.run_id", "=", p.id)
    .where(sql<boolean>`exists (${runInScope(db, p)})`)
    .select(["t.at", "t.event", "t.step_key", "t.actor", "t.code", "t.message", "t.place"])
    .select([
      sql<string | null>`null::uuid`.as("job_id"),
      sql<number | null>`null::integer`.as("run_number"),
      sql<number | null>`null::integer`.as("attempt"),
      sql<string | null>`t.details::text`.as("details"),
    ]);

// The jobs are an array: whatever the planner thinks of their number, each is found by its key.
const jobEvents = (db: QueryCreator<LedgerTables>, p: RunPlaceholders) =>
  db
    .selectFrom("job_timeline as t")
    .innerJoin("workflow_steps as s", (join) => join.onRef("s.job_id", "=", "t.job_id").on("s.run_id", "=", p.id))
    .where(sql<boolean>`t.job_id = any(array(${stepJobs(db, p)}))`)
    .select(["t.at", "t.event", "s.step_key", "t.actor", "t.code", "t.message", "t.place"])
    .select(["t.job_id", "t.run_number", "t.attempt", sql<string | null>`t.details::text`.as("details")]);

type RunPlaceholders = Placeholders<typeof parameters>;

function runInScope(db: QueryCreator<LedgerTables>, p: RunPlaceholders) {
  return db
    .selectFrom("workflow_runs as r")
    .where("r.id", "=", p.id)
    .where(inScope("r.organization_id", p))
    .select("r.id");
}

function stepJobs(db: QueryCreator<LedgerTables>, p: RunPlaceholders) {
  return db
    .selectFrom("workflow_steps as s")
    .where("s.run_id", "=", p.id)
    .where("s.job_id", "is not", null)
    .where(sql<boolean>`exists (${runInScope(db, p)})`)
    .select("s.job_id");
}

function inOrder(db: QueryCreator<LedgerTables>, events: ReturnType<typeof ownEvents>) {
  return db.selectFrom(events.as("e")).selectAll("e").orderBy("e.at").orderBy("e.place").orderBy("e.step_key");
}
