/** The lanes of a claim: how due jobs without a limit are found in order, locked and leased. */
import { type QueryCreator, type RawBuilder, sql } from "kysely";
import { type Placeholders, rowsOf } from "../database/parameters.ts";
import type { LedgerTables } from "../database/tables.ts";
import { claimedColumns } from "./claimed.ts";

export const claimParameters = { workerId: "text", limit: "int4", leaseSeconds: "int4" } as const;
export type ClaimPlaceholders = Placeholders<typeof claimParameters>;

export type WithWanted = LedgerTables & { wanted: { type: string | null } };
export type WithLanes = WithWanted & { lane: LaneRow };
export interface LaneRow {
  readonly type: string | null;
  readonly priority: number | null;
}
interface QuotaRow extends LaneRow {
  readonly jobs: number;
}

/** Starts a claim of the given types with the CTE `wanted`. */
export function withGivenTypes(db: QueryCreator<LedgerTables>, types: RawBuilder<readonly string[]>) {
  return db.withRecursive("wanted(type)", (qb) => givenTypes(qb, types));
}

export function givenTypes(qb: QueryCreator<LedgerTables>, types: RawBuilder<readonly string[]>) {
  return qb.selectFrom(rowsOf("given", { type: types })).select(sql<string | null>`given.type`.as("type"));
}

/** The same with the types that have pending jobs, each found by one descent of the index from the one before. */
export function withPendingTypes(db: QueryCreator<LedgerTables>) {
  return db.withRecursive("wanted(type)", (qb) =>
    qb
      .selectFrom("job_queue as q")
      .where("q.status", "=", "PENDING")
      .where("q.limit_key", "is", null)
      .select((eb) => eb.fn.min("q.type").$castTo<string | null>().as("type"))
      .unionAll((union) =>
        union
          .selectFrom("wanted")
          .where("wanted.type", "is not", null)
          .select((eb) =>
            eb
              .selectFrom("job_queue as q")
              .where("q.status", "=", "PENDING")
              .where("q.limit_key", "is", null)
              .whereRef("q.type", ">", "wanted.type")
              .select(({ fn }) => fn.min("q.type").as("type"))
              .as("type"),
          ),
      ),
  );
}

/** A type whose definition `d` (which may be missing) lets its jobs start. */
export const startable = sql<boolean>`d.enabled is not false and d.paused is not true`;

/** Adds the CTE `lane`: those of the wanted types that may start, highest priority first. */
export function withLanes<DB extends WithWanted>(db: QueryCreator<DB>): QueryCreator<DB & WithLanes>;
export function withLanes(db: QueryCreator<WithWanted>) {
  return db
    .withRecursive("lanes(type, priority)", (qb) =>
      qb
        .selectFrom("wanted as w")
        .leftJoin("job_definitions as d", "d.type", "w.type")
        .where(startable)
        .select((eb) => [
          "w.type",
          eb
            .selectFrom("job_queue as q")
            .where("q.status", "=", "PENDING")
            .where("q.limit_key", "is", null)
            .whereRef("q.type", "=", "w.type")
            .select(({ fn }) => fn.max("q.priority").as("priority"))
            .as("priority"),
        ])
        .unionAll((union) =>
          union
            .selectFrom("lanes as l")
            .where("l.priority", "is not", null)
            .select((eb) => [
              "l.type",
              eb
                .selectFrom("job_queue as q")
                .where("q.status", "=", "PENDING")
                .where("q.limit_key", "is", null)
                .whereRef("q.type", "=", "l.type")
                .whereRef("q.priority", "<", "l.priority")
                .select(({ fn }) => fn.max("q.priority").as("priority"))
                .as("priority"),
            ]),
        ),
    )
    .with("lane", (qb) => qb.selectFrom(lanesByPriority).selectAll());
}

/** What the CTEs have, highest priority first. */
const lanesByPriority = few("lane", "lanes", ["type", "priority"]);
const quotaByPriority = few("o", "quota", ["type", "priority", "jobs"]);

/**
 * A CTE of lanes by way of arrays: of a recursive query or an aggregate the planner expects so many rows that no plan for
 * any values looks good to it.
 */
function few<A extends string, Column extends keyof QuotaRow>(alias: A, source: string, columns: readonly Column[]) {
  const inOrder = sql`from ${sql.id(source)} where priority is not null order by priority desc, type`;
  const arrays = columns.map((column) => sql`array(select ${sql.id(column)} ${inOrder})`);
  const names = sql.join(columns.map((column) => sql.id(column)));
  return sql<Pick<QuotaRow, Column>>`unnest(${sql.join(arrays)})`.as<A>(sql`${sql.id(alias)}(${names})`);
}

/** The next jobs in order over all lanes, not locked. */
export function nextInLanes(qb: QueryCreator<LedgerTables & { lane: LaneRow }>, limit: RawBuilder<number>) {
  return qb
    .selectFrom("lane as l")
    .innerJoinLateral(
      (eb) =>
        eb
          .selectFrom("job_queue as q")
          .where("q.status", "=", "PENDING")
          .where("q.limit_key", "is", null)
          .whereRef("q.type", "=", "l.type")
          .whereRef("q.priority", "=", "l.priority")
          .where("q.run_at", "<=", sql<Date>`now()`)
          .select(["q.run_at", "q.id"])
          .orderBy("q.run_at")
          .orderBy("q.id")
          .limit(limit)
          .as("next"),
      (join) => join.onTrue(),
    )
    .orderBy("l.priority", "desc")
    .orderBy("next.run_at")
    .orderBy("next.id")
    .limit(limit);
}

/** Locks as many jobs of each lane as its `quota` says, passing over what other sessions hold. */
export function lockedOfQuota(qb: QueryCreator<LedgerTables & { quota: QuotaRow }>, limit: RawBuilder<number>) {
  return (
    qb
      .selectFrom(quotaByPriority)
      .innerJoinLateral(
        (eb) =>
          eb
            .selectFrom("job_queue as q")
            .where("q.status", "=", "PENDING")
            .where("q.limit_key", "is", null)
            .whereRef("q.type", "=", "o.type")
            .whereRef("q.priority", "=", "o.priority")
            .where("q.run_at", "<=", sql<Date>`now()`)
            .select(rowPlace)
            .orderBy("q.run_at")
            .orderBy("q.id")
            .limit(sql<number>`o.jobs`)
            .forUpdate("q")
            .skipLocked()
            .as("next"),
        (join) => join.onTrue(),
      )
      .select("next.tid")
      // Says nothing new, but tells the planner how few rows come out.
      .limit(limit)
  );
}

/** Where a row of job_queue `q` is stored: a row that this statement has locked stays there for the rest of it. */
export const rowPlace = sql<string>`q.ctid`.as("tid");

/**
 * Leases the locked jobs at `places`. By place, not by id: they need not be looked up again, whatever the planner thinks of
 * their number. One that another session changed between this statement's snapshot and the lock is left for the next claim.
 */
export function leased(qb: QueryCreator<LedgerTables>, places: RawBuilder<unknown>, p: ClaimPlaceholders) {
  return qb
    .updateTable("job_queue as q")
    .where(sql<boolean>`q.ctid = any(array(${places}))`)
    .set((eb) => ({
      status: "LEASED",
      attempt: eb("q.attempt", "+", 1),
      worker_id: p.workerId,
      leased_at: sql<Date>`clock_timestamp()`,
      lease_expires_at: leaseEnd(p),
      // What is asked for from now on is not in the payload that the handler gets.
      debounce_key: null,
    }))
    .returning(claimedColumns);
}

export function leaseEnd({ leaseSeconds }: Pick<ClaimPlaceholders, "leaseSeconds">) {
  return sql<Date>`clock_timestamp() + make_interval(secs => ${leaseSeconds})`;
}
