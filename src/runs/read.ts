/** Reads of a run and its steps. */
import { sql } from "kysely";
import type { JsonValue } from "../database/column-types.ts";
import { toDate, toDateOrNull } from "../database/decode.ts";
import type { Executor } from "../database/executor.ts";
import { validUuid } from "../database/ids.ts";
import { inScope, type Scope, scopeArguments, scopeParameters } from "../database/scope.ts";
import { reading } from "../database/statement.ts";
import {
  decodeRunStatus,
  decodeStepKind,
  decodeStepStatus,
  type RunStatus,
  type StepKind,
  type StepStatus,
} from "../database/statuses.ts";
import { type ReadOptions, shownValues } from "../database/values/read.ts";
import { LedgerError } from "../errors.ts";
import { type TerminalStatus, terminalOutcomes } from "../steps/resolve.ts";

export interface RunStatusView {
  readonly id: string;
  readonly status: RunStatus;
  readonly stepCount: number;
  /** BLOCKED, ENQUEUED and RUNNING steps. */
  readonly openCount: number;
  readonly waitingCount: number;
  /** FAILED and CANCELED steps. */
  readonly erroredCount: number;
}

/** Status and counters, without a look at the steps. One round trip. Throws `workflow.run_not_found`, `scope.required`, `input.invalid`. */
export async function getRunStatus(executor: Executor, runId: string, scope: Scope): Promise<RunStatusView> {
  const row = await status.executeFirst(executor, { id: validUuid(runId, "runId"), ...scopeArguments(scope) });
  if (row === undefined) throw new LedgerError("workflow.run_not_found");
  return {
    id: row.id,
    status: decodeRunStatus(row.status),
    stepCount: row.step_count,
    openCount: row.open_count,
    waitingCount: row.waiting_count,
    erroredCount: row.errored_count,
  };
}

export interface Step {
  readonly id: string;
  readonly key: string;
  readonly kind: StepKind;
  /** RUNNING while its job is leased. */
  readonly status: StepStatus;
  readonly jobId: string | null;
  readonly jobType: string | null;
  /** Prerequisites that have not ended. */
  readonly pendingCount: number;
  readonly releasedAt: Date | null;
  readonly startedAt: Date | null;
  readonly endedAt: Date | null;
  readonly errorCode: string | null;
  readonly errorMessage: string | null;
  readonly completedBy: string | null;
  readonly reason: string | null;
  readonly output: JsonValue | null;
  /** The run that the step stands for, once it has been started. */
  readonly childRunId: string | null;
  /** Of a MAP step: how many items it has, null until it has fanned out. */
  readonly itemCount: number | null;
  /** Of an item of a MAP step: its place among the others, from 0. */
  readonly mapIndex: number | null;
  /** When an open gate ends by itself; of an ended one, when it would have. */
  readonly expiresAt: Date | null;
  /** How a gate ends as soon as it opens, when somebody completed it before. */
  readonly keptOutcome: TerminalStatus | null;
}

const sourceKinds = ["recover", "rerun"] as const;

export type SourceKind = (typeof sourceKinds)[number];

/** What a list says of a run. */
export interface RunSummary extends RunStatusView {
  readonly type: string;
  readonly organizationId: string | null;
  readonly canceledReason: string | null;
  readonly createdAt: Date;
  readonly endedAt: Date | null;
  /** When it is cancelled if it has not ended. */
  readonly deadlineAt: Date | null;
  /** The run and step that it is the child of. */
  readonly parentRunId: string | null;
  readonly parentStepId: string | null;
  /** The ended run that it was made from, and how. */
  readonly sourceRunId: string | null;
  readonly sourceKind: SourceKind | null;
}

export interface Run extends RunSummary {
  readonly resultStep: string | null;
  /** In the order of their ids: a graph's in topological order. */
  readonly steps: readonly Step[];
}

/**
 * A run with all its steps. Two round trips. Throws `workflow.run_not_found`, `scope.required`, `input.invalid`,
 * `payload.undecodable`, `payload.codec_unavailable`.
 */
export async function getRun(executor: Executor, runId: string, scope: Scope, options: ReadOptions = {}): Promise<Run> {
  const args = { id: validUuid(runId, "runId"), ...scopeArguments(scope) };
  const run = await status.executeFirst(executor, args);
  if (run === undefined) throw new LedgerError("workflow.run_not_found");
  const rows = await steps.execute(executor, args);
  const outputs = rows.map(({ output }) => output);
  const output = await shownValues(executor.settings.values, "output", outputs, options);
  return {
    ...runSummary(run),
    resultStep: rows.find(({ id }) => id === run.result_step_id)?.step_key ?? null,
    steps: rows.map((row, place) => decodeStep(row, output(place))),
  };
}

type RunRow = Awaited<ReturnType<typeof status.execute>>[number];

export function runSummary(run: Omit<RunRow, "result_step_id">): RunSummary {
  return {
    id: run.id,
    type: run.type,
    organizationId: run.organization_id,
    status: decodeRunStatus(run.status),
    stepCount: run.step_count,
    openCount: run.open_count,
    waitingCount: run.waiting_count,
    erroredCount: run.errored_count,
    canceledReason: run.canceled_reason,
    createdAt: toDate(run.created_at),
    endedAt: toDateOrNull(run.ended_at),
    deadlineAt: toDateOrNull(run.deadline_at),
    parentRunId: run.parent_run_id,
    parentStepId: run.parent_step_id,
    sourceRunId: run.source_run_id,
    sourceKind: sourceKinds.find((kind) => kind === run.source_kind) ?? null,
  };
}

function decodeStep(row: Awaited<ReturnType<typeof steps.execute>>[number], output: JsonValue | null): Step {
  return {
    id: row.id,
    key: row.step_key,
    kind: decodeStepKind(row.kind),
    status: decodeStepStatus(row.status),
    jobId: row.job_id,
    jobType: row.job_type,
    pendingCount: row.pending_count,
    releasedAt: toDateOrNull(row.released_at),
    startedAt: toDateOrNull(row.started_at),
    endedAt: toDateOrNull(row.ended_at),
    errorCode: row.error_code,
    errorMessage: row.error_message,
    completedBy: row.completed_by,
    reason: row.reason,
    output,
    childRunId: row.child_run_id,
    itemCount: row.item_count,
    mapIndex: row.map_index,
    expiresAt: toDateOrNull(row.expires_at),
    keptOutcome: terminalOutcomes.find((outcome) => outcome === row.kept_outcome) ?? null,
  };
}

/** Of `workflow_runs as r`: what `runSummary` takes. */
export const summaryColumns = [
  "r.id",
  "r.type",
  "r.organization_id",
  "r.status",
  "r.step_count",
  "r.open_count",
  "r.waiting_count",
  "r.errored_count",
  "r.canceled_reason",
  "r.created_at",
  "r.ended_at",
  "r.deadline_at",
  "r.parent_run_id",
  "r.parent_step_id",
  "r.source_run_id",
  "r.source_kind",
] as const;

const runParameters = { id: "uuid", ...scopeParameters } as const;

const status = reading("get_workflow_run", runParameters, (db, p) =>
  db
    .selectFrom("workflow_runs as r")
    .where("r.id", "=", p.id)
    .where(inScope("r.organization_id", p))
    .select(["r.result_step_id", ...summaryColumns]),
);

// A claim does not write the step: it is RUNNING, and has started, while its job is leased.
const steps = reading("get_workflow_steps", runParameters, (db, p) =>
  db
    .selectFrom("workflow_steps as s")
    .innerJoin("workflow_runs as r", "r.id", "s.run_id")
    .leftJoin("job_queue as q", (join) => join.onRef("q.id", "=", "s.job_id").on("q.status", "=", "LEASED"))
    .where("s.run_id", "=", p.id)
    .where(inScope("r.organization_id", p))
    .select((eb) => [
      "s.id",
      "s.step_key",
      "s.kind",
      "s.job_id",
      "s.job_type",
      "s.pending_count",
      "s.released_at",
      "s.ended_at",
      "s.error_code",
      "s.error_message",
      "s.completed_by",
      "s.reason",
      "s.child_run_id",
      "s.item_count",
      "s.map_index",
      "s.expires_at",
      "s.kept_outcome",
      sql<string>`case when s.status = 'ENQUEUED' and q.id is not null then 'RUNNING' else s.status::text end`.as(
        "status",
      ),
      eb.fn.coalesce("s.started_at", "q.leased_at").as("started_at"),
      sql<string | null>`s.output::text`.as("output"),
    ])
    .orderBy("s.id"),
);
