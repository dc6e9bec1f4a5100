/**
 * Eager claims: who completes a step gets the jobs that this releases under its lease at once, where a claim of its own would
 * take them next. They are in the queue as LEASED from the start, which saves the claim and a version of each row.
 */
import { type QueryCreator, type RawBuilder, sql } from "kysely";

import { type Placeholders, rowsOf, unseen } from "../database/parameters.ts";
import type { JobStatus } from "../database/statuses.ts";
import type { LedgerTables } from "../database/tables.ts";
import { LedgerError } from "../errors.ts";
import { type ClaimOptions, validClaim } from "./claim.ts";
import { claimedColumns } from "./claimed.ts";
import { resolved } from "./defaults.ts";
import { type ReleasedRow, releasedColumns, releasedRows } from "./insertion.ts";
import { claimParameters, leaseEnd, nextInLanes, startable, withLanes } from "./lanes.ts";
import { anyWakeDue } from "./limit-wakes.ts";
import type { ClaimRequest } from "./limited-claim.ts";

/** A claim that goes with settlements: of at most `limit` jobs that they release. */
export interface EagerClaimOptions extends ClaimOptions {
  /** Only these job types. */
  readonly types: readonly string[];
}

export interface EagerClaim extends ClaimRequest {
  readonly types: readonly string[];
}

/** Throws `input.invalid`. */
export function validEagerClaim(options: EagerClaimOptions): EagerClaim {
  const claim = validClaim(options);
  if (claim.types === null) throw new LedgerError("input.invalid", { message: "types is missing." });
  return { ...claim, types: claim.types };
}

export const eagerParameters = { ...claimParameters, types: "text[]" } as const;
type EagerPlaceholders = Placeholders<typeof eagerParameters>;

type WithReleased = LedgerTables & { released: ReleasedRow };
type EagerRow = { job_id: string | null };
type WithEager = { eager: EagerRow; others: { due: boolean } };

/**
 * Adds the CTEs `others`, whether jobs are due that a claim would take first, and `eager`, those of `released` that are
 * leased: none while there are others, so that claims keep their order and nobody waits behind a chain without end, and
 * none with a limit, which only who holds its key may start.
 */
export function withEager<DB extends WithReleased>(
  db: QueryCreator<DB>,
  p: EagerPlaceholders,
): QueryCreator<DB & WithEager>;
export function withEager(db: QueryCreator<WithReleased>, p: EagerPlaceholders) {
  return withLanes(
    db.with("wanted", (qb) =>
      qb.selectFrom(rowsOf("given", { type: p.types })).select(sql<string | null>`given.type`.as("type")),
    ),
  )
    .with("look", (qb) => qb.selectFrom("wanted").select("wanted.type"))
    .with(
      (cte) => cte("others").materialized(),
      (qb) => {
        const next = nextInLanes(qb, sql.lit(1)).select("next.id");
        return qb.selectNoFrom(sql<boolean>`exists (${next}) or ${anyWakeDue(qb)}`.as("due"));
      },
    )
    .with(
      (cte) => cte("eager").materialized(),
      (qb) =>
        qb
          .selectFrom("released as r")
          .innerJoin("wanted as w", "w.type", "r.job_type")
          .leftJoin("job_definitions as d", "d.type", "r.job_type")
          .where(startable)
          .where("r.limit_key", "is", null)
          .where(sql<boolean>`coalesce(r.delay_seconds, 0) = 0`)
          .where(sql<boolean>`not (select o.due from others as o)`)
          .select("r.job_id")
          .orderBy(resolved("r", "d", "priority"), "desc")
          .orderBy("r.job_id")
          .limit(unseen(p.limit)),
    );
}

/** Inserts the jobs of the CTE `released`, those of `eager` as leased. */
export function insertReleasedEagerly(
  qb: QueryCreator<WithReleased & WithEager>,
  p: EagerPlaceholders,
  schema: string,
) {
  const ifEager = <T>(value: RawBuilder<T>) => sql<T | null>`case when e.job_id is not null then ${value} end`;
  return qb
    .insertInto("job_queue")
    .columns([...releasedColumns, "status", "attempt", "worker_id", "leased_at", "lease_expires_at"])
    .expression(
      releasedRows(qb)
        .leftJoin(sql<EagerRow>`eager`.as("e"), (join) => join.onRef("e.job_id", "=", "released.job_id"))
        .select([
          sql<JobStatus>`(case when e.job_id is null then 'PENDING' else 'LEASED' end)::${sql.id(schema, "job_status")}`.as(
            "status",
          ),
          sql<number>`case when e.job_id is null then 0 else 1 end`.as("attempt"),
          ifEager(p.workerId).as("worker_id"),
          ifEager(sql<Date>`clock_timestamp()`).as("leased_at"),
          ifEager(leaseEnd(p)).as("lease_expires_at"),
        ]),
    )
    .returning([...claimedColumns, "status"]);
}
