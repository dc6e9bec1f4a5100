/** Counts by status that are kept: what is folded, and the deltas since (FEATURES F-H3). */
import { type QueryCreator, sql } from "kysely";
import type { Placeholders } from "./parameters.ts";
import { inScope, type scopeParameters } from "./scope.ts";
import type { LedgerTables } from "./tables.ts";

/** The numbers by type and status in scope, exact in the snapshot that reads them. */
export function keptCounts(
  qb: QueryCreator<LedgerTables>,
  p: Placeholders<typeof scopeParameters>,
  subject: "job" | "run",
) {
  return qb
    .selectFrom((eb) =>
      eb
        .selectFrom("status_counts as c")
        .where("c.subject", "=", sql.lit(subject))
        .where(inScope("c.organization_id", p))
        .select(["c.type", "c.status", "c.count as number"])
        .unionAll(
          eb
            .selectFrom("status_count_deltas as d")
            .where("d.subject", "=", sql.lit(subject))
            .where(inScope("d.organization_id", p))
            .select(["d.type", "d.status", "d.delta as number"]),
        )
        .as("kept"),
    )
    .groupBy(["kept.type", "kept.status"])
    .select(["kept.type", "kept.status", sql<string>`sum(kept.number)::bigint`.as("number")]);
}

/** The numbers of one type, or of all. */
export type Counts<Status extends string> = Readonly<Record<Status, number>>;

export interface CountsByType<Status extends string> {
  readonly total: Counts<Status>;
  /** Types that have any, in the order of their names. */
  readonly types: readonly (Counts<Status> & { readonly type: string })[];
}

/** Sums rows of (type, status, number) up. */
export function countsByType<Status extends string>(
  statuses: readonly Status[],
  rows: readonly { readonly type: string; readonly status: Status; readonly number: number }[],
): CountsByType<Status> {
  const total = noneOf(statuses);
  const types = new Map<string, Record<Status, number>>();
  for (const { type, status, number } of rows) {
    if (number === 0) continue;
    const counts = types.get(type) ?? noneOf(statuses);
    types.set(type, counts);
    counts[status] += number;
    total[status] += number;
  }
  const sorted = [...types].sort(([a], [b]) => (a < b ? -1 : 1));
  return { total, types: sorted.map(([type, counts]) => ({ ...counts, type })) };
}

function noneOf<Status extends string>(statuses: readonly Status[]): Record<Status, number> {
  return Object.fromEntries(statuses.map((status) => [status, 0])) as Record<Status, number>;
}
