/** Bulk cancel: all live runs that a filter finds, in bounded batches of which each is one transaction (FEATURES F-W9). */
import { type RawBuilder, sql } from "kysely";
import type { Executor } from "../database/executor.ts";
import { inHalves } from "../database/halves.ts";
import { validUuid } from "../database/ids.ts";
import type { Placeholders } from "../database/parameters.ts";
import { inScope, type Scope, type ScopeArguments, scopeArguments, scopeParameters } from "../database/scope.ts";
import { reading } from "../database/statement.ts";
import { isTerminalRun, type RunStatus, runStatuses } from "../database/statuses.ts";
import { requireReadCommitted } from "../database/transaction.ts";
import { LedgerError } from "../errors.ts";
import { validName } from "../jobs/arguments.ts";
import { arrayOf, requireFunction, requireKnownKeys, validBatchSize } from "../jobs/filter.ts";
import { validTime } from "../jobs/request.ts";
import { cancelRuns } from "./cancel.ts";

/** Which live runs to cancel: those that fit all that is given. An empty filter means all in the scope. */
export interface CancelFilter {
  readonly type?: string;
  readonly statuses?: readonly LiveRunStatus[];
  /** Only runs created before this time. */
  readonly createdBefore?: Date | string;
  /** Only runs created at this time or later. */
  readonly createdAfter?: Date | string;
  readonly ids?: readonly string[];
}

export type LiveRunStatus = Extract<RunStatus, "RUNNING" | "WAITING_FOR_EXTERNAL">;

export interface CancelManyOptions {
  readonly scope: Scope;
  /** Must be given: `{}` for all live runs in the scope. */
  readonly filter: CancelFilter;
  /** Kept with the runs, their jobs and their child runs. */
  readonly reason?: string;
  /** At most this many runs in one transaction, 1 to 1000; their child runs come on top. Default 100. */
  readonly batchSize?: number;
  /** Called, and waited for, after each batch. What it throws ends the call; the batches before stay cancelled. */
  readonly onProgress?: (progress: CancelProgress) => void | Promise<void>;
}

/** How far it has come. */
export interface CancelProgress {
  readonly canceled: number;
  readonly alreadyEnded: number;
  readonly failed: number;
  /** The sum of these. */
  readonly done: number;
}

export interface CanceledRuns {
  /** Runs that this call cancelled, each once: those that the filter found, and the child runs that went with them. */
  readonly canceled: number;
  /** Runs that were live when they were found, and had ended when it was their turn. */
  readonly alreadyEnded: number;
  /** Runs that are as they were, such as one whose lock somebody held for too long. */
  readonly failed: readonly { readonly runId: string; readonly error: LedgerError }[];
}

/**
 * Cancels the live runs that the filter finds; runs that are enqueued meanwhile are left alone. Fifteen
 * round trips a batch, whatever its size, and one when nothing is left. A batch that fails, because a lock
 * was not granted in time for instance, is halved until the run stands alone that is in the way.
 *
 * In a caller's transaction all runs are one batch, in fifteen round trips: to take locks batch after batch
 * in one transaction would break their order. Each run takes a place in the server's lock table then, and
 * the first error ends the call.
 *
 * Throws `input.invalid`, `scope.required`, `workflow.cancel_unsupported_isolation`, `db.*` when the
 * database is gone; in a caller's transaction as `cancelRun`.
 */
export async function cancelManyRuns(executor: Executor, options: CancelManyOptions): Promise<CanceledRuns> {
  const filter = preparedFilter(options.filter);
  const scope = scopeArguments(options.scope);
  const batchSize = validBatchSize(options.batchSize);
  requireFunction(options.onProgress, "onProgress");
  await requireReadCommitted(executor, "workflow.cancel_unsupported_isolation");
  const tally: Tally = { canceled: 0, alreadyEnded: 0, failed: [] };
  for await (const ids of batches(executor, filter, scope, executor.transaction === "none" ? batchSize : null)) {
    await cancelBatch(executor, ids, options, tally);
    await options.onProgress?.(progressOf(tally));
  }
  return tally;
}

interface Tally {
  canceled: number;
  alreadyEnded: number;
  readonly failed: { runId: string; error: LedgerError }[];
}

function progressOf({ canceled, alreadyEnded, failed }: Tally): CancelProgress {
  return { canceled, alreadyEnded, failed: failed.length, done: canceled + alreadyEnded + failed.length };
}

async function cancelBatch(
  executor: Executor,
  ids: readonly string[],
  options: CancelManyOptions,
  tally: Tally,
): Promise<void> {
  // A child run that went with its parent has not ended by itself when its own turn comes.
  const done = new Set<string>();
  const cancel = async (some: readonly string[]) => {
    const runs = await cancelRuns(executor, some, options);
    const canceled = runs.filter((run) => run.canceled);
    for (const { id } of canceled) done.add(id);
    tally.canceled += canceled.length;
    tally.alreadyEnded += some.filter((id) => !done.has(id)).length;
  };
  await inHalves(executor, ids, cancel, (runId, error) => tally.failed.push({ runId, error }));
}

interface PreparedFilter {
  readonly type: string | null;
  readonly statuses: readonly string[] | null;
  readonly createdBefore: string | null;
  readonly createdAfter: string | null;
  readonly ids: readonly string[] | null;
}

const filterKeys = ["type", "statuses", "createdBefore", "createdAfter", "ids"];

function preparedFilter(filter: CancelFilter): PreparedFilter {
  requireKnownKeys(filter, filterKeys);
  const { type, statuses, createdBefore, createdAfter, ids } = filter;
  return {
    type: type === undefined ? null : validName(type, "filter.type"),
    statuses: statuses === undefined ? null : arrayOf(statuses, "filter.statuses").map(validStatus),
    createdBefore: createdBefore === undefined ? null : validTime(createdBefore, "filter.createdBefore"),
    createdAfter: createdAfter === undefined ? null : validTime(createdAfter, "filter.createdAfter"),
    ids: ids === undefined ? null : [...new Set(arrayOf(ids, "filter.ids").map((id) => validUuid(id, "filter.ids")))],
  };
}

function validStatus(value: unknown): string {
  const status = runStatuses.find((known) => known === value);
  if (status === undefined || isTerminalRun(status)) {
    throw new LedgerError("input.invalid", { message: "filter.statuses may name RUNNING and WAITING_FOR_EXTERNAL." });
  }
  return status;
}

/** The ids of the runs that are to be cancelled, batch by batch; all at once without a size. */
async function* batches(
  executor: Executor,
  filter: PreparedFilter,
  scope: ScopeArguments,
  size: number | null,
): AsyncGenerator<string[]> {
  const { ids, type, ...narrow } = filter;
  const given = { ...narrow, ...scope };
  if (ids === null) return yield* walk(executor, type, given, size);
  const step = size ?? ids.length;
  for (let from = 0; from < ids.length; from += step) {
    const rows = await amongIds.execute(executor, { ...given, type, ids: ids.slice(from, from + step) });
    if (rows.length > 0) yield rows.map(({ id }) => id);
  }
}

const BEFORE_ALL = { type: "", id: "00000000-0000-0000-0000-000000000000" };

/** By keyset, so that runs which stay live because their cancel failed do not come again. */
async function* walk(
  executor: Executor,
  type: string | null,
  given: Omit<PreparedFilter, "ids" | "type"> & ScopeArguments,
  size: number | null,
): AsyncGenerator<string[]> {
  let last = BEFORE_ALL;
  let until: string | null = null;
  for (;;) {
    const page = { ...given, until, afterId: last.id, size };
    const rows: PageRow[] =
      type === null
        ? await ofAllTypes.execute(executor, { ...page, afterType: last.type })
        : await ofType.execute(executor, { ...page, type });
    const end = rows.at(-1);
    if (end === undefined) return;
    yield rows.map(({ id }) => id);
    if (size === null || rows.length < size) return;
    last = end;
    until ??= end.looked_at;
  }
}

type PageRow = Awaited<ReturnType<typeof ofAllTypes.execute>>[number];

const filterParameters = {
  statuses: "text[]?",
  createdBefore: "timestamptz?",
  createdAfter: "timestamptz?",
  ...scopeParameters,
} as const;
const pageParameters = { ...filterParameters, until: "timestamptz?", afterId: "uuid", size: "int4?" } as const;

// Both walk along the index of live runs.
const ofAllTypes = reading("find_live_workflow_runs", { ...pageParameters, afterType: "text" }, (db, p) =>
  db
    .selectFrom("workflow_runs as r")
    .where("r.ended_at", "is", null)
    .where(sql<boolean>`(r.type, r.id) > (${p.afterType}, ${p.afterId})`)
    .where(fits(p, sql`r.created_at <= coalesce(${p.until}, now())`))
    .select(["r.id", "r.type", lookedAt])
    .orderBy("r.type")
    .orderBy("r.id")
    .limit(p.size),
);

const ofType = reading("find_live_workflow_runs_of_type", { ...pageParameters, type: "text" }, (db, p) =>
  db
    .selectFrom("workflow_runs as r")
    .where("r.ended_at", "is", null)
    .where("r.type", "=", p.type)
    .where("r.id", ">", p.afterId)
    .where(fits(p, sql`r.created_at <= coalesce(${p.until}, now())`))
    .select(["r.id", "r.type", lookedAt])
    .orderBy("r.id")
    .limit(p.size),
);

const amongIds = reading(
  "find_live_workflow_runs_among",
  { ...filterParameters, ids: "uuid[]", type: "text?" },
  (db, p) =>
    db
      .selectFrom("workflow_runs as r")
      .where("r.ended_at", "is", null)
      .where(sql<boolean>`r.id = any(${p.ids})`)
      .where(fits(p, sql`(${p.type} is null or r.type = ${p.type})`))
      .select("r.id")
      .orderBy("r.id"),
);

/** The time of the first page: what is created later is not walked into. Written so that every session reads it alike. */
const lookedAt = sql<string>`to_jsonb(now()) #>> '{}'`.as("looked_at");

/**
 * A CASE, of which the planner guesses that it lets half of the rows through, and keeps to the index and the limit. Of
 * a null organization it guesses that no run has it, and would read and sort all of them for each page.
 */
function fits(p: Placeholders<typeof filterParameters>, more: RawBuilder<unknown>): RawBuilder<boolean> {
  return sql<boolean>`case
    when ${inScope("r.organization_id", p)}
      and (${p.statuses} is null or r.status::text = any(${p.statuses}))
      and (${p.createdBefore} is null or r.created_at < ${p.createdBefore})
      and (${p.createdAfter} is null or r.created_at >= ${p.createdAfter})
      and ${more}
    then true else false
  end`;
}
