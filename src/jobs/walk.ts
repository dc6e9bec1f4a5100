/**
 * Walking through the jobs that a filter finds, page by page along an index and never the same twice: a page looks at so
 * many rows at most, whatever the filter lets through, so no statement reads all there is.
 */
import { type QueryCreator, type RawBuilder, sql } from "kysely";
import type { Executor } from "../database/executor.ts";
import type { Placeholders } from "../database/parameters.ts";
import { inScope, type ScopeArguments, scopeParameters } from "../database/scope.ts";
import { reading } from "../database/statement.ts";
import type { LedgerTables } from "../database/tables.ts";
import type { PreparedFilter } from "./filter.ts";

/** Rows that a page looks at, at most. */
const WINDOW = 5000;
const BEFORE_ALL = { id: "00000000-0000-0000-0000-000000000000", runNumber: 0 };

/** Which jobs are walked through. Of ended ones, only those whose latest run is the one that the filter finds. */
export type Walked = "live" | "DEAD_LETTERED" | "CANCELED" | "SUCCEEDED";

export interface FoundJob {
  readonly id: string;
  readonly runNumber: number;
}

export interface WalkOptions {
  readonly filter: PreparedFilter;
  readonly scope: ScopeArguments;
  readonly size: number;
  /** At most this many jobs in all; null without a bound. */
  readonly limit: number | null;
}

/**
 * The jobs in id order, in batches of at most `size`, none of them empty. One round trip for each batch, and for each
 * stretch of rows in which the filter finds none. What is enqueued or ends after the first page is left alone.
 */
export async function* walk(
  executor: Executor,
  walked: Walked,
  { filter, scope, size, limit }: WalkOptions,
): AsyncGenerator<FoundJob[]> {
  let after: FoundJob = BEFORE_ALL;
  let until: string | null = null;
  let left = limit ?? Number.POSITIVE_INFINITY;
  while (left > 0) {
    const page = { ...filter, ...scope, until, afterId: after.id, afterRun: after.runNumber, window: WINDOW };
    const row: Page | undefined = await pages[walked].executeFirst(executor, {
      ...page,
      size: Math.min(size, left),
    });
    if (row === undefined) return;
    const found = row.ids.map((id, place) => ({ id, runNumber: row.run_numbers[place] ?? 0 }));
    if (found.length > 0) yield found;
    if (!row.more) return;
    left -= found.length;
    after = { id: row.last_id, runNumber: row.last_run };
    until ??= row.looked_at;
  }
}

type Page = Awaited<ReturnType<typeof pages.live.execute>>[number];

const pageParameters = {
  type: "text?",
  statuses: "text[]?",
  tags: "text[]?",
  errorCode: "text?",
  enqueuedAfter: "timestamptz?",
  enqueuedBefore: "timestamptz?",
  endedAfter: "timestamptz?",
  endedBefore: "timestamptz?",
  until: "timestamptz?",
  afterId: "uuid",
  afterRun: "int4",
  window: "int4",
  size: "int4",
  ...scopeParameters,
} as const;

type PagePlaceholders = Placeholders<typeof pageParameters>;
type Tables = QueryCreator<LedgerTables>;

const pages = {
  live: reading("walk_live_jobs", pageParameters, (db, p) => page(db, p, liveJobs, livesOn(p))),
  DEAD_LETTERED: endedPages("walk_dead_jobs", "DEAD_LETTERED"),
  CANCELED: endedPages("walk_canceled_jobs", "CANCELED"),
  SUCCEEDED: endedPages("walk_succeeded_jobs", "SUCCEEDED"),
};

function endedPages(name: string, status: Exclude<Walked, "live">) {
  return reading(name, pageParameters, (db, p) =>
    page(db, p, (tables) => endedRuns(tables, p, status), endedForGood(db, p)),
  );
}

const seenColumns = [
  "id",
  "run_number",
  "status",
  "type",
  "organization_id",
  "tags",
  "enqueued_at",
  "workflow_run_id",
] as const;

function liveJobs(tables: Tables, p: PagePlaceholders) {
  return tables
    .selectFrom("job_queue")
    .where("id", ">", p.afterId)
    .select(seenColumns)
    .select([sql<Date | null>`null::timestamptz`.as("ended_at"), sql<string | null>`null::text`.as("error_code")])
    .orderBy("id")
    .limit(p.window)
    .as("j");
}

/** Dead and cancelled runs have an index each; those that succeeded are most of the ledger, and are found by its key. */
function endedRuns(tables: Tables, p: PagePlaceholders, status: Exclude<Walked, "live">) {
  return tables
    .selectFrom("job_ledger")
    .where("status", "=", sql.lit(status))
    .where("id", ">=", p.afterId)
    .where(sql<boolean>`(id, run_number) > (${p.afterId}, ${p.afterRun})`)
    .select(seenColumns)
    .select([sql<Date | null>`ended_at`.as("ended_at"), "error_code"])
    .orderBy("id")
    .orderBy("run_number")
    .limit(p.window)
    .as("j");
}

/**
 * The window are the next rows in order, whether they fit or not. Where fewer fit than a page has room for, the walk
 * goes on after the last of the window, else after the last that fits: the rest of the window is not read then.
 */
function page(
  db: Tables,
  p: PagePlaceholders,
  window: (tables: Tables, p: PagePlaceholders) => ReturnType<typeof liveJobs>,
  fits: RawBuilder<boolean>,
) {
  return db
    .with(
      (cte) => cte("found").materialized(),
      (qb) =>
        qb
          .selectFrom(window(qb, p))
          .where("j.workflow_run_id", "is", null)
          .where(narrows(p))
          .where(fits)
          .select(["j.id", "j.run_number"])
          .orderBy("j.id")
          .orderBy("j.run_number")
          .limit(p.size),
    )
    .with(
      (cte) => cte("filled").materialized(),
      (qb) => qb.selectFrom("found").select(sql<boolean>`count(*) >= ${p.size}`.as("page")),
    )
    .with(
      (cte) => cte("passed").materialized(),
      (qb) =>
        qb
          .selectFrom("found")
          .where(sql<boolean>`(select page from filled)`)
          .select(["found.id", "found.run_number"])
          .unionAll(
            qb
              .selectFrom(window(qb, p))
              .where(sql<boolean>`not (select page from filled)`)
              .select(["j.id", "j.run_number"]),
          ),
    )
    .selectFrom("passed")
    .select([
      sql<string[]>`array(select id from found order by id, run_number)`.as("ids"),
      sql<number[]>`array(select run_number from found order by id, run_number)`.as("run_numbers"),
      "passed.id as last_id",
      "passed.run_number as last_run",
      sql<boolean>`(select page from filled) or (select count(*) from passed) >= ${p.window}`.as("more"),
      sql<string>`to_jsonb(now()) #>> '{}'`.as("looked_at"),
    ])
    .orderBy("passed.id", "desc")
    .orderBy("passed.run_number", "desc")
    .limit(1);
}

function narrows(p: PagePlaceholders): RawBuilder<boolean> {
  return sql<boolean>`${inScope("j.organization_id", p)}
    and (${p.type} is null or j.type = ${p.type})
    and (${p.tags} is null or j.tags @> ${p.tags})
    and (${p.enqueuedAfter} is null or j.enqueued_at >= ${p.enqueuedAfter})
    and (${p.enqueuedBefore} is null or j.enqueued_at < ${p.enqueuedBefore})`;
}

function livesOn(p: PagePlaceholders): RawBuilder<boolean> {
  return sql<boolean>`(${p.statuses} is null or j.status::text = any(${p.statuses}))
    and j.enqueued_at <= coalesce(${p.until}, now())`;
}

// Each job that fits is looked up by its id: as a join, the planner may read all of both tables for a page.
function endedForGood(tables: Tables, p: PagePlaceholders): RawBuilder<boolean> {
  const latest = tables
    .selectFrom("job_ledger as l")
    .where(sql<boolean>`l.id = j.id`)
    .select(({ fn }) => fn.max("l.run_number").as("run_number"));
  const live = tables
    .selectFrom("job_queue as q")
    .where(sql<boolean>`q.id = j.id`)
    .select(({ fn }) => fn.countAll().as("count"));
  return sql<boolean>`(${p.errorCode} is null or j.error_code = ${p.errorCode})
    and (${p.endedAfter} is null or j.ended_at >= ${p.endedAfter})
    and (${p.endedBefore} is null or j.ended_at < ${p.endedBefore})
    and j.ended_at <= coalesce(${p.until}, now())
    and j.run_number = (${latest}) and (${live}) = 0`;
}
