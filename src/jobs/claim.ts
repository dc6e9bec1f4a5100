/** Claim: due jobs in (priority desc, run_at, id) order, never the same twice (FEATURES F-J4). */
import { type QueryCreator, sql } from "kysely";
import { toNumber } from "../database/decode.ts";
import type { Executor } from "../database/executor.ts";
import { type Placeholders, unseen } from "../database/parameters.ts";
import { writing } from "../database/statement.ts";
import { LedgerError } from "../errors.ts";
import { validInteger, validName } from "./arguments.ts";
import { type ClaimedJob, type ClaimedRow, claimedJobs, inClaimOrder, isClaimed } from "./claimed.ts";
import {
  claimParameters,
  leased,
  lockedOfQuota,
  nextInLanes,
  type WithLanes,
  withGivenTypes,
  withLanes,
  withPendingTypes,
} from "./lanes.ts";
import { anyWakeDue, type WithLook, withWakeTypes } from "./limit-wakes.ts";
import { type ClaimPart, type ClaimRequest, claimLimited } from "./limited-claim.ts";

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

const DEFAULT_LEASE_SECONDS = 60;
const MAX_CLAIM = 10_000;
const MAX_TRIES = 4;

/**
 * Claims due jobs: each becomes LEASED, with one more attempt used. Jobs of disabled and paused types stay, and
 * those whose limit is reached. One round trip while no job with a limit is worth a look, and four more when some is;
 * up to four times as many when other sessions hold all rows that were in sight. A payload that does not decode is its
 * job's own trouble: see `undecodable`. Throws `input.invalid`, and `job.claim_unsupported_isolation` where limits are to be
 * looked at.
 */
export async function claimJobs(executor: Executor, options: ClaimOptions): Promise<ClaimedJob[]> {
  const request = validClaim(options);
  const claimed: ClaimedRow[] = [];
  for (let tries = 1; ; tries += 1) {
    const part = { ...request, limit: request.limit - claimed.length };
    const { rows, more } = await claimOnce(executor, part, tries === MAX_TRIES);
    claimed.push(...rows.filter(isClaimed));
    if (!more || tries === MAX_TRIES || claimed.length >= request.limit) break;
  }
  return claimedJobs(executor, request.workerId, claimed.sort(inClaimOrder));
}

/** Throws `input.invalid`. */
export function validClaim(options: ClaimOptions): ClaimRequest {
  const limit = validInteger(options.limit, "limit", 1) ?? 1;
  if (limit > MAX_CLAIM) throw new LedgerError("input.invalid", { message: `limit must be at most ${MAX_CLAIM}.` });
  const types = options.types?.map((type, place) => validName(type, `types[${place}]`));
  return {
    limit,
    workerId: validName(options.workerId, "workerId"),
    leaseSeconds: validInteger(options.leaseSeconds, "leaseSeconds", 1) ?? DEFAULT_LEASE_SECONDS,
    types: types === undefined ? null : [...new Set(types)],
  };
}

/** The last try takes jobs without a limit lane after lane: there is something to be had while anything is free. */
async function claimOnce(executor: Executor, request: ClaimRequest, isLast: boolean): Promise<ClaimPart> {
  const { types, ...values } = request;
  const given = { ...values, inLaneOrder: isLast, unlimitedOnly: isLast };
  const rows =
    types === null
      ? await claimOfAll.execute(executor, given)
      : await claimOfTypes.execute(executor, { ...given, types });
  if (rows[0]?.limited === true) return claimLimited(executor, request);
  return { rows, more: rows.every(({ id }) => id === null) && toNumber(rows[0]?.peeked ?? 0) > 0 };
}

const parameters = { ...claimParameters, inLaneOrder: "bool", unlimitedOnly: "bool" } as const;

const claimOfTypes = writing("claim_jobs", { ...parameters, types: "text[]" }, (db, p) =>
  claim(
    withLanes(withGivenTypes(db, p.types)).with("look", (qb) => qb.selectFrom("wanted").select("wanted.type")),
    p,
  ),
);

const claimOfAll = writing("claim_jobs_of_all_types", parameters, (db, p) =>
  claim(withWakeTypes(withLanes(withPendingTypes(db))), p),
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
 *
 * Jobs with a limit are in no lane. Where one of them may be next, nothing is claimed: `limited` says so. A claim of
 * nothing answers one row without a job.
 */
function claim(db: QueryCreator<WithLanes & WithLook>, p: Placeholders<typeof parameters>) {
  const free = sql<boolean>`not (select limits.found from limits)`;
  const limit = unseen(p.limit);
  return db
    .with(
      (cte) => cte("limits").materialized(),
      (qb) => qb.selectNoFrom(sql<boolean>`not ${p.unlimitedOnly} and ${anyWakeDue(qb)}`.as("found")),
    )
    .with("peeked", (qb) =>
      nextInLanes(qb, limit)
        .where(free)
        .where(sql<boolean>`(select count(*) from lane) > 1 and not ${p.inLaneOrder}`)
        .select(["l.type", "l.priority"]),
    )
    .with("quota", (qb) =>
      qb
        .selectFrom("peeked")
        .groupBy(["peeked.type", "peeked.priority"])
        .select(({ fn }) => ["peeked.type", "peeked.priority", fn.countAll<number>().as("jobs")])
        .unionAll(
          qb
            .selectFrom("lane as l")
            .where(free)
            .where(sql<boolean>`(select count(*) from lane) = 1 or ${p.inLaneOrder}`)
            .select(["l.type", "l.priority", sql<number>`${limit}`.as("jobs")]),
        ),
    )
    .with(
      (cte) => cte("due").materialized(),
      (qb) => lockedOfQuota(qb, limit),
    )
    .with("claimed", (qb) => leased(qb, sql`select tid from due`, p))
    .selectFrom("limits")
    .leftJoin("claimed as c", (join) => join.on(sql<boolean>`false`))
    .where(sql<boolean>`not exists (select from claimed)`)
    .selectAll("c")
    .select(["limits.found as limited", sql<number>`(select count(*) from peeked)::int4`.as("peeked")])
    .unionAll((eb) =>
      eb
        .selectFrom("claimed as c")
        .selectAll("c")
        .select([sql<boolean>`false`.as("limited"), sql<number>`0`.as("peeked")]),
    );
}
