/** Runs and the child runs below them: what one cancel reaches. */
import { sql } from "kysely";
import type { Executor } from "../database/executor.ts";
import { inScope, type Scope, scopeArguments, scopeParameters } from "../database/scope.ts";
import { reading } from "../database/statement.ts";
import { decodeRunStatus, isTerminalRun, type RunStatus } from "../database/statuses.ts";

export interface FamilyMember {
  readonly id: string;
  readonly status: RunStatus;
  /** Whether it was asked for, and not found as a descendant only. */
  readonly requested: boolean;
}

/** Those of the runs that are in scope, ended or not, and all their live descendants, in id order. One round trip. */
export async function findFamily(executor: Executor, runIds: readonly string[], scope: Scope): Promise<FamilyMember[]> {
  const rows = await family.execute(executor, { runIds, ...scopeArguments(scope) });
  return rows.map(({ id, status, requested }) => ({ id, status: decodeRunStatus(status), requested }));
}

/** The ids of those that have not ended. */
export function liveIds(members: readonly FamilyMember[]): string[] {
  return members.filter(({ status }) => !isTerminalRun(status)).map(({ id }) => id);
}

// A run that has ended has no live child, so the walk goes down from live runs only. OFFSET keeps the planner
// from reading all child runs there are: each parent's are found by index.
const family = reading("find_workflow_run_family", { runIds: "uuid[]", ...scopeParameters }, (db, p) => {
  const requested = (id: string) => sql<boolean>`${sql.ref(id)} = any(${p.runIds})`;
  return db
    .withRecursive("family(id, status, live)", (qb) =>
      qb
        .selectFrom("workflow_runs as r")
        .where(requested("r.id"))
        .where(inScope("r.organization_id", p))
        .select(["r.id", "r.status", sql<boolean>`r.ended_at is null`.as("live")])
        .union((union) =>
          union
            .selectFrom("family as f")
            .innerJoinLateral(
              (eb) =>
                eb
                  .selectFrom("workflow_runs as r")
                  .whereRef("r.parent_run_id", "=", "f.id")
                  .where("r.ended_at", "is", null)
                  .where(inScope("r.organization_id", p))
                  .select(["r.id", "r.status"])
                  .offset(sql.lit(0))
                  .as("child"),
              (join) => join.onTrue(),
            )
            .where("f.live", "=", true)
            .select(["child.id", "child.status", sql<boolean>`true`.as("live")]),
        ),
    )
    .selectFrom("family as f")
    .select(["f.id", "f.status", requested("f.id").as("requested")])
    .orderBy("f.id");
});
