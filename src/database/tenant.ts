/** Telling the database whose transaction it is, for the policies of row-level security. */
import { sql } from "kysely";
import { LedgerError } from "../errors.ts";
import type { Executor } from "./executor.ts";
import { type Scope, scopeArguments } from "./scope.ts";
import { reading } from "./statement.ts";
import { inOwnTransaction } from "./transaction.ts";

/** The transaction-local setting that the policies read: an organization's id in lower case, or `global`. */
export const TENANT_SETTING = "runledger.organization_id";

/** One tenant: an organization, or the global one. */
export type Tenant = Exclude<Scope, { readonly admin: true }>;

/**
 * Runs `body` in a transaction that is the tenant's: the caller's, whose setting is put back afterwards, else one
 * that is begun here, READ COMMITTED and not tried again. Round trips of its own: two there, three else. Throws
 * `scope.required`.
 */
export async function asTenant<T>(
  executor: Executor,
  tenant: Tenant,
  body: (executor: Executor) => Promise<T>,
): Promise<T> {
  const value = settingOf(tenant);
  if (executor.transaction !== "none") return inCallersTransaction(executor, value, body);
  return inOwnTransaction(executor, async (own) => {
    await setTenant.execute(own, { value });
    // Functions called in it behave as in any transaction of the caller's, which may go on after their errors.
    const result = await body({ ...own, transaction: "caller" });
    if (own.health.failed) await requireAlive(own, value);
    return result;
  });
}

/** After an error that the body did not pass on: it may have gone back to a savepoint. */
async function requireAlive(own: Executor, value: string): Promise<void> {
  own.health.failed = false;
  await setTenant.execute(own, { value });
}

function settingOf(tenant: Tenant): string {
  const { anyTenant, organization } = scopeArguments(tenant);
  if (anyTenant)
    throw new LedgerError("scope.required", { message: "A tenant is { global: true } or { organization }." });
  return organization?.toLowerCase() ?? "global";
}

async function inCallersTransaction<T>(
  executor: Executor,
  value: string,
  body: (executor: Executor) => Promise<T>,
): Promise<T> {
  const before = await setTenant.executeFirst(executor, { value });
  const putBack = () => setTenant.execute(executor, { value: before?.previous ?? "" });
  let result: T;
  try {
    result = await body(executor);
  } catch (error) {
    await putBack().catch(() => {
      // In a dead transaction the setting dies with it; what was thrown first says why.
    });
    throw error;
  }
  await putBack();
  return result;
}

// The row of the materialized read is there before set_config, in the list of what is selected of it, is called.
const setTenant = reading(
  "set_tenant",
  { value: "text" },
  (_db, p) => sql<{ previous: string | null }>`
    with previous as materialized (select current_setting(${sql.lit(TENANT_SETTING)}, true) as value)
    select previous.value as previous,
      set_config(${sql.lit(TENANT_SETTING)}, ${p.value}, true) as current
    from previous`,
);
