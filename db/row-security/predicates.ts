/** What the policies say: whose rows a role sees and may write, as SQL expressions. */
import { TENANT_SETTING } from "../../src/database/tenant.ts";
import type { Parent, RoleKind, TableRule, Tenancy } from "./rules.ts";
import { identifier, literal } from "./text.ts";

/** What a policy lets a role see and change, and what it lets it write. */
export interface Predicates {
  readonly using: string;
  readonly check: string;
}

/** The conditions on rows of the table; null where they are nobody's in particular. */
export function predicatesFor(kind: RoleKind, rule: TableRule, schema: string, table: string): Predicates | null {
  const { tenancy, guardedRun } = rule;
  if (tenancy === null) return null;
  if (kind === "worker") return { using: "true", check: "true" };
  const own = tenancy === "organization" ? ofOrganization : throughParent(tenancy, schema, table);
  // A look at the run would miss one that the same statement inserts: the guard looks when the statement is done.
  const written = tenancy !== "organization" && guardedRun !== undefined ? `not ${unset}` : own;
  if (kind === "admin") return { using: `${unset} or ${own}`, check: `${unset} or ${written}` };
  return { using: own, check: written };
}

/** In parentheses with a select, so that it is evaluated once a query and not once a row. */
const setting = `(select current_setting(${literal(TENANT_SETTING)}, true))`;

/** After a transaction that had set it, a session's setting is empty, as before it was null. */
const unset = `(select coalesce(current_setting(${literal(TENANT_SETTING)}, true), '') = '')`;

/** As text: whatever stands in the setting, it matches or it does not, and nothing is an error. */
const ofOrganization = `(coalesce(organization_id::text, 'global') = ${setting})`;

/** Scalar subqueries: looked up by index row for row, never hashed over all that the tenant has. */
function throughParent({ through, column }: Exclude<Tenancy, string | null>, schema: string, table: string): string {
  const found = parents[through].map(
    (parent) =>
      `(select true from ${identifier(schema, parent)} as parent where parent.id = ${identifier(table, column)} limit 1)`,
  );
  return `coalesce(${[...found, "false"].join(", ")})`;
}

/** Where a parent may be. Their own policies decide whether the role sees it there. */
const parents: Readonly<Record<Parent, readonly string[]>> = {
  job: ["job_queue", "job_ledger"],
  run: ["workflow_runs"],
  schedule: ["job_schedules"],
};

/** For a trigger, whose condition takes no subquery: somebody acts for a tenant. */
export const actsForTenant = `coalesce(current_setting(${literal(TENANT_SETTING)}, true), '') <> ''`;
