/** What the keys that are held have room for, and the claim of that and of jobs without a limit in one order. */
import { type QueryCreator, type RawBuilder, sql } from "kysely";
import { announceJobs } from "../database/announce.ts";
import { type Placeholders, rowsOf } from "../database/parameters.ts";
import { writing } from "../database/statement.ts";
import {
  claimParameters,
  leased,
  lockedOfQuota,
  nextInLanes,
  rowPlace,
  startable,
  type WithWanted,
  withGivenTypes,
  withLanes,
  withPendingTypes,
} from "./lanes.ts";
import { everyType } from "./limit-wakes.ts";
import { tenantOf } from "./limits.ts";

const parameters = { ...claimParameters, tenants: "text[]", keys: "text[]", notify: "bool" } as const;
type HeldPlaceholders = Placeholders<typeof parameters>;

export const claimHeldOfTypes = writing("claim_limited_jobs", { ...parameters, types: "text[]" }, (db, p, schema) =>
  claimHeld(withGivenTypes(db, p.types), p, sql<boolean>`l.type = any(${p.types})`, schema),
);

export const claimHeldOfAll = writing("claim_limited_jobs_of_all_types", parameters, (db, p, schema) =>
  claimHeld(withPendingTypes(db), p, sql<boolean>`true`, schema),
);

/** A rate's period is divided into so many buckets; a start counts until the period has passed since its bucket's end. */
const BUCKETS = 50;

/** More than any claim takes. */
const UNBOUNDED = sql.lit(1_000_000);

/** Due wakes of the keys: whoever holds a key answers them all, whatever their types. */
const dueWakes = sql<boolean>`w.due_at <= now()`;

/**
 * `key` says what each key may have, `key_lane` finds its lanes (type and priority) by one index descent each, `next`
 * merges the first jobs of those that are wanted with the jobs without a limit, and `claimed` leases them. Then the due
 * wakes of the keys are answered: where room and due jobs are left, each lane gets a new one; where a rate is used up,
 * the key gets one for the time at which the next start is free; where all slots are taken, whoever frees one writes it.
 *
 * What another session commits after this statement's snapshot comes with a wake that it does not see, and leaves.
 */
function claimHeld(db: QueryCreator<WithWanted>, p: HeldPlaceholders, isWanted: RawBuilder<boolean>, schema: string) {
  return (
    withLanes(db)
      .with(
        (cte) => cte("setting").materialized(),
        (qb) =>
          qb
            .selectFrom(rowsOf("held", { tenant: p.tenants, key: p.keys }))
            .innerJoinLateral(
              (eb) =>
                eb
                  .selectFrom("job_limits as k")
                  .whereRef("k.tenant", "=", "held.tenant")
                  .whereRef("k.key", "=", "held.key")
                  .selectAll("k")
                  .offset(0)
                  .as("k"),
              (join) => join.onTrue(),
            )
            // The settings of the job enqueued last, of those whose wakes are answered here.
            .leftJoinLateral(
              (eb) =>
                eb
                  .selectFrom("job_limit_wakes as w")
                  .whereRef("w.tenant", "=", "held.tenant")
                  .whereRef("w.key", "=", "held.key")
                  .where(dueWakes)
                  .where(sql<boolean>`coalesce(w.concurrency, w.starts) is not null`)
                  .where(sql<boolean>`(k.settings_job_id is null or w.job_id > k.settings_job_id)`)
                  .select(["w.job_id", "w.concurrency", "w.starts", "w.period_seconds"])
                  .orderBy("w.job_id", "desc")
                  .limit(1)
                  .as("newer"),
              (join) => join.onTrue(),
            )
            .innerJoinLateral(
              (eb) =>
                eb
                  .selectFrom("job_queue as q")
                  .where("q.status", "=", "LEASED")
                  .whereRef("q.limit_key", "=", "held.key")
                  .where(sql<boolean>`${tenantOf("q")} = held.tenant`)
                  .select(({ fn }) => fn.countAll<string>().as("count"))
                  .as("leased"),
              (join) => join.onTrue(),
            )
            .select([
              "held.tenant",
              "held.key",
              "k.bucket_ends",
              "k.bucket_starts",
              "k.wake_at",
              "leased.count as leased",
              sql<Date>`clock_timestamp()`.as("looked_at"),
              sql<boolean>`newer.job_id is not null`.as("changed"),
              sql<string | null>`coalesce(newer.job_id, k.settings_job_id)`.as("settings_job_id"),
              newest("concurrency"),
              newest("starts"),
              newest("period_seconds"),
            ]),
      )
      .with(
        (cte) => cte("key").materialized(),
        (qb) =>
          qb
            .selectFrom("setting as s")
            .innerJoinLateral(
              sql<{ used: string }>`(
              select coalesce(sum(bucket.starts), 0) from unnest(s.bucket_ends, s.bucket_starts) as bucket(ends_at, starts)
              where bucket.ends_at + make_interval(secs => s.period_seconds) > s.looked_at
            )`.as<"rate">(sql`rate(used)`),
              (join) => join.onTrue(),
            )
            .selectAll("s")
            // Without a bound there is room for more than a claim can take, whatever it takes.
            .select([
              sql<number>`greatest(0, coalesce(s.concurrency - s.leased, ${UNBOUNDED}))`.as("slots"),
              sql<number>`greatest(0, coalesce(s.starts - rate.used, ${UNBOUNDED}))`.as("starts_left"),
            ]),
      )
      .withRecursive("key_lanes(tenant, key, type, priority)", (qb) =>
        qb
          .selectFrom("key as k")
          .innerJoinLateral(
            (eb) =>
              eb
                .selectFrom("job_queue as q")
                .where("q.status", "=", "PENDING")
                .whereRef("q.limit_key", "=", "k.key")
                .where(sql<boolean>`${tenantOf("q")} = k.tenant`)
                .select(["q.type", "q.priority"])
                .orderBy("q.type")
                .orderBy("q.priority")
                .limit(1)
                .as("first"),
            (join) => join.onTrue(),
          )
          .where("k.slots", ">", 0)
          .select(["k.tenant", "k.key", "first.type", "first.priority"])
          .unionAll((union) =>
            union
              .selectFrom("key_lanes as l")
              .innerJoinLateral(
                (eb) =>
                  eb
                    .selectFrom("job_queue as q")
                    .where("q.status", "=", "PENDING")
                    .whereRef("q.limit_key", "=", "l.key")
                    .where(sql<boolean>`${tenantOf("q")} = l.tenant`)
                    .where(sql<boolean>`(q.type, q.priority) > (l.type, l.priority)`)
                    .select(["q.type", "q.priority"])
                    .orderBy("q.type")
                    .orderBy("q.priority")
                    .limit(1)
                    .as("next"),
                (join) => join.onTrue(),
              )
              .select(["l.tenant", "l.key", "next.type", "next.priority"]),
          ),
      )
      .with(
        (cte) => cte("key_lane").materialized(),
        (qb) =>
          qb
            .selectFrom("key_lanes as l")
            .innerJoin("key as k", (join) => join.onRef("k.tenant", "=", "l.tenant").onRef("k.key", "=", "l.key"))
            .leftJoin("job_definitions as d", "d.type", "l.type")
            .select(["l.tenant", "l.key", "l.type", "l.priority"])
            .select([
              sql<number>`least(k.slots, k.starts_left, ${p.limit})`.as("room"),
              isWanted.as("is_wanted"),
              startable.as("is_startable"),
            ]),
      )
      .with("of_keys", (qb) =>
        qb
          .selectFrom("key_lane as l")
          .innerJoinLateral(
            (eb) =>
              eb
                .selectFrom("job_queue as q")
                .where("q.status", "=", "PENDING")
                .whereRef("q.limit_key", "=", "l.key")
                .where(sql<boolean>`${tenantOf("q")} = l.tenant`)
                .whereRef("q.type", "=", "l.type")
                .whereRef("q.priority", "=", "l.priority")
                .where("q.run_at", "<=", sql<Date>`now()`)
                .select(["q.run_at", "q.id"])
                .orderBy("q.run_at")
                .orderBy("q.id")
                .limit(sql<number>`l.room`)
                .as("next"),
            (join) => join.onTrue(),
          )
          .where("l.is_wanted", "=", true)
          .where("l.is_startable", "=", true)
          .select(["l.type", "l.priority", "next.run_at", "next.id", "l.room"])
          .select(
            sql<number>`row_number() over (partition by l.tenant, l.key order by l.priority desc, next.run_at, next.id)`.as(
              "place",
            ),
          ),
      )
      .with("in_lanes", (qb) =>
        nextInLanes(qb, p.limit).select([
          "l.type",
          "l.priority",
          "next.run_at",
          "next.id",
          sql<boolean>`false`.as("has_limit"),
        ]),
      )
      .with(
        (cte) => cte("next").materialized(),
        (qb) =>
          qb
            .selectFrom("in_lanes")
            .selectAll()
            .unionAll(
              qb
                .selectFrom("of_keys as o")
                .whereRef("o.place", "<=", "o.room")
                .select(["o.type", "o.priority", "o.run_at", "o.id", sql<boolean>`true`.as("has_limit")]),
            )
            .orderBy("priority", "desc")
            .orderBy("run_at")
            .orderBy("id")
            .limit(p.limit),
      )
      .with("quota", (qb) =>
        qb
          .selectFrom("next")
          .where("next.has_limit", "=", false)
          .groupBy(["next.type", "next.priority"])
          .select(({ fn }) => ["next.type", "next.priority", fn.countAll<number>().as("jobs")]),
      )
      .with(
        (cte) => cte("due").materialized(),
        (qb) => lockedOfQuota(qb, p.limit),
      )
      .with(
        (cte) => cte("due_of_keys").materialized(),
        (qb) =>
          qb
            .selectFrom("job_queue as q")
            .where(sql<boolean>`q.id = any(array(select id from next where has_limit))`)
            .where("q.status", "=", "PENDING")
            .select(rowPlace)
            .forUpdate("q")
            .skipLocked(),
      )
      .with("claimed", (qb) =>
        leased(qb, sql`select tid from due union all select tid from due_of_keys`, p).returning("q.leased_at"),
      )
      .with("taken", (qb) =>
        qb
          .selectFrom("claimed as q")
          .where("q.limit_key", "is not", null)
          .groupBy(["q.limit_key", tenantOf("q")])
          .select([
            tenantOf("q").as("tenant"),
            "q.limit_key as key",
            sql<number>`count(*)::integer`.as("jobs"),
            sql<Date>`max(q.leased_at)`.as("last_at"),
          ]),
      )
      .with(
        (cte) => cte("key_after").materialized(),
        (qb) =>
          qb
            .selectFrom("key as k")
            .leftJoin("taken as t", (join) => join.onRef("t.tenant", "=", "k.tenant").onRef("t.key", "=", "k.key"))
            .innerJoinLateral(bucketsAfter, (join) => join.onTrue())
            .selectAll("k")
            .select([
              "after.ends",
              "after.counts",
              "after.free_at",
              sql<boolean>`t.jobs is not null and k.starts is not null`.as("started"),
              sql<number>`k.slots - coalesce(t.jobs, 0)`.as("slots_after"),
              sql<number>`k.starts_left - coalesce(t.jobs, 0)`.as("starts_after"),
            ]),
      )
      .with(
        (cte) => cte("left_over").materialized(),
        (qb) =>
          qb
            .selectFrom("key_after as k")
            // From the keys that have room left, which are few: as a join it may be made of all lanes with all keys.
            .innerJoinLateral(
              (eb) =>
                eb
                  .selectFrom("key_lane as l")
                  .whereRef("l.tenant", "=", "k.tenant")
                  .whereRef("l.key", "=", "k.key")
                  .selectAll("l")
                  .offset(0)
                  .as("l"),
              (join) => join.onTrue(),
            )
            .innerJoinLateral(
              (eb) =>
                eb
                  .selectFrom("job_queue as q")
                  .where("q.status", "=", "PENDING")
                  .whereRef("q.limit_key", "=", "l.key")
                  .where(sql<boolean>`${tenantOf("q")} = l.tenant`)
                  .whereRef("q.type", "=", "l.type")
                  .whereRef("q.priority", "=", "l.priority")
                  .where("q.run_at", "<=", sql<Date>`now()`)
                  .where(sql<boolean>`q.id not in (select id from claimed)`)
                  .select(["q.run_at", "q.id"])
                  .orderBy("q.run_at")
                  .orderBy("q.id")
                  .limit(1)
                  .as("waiting"),
              (join) => join.onTrue(),
            )
            .where("k.slots_after", ">", 0)
            .select([
              "k.tenant",
              "k.key",
              "l.type",
              "l.priority",
              "waiting.run_at",
              "waiting.id",
              "k.starts_after",
              sql<boolean>`l.is_startable and not l.is_wanted`.as("is_for_others"),
            ]),
      )
      // One that is there already, and earlier, will do. It ranks as the first job that waits for it.
      .with("timed", (qb) =>
        qb
          .selectFrom("key_after as k")
          .innerJoinLateral(
            (eb) =>
              eb
                .selectFrom("left_over as l")
                .whereRef("l.tenant", "=", "k.tenant")
                .whereRef("l.key", "=", "k.key")
                .select(["l.priority", "l.id"])
                .orderBy("l.priority", "desc")
                .orderBy("l.run_at")
                .limit(1)
                .as("first"),
            (join) => join.onTrue(),
          )
          .where("k.starts_after", "<=", 0)
          .where(sql<boolean>`coalesce(k.wake_at <= now() or k.wake_at > k.free_at, true)`)
          .select(["k.tenant", "k.key", "k.free_at", "first.priority", "first.id"]),
      )
      .with("answered", (qb) =>
        qb
          .deleteFrom("job_limit_wakes as a")
          .where(
            sql<boolean>`a.ctid = any(array(${qb
              .selectFrom("setting as s")
              .innerJoinLateral(
                (eb) =>
                  eb
                    .selectFrom("job_limit_wakes as w")
                    .whereRef("w.tenant", "=", "s.tenant")
                    .whereRef("w.key", "=", "s.key")
                    .where(dueWakes)
                    .select(sql`w.ctid`.as("ctid"))
                    .offset(0)
                    .as("w"),
                (join) => join.onTrue(),
              )
              .select("w.ctid")}))`,
          )
          .returning(["a.tenant", "a.key", "a.type"]),
      )
      .with("woken", (qb) =>
        qb
          .insertInto("job_limit_wakes")
          .columns(["tenant", "key", "due_at", "type", "priority", "job_id"])
          .expression((eb) =>
            eb
              .selectFrom("left_over as l")
              .where("l.starts_after", ">", 0)
              .select(["l.tenant", "l.key", "l.run_at", "l.type", "l.priority", "l.id"])
              .unionAll(
                eb
                  .selectFrom("timed as t")
                  .select([
                    "t.tenant",
                    "t.key",
                    "t.free_at as run_at",
                    sql<string>`${everyType}`.as("type"),
                    "t.priority",
                    "t.id",
                  ]),
              ),
          ),
      )
      .with("kept", (qb) =>
        qb
          .updateTable("job_limits as k")
          .from("key_after as a")
          .leftJoin("timed as t", (join) => join.onRef("t.tenant", "=", "a.tenant").onRef("t.key", "=", "a.key"))
          .whereRef("k.tenant", "=", "a.tenant")
          .whereRef("k.key", "=", "a.key")
          .where(sql<boolean>`(a.changed or a.started or t.key is not null)`)
          .set((eb) => ({
            settings_job_id: eb.ref("a.settings_job_id"),
            concurrency: eb.ref("a.concurrency"),
            starts: eb.ref("a.starts"),
            period_seconds: eb.ref("a.period_seconds"),
            bucket_ends: sql<Date[]>`a.ends`,
            bucket_starts: sql<number[]>`a.counts`,
            wake_at: sql<Date | null>`coalesce(t.free_at, a.wake_at)`,
          })),
      )
      .selectFrom(
        sql<{ announced: unknown }>`(select ${announceJobs(p.notify, schema, newToOthers)})`.as<"told">(
          sql`told(announced)`,
        ),
      )
      .leftJoin("claimed as c", (join) => join.onTrue())
      .selectAll("c")
  );
}

/** A setting of the newest wake, where one is newer than what is known. */
function newest<Column extends "concurrency" | "starts" | "period_seconds">(column: Column) {
  return sql<
    number | null
  >`case when newer.job_id is null then ${sql.ref(`k.${column}`)} else ${sql.ref(`newer.${column}`)} end`.as(column);
}

/** The buckets of key `k` that count, with what was started now, and when the first of them counts no more. */
const bucketsAfter = sql<{ ends: Date[]; counts: number[]; free_at: Date }>`(
  select coalesce(array_agg(bucket.ends_at order by bucket.ends_at), '{}'),
    coalesce(array_agg(bucket.starts order by bucket.ends_at), '{}'),
    min(bucket.ends_at) + make_interval(secs => k.period_seconds)
  from (
    select counted.ends_at, sum(counted.starts)::integer as starts
    from (
      select old.ends_at, old.starts from unnest(k.bucket_ends, k.bucket_starts) as old(ends_at, starts)
      where old.ends_at + make_interval(secs => k.period_seconds) > k.looked_at
      union all
      select ${bucketEnd()}, t.jobs where t.jobs is not null and k.starts is not null
    ) as counted
    group by counted.ends_at
  ) as bucket
)`.as<"after">(sql`after(ends, counts, free_at)`);

/** Never before the start itself, whatever the rounding. */
function bucketEnd() {
  const width = sql`(k.period_seconds / ${sql.lit(BUCKETS)})`;
  return sql`greatest(t.last_at, to_timestamp(ceil(extract(epoch from t.last_at)::float8 / ${width}) * ${width}))`;
}

/** Jobs that are left for workers of other types, whose wake was for all types until now. */
const newToOthers = sql`
  select from left_over as l
  where l.is_for_others and l.starts_after > 0 and not exists (
    select from answered as a where a.tenant = l.tenant and a.key = l.key and a.type = l.type
  )`;
