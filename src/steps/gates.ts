/** Open gates: what waits for somebody outside, and since when (FEATURES F-W6). */
import { type SqlBool, sql } from "kysely";
import { toDate, toDateOrNull } from "../database/decode.ts";
import type { Executor } from "../database/executor.ts";
import { validUuid } from "../database/ids.ts";
import { cursorIds, FIRST_ID, LAST_ID, pageOf } from "../database/page.ts";
import { inScope, type Scope, scopeArguments, scopeParameters } from "../database/scope.ts";
import { reading } from "../database/statement.ts";
import { validInteger, validName } from "../jobs/arguments.ts";

export interface OpenGatesOptions {
  readonly scope: Scope;
  /** Of this run only. */
  readonly runId?: string;
  /** Of runs of this workflow type only. */
  readonly type?: string;
  /** Where an earlier page ended: its `next`. Default: from the beginning. */
  readonly after?: string;
  /** At most so many gates, 1 to 10 000. Default 100. */
  readonly limit?: number;
}

export interface OpenGate {
  readonly runId: string;
  readonly stepKey: string;
  readonly workflowType: string;
  readonly organizationId: string | null;
  readonly openSince: Date;
  /** When it ends by itself, or null. */
  readonly expiresAt: Date | null;
}

export interface OpenGatesPage {
  /** The oldest runs first. */
  readonly gates: readonly OpenGate[];
  /** What `after` takes to go on; null when this was all. */
  readonly next: string | null;
}

const DEFAULT_LIMIT = 100;
const MAX_LIMIT = 10_000;

/**
 * The gates that are open, in pages: one that opens or closes meanwhile neither shifts the others nor makes one
 * come twice. One round trip. Throws `scope.required`, `input.invalid`.
 */
export async function listOpenGates(executor: Executor, options: OpenGatesOptions): Promise<OpenGatesPage> {
  const scope = scopeArguments(options.scope);
  const runId = options.runId === undefined ? null : validUuid(options.runId, "runId");
  const type = options.type === undefined ? null : validName(options.type, "type");
  const limit = validInteger(options.limit, "limit", 1, MAX_LIMIT) ?? DEFAULT_LIMIT;
  const [afterRun = FIRST_ID, afterStep = FIRST_ID] = cursorIds(options.after, 2) ?? [];
  const rows = await page.execute(executor, {
    ...scope,
    type,
    firstRun: runId ?? FIRST_ID,
    lastRun: runId ?? LAST_ID,
    afterRun,
    afterStep,
    limit: limit + 1,
  });
  const { shown, next } = pageOf(rows, limit, (row) => `${row.run_id}/${row.id}`);
  return { gates: shown.map(openGate), next };
}

function openGate(row: Awaited<ReturnType<typeof page.execute>>[number]): OpenGate {
  return {
    runId: row.run_id,
    stepKey: row.step_key,
    workflowType: row.type,
    organizationId: row.organization_id,
    openSince: toDate(row.open_since),
    expiresAt: toDateOrNull(row.expires_at),
  };
}

const pageParameters = {
  ...scopeParameters,
  type: "text?",
  firstRun: "uuid",
  lastRun: "uuid",
  afterRun: "uuid",
  afterStep: "uuid",
  limit: "int4",
} as const;

/**
 * One run is a range of one: a condition that may be absent would keep a prepared plan from its index. The run is
 * looked up gate by gate: to the planner, which knows neither limit nor scope, a scan of all runs would look as good.
 */
const page = reading("list_open_gates", pageParameters, (db, p) =>
  db
    .selectFrom("workflow_steps as s")
    .innerJoinLateral(
      (eb) =>
        eb
          .selectFrom("workflow_runs as r")
          .whereRef("r.id", "=", "s.run_id")
          .where(sql<SqlBool>`(${p.type} is null or r.type = ${p.type})`)
          .where(inScope("r.organization_id", p))
          .select(["r.type", "r.organization_id"])
          .limit(1)
          .as("r"),
      (join) => join.onTrue(),
    )
    .where("s.open_since", "is not", null)
    .where(sql<SqlBool>`(s.run_id, s.id) > (${p.afterRun}, ${p.afterStep})`)
    .where(sql<SqlBool>`s.run_id between ${p.firstRun} and ${p.lastRun}`)
    .select(["s.run_id", "s.id", "s.step_key", "s.open_since", "s.expires_at", "r.type", "r.organization_id"])
    .orderBy("s.run_id")
    .orderBy("s.id")
    .limit(p.limit),
);
