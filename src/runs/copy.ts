/** The copy of a run that goes on where its source is taken over: all rows in one statement, outputs and payloads on the server. */
import { sql } from "kysely";
import { announceJobs } from "../database/announce.ts";
import type { JsonColumn } from "../database/column-types.ts";
import type { Executor } from "../database/executor.ts";
import { newId, newIds } from "../database/ids.ts";
import { ownJson } from "../database/json.ts";
import { rowsOf } from "../database/parameters.ts";
import { writing } from "../database/statement.ts";
import { decodeRunStatus, type StepStatus } from "../database/statuses.ts";
import { insertReleased } from "../jobs/insertion.ts";
import { limitColumns } from "../jobs/limits.ts";
import { insertEdges } from "../steps/insertion.ts";
import { statusByCounters } from "../steps/run-status.ts";
import type { EnqueuedRun } from "./insertion.ts";
import type { Mutation } from "./mutation.ts";
import type { Renewal } from "./renewal.ts";

/** What is copied of which run, and the key that makes it happen once. */
export interface CopyRequest extends Mutation {
  readonly key: string;
  readonly deadlineSeconds: number | null;
}

/**
 * Makes the new run, under the lock of the source's row, and records the key; null when another session has taken
 * the key meanwhile. One round trip.
 */
export async function copyRun(trx: Executor, request: CopyRequest, renewal: Renewal): Promise<EnqueuedRun | null> {
  const { runId: sourceId, mutation, key, requested, deadlineSeconds } = request;
  const id = newId();
  const result = ownJson({ runId: id });
  const row = await copy.executeFirst(trx, {
    sourceId,
    id,
    mutation,
    key,
    requested,
    result,
    deadlineSeconds,
    ...stepsOf(renewal),
    notify: trx.settings.notify,
  });
  return row === undefined ? null : { id, status: decodeRunStatus(row.status), disposition: "inserted" };
}

/** New ids are in the order of the old ones. */
function stepsOf({ steps, edges, open, waiting, errored }: Renewal) {
  const stepIds = newIds(steps.length);
  const idOf = new Map(steps.map(({ step }, place) => [step.id, stepIds[place] ?? ""]));
  const newIdOf = (id: string | null) => (id === null ? null : (idOf.get(id) ?? null));
  return {
    oldIds: steps.map(({ step }) => step.id),
    stepIds,
    jobIds: newIds(steps.length),
    mapSources: steps.map(({ step }) => newIdOf(step.mapSourceId)),
    mapSteps: steps.map(({ step }) => newIdOf(step.mapStepId)),
    anews: steps.map(({ anew }) => anew),
    statuses: steps.map(({ status }) => status),
    pendings: steps.map(({ pendingCount }) => pendingCount),
    unsatisfieds: steps.map(({ unsatisfiedCount }) => unsatisfiedCount),
    dependents: steps.map(({ dependentCount }) => dependentCount),
    itemCounts: steps.map(({ itemCount }) => itemCount),
    prerequisiteIds: edges.map(({ prerequisiteId }) => idOf.get(prerequisiteId) ?? ""),
    dependentIds: edges.map(({ stepId }) => idOf.get(stepId) ?? ""),
    edgeKinds: edges.map(({ kind }) => kind),
    stepCount: steps.length,
    open,
    waiting,
    errored,
  };
}

const copyParameters = {
  sourceId: "uuid",
  id: "uuid",
  mutation: "text",
  key: "text",
  requested: "jsonb",
  result: "jsonb",
  deadlineSeconds: "float8?",
  oldIds: "uuid[]",
  stepIds: "uuid[]",
  jobIds: "uuid[]",
  mapSources: "uuid?[]",
  mapSteps: "uuid?[]",
  anews: "bool[]",
  statuses: "text[]",
  pendings: "int4[]",
  unsatisfieds: "int4[]",
  dependents: "int4[]",
  itemCounts: "int4?[]",
  prerequisiteIds: "uuid[]",
  dependentIds: "uuid[]",
  edgeKinds: "text[]",
  stepCount: "int4",
  open: "int4",
  waiting: "int4",
  errored: "int4",
  notify: "bool",
} as const;

/** What every step takes over, whether it starts anew or not. */
const template = [
  "step_key",
  "kind",
  "organization_id",
  "job_type",
  "priority",
  "max_attempts",
  "timeout_seconds",
  "payload",
  "delay_seconds",
  ...limitColumns,
  "continues",
  "expires_after_seconds",
  "expiry_outcome",
  "expiry_output",
  "item_edge",
  "map_index",
] as const;

/** What a step that starts anew does not take over. */
const end = [
  "started_at",
  "ended_at",
  "error_code",
  "error_message",
  "completed_by",
  "reason",
  "output",
  "kept_outcome",
  "child_run_id",
] as const;

// The key is taken first: an insert waits for another session's insert of the same key, and the rest follows it.
// No two lists are joined: the planner takes them for short, and would compare each with each.
const copy = writing("copy_workflow_run", copyParameters, (db, p, schema) =>
  db
    .with("taken", (qb) =>
      qb
        .insertInto("workflow_run_mutations")
        .columns(["run_id", "mutation_key", "mutation", "requested", "result"])
        .expression(
          qb.selectNoFrom([
            sql<string>`${p.sourceId}`.as("run_id"),
            sql<string>`${p.key}`.as("mutation_key"),
            sql<string>`${p.mutation}`.as("mutation"),
            sql<JsonColumn>`${p.requested}`.as("requested"),
            sql<JsonColumn>`${p.result}`.as("result"),
          ]),
        )
        .onConflict((conflict) => conflict.doNothing())
        .returning("run_id"),
    )
    .with("plan", (qb) =>
      qb
        .selectFrom(
          rowsOf("given", {
            old_id: p.oldIds,
            step_id: p.stepIds,
            job_id: p.jobIds,
            map_source_id: p.mapSources,
            map_step_id: p.mapSteps,
            anew: p.anews,
            status: p.statuses,
            pending_count: p.pendings,
            unsatisfied_count: p.unsatisfieds,
            dependent_count: p.dependents,
            item_count: p.itemCounts,
          }),
        )
        .innerJoin("taken", (join) => join.onTrue())
        .selectAll("given")
        .select("taken.run_id as source_id"),
    )
    .with("run", (qb) =>
      qb
        .insertInto("workflow_runs")
        .columns([
          "id",
          "type",
          "organization_id",
          "source_run_id",
          "source_kind",
          "result_step_id",
          "step_count",
          "open_count",
          "waiting_count",
          "errored_count",
          "status",
          "deadline_at",
          "ended_at",
          "active_key",
        ])
        .expression((eb) =>
          eb
            .selectFrom("workflow_runs as r")
            .innerJoin("taken", "taken.run_id", "r.id")
            .leftJoin("plan", "plan.old_id", "r.result_step_id")
            .select([
              sql<string>`${p.id}`.as("id"),
              "r.type",
              "r.organization_id",
              "r.id as source_run_id",
              sql<string>`${p.mutation}`.as("source_kind"),
              "plan.step_id as result_step_id",
              sql<number>`${p.stepCount}`.as("step_count"),
              sql<number>`${p.open}`.as("open_count"),
              sql<number>`${p.waiting}`.as("waiting_count"),
              sql<number>`${p.errored}`.as("errored_count"),
              statusByCounters(schema, p.open, p.waiting, p.errored).as("status"),
              sql<Date | null>`now() + make_interval(secs => ${p.deadlineSeconds})`.as("deadline_at"),
              sql<Date | null>`case when ${p.open} + ${p.waiting} = 0 then now() end`.as("ended_at"),
              "r.active_key",
            ]),
        )
        .returning("status"),
    )
    .with("steps", (qb) =>
      qb
        .insertInto("workflow_steps")
        .columns([
          "run_id",
          "id",
          "job_id",
          "map_source_id",
          "map_step_id",
          "status",
          "pending_count",
          "unsatisfied_count",
          "dependent_count",
          "item_count",
          "released_at",
          "open_since",
          "expires_at",
          ...template,
          ...end,
        ])
        .expression((eb) =>
          eb
            .selectFrom("plan as c")
            .innerJoin("workflow_steps as s", (join) =>
              join.onRef("s.run_id", "=", "c.source_id").onRef("s.id", "=", "c.old_id"),
            )
            .select([
              sql<string>`${p.id}`.as("run_id"),
              "c.step_id",
              sql<string | null>`case when s.job_id is not null then c.job_id end`.as("job_id"),
              "c.map_source_id",
              "c.map_step_id",
              sql<StepStatus>`c.status::${sql.id(schema, "step_status")}`.as("status"),
              "c.pending_count",
              "c.unsatisfied_count",
              "c.dependent_count",
              "c.item_count",
              sql<Date | null>`case
                when not c.anew then s.released_at
                when c.status in ('ENQUEUED', 'WAITING_FOR_EXTERNAL') then now()
              end`.as("released_at"),
              sql<Date | null>`case when c.status = 'WAITING_FOR_EXTERNAL' then now() end`.as("open_since"),
              sql<Date | null>`case
                when not c.anew then s.expires_at
                when c.status = 'WAITING_FOR_EXTERNAL' then now() + make_interval(secs => s.expires_after_seconds)
              end`.as("expires_at"),
              ...template.map((column) => `s.${column}` as const),
              ...end.map((column) => sql<null>`case when not c.anew then ${sql.ref(`s.${column}`)} end`.as(column)),
            ]),
        )
        .returning([
          "job_id",
          "job_type",
          "payload",
          "priority",
          "max_attempts",
          "timeout_seconds",
          "job_run_number as run_number",
          "delay_seconds",
          ...limitColumns,
          "organization_id",
          "run_id",
          "id as step_id",
          "status",
        ]),
    )
    .with("edge", (qb) =>
      qb
        .selectFrom(rowsOf("e", { prerequisite_id: p.prerequisiteIds, step_id: p.dependentIds, kind: p.edgeKinds }))
        .innerJoin("taken", (join) => join.onTrue())
        .selectAll("e")
        .select(sql<string>`${p.id}`.as("run_id")),
    )
    .with("edges", (qb) => insertEdges(qb, schema))
    .with("released", (qb) => qb.selectFrom("steps").where("steps.status", "=", "ENQUEUED").selectAll())
    .with("inserted", (qb) => insertReleased(qb))
    .selectFrom("run")
    .select(["run.status", announceJobs(p.notify, schema, sql`select from inserted`).as("announced")]),
);
