/** Whose schedules: a tenant is a range of one of the index by tenant and name. */
import { type RawBuilder, sql } from "kysely";
import { type Scope, scopeArguments } from "../database/scope.ts";

/** Parameters of every scoped statement on schedules. */
export const tenantParameters = { firstTenant: "text", lastTenant: "text" } as const;

export interface TenantRange {
  readonly firstTenant: string;
  readonly lastTenant: string;
}

/** Throws `scope.required`. */
export function tenantsOf(scope: Scope): TenantRange {
  const { anyTenant, organization } = scopeArguments(scope);
  // Tenants are `global` and UUIDs: all of them are in between.
  if (anyTenant) return { firstTenant: "", lastTenant: "zzzz" };
  const tenant = organization?.toLowerCase() ?? "global";
  return { firstTenant: tenant, lastTenant: tenant };
}

/** The predicate "this schedule's tenant is in scope". */
export function ofTenants(p: {
  readonly firstTenant: RawBuilder<string>;
  readonly lastTenant: RawBuilder<string>;
}): RawBuilder<boolean> {
  return sql<boolean>`c.tenant between ${p.firstTenant} and ${p.lastTenant}`;
}
