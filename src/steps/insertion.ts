/** How prepared steps and edges become rows: for new runs, and for what is added to live ones. */
import { type QueryCreator, sql } from "kysely";
import type { StoredJson } from "../database/json.ts";
import { type Placeholders, type RowOf, rowsOf } from "../database/parameters.ts";
import type { DependencyKind, StepKind, StepStatus } from "../database/statuses.ts";
import type { LedgerTables } from "../database/tables.ts";
import { limitArrays, limitColumns, limitParameters, type PreparedLimit } from "../jobs/limits.ts";
import type { JobSettings } from "../jobs/request.ts";
import type { TerminalStatus } from "./resolve.ts";

export interface PreparedStep {
  readonly id: string;
  readonly key: string;
  readonly kind: StepKind;
  readonly status: StepStatus;
  readonly pendingCount: number;
  readonly unsatisfiedCount: number;
  readonly dependentCount: number;
  /** Why it ended before it began, or null. */
  readonly errorCode: string | null;
  /** What a JOB step runs, or a MAP step for each item. */
  readonly job: PreparedStepJob | null;
  readonly map: PreparedMap | null;
  readonly expiry: PreparedExpiry | null;
}

export interface PreparedStepJob {
  readonly type: string;
  /** Null in a MAP step, as the payload is: each item has its own. */
  readonly id: string | null;
  readonly payload: StoredJson | null;
  readonly settings: JobSettings;
  readonly delaySeconds: number | null;
  readonly limit: PreparedLimit | null;
  readonly continues: boolean;
}

export interface PreparedMap {
  readonly sourceId: string;
  /** The kind of the edges from the items to the step. */
  readonly itemEdge: DependencyKind;
  /** Null until it is known. */
  readonly itemCount: number | null;
}

export interface PreparedExpiry {
  readonly afterSeconds: number;
  readonly outcome: TerminalStatus;
  readonly output: StoredJson | null;
}

export interface PreparedEdge {
  readonly prerequisiteId: string;
  readonly stepId: string;
  readonly kind: DependencyKind;
}

/** The parameters that carry prepared steps and edges as parallel arrays. */
export const stepArrayParameters = {
  stepRunIds: "uuid[]",
  stepIds: "uuid[]",
  stepKeys: "text[]",
  kinds: "text[]",
  statuses: "text[]",
  pendings: "int4[]",
  unsatisfieds: "int4[]",
  dependents: "int4[]",
  errorCodes: "text?[]",
  jobIds: "uuid?[]",
  jobTypes: "text?[]",
  payloads: "jsonb?[]",
  priorities: "int4?[]",
  maxAttempts: "int4?[]",
  timeouts: "int4?[]",
  delays: "float8?[]",
  ...limitParameters,
  continues: "bool[]",
  mapSources: "uuid?[]",
  itemEdges: "text?[]",
  itemCounts: "int4?[]",
  expiresAfters: "float8?[]",
  expiryOutcomes: "text?[]",
  expiryOutputs: "jsonb?[]",
  edgeRunIds: "uuid[]",
  prerequisiteIds: "uuid[]",
  dependentIds: "uuid[]",
  edgeKinds: "text[]",
} as const;

/** Steps and edges of one run. */
export interface PreparedSteps {
  readonly runId: string;
  readonly steps: readonly PreparedStep[];
  readonly edges: readonly PreparedEdge[];
}

export function stepArrays(runs: readonly PreparedSteps[]) {
  const steps = runs.flatMap((run) => run.steps.map((step) => ({ ...step, runId: run.runId })));
  const edges = runs.flatMap((run) => run.edges.map((edge) => ({ ...edge, runId: run.runId })));
  return {
    stepRunIds: steps.map(({ runId }) => runId),
    stepIds: steps.map(({ id }) => id),
    stepKeys: steps.map(({ key }) => key),
    kinds: steps.map(({ kind }) => kind),
    statuses: steps.map(({ status }) => status),
    pendings: steps.map(({ pendingCount }) => pendingCount),
    unsatisfieds: steps.map(({ unsatisfiedCount }) => unsatisfiedCount),
    dependents: steps.map(({ dependentCount }) => dependentCount),
    errorCodes: steps.map(({ errorCode }) => errorCode),
    jobIds: steps.map(({ job }) => job?.id ?? null),
    jobTypes: steps.map(({ job }) => job?.type ?? null),
    payloads: steps.map(({ job }) => job?.payload ?? null),
    priorities: steps.map(({ job }) => job?.settings.priority ?? null),
    maxAttempts: steps.map(({ job }) => job?.settings.maxAttempts ?? null),
    timeouts: steps.map(({ job }) => job?.settings.timeoutSeconds ?? null),
    delays: steps.map(({ job }) => job?.delaySeconds ?? null),
    ...limitArrays(steps.map(({ job }) => job?.limit ?? null)),
    continues: steps.map(({ job }) => job?.continues ?? false),
    mapSources: steps.map(({ map }) => map?.sourceId ?? null),
    itemEdges: steps.map(({ map }) => map?.itemEdge ?? null),
    itemCounts: steps.map(({ map }) => map?.itemCount ?? null),
    expiresAfters: steps.map(({ expiry }) => expiry?.afterSeconds ?? null),
    expiryOutcomes: steps.map(({ expiry }) => expiry?.outcome ?? null),
    expiryOutputs: steps.map(({ expiry }) => expiry?.output ?? null),
    edgeRunIds: edges.map(({ runId }) => runId),
    prerequisiteIds: edges.map(({ prerequisiteId }) => prerequisiteId),
    dependentIds: edges.map(({ stepId }) => stepId),
    edgeKinds: edges.map(({ kind }) => kind),
  };
}

type StepPlaceholders = Placeholders<typeof stepArrayParameters>;

/** The rows of the steps, for the CTE `step`; the caller adds the organization of each one's run. */
export function stepRows(p: StepPlaceholders) {
  return rowsOf("given", {
    run_id: p.stepRunIds,
    step_id: p.stepIds,
    step_key: p.stepKeys,
    kind: p.kinds,
    status: p.statuses,
    pending_count: p.pendings,
    unsatisfied_count: p.unsatisfieds,
    dependent_count: p.dependents,
    error_code: p.errorCodes,
    job_id: p.jobIds,
    job_type: p.jobTypes,
    payload: p.payloads,
    priority: p.priorities,
    max_attempts: p.maxAttempts,
    timeout_seconds: p.timeouts,
    delay_seconds: p.delays,
    limit_key: p.limitKeys,
    limit_concurrency: p.limitConcurrencies,
    limit_starts: p.limitStarts,
    limit_period_seconds: p.limitPeriods,
    continues: p.continues,
    map_source_id: p.mapSources,
    item_edge: p.itemEdges,
    item_count: p.itemCounts,
    expires_after_seconds: p.expiresAfters,
    expiry_outcome: p.expiryOutcomes,
    expiry_output: p.expiryOutputs,
  });
}

type StepRow = RowOf<ReturnType<typeof stepRows>> & { readonly organization_id: string | null };
type WithSteps = LedgerTables & { step: StepRow };

const plainColumns = [
  "run_id",
  "step_key",
  "organization_id",
  "pending_count",
  "unsatisfied_count",
  "dependent_count",
  "error_code",
  "job_id",
  "job_type",
  "payload",
  "priority",
  "max_attempts",
  "timeout_seconds",
  "delay_seconds",
  ...limitColumns,
  "continues",
  "map_source_id",
  "item_count",
  "expires_after_seconds",
  "expiry_output",
] as const;

/** Inserts the rows of the CTE `step`. */
export function insertSteps(qb: QueryCreator<WithSteps>, schema: string) {
  const status = (column: string) => sql<StepStatus>`${sql.ref(column)}::${sql.id(schema, "step_status")}`;
  return qb
    .insertInto("workflow_steps")
    .columns([
      ...plainColumns,
      "id",
      "kind",
      "status",
      "item_edge",
      "expiry_outcome",
      "released_at",
      "open_since",
      "expires_at",
      "ended_at",
    ])
    .expression((eb) =>
      eb
        .selectFrom("step as s")
        .select([
          ...plainColumns.map((column) => `s.${column}` as const),
          "s.step_id",
          sql<StepKind>`s.kind::${sql.id(schema, "step_kind")}`.as("kind"),
          status("s.status").as("status"),
          sql<DependencyKind>`s.item_edge::${sql.id(schema, "dependency_kind")}`.as("item_edge"),
          status("s.expiry_outcome").as("expiry_outcome"),
          sql<Date | null>`case when s.status in ('ENQUEUED', 'WAITING_FOR_EXTERNAL') then now() end`.as("released_at"),
          sql<Date | null>`case when s.status = 'WAITING_FOR_EXTERNAL' then now() end`.as("open_since"),
          sql<Date | null>`case when s.status = 'WAITING_FOR_EXTERNAL' then now() + make_interval(secs => s.expires_after_seconds) end`.as(
            "expires_at",
          ),
          sql<Date | null>`case when s.status in ('SUCCEEDED', 'FAILED', 'CANCELED') then now() end`.as("ended_at"),
        ])
        // As they were asked for, whatever joins made of it: indexes grow at their end.
        .orderBy("s.step_id"),
    );
}

/** The jobs of the steps of the CTE `step` that are runnable, for the CTE `released`. */
export function releasedAtOnce(qb: QueryCreator<WithSteps>) {
  return qb
    .selectFrom("step as s")
    .where("s.status", "=", "ENQUEUED")
    .select([
      "s.job_id",
      "s.job_type",
      "s.payload",
      "s.priority",
      "s.max_attempts",
      "s.timeout_seconds",
      sql<number>`1`.as("run_number"),
      "s.delay_seconds",
      ...limitColumns.map((column) => `s.${column}` as const),
      "s.organization_id",
      "s.run_id",
      "s.step_id",
    ]);
}

/** The rows of the edges, for the CTE `edge`. */
export function edgeRows(p: StepPlaceholders) {
  return rowsOf("e", {
    run_id: p.edgeRunIds,
    prerequisite_id: p.prerequisiteIds,
    step_id: p.dependentIds,
    kind: p.edgeKinds,
  });
}

type EdgeRow = RowOf<ReturnType<typeof edgeRows>>;

/** Inserts the rows of the CTE `edge`. */
export function insertEdges(qb: QueryCreator<LedgerTables & { edge: EdgeRow }>, schema: string) {
  return qb
    .insertInto("workflow_step_dependencies")
    .columns(["run_id", "prerequisite_id", "step_id", "kind"])
    .expression((eb) =>
      eb
        .selectFrom("edge as e")
        .select([
          "e.run_id",
          "e.prerequisite_id",
          "e.step_id",
          sql<DependencyKind>`e.kind::${sql.id(schema, "dependency_kind")}`.as("kind"),
        ])
        .orderBy("e.run_id")
        .orderBy("e.prerequisite_id")
        .orderBy("e.step_id"),
    );
}
