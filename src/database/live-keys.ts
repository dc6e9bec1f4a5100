/** The tenant of a live row in the unique indexes of active and debounce keys, as migration 0009 has it. */
import { type RawBuilder, sql } from "kysely";

/** Whether two rows are of one organization, or both of the global tenant. */
export function sameTenant(row: string, other: string): RawBuilder<boolean> {
  return sql<boolean>`${isGlobal(row)} = ${isGlobal(other)} and ${organizationOf(row)} = ${organizationOf(other)}`;
}

function isGlobal(row: string): RawBuilder<boolean> {
  return sql<boolean>`(${column(row)} is null)`;
}

function organizationOf(row: string): RawBuilder<string> {
  const organization = column(row);
  return sql<string>`(case
    when ${organization} is null then '00000000-0000-0000-0000-000000000000'::uuid else ${organization}
  end)`;
}

function column(row: string): RawBuilder<string | null> {
  return sql<string | null>`${sql.ref(`${row}.organization_id`)}`;
}
