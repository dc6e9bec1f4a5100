/** Map steps (FEATURES F-W8): making the items when a step fans out, and gathering what they put out when it joins. */
import { sql } from "kysely";
import { announceJobs } from "../database/announce.ts";
import type { JsonColumn } from "../database/column-types.ts";
import type { Executor } from "../database/executor.ts";
import { newIds } from "../database/ids.ts";
import { rowsOf } from "../database/parameters.ts";
import { writing } from "../database/statement.ts";
import type { StepKind, StepStatus } from "../database/statuses.ts";
import { insertReleased } from "../jobs/insertion.ts";
import { limitColumns } from "../jobs/limits.ts";
import type { Expansion, Resolution } from "./resolve.ts";

/**
 * Does what a resolution leaves for map steps, whose rows and run rows the transaction has locked: outputs of
 * those that ended, items of those that fan out. At most two round trips, none without map steps.
 */
export async function writeMaps(executor: Executor, { changes, added, expansions }: Resolution): Promise<void> {
  const collected = [...changes, ...added.values()].filter(({ cause }) => cause === "collected");
  // First: a map step may fan out over what another has gathered.
  if (collected.length > 0) {
    await collect.execute(executor, {
      runIds: collected.map(({ runId }) => runId),
      stepIds: collected.map(({ id }) => id),
    });
  }
  if (expansions.length > 0) await expand.execute(executor, itemArrays(executor, expansions));
}

function itemArrays(executor: Executor, expansions: readonly Expansion[]) {
  let total = 0;
  const offsets = expansions.map(({ itemCount }) => {
    total += itemCount;
    return total - itemCount;
  });
  return {
    runIds: expansions.map(({ runId }) => runId),
    mapIds: expansions.map(({ stepId }) => stepId),
    sourceIds: expansions.map(({ sourceId }) => sourceId),
    offsets,
    itemIds: newIds(total),
    jobIds: newIds(total),
    notify: executor.settings.notify,
  };
}

// The items of a step are its prerequisites: the index of edges by step finds them.
const collect = writing("collect_map_outputs", { runIds: "uuid[]", stepIds: "uuid[]" }, (db, p) =>
  db
    .with("gathered", (qb) =>
      qb
        .selectFrom(rowsOf("map", { run_id: p.runIds, id: p.stepIds }))
        .leftJoin("workflow_step_dependencies as d", "d.step_id", "map.id")
        .leftJoin("workflow_steps as i", (join) =>
          join
            .onRef("i.run_id", "=", "d.run_id")
            .onRef("i.id", "=", "d.prerequisite_id")
            .onRef("i.map_step_id", "=", "map.id"),
        )
        .groupBy(["map.run_id", "map.id"])
        .select([
          "map.run_id",
          "map.id",
          sql<string>`coalesce(
            jsonb_agg(coalesce(i.output, 'null') order by i.map_index) filter (where i.id is not null), '[]'
          )`.as("output"),
        ]),
    )
    .updateTable("workflow_steps as s")
    .from("gathered as g")
    .whereRef("s.run_id", "=", "g.run_id")
    .whereRef("s.id", "=", "g.id")
    .set({ output: sql`g.output` }),
);

const expandParameters = {
  runIds: "uuid[]",
  mapIds: "uuid[]",
  sourceIds: "uuid[]",
  offsets: "int4[]",
  itemIds: "uuid[]",
  jobIds: "uuid[]",
  notify: "bool",
} as const;

/**
 * `item` reads each source's array once, from first to last, and takes each element's ids by their place: an index
 * into the array would read it once for each item, and a join of the two is at the mercy of the planner's guess.
 */
const expand = writing("expand_map_steps", expandParameters, (db, p, schema) =>
  db
    .with(
      (cte) => cte("item").materialized(),
      (qb) =>
        qb
          .selectFrom(rowsOf("map", { run_id: p.runIds, id: p.mapIds, source_id: p.sourceIds, first_item: p.offsets }))
          .innerJoin("workflow_steps as m", (join) =>
            join.onRef("m.run_id", "=", "map.run_id").onRef("m.id", "=", "map.id"),
          )
          .innerJoin("workflow_steps as source", (join) =>
            join.onRef("source.run_id", "=", "map.run_id").onRef("source.id", "=", "map.source_id"),
          )
          .innerJoin(
            sql<{ payload: JsonColumn; place: number }>`jsonb_array_elements(source.output) with ordinality`.as<"e">(
              sql`e(payload, place)`,
            ),
            (join) => join.onTrue(),
          )
          .select([
            "m.run_id",
            sql<string>`(${p.itemIds})[map.first_item + e.place]`.as("step_id"),
            sql<string>`(${p.jobIds})[map.first_item + e.place]`.as("job_id"),
            sql<number>`e.place - 1`.as("index"),
            "m.id as map_id",
            "m.step_key",
            "m.organization_id",
            "m.job_type",
            "m.priority",
            "m.max_attempts",
            "m.timeout_seconds",
            "m.delay_seconds",
            ...limitColumns.map((column) => `m.${column}` as const),
            "m.continues",
            "m.item_edge",
            "e.payload",
            sql<number>`1`.as("run_number"),
          ]),
    )
    .with("steps", (qb) =>
      qb
        .insertInto("workflow_steps")
        .columns([
          "run_id",
          "id",
          "job_id",
          "organization_id",
          "job_type",
          "priority",
          "max_attempts",
          "timeout_seconds",
          "delay_seconds",
          ...limitColumns,
          "continues",
          "payload",
          "map_step_id",
          "map_index",
          "step_key",
          "kind",
          "status",
          "pending_count",
          "unsatisfied_count",
          "dependent_count",
          "released_at",
        ])
        .expression((eb) =>
          eb
            .selectFrom("item as i")
            .select([
              "i.run_id",
              "i.step_id",
              "i.job_id",
              "i.organization_id",
              "i.job_type",
              "i.priority",
              "i.max_attempts",
              "i.timeout_seconds",
              "i.delay_seconds",
              ...limitColumns.map((column) => `i.${column}` as const),
              "i.continues",
              "i.payload",
              "i.map_id",
              "i.index",
              sql<string>`i.step_key || '[' || i.index || ']'`.as("step_key"),
              sql<StepKind>`'JOB'::${sql.id(schema, "step_kind")}`.as("kind"),
              sql<StepStatus>`'ENQUEUED'::${sql.id(schema, "step_status")}`.as("status"),
              sql<number>`0`.as("pending_count"),
              sql<number>`0`.as("unsatisfied_count"),
              sql<number>`1`.as("dependent_count"),
              sql<Date>`clock_timestamp()`.as("released_at"),
            ]),
        ),
    )
    .with("edges", (qb) =>
      qb
        .insertInto("workflow_step_dependencies")
        .columns(["run_id", "prerequisite_id", "step_id", "kind"])
        .expression((eb) => eb.selectFrom("item as i").select(["i.run_id", "i.step_id", "i.map_id", "i.item_edge"])),
    )
    .with("released", (qb) => qb.selectFrom("item").selectAll())
    .with("inserted", (qb) => insertReleased(qb))
    .selectNoFrom(announceJobs(p.notify, schema, sql`select from inserted`).as("announced")),
);
