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
  const own = ownRows(tenancy, schema, table);
  // A look at the run would miss one that the same statement inserts: the guard looks when the statement is done.
  const written = typeof tenancy === "object" && guardedRun !== undefined ? `not ${unset}` : own;
  if (kind === "admin") return { using: `${unset} or ${own}`, check: `${unset} or ${written}` };
  return { using: own, check: written };
}

function ownRows(tenancy: Exclude<Tenancy, null>, schema: string, table: string): string {
  if (tenancy === "organization") return ofOrganization;
  return tenancy === "tenant" ? ofTenant : throughParent(tenancy, schema, table);
}

/** In parentheses with a select, so that it is evaluated once a query and not once a row. */
const setting = `(select current_setting(${literal(TENANT_SETTING)}, true))`;

/** After a transaction that had set it, a session's setting is empty, as before it was null. */
const unset = `(select coalesce(current_setting(${literal(TENANT_SETTING)}, true), '') = '')`;

/** A setting that is no organization's id is nobody's, and no error: only what PostgreSQL itself would write is one. */
const organization = `(select case when current_setting(${literal(TENANT_SETTING)}, true)
    ~ '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$'
  then current_setting(${literal(TENANT_SETTING)}, true)::uuid end)`;

/** By the column itself, for its statistics and indexes. */
const ofOrganization = `(organization_id = ${organization} or (organization_id is null and ${setting} = 'global'))`;

/** Where the tenant is a column of the key, the look-up by key is by the whole of it. */
const ofTenant = `(tenant = ${setting})`;

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
