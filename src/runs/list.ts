/** Lists of runs: newest first, in pages, by one walk along one index (FEATURES F-H3). */
import { type QueryCreator, sql } from "kysely";
import type { Executor } from "../database/executor.ts";
import { idRange, pageOf, type TimeRange } from "../database/page.ts";
import type { Placeholders } from "../database/parameters.ts";
import { inScope, type Scope, scopeArguments, scopeParameters } from "../database/scope.ts";
import { reading } from "../database/statement.ts";
import { type RunStatus, runStatuses } from "../database/statuses.ts";
import type { LedgerTables } from "../database/tables.ts";
import { LedgerError } from "../errors.ts";
import { validInteger, validName } from "../jobs/arguments.ts";
import { validTime } from "../jobs/request.ts";
import { type RunSummary, runSummary, summaryColumns } from "./read.ts";

export interface ListRunsOptions {
  readonly scope: Scope;
  readonly status?: RunStatus;
  readonly type?: string;
  /** From a time on and before another one: the time in the run's id, when it was enqueued by the clock of who did. */
  readonly enqueuedBetween?: TimeRange;
  /** Where an earlier page ended: its `next`. Default: from the newest on. */
  readonly after?: string;
  /** At most so many runs, 1 to 10 000. Default 100. */
  readonly limit?: number;
}

/** As `runs.get` has it, without its steps. */
export type ListedRun = RunSummary;

export interface RunsPage {
  /** The newest first. */
  readonly runs: readonly ListedRun[];
  /** What `after` takes to go on; null when this was all. */
  readonly next: string | null;
}

const DEFAULT_LIMIT = 100;
const MAX_LIMIT = 10_000;

/**
 * The runs that fit all that is given. It walks back in time along the index of the unsuccessful runs or of the live
 * ones, of the organization or of the type, the first of these that is asked for, and looks at each row on the way. One
 * round trip. Throws `scope.required`, `input.invalid`.
 */
export async function listRuns(executor: Executor, options: ListRunsOptions): Promise<RunsPage> {
  const scope = scopeArguments(options.scope);
  const status = options.status === undefined ? null : validStatus(options.status);
  const type = options.type === undefined ? null : validName(options.type, "type");
  const limit = validInteger(options.limit, "limit", 1, MAX_LIMIT) ?? DEFAULT_LIMIT;
  const range = idRange(options.enqueuedBetween, options.after, (time) => validTime(time, "enqueuedBetween"));
  const statement = statementFor(status, scope.organization !== null, type !== null);
  const rows = await statement.execute(executor, { ...scope, ...range, status, type, limit: limit + 1 });
  const { shown, next } = pageOf(rows, limit, ({ id }) => id);
  return { runs: shown.map(runSummary), next };
}

function validStatus(value: unknown): RunStatus {
  const status = runStatuses.find((known) => known === value);
  if (status === undefined) {
    throw new LedgerError("input.invalid", { message: `status must be one of ${runStatuses.join(", ")}.` });
  }
  return status;
}

function statementFor(status: RunStatus | null, ofOrganization: boolean, ofType: boolean) {
  if (status === "COMPLETED_WITH_ERRORS") return withErrors;
  if (status === "CANCELED") return canceled;
  if (status === "RUNNING" || status === "WAITING_FOR_EXTERNAL") return live;
  if (ofOrganization) return byOrganization;
  return ofType ? byType : byId;
}

const parameters = {
  ...scopeParameters,
  status: "text?",
  type: "text?",
  first: "uuid",
  before: "uuid",
  limit: "int4",
} as const;

const byId = reading("list_workflow_runs", parameters, page);

const byType = reading("list_workflow_runs_of_type", parameters, (db, p) =>
  page(db, p).where(sql<boolean>`r.type = ${p.type}`),
);

const byOrganization = reading("list_workflow_runs_of_organization", parameters, (db, p) =>
  page(db, p).where(sql<boolean>`r.organization_id = ${p.organization}`),
);

const withErrors = reading("list_workflow_runs_with_errors", parameters, (db, p) =>
  page(db, p).where("r.status", "=", sql.lit<RunStatus>("COMPLETED_WITH_ERRORS")),
);

const canceled = reading("list_canceled_workflow_runs", parameters, (db, p) =>
  page(db, p).where("r.status", "=", sql.lit<RunStatus>("CANCELED")),
);

// All that live are found by the index that has no others, and put in order here: among all runs they may be far between.
const live = reading("list_live_workflow_runs", parameters, (db, p) =>
  db
    .with(
      (cte) => cte("live").materialized(),
      (qb) =>
        qb
          .selectFrom("workflow_runs as r")
          .where("r.ended_at", "is", null)
          .where("r.id", ">=", p.first)
          .where("r.id", "<", p.before)
          .where(fits(p))
          .select("r.id"),
    )
    .with("first", (qb) => qb.selectFrom("live").select("live.id").orderBy("live.id", "desc").limit(p.limit))
    .selectFrom("workflow_runs as r")
    .where(sql<boolean>`r.id = any(array(select id from first))`)
    .select(summaryColumns)
    .orderBy("r.id", "desc"),
);

function page(db: QueryCreator<LedgerTables>, p: Placeholders<typeof parameters>) {
  return db
    .selectFrom("workflow_runs as r")
    .where("r.id", ">=", p.first)
    .where("r.id", "<", p.before)
    .where(fits(p))
    .select(summaryColumns)
    .orderBy("r.id", "desc")
    .limit(p.limit);
}

/** A CASE, of which the planner guesses that it lets half of the rows through, and keeps to the index and the limit. */
function fits(p: Placeholders<typeof parameters>) {
  return sql<boolean>`case
    when ${inScope("r.organization_id", p)}
      and (${p.status} is null or r.status::text = ${p.status})
      and (${p.type} is null or r.type = ${p.type})
    then true else false
  end`;
}
