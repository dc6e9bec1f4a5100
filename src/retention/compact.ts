/** Folds the deltas of the kept counts into these, so that a read of them stays short (FEATURES F-H3). */
import { sql } from "kysely";
import { toNumber } from "../database/decode.ts";
import type { Executor } from "../database/executor.ts";
import { writing } from "../database/statement.ts";
import { validInteger } from "../jobs/arguments.ts";
import { boundedHere, boundedInCaller, lockWaitFor } from "../locks/wait.ts";

export interface CompactOptions {
  /** At most so many deltas, 1 to 100 000. Default 10 000. */
  readonly limit?: number;
}

export interface Compacted {
  /** How many deltas are gone. Fewer than the limit: there was no more that nobody else is at. */
  readonly folded: number;
}

const DEFAULT_LIMIT = 10_000;
const MAX_LIMIT = 100_000;

/**
 * Folds one batch. Any number of processes may do so at once, and who enqueues or settles waits for none of
 * them. Counts are the same before and after. One round trip; two more in a caller's transaction. Throws `input.invalid`.
 */
export async function compactCounts(executor: Executor, options: CompactOptions = {}): Promise<Compacted> {
  const limit = validInteger(options.limit, "limit", 1, MAX_LIMIT) ?? DEFAULT_LIMIT;
  const row = await boundedInCaller(executor, () =>
    compact.executeFirst(executor, { limit, lockWait: lockWaitFor(executor) }),
  );
  return { folded: toNumber(row?.folded ?? 0) };
}

// Deltas have no key: they are taken by their place. Counts are locked in the order of their key, by folders only.
const compact = writing("compact_status_counts", { limit: "int4", lockWait: "int4?" }, (db, p) =>
  db
    .with(
      (cte) => cte("taken").materialized(),
      (qb) =>
        qb
          .selectFrom("status_count_deltas as d")
          .select(sql<string>`d.ctid`.as("place"))
          .limit(p.limit)
          .forUpdate("d")
          .skipLocked(),
    )
    .with("folded", (qb) =>
      qb
        .deleteFrom("status_count_deltas as d")
        .where(sql<boolean>`d.ctid = any(array(select place from taken))`)
        .returning(["d.subject", "d.type", "d.organization_id", "d.status", "d.delta"]),
    )
    .with("summed", (qb) =>
      qb
        .selectFrom("folded as f")
        .where(boundedHere(p.lockWait))
        .groupBy(["f.subject", "f.organization_id", "f.type", "f.status"])
        .select(["f.subject", "f.type", "f.organization_id", "f.status", sql<string>`sum(f.delta)::bigint`.as("count")])
        .having(sql<boolean>`sum(f.delta) <> 0`)
        .orderBy("f.subject")
        .orderBy("f.organization_id")
        .orderBy("f.type")
        .orderBy("f.status"),
    )
    .with("counted", (qb) =>
      qb
        .insertInto("status_counts")
        .columns(["subject", "type", "organization_id", "status", "count"])
        .expression((eb) => eb.selectFrom("summed").select(["subject", "type", "organization_id", "status", "count"]))
        .onConflict((conflict) =>
          conflict
            .columns(["subject", "tenant", "type", "status"])
            .doUpdateSet({ count: sql<string>`status_counts.count + excluded.count` }),
        ),
    )
    .selectNoFrom((eb) =>
      eb
        .selectFrom("folded")
        .select(({ fn }) => fn.countAll<string>().as("n"))
        .as("folded"),
    ),
);
