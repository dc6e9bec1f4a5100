/** Claim: due jobs in (priority desc, run_at, id) order, never the same twice (FEATURES F-J4). */
import { type QueryCreator, sql } from "kysely";
import type { JsonValue } from "../database/column-types.ts";
import { toDate } from "../database/decode.ts";
import type { Executor } from "../database/executor.ts";
import { type Placeholders, rowsOf } from "../database/parameters.ts";
import { writing } from "../database/statement.ts";
import type { LedgerTables } from "../database/tables.ts";
import { readValues } from "../database/values/read.ts";
import { LedgerError } from "../errors.ts";
import type { Lease } from "./lease.ts";
import { validInteger, validName } from "./request.ts";
import { type ScheduleTick, tickOf } from "./tick.ts";

export interface ClaimOptions {
  /** Who claims. Part of the lease. */
  readonly workerId: string;
  /** At most this many jobs, 1 to 10 000. */
  readonly limit: number;
  /** How long each lease lasts without a heartbeat, in seconds. Default 60. */
  readonly leaseSeconds?: number;
  /** Only these job types. Default: all. */
  readonly types?: readonly string[];
}

/** A job under a lease, ready to run. */
export interface ClaimedJob {
  readonly lease: Lease;
  readonly type: string;
  /** Reading it throws `undecodable` where that is not null. */
  readonly payload: JsonValue;
  /** Reading it throws `undecodable` where that is not null. */
  readonly checkpoint: JsonValue | null;
  /** Why payload or checkpoint could not be decoded; a worker fails such a job without calling its handler. Else null. */
  readonly undecodable: LedgerError | null;
  readonly organizationId: string | null;
  readonly priority: number;
  readonly maxAttempts: number;
  readonly timeoutSeconds: number;
  readonly runAt: Date;
  readonly enqueuedAt: Date;
  readonly leaseExpiresAt: Date;
  readonly workflowStepId: string | null;
  readonly tags: readonly string[];
  /** The tick of a schedule that it is for, or null. */
  readonly schedule: ScheduleTick | null;
}

const DEFAULT_LEASE_SECONDS = 60;
const MAX_CLAIM = 10_000;
const MAX_TRIES = 4;

/**
 * Claims due jobs: each becomes LEASED, with one more attempt used. Jobs of disabled and paused types stay. One
 * round trip; up to four when other sessions hold all rows that were in sight. A payload that does not decode is its job's
 * own trouble: see `undecodable`. Throws `input.invalid`.
 */
export async function claimJobs(executor: Executor, options: ClaimOptions): Promise<ClaimedJob[]> {
  const limit = validInteger(options.limit, "limit", 1) ?? 1;
  if (limit > MAX_CLAIM) throw new LedgerError("input.invalid", { message: `limit must be at most ${MAX_CLAIM}.` });
  const values = {
    limit,
    workerId: validName(options.workerId, "workerId"),
    leaseSeconds: validInteger(options.leaseSeconds, "leaseSeconds", 1) ?? DEFAULT_LEASE_SECONDS,
  };
  const types = options.types?.map((type, place) => validName(type, `types[${place}]`));
  for (let tries = 1; ; tries += 1) {
    const given = { ...values, inLaneOrder: tries === MAX_TRIES };
    const rows = types
      ? await claimOfTypes.execute(executor, { ...given, types: [...new Set(types)] })
      : await claimOfAll.execute(executor, given);
    const claimed = rows.filter(isFound);
    const contended = claimed.length === 0 && Number(rows[0]?.peeked ?? 0) > 0;
    if (!contended || tries === MAX_TRIES) return decoded(executor, claimed);
  }
}

const claimParameters = { workerId: "text", limit: "int4", leaseSeconds: "int4", inLaneOrder: "bool" } as const;
type ClaimPlaceholders = Placeholders<typeof claimParameters>;
type WithWanted = LedgerTables & { wanted: { type: string | null } };

const claimOfTypes = writing("claim_jobs", { ...claimParameters, types: "text[]" }, (db, p) =>
  claim(
    db.withRecursive("wanted(type)", (qb) =>
      qb.selectFrom(rowsOf("given", { type: p.types })).select(sql<string | null>`given.type`.as("type")),
    ),
    p,
  ),
);

// The types that have pending jobs, each found by one descent of the index from the one before.
const claimOfAll = writing("claim_jobs_of_all_types", claimParameters, (db, p) =>
  claim(
    db.withRecursive("wanted(type)", (qb) =>
      qb
        .selectFrom("job_queue as q")
        .where("q.status", "=", "PENDING")
        .select((eb) => eb.fn.min("q.type").$castTo<string | null>().as("type"))
        .unionAll((union) =>
          union
            .selectFrom("wanted")
            .where("wanted.type", "is not", null)
            .select((eb) =>
              eb
                .selectFrom("job_queue as q")
                .where("q.status", "=", "PENDING")
                .whereRef("q.type", ">", "wanted.type")
                .select(({ fn }) => fn.min("q.type").as("type"))
                .as("type"),
            ),
        ),
    ),
    p,
  ),
);

/**
 * The pending index is a set of lanes, one for each (type, priority), and each lane is in claim order.
 * `lanes` finds those of the wanted types by one index descent each, so jobs of other or paused types
 * cost nothing, and neither do jobs of a lane that are not due yet. With several lanes, `peeked` reads
 * ahead without locks to see how many of the next jobs in order each lane has (`quota`); then each
 * lane locks that many, passing over what other sessions hold. No more rows are locked than claimed.
 *
 * Sessions that hold all that was peeked at, however long, would hide what comes after. With `inLaneOrder`
 * nothing is peeked: lane after lane, highest priority first, gives what it has until there is enough.
 */
function claim(db: QueryCreator<WithWanted>, p: ClaimPlaceholders) {
  return db
    .withRecursive("lanes(type, priority)", (qb) =>
      qb
        .selectFrom("wanted as w")
        .leftJoin("job_definitions as d", "d.type", "w.type")
        .where(sql<boolean>`d.enabled is not false and d.paused is not true`)
        .select((eb) => [
          "w.type",
          eb
            .selectFrom("job_queue as q")
            .where("q.status", "=", "PENDING")
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
                .whereRef("q.type", "=", "l.type")
                .whereRef("q.priority", "<", "l.priority")
                .select(({ fn }) => fn.max("q.priority").as("priority"))
                .as("priority"),
            ]),
        ),
    )
    .with("lane", (qb) =>
      qb
        .selectFrom("lanes as l")
        .where("l.priority", "is not", null)
        .select(["l.type", "l.priority"])
        .orderBy("l.priority", "desc"),
    )
    .with("peeked", (qb) =>
      qb
        .selectFrom("lane as l")
        .innerJoinLateral(
          (eb) =>
            eb
              .selectFrom("job_queue as q")
              .where("q.status", "=", "PENDING")
              .whereRef("q.type", "=", "l.type")
              .whereRef("q.priority", "=", "l.priority")
              .where("q.run_at", "<=", sql<Date>`now()`)
              .select(["q.run_at", "q.id"])
              .orderBy("q.run_at")
              .orderBy("q.id")
              .limit(p.limit)
              .as("next"),
          (join) => join.onTrue(),
        )
        .where(sql<boolean>`(select count(*) from lane) > 1 and not ${p.inLaneOrder}`)
        .select(["l.type", "l.priority"])
        .orderBy("l.priority", "desc")
        .orderBy("next.run_at")
        .orderBy("next.id")
        .limit(p.limit),
    )
    .with("quota", (qb) =>
      qb
        .selectFrom("peeked")
        .groupBy(["peeked.type", "peeked.priority"])
        .select(({ fn }) => ["peeked.type", "peeked.priority", fn.countAll<number>().as("jobs")])
        .unionAll(
          qb
            .selectFrom("lane as l")
            .where(sql<boolean>`(select count(*) from lane) = 1 or ${p.inLaneOrder}`)
            .select(["l.type", "l.priority", sql<number>`${p.limit}`.as("jobs")]),
        ),
    )
    .with(
      (cte) => cte("due").materialized(),
      (qb) =>
        qb
          .selectFrom("quota as o")
          .innerJoinLateral(
            (eb) =>
              eb
                .selectFrom("job_queue as q")
                .where("q.status", "=", "PENDING")
                .whereRef("q.type", "=", "o.type")
                .whereRef("q.priority", "=", "o.priority")
                .where("q.run_at", "<=", sql<Date>`now()`)
                .select("q.id")
                .orderBy("q.run_at")
                .orderBy("q.id")
                .limit(sql<number>`o.jobs`)
                .forUpdate("q")
                .skipLocked()
                .as("next"),
            (join) => join.onTrue(),
          )
          .select("next.id")
          // Says nothing new, but tells the planner how few rows come out.
          .limit(p.limit),
    )
    .with("claimed", (qb) =>
      qb
        .updateTable("job_queue as q")
        // An array, not a join: whatever the planner thinks of the numbers, rows are found by primary key.
        .where(sql<boolean>`q.id = any(array(select id from due))`)
        .set((eb) => ({
          status: "LEASED",
          attempt: eb("q.attempt", "+", 1),
          worker_id: p.workerId,
          leased_at: sql<Date>`clock_timestamp()`,
          lease_expires_at: sql<Date>`clock_timestamp() + make_interval(secs => ${p.leaseSeconds})`,
        }))
        .returning([
          "q.id",
          "q.run_number",
          "q.attempt",
          "q.worker_id",
          "q.type",
          "q.organization_id",
          "q.priority",
          "q.max_attempts",
          "q.timeout_seconds",
          "q.run_at",
          "q.enqueued_at",
          "q.lease_expires_at",
          "q.workflow_run_id",
          "q.workflow_step_id",
          "q.tags",
          sql<string>`q.payload::text`.as("payload"),
          sql<string | null>`q.checkpoint::text`.as("checkpoint"),
          sql<string | null>`q.metadata::text`.as("metadata"),
        ]),
    )
    .selectFrom(sql<{ peeked: string }>`(select count(*) from peeked)`.as<"sight">(sql`sight(peeked)`))
    .leftJoin("claimed as c", (join) => join.onTrue())
    .selectAll("c")
    .select("sight.peeked")
    .orderBy("c.priority", "desc")
    .orderBy("c.run_at")
    .orderBy("c.id");
}

type ClaimedRow = Awaited<ReturnType<typeof claimOfAll.execute>>[number];
/** A row of the left join that is there: its columns are null only where the table's are. */
type FoundRow = { [K in keyof ClaimedRow]: K extends NullableColumn ? ClaimedRow[K] : NonNullable<ClaimedRow[K]> };
type NullableColumn = "organization_id" | "workflow_run_id" | "workflow_step_id" | "tags" | "checkpoint" | "metadata";

function isFound(row: ClaimedRow): row is ClaimedRow & FoundRow {
  return row.id !== null;
}

async function decoded({ settings }: Executor, rows: readonly FoundRow[]): Promise<ClaimedJob[]> {
  const payloads = await readValues(
    settings.values,
    "payload",
    rows.map(({ payload }) => payload),
  );
  const checkpoints = await readValues(
    settings.values,
    "checkpoint",
    rows.map(({ checkpoint }) => checkpoint),
  );
  return rows.map((row, place) => {
    const undecodable = payloads.errors.get(place) ?? checkpoints.errors.get(place);
    if (undecodable !== undefined) return undecodableJob(row, undecodable);
    return claimedJob(row, payloads.at(place), checkpoints.at(place));
  });
}

/** Whoever overlooks that it could not be decoded is not given something else for it. */
function undecodableJob(row: FoundRow, undecodable: LedgerError): ClaimedJob {
  const refuse = (): never => {
    throw undecodable;
  };
  const refused = { get: refuse, enumerable: true };
  const job = { ...claimedJob(row, null, null), undecodable };
  return Object.defineProperties(job, { payload: refused, checkpoint: refused });
}

function claimedJob(row: FoundRow, payload: JsonValue, checkpoint: JsonValue | null): ClaimedJob {
  return {
    lease: {
      jobId: row.id,
      runNumber: row.run_number,
      attempt: row.attempt,
      workerId: row.worker_id,
      workflowRunId: row.workflow_run_id,
    },
    type: row.type,
    payload,
    checkpoint,
    undecodable: null,
    organizationId: row.organization_id,
    priority: row.priority,
    maxAttempts: row.max_attempts,
    timeoutSeconds: row.timeout_seconds,
    runAt: toDate(row.run_at),
    enqueuedAt: toDate(row.enqueued_at),
    leaseExpiresAt: toDate(row.lease_expires_at),
    workflowStepId: row.workflow_step_id,
    tags: row.tags ?? [],
    schedule: tickOf(row.metadata),
  };
}
