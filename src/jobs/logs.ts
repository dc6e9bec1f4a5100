/** What the handlers of one job logged, in pages (FEATURES F-H1). */
import { sql } from "kysely";
import type { JsonValue } from "../database/column-types.ts";
import { toDate } from "../database/decode.ts";
import type { Executor } from "../database/executor.ts";
import { validUuid } from "../database/ids.ts";
import { invalidCursor, pageOf } from "../database/page.ts";
import { inScope, type Scope, scopeArguments, scopeParameters } from "../database/scope.ts";
import { reading } from "../database/statement.ts";
import { type ReadOptions, shownValues } from "../database/values/read.ts";
import { LedgerError } from "../errors.ts";
import { validInteger } from "./arguments.ts";
import { type LogLevel, logLevels } from "./running.ts";

export interface LogsOptions extends ReadOptions {
  /** Lines of this level and graver ones. Default `debug`: all. */
  readonly level?: LogLevel;
  /** Where an earlier page ended: its `next`. Default: from the beginning. */
  readonly after?: string;
  /** At most so many lines, 1 to 10 000. Default 1000. */
  readonly limit?: number;
}

export interface JobLog {
  readonly at: Date;
  readonly runNumber: number;
  readonly attempt: number;
  readonly level: LogLevel;
  readonly message: string;
  readonly fields: JsonValue | null;
}

export interface JobLogsPage {
  /** In the order in which they were written. */
  readonly lines: readonly JobLog[];
  /**
   * What `after` takes to go on; null when there are no more for now. To follow a job that is running, go on from
   * `last`.
   */
  readonly next: string | null;
  /** What `after` takes to see what comes later than this page; as it was given when the page is empty. */
  readonly last: string | null;
}

const DEFAULT_LIMIT = 1000;
const MAX_LIMIT = 10_000;

/**
 * One round trip. Throws `job.not_found`, `scope.required`, `input.invalid`, `payload.undecodable`,
 * `payload.codec_unavailable`.
 */
export async function jobLogs(
  executor: Executor,
  jobId: string,
  scope: Scope,
  options: LogsOptions = {},
): Promise<JobLogsPage> {
  const limit = validInteger(options.limit, "limit", 1, MAX_LIMIT) ?? DEFAULT_LIMIT;
  const rows = await logs.execute(executor, {
    id: validUuid(jobId, "jobId"),
    ...scopeArguments(scope),
    levels: levelsFrom(options.level ?? "debug"),
    after: positionOf(options.after),
    limit: limit + 1,
  });
  if (rows.length === 0) throw new LedgerError("job.not_found");
  const { shown, next } = pageOf(rows.filter(isLine), limit, ({ id }) => id);
  const texts = shown.map(({ fields }) => fields);
  const fields = await shownValues(executor.settings.values, "log", texts, options);
  return {
    lines: shown.map((row, place) => jobLog(row, fields(place))),
    next,
    last: shown.at(-1)?.id ?? options.after ?? null,
  };
}

function levelsFrom(level: LogLevel): LogLevel[] {
  const lowest = logLevels.indexOf(level);
  if (lowest < 0) {
    throw new LedgerError("input.invalid", { message: `level must be one of ${logLevels.join(", ")}.` });
  }
  return logLevels.slice(lowest);
}

/** Lines are numbered by the database, across all jobs. */
function positionOf(after: unknown): string {
  if (after === undefined) return "0";
  if (typeof after !== "string" || !/^\d{1,18}$/.test(after)) throw invalidCursor();
  return after;
}

type Row = Awaited<ReturnType<typeof logs.execute>>[number];
type LineRow = { [K in keyof Row]: K extends "fields" ? Row[K] : NonNullable<Row[K]> };

/** A job without lines comes as one row without a line. */
function isLine(row: Row): row is Row & LineRow {
  return row.id !== null;
}

function jobLog(row: LineRow, fields: JsonValue | null): JobLog {
  return {
    at: toDate(row.at),
    runNumber: row.run_number,
    attempt: row.attempt,
    level: row.level,
    message: row.message,
    fields,
  };
}

const parameters = { id: "uuid", ...scopeParameters, levels: "text[]", after: "int8", limit: "int4" } as const;

const logs = reading("list_job_logs", parameters, (db, p) =>
  db
    .selectFrom("jobs as j")
    .leftJoinLateral(
      (eb) =>
        eb
          .selectFrom("job_logs as g")
          .where("g.job_id", "=", p.id)
          .where("g.id", ">", p.after)
          .where(sql<boolean>`g.level = any(${p.levels})`)
          .select(["g.id", "g.at", "g.run_number", "g.attempt", "g.level", "g.message"])
          .select(sql<string | null>`g.fields::text`.as("fields"))
          .orderBy("g.id")
          .limit(p.limit)
          .as("line"),
      (join) => join.onTrue(),
    )
    .where("j.id", "=", p.id)
    .where(inScope("j.organization_id", p))
    .select([
      sql<string | null>`line.id::text`.as("id"),
      "line.at",
      "line.run_number",
      "line.attempt",
      sql<LogLevel | null>`line.level`.as("level"),
      "line.message",
      "line.fields",
    ])
    .orderBy("line.id"),
);
