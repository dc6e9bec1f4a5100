/** The latest run of each of several jobs, live or ended: what who makes a job run again must have seen. */
import { type QueryCreator, sql } from "kysely";
import type { LedgerTables } from "../database/tables.ts";

type WithInput<Row> = LedgerTables & { input: Row & { readonly job_id: string } };

/** The rows of the CTE `input` with the latest run of each one's job, looked up by its id; null when there is none. */
export function withLatest<Row>(qb: QueryCreator<WithInput<Row>>) {
  return qb.selectFrom("input").leftJoinLateral(
    (eb) =>
      eb
        .selectFrom("job_queue as q")
        .where(sql<boolean>`q.id = input.job_id`)
        .select([
          "q.run_number",
          "q.status",
          "q.type",
          "q.organization_id",
          "q.active_key",
          "q.workflow_run_id",
          "q.lease_expires_at",
          sql<boolean>`true`.as("live"),
        ])
        .unionAll(
          eb
            .selectFrom("job_ledger as l")
            .where(sql<boolean>`l.id = input.job_id`)
            .select([
              "l.run_number",
              "l.status",
              "l.type",
              "l.organization_id",
              "l.active_key",
              "l.workflow_run_id",
              "l.lease_expires_at",
              sql<boolean>`false`.as("live"),
            ]),
        )
        .orderBy("run_number", "desc")
        .limit(1)
        .as("latest"),
    (join) => join.onTrue(),
  );
}
