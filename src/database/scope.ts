import { type RawBuilder, sql } from "kysely";
import { LedgerError } from "../errors.ts";
import { isUuid } from "./ids.ts";

/** Whose rows a call may see: the global tenant's, one organization's, or (operators) everybody's. */
export type Scope = { readonly global: true } | { readonly organization: string } | { readonly admin: true };

/** Parameters of every scoped statement. */
export const scopeParameters = { anyTenant: "bool", organization: "uuid?" } as const;

export interface ScopeArguments {
  readonly anyTenant: boolean;
  readonly organization: string | null;
}

/** Throws `scope.required` for anything but exactly one of the three forms. */
export function scopeArguments(scope: Scope): ScopeArguments {
  const given: Partial<Record<"global" | "organization" | "admin", unknown>> =
    typeof scope === "object" && scope !== null ? scope : {};
  if (Object.keys(given).length === 1) {
    if (given.admin === true) return { anyTenant: true, organization: null };
    if (given.global === true) return { anyTenant: false, organization: null };
    if (isUuid(given.organization)) return { anyTenant: false, organization: given.organization };
  }
  throw new LedgerError("scope.required");
}

/** The predicate "this row's organization is in scope". */
export function inScope(
  organizationColumn: string,
  p: { readonly anyTenant: RawBuilder<boolean>; readonly organization: RawBuilder<string | null> },
): RawBuilder<boolean> {
  return sql<boolean>`(${p.anyTenant} or ${sql.ref(organizationColumn)} is not distinct from ${p.organization})`;
}
