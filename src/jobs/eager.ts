/**
 * Eager claims: who completes a step gets the jobs that this releases under its lease at once, where a claim of its own would
 * take them next. They are in the queue as LEASED from the start, which saves the claim and a version of each row.
 */
import { type QueryCreator, type RawBuilder, sql } from "kysely";
import { type Placeholders, unseen } from "../database/parameters.ts";
import type { JobStatus } from "../database/statuses.ts";
import type { LedgerTables } from "../database/tables.ts";
import { LedgerError } from "../errors.ts";
import { type ClaimOptions, validClaim } from "./claim.ts";
import { claimedColumns } from "./claimed.ts";
import { type ReleasedRow, releasedColumns, releasedRows } from "./insertion.ts";
import { claimParameters, givenTypes, leaseEnd, nextInLanes, startable, withLanes } from "./lanes.ts";
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

/**
 * Inserts the jobs of the CTE `released`, some of them leased: none while `others` are due that a claim would take first,
 * so that claims keep their order and nobody waits behind a chain without end, and none with a limit, which only who holds
 * its key may start.
 *
 * They are numbered, not joined with a list of those that are leased: the planner takes such lists for short, and would
 * compare each with each.
 */
export function insertReleasedEagerly(db: QueryCreator<WithReleased>, p: EagerPlaceholders, schema: string) {
  return withLanes(db.with("wanted", (qb) => givenTypes(qb, p.types)))
    .with("look", (qb) => qb.selectFrom("wanted").select("wanted.type"))
    .with(
      (cte) => cte("others").materialized(),
      (qb) => {
        const next = nextInLanes(qb, sql.lit(1)).select("next.id");
        return qb.selectNoFrom(sql<boolean>`exists (${next}) or ${anyWakeDue(qb)}`.as("due"));
      },
    )
    .with("eligible", (qb) => releasedRows(qb).select(isEligible.as("may_be_leased")))
    .with("placed", (qb) => {
      const place = sql`row_number() over (partition by e.may_be_leased order by e.priority desc, e.id)`;
      return qb
        .selectFrom("eligible as e")
        .selectAll("e")
        .select(sql<boolean>`e.may_be_leased and ${place} <= ${unseen(p.limit)}`.as("is_leased"));
    })
    .with("inserted", (qb) =>
      qb
        .insertInto("job_queue")
        .columns([...releasedColumns, "status", "attempt", "worker_id", "leased_at", "lease_expires_at"])
        .expression((eb) =>
          eb
            .selectFrom("placed as r")
            .select([
              ...releasedColumns.map((column) => `r.${column}` as const),
              sql<JobStatus>`(case when r.is_leased then 'LEASED' else 'PENDING' end)::${sql.id(schema, "job_status")}`.as(
                "status",
              ),
              sql<number>`case when r.is_leased then 1 else 0 end`.as("attempt"),
              ifLeased(p.workerId).as("worker_id"),
              ifLeased(sql<Date>`clock_timestamp()`).as("leased_at"),
              ifLeased(leaseEnd(p)).as("lease_expires_at"),
            ]),
        )
        .returning([...claimedColumns, "status"]),
    );
}

/** A row of `released` that could be leased, with its definition `d`. */
const isEligible = sql<boolean>`released.job_type in (select w.type from wanted as w) and ${startable}
  and released.limit_key is null and coalesce(released.delay_seconds, 0) = 0 and not (select o.due from others as o)`;

function ifLeased<T>(value: RawBuilder<T>) {
  return sql<T | null>`case when r.is_leased then ${value} end`;
}
