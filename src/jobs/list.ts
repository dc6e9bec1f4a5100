/** Lists of jobs: newest first, in pages, by one walk along one index (FEATURES F-H3). */
import { type ExpressionBuilder, type QueryCreator, type RawBuilder, sql } from "kysely";
import type { JsonValue } from "../database/column-types.ts";
import type { Executor } from "../database/executor.ts";
import { idRange, pageOf, type TimeRange } from "../database/page.ts";
import type { Placeholders } from "../database/parameters.ts";
import { inScope, type Scope, scopeArguments, scopeParameters } from "../database/scope.ts";
import { reading } from "../database/statement.ts";
import { type FailureKind, type JobStatus, jobStatuses } from "../database/statuses.ts";
import type { LedgerTables } from "../database/tables.ts";
import { type ReadOptions, shownValues } from "../database/values/read.ts";
import { LedgerError } from "../errors.ts";
import { validInteger, validName } from "./arguments.ts";
import { type JobSummary, summaryOf } from "./read.ts";
import { validTime } from "./request.ts";

export interface ListJobsOptions extends ReadOptions {
  readonly scope: Scope;
  readonly status?: JobStatus;
  readonly type?: string;
  /** A walk passes over jobs without the tag one by one: with a rare one, name a time too. */
  readonly tag?: string;
  /**
   * From a time on and before another one. It is the time in the job's id: when it was enqueued by the clock of who did, and of a step
   * when its run was.
   */
  readonly enqueuedBetween?: TimeRange;
  /** Whether each job comes with its payload. Default false. */
  readonly payload?: boolean;
  /** Where an earlier page ended: its `next`. Default: from the newest on. */
  readonly after?: string;
  /** At most so many jobs, 1 to 10 000. Default 100. */
  readonly limit?: number;
}

/** As `jobs.get` has it, without what may be large. */
export interface ListedJob extends JobSummary {
  /** There when it was asked for. */
  readonly payload?: JsonValue | null;
}

export interface JobsPage {
  /** The newest first. */
  readonly jobs: readonly ListedJob[];
  /** What `after` takes to go on; null when this was all. */
  readonly next: string | null;
}

const DEFAULT_LIMIT = 100;
const MAX_LIMIT = 10_000;

/**
 * The jobs that fit all that is given, each once: its live row, else its latest run. It walks back in time along the
 * index of dead or of cancelled jobs, of the organization or of the type, the first of these that is asked for, and
 * looks at each row on the way. One round trip. Throws `scope.required`, `input.invalid`, `payload.undecodable`,
 * `payload.codec_unavailable`.
 */
export async function listJobs(executor: Executor, options: ListJobsOptions): Promise<JobsPage> {
  const scope = scopeArguments(options.scope);
  const status = options.status === undefined ? null : validStatus(options.status);
  const type = options.type === undefined ? null : validName(options.type, "type");
  const tag = options.tag === undefined ? null : validName(options.tag, "tag");
  const limit = validInteger(options.limit, "limit", 1, MAX_LIMIT) ?? DEFAULT_LIMIT;
  const withPayload = options.payload === true;
  const range = idRange(options.enqueuedBetween, options.after, (time) => validTime(time, "enqueuedBetween"));
  const statement = statementFor(status, scope.organization !== null, type !== null);
  const rows = await statement.execute(executor, {
    ...scope,
    ...range,
    status,
    type,
    tag,
    withPayload,
    limit: limit + 1,
  });
  const { shown, next } = pageOf(rows, limit, ({ id }) => id);
  const jobs = shown.map(summaryOf);
  if (!withPayload) return { jobs, next };
  const texts = shown.map(({ payload }) => payload);
  const payloads = await shownValues(executor.settings.values, "payload", texts, options);
  return { jobs: jobs.map((job, place) => ({ ...job, payload: payloads(place) })), next };
}

function validStatus(value: unknown): JobStatus {
  const status = jobStatuses.find((known) => known === value);
  if (status === undefined) {
    throw new LedgerError("input.invalid", { message: `status must be one of ${jobStatuses.join(", ")}.` });
  }
  return status;
}

/** Which index the ended jobs are walked along. */
type Walk = "id" | "type" | "organization" | "dead" | "canceled";

function statementFor(status: JobStatus | null, ofOrganization: boolean, ofType: boolean) {
  if (status === "DEAD_LETTERED") return dead;
  if (status === "CANCELED") return canceled;
  const walk = ofOrganization ? "organization" : ofType ? "type" : "id";
  if (status === "SUCCEEDED") return ended[walk];
  if (status === null) return all[walk];
  return ofType ? liveOfType : live;
}

const parameters = {
  ...scopeParameters,
  status: "text?",
  type: "text?",
  tag: "text?",
  first: "uuid",
  before: "uuid",
  withPayload: "bool",
  limit: "int4",
} as const;
type ListPlaceholders = Placeholders<typeof parameters>;
type Tables = QueryCreator<LedgerTables> | ExpressionBuilder<LedgerTables, never>;

const dead = listing("list_dead_letters", { ended: "dead" });
const canceled = listing("list_canceled_jobs", { ended: "canceled" });
const live = listing("list_live_jobs", { live: "id" });
const liveOfType = listing("list_live_jobs_of_type", { live: "type" });
const ended = {
  id: listing("list_ended_jobs", { ended: "id" }),
  type: listing("list_ended_jobs_of_type", { ended: "type" }),
  organization: listing("list_ended_jobs_of_organization", { ended: "organization" }),
};
const all = {
  id: listing("list_jobs", { live: "id", ended: "id" }),
  type: listing("list_jobs_of_type", { live: "type", ended: "type" }),
  organization: listing("list_jobs_of_organization", { live: "id", ended: "organization" }),
};

interface Sources {
  readonly live?: "id" | "type";
  readonly ended?: Walk;
}

/** Each source gives its first rows in order, and the first of these are the page. */
function listing(name: string, sources: Sources) {
  return reading(name, parameters, (db, p, schema) => {
    const [first, ...more] = branches(db, p, schema, sources);
    if (first === undefined) throw new Error("a list needs a source");
    const union = more.reduce(
      (query, branch) => query.unionAll(db.selectFrom(branch.as("branch")).selectAll()),
      db.selectFrom(first.as("branch")).selectAll(),
    );
    return db.selectFrom(union.as("j")).selectAll("j").orderBy("j.id", "desc").limit(p.limit);
  });
}

function branches(db: Tables, p: ListPlaceholders, schema: string, { live, ended }: Sources) {
  return [
    ...(live === "id" ? [liveJobs(db, p, schema)] : []),
    // Each has an index of its own: few jobs of a type are found among many of others.
    ...(live === "type"
      ? [
          liveJobsOfType(db, p, schema, "PENDING").where("q.limit_key", "is", null),
          liveJobsOfType(db, p, schema, "PENDING").where("q.limit_key", "is not", null),
          liveJobsOfType(db, p, schema, "LEASED"),
        ]
      : []),
    ...(ended === undefined ? [] : [endedJobs(db, p, ended)]),
  ];
}

const columns = [
  "id",
  "run_number",
  "type",
  "status",
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
  "progress_done",
  "progress_total",
  "workflow_run_id",
  "workflow_step_id",
  "tags",
  "limit_key",
] as const;

const endColumns = ["ended_at", "failure_kind", "error_code", "error_message", "canceled_reason"] as const;

const metadata = sql<string | null>`metadata::text`.as("metadata");

function payload(p: ListPlaceholders) {
  return sql<string | null>`case when ${p.withPayload} then payload::text end`.as("payload");
}

function liveJobs(db: Tables, p: ListPlaceholders, schema: string) {
  return db
    .selectFrom("job_queue as q")
    .where("q.id", ">=", p.first)
    .where("q.id", "<", p.before)
    .where(fits("q", p))
    .select(columns.map((column) => `q.${column}` as const))
    .select([
      sql<Date | null>`null::timestamptz`.as("ended_at"),
      sql<FailureKind | null>`null::${sql.id(schema, "failure_kind")}`.as("failure_kind"),
      sql<string | null>`null::text`.as("error_code"),
      sql<string | null>`null::text`.as("error_message"),
      sql<string | null>`null::text`.as("canceled_reason"),
      metadata,
      payload(p),
    ])
    .orderBy("q.id", "desc")
    .limit(p.limit);
}

function liveJobsOfType(db: Tables, p: ListPlaceholders, schema: string, status: "PENDING" | "LEASED") {
  return liveJobs(db, p, schema).where("q.status", "=", sql.lit(status)).where(sql<boolean>`q.type = ${p.type}`);
}

function endedJobs(db: Tables, p: ListPlaceholders, walk: Walk) {
  return db
    .selectFrom("job_ledger as l")
    .where("l.id", ">=", p.first)
    .where("l.id", "<", p.before)
    .$if(walk === "type", (qb) => qb.where(sql<boolean>`l.type = ${p.type}`))
    .$if(walk === "organization", (qb) => qb.where(sql<boolean>`l.organization_id = ${p.organization}`))
    .$if(walk === "dead", (qb) => qb.where("l.status", "=", sql.lit("DEAD_LETTERED")))
    .$if(walk === "canceled", (qb) => qb.where("l.status", "=", sql.lit("CANCELED")))
    .where((eb) => fits("l", p, isLatest(eb)))
    .select(columns.map((column) => `l.${column}` as const))
    .select(endColumns.map((column) => `l.${column}` as const))
    .select([metadata, payload(p)])
    .orderBy("l.id", "desc")
    .limit(p.limit);
}

type WithLedgerRow = ExpressionBuilder<LedgerTables & { l: LedgerTables["job_ledger"] }, "l">;

/** Looked up row by row: a join with the queue might read all of it. */
function isLatest(eb: WithLedgerRow): RawBuilder<boolean> {
  const live = eb.selectFrom("job_queue as again").whereRef("again.id", "=", "l.id").select("again.id");
  const later = eb
    .selectFrom("job_ledger as later")
    .whereRef("later.id", "=", "l.id")
    .whereRef("later.run_number", ">", "l.run_number")
    .select("later.id")
    .limit(1);
  return sql<boolean>`(${live}) is null and (${later}) is null`;
}

/**
 * A CASE, of which the planner guesses that it lets half of the rows through, and keeps to the index and the limit: what it
 * would guess of a null organization makes it read and sort all rows there are.
 */
function fits(
  row: "q" | "l",
  p: ListPlaceholders,
  more: RawBuilder<boolean> = sql<boolean>`true`,
): RawBuilder<boolean> {
  const of = (column: string) => sql.ref(`${row}.${column}`);
  return sql<boolean>`case
    when ${inScope(`${row}.organization_id`, p)}
      and (${p.status} is null or ${of("status")}::text = ${p.status})
      and (${p.type} is null or ${of("type")} = ${p.type})
      and (${p.tag} is null or ${p.tag} = any(${of("tags")}))
      and ${more}
    then true else false
  end`;
}
