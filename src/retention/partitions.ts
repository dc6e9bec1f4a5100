/** Partitions of the ledger: made ahead, and dropped when everything in them is past (FEATURES F-H2). */
import { type RawBuilder, sql } from "kysely";
import type { Executor } from "../database/executor.ts";
import { reading, writing } from "../database/statement.ts";
import { inOwnTransaction, inTransaction } from "../database/transaction.ts";
import { isLedgerError } from "../errors.ts";
import { validInteger } from "../jobs/arguments.ts";
import { capLockTimeout, withBoundedWait } from "../locks/wait.ts";
import { isRemovable } from "./jobs.ts";
import { idBefore, type PreparedAges } from "./policies.ts";
import { takeTurn } from "./turn.ts";

const DEFAULT_WEEKS = 8;
const MAX_WEEKS = 520;
/** While a lock on the whole ledger is waited for, everybody else waits behind it. */
const LOCK_WAIT_MS = 100;
const DROP_TRIES = 5;
const PAUSE_MS = 200;
const SIDE_ROWS = 5_000;

/**
 * Makes the ledger's partitions for this week and so many to come, 8 unless told otherwise; answers with the names
 * of those that are new. Waits for locks at most 100 ms, twice. Six round trips. Throws `input.invalid`, `db.lock_timeout`.
 */
export async function ensurePartitions(executor: Executor, weeksAhead?: number): Promise<string[]> {
  const weeks = validInteger(weeksAhead, "weeksAhead", 0, MAX_WEEKS) ?? DEFAULT_WEEKS;
  const rows = await inTransaction(executor, (trx) =>
    withBoundedWait(impatient(trx), () => ensure.execute(trx, { weeks })),
  );
  return rows.map(({ name }) => name);
}

function impatient(executor: Executor): Executor {
  const { settings } = executor;
  return { ...executor, settings: { ...settings, lockWaitMs: Math.min(settings.lockWaitMs, LOCK_WAIT_MS) } };
}

const ensure = writing(
  "ensure_job_ledger_partitions",
  { weeks: "int4" },
  (_db, p, schema) => sql<{ name: string }>`
    select name from ${sql.id(schema, "ensure_job_ledger_partitions")}(${p.weeks}) as name`,
);

/** A partition by its name and its ids, from `first` on and before `end`. */
interface Partition {
  readonly name: string;
  readonly first: string;
  readonly end: string;
}

export interface DroppedPartitions {
  readonly dropped: readonly string[];
  /** Past as a whole, but somebody read or wrote the ledger for too long whenever it was tried. */
  readonly blocked: readonly string[];
  /** How many jobs were in them. */
  readonly jobs: number;
}

/**
 * Drops the partitions of which every job is past, the oldest first. What hangs on the jobs goes before, in batches. The ledger
 * is locked for the moment of the drop only, and that lock is waited for 100 ms at most, five times.
 */
export async function dropPartitions(
  executor: Executor,
  policy: PreparedAges,
  keyAge: number | null,
  signal?: AbortSignal,
): Promise<DroppedPartitions> {
  const result = { dropped: [] as string[], blocked: [] as string[], jobs: 0 };
  for (const partition of await partitions.execute(executor, { youngest: policy.youngest })) {
    const { first, end } = partition;
    if (signal?.aborted) break;
    if ((await kept.executeFirst(executor, { ages: policy.ages, keyAge, first, end }))?.kept !== false) continue;
    await forgetSideRows(executor, partition, signal);
    const jobs = await dropped(executor, policy, keyAge, partition);
    if (jobs === "blocked") result.blocked.push(partition.name);
    if (typeof jobs !== "number") continue;
    result.dropped.push(partition.name);
    result.jobs += jobs;
  }
  return result;
}

// As the server writes a bound: FOR VALUES FROM ('…') TO ('…'). The default partition has none.
const partitions = reading(
  "list_job_ledger_partitions",
  { youngest: "float8" },
  (_db, p, schema) => sql<Partition>`
    select name, bounds[1] as first, bounds[2] as end
    from pg_inherits
    join pg_class as child on child.oid = inhrelid
    cross join lateral (
      select child.relname::text as name,
        regexp_match(pg_get_expr(child.relpartbound, child.oid), 'FROM \\(''(.*)''\\) TO \\(''(.*)''\\)') as bounds
    ) as named
    where inhparent = ${sql.lit(`"${schema}".job_ledger`)}::regclass
      and bounds[2]::uuid <= ${idBefore(p.youngest)}
    order by bounds[1]`,
);

const rangeParameters = { ages: "jsonb", keyAge: "float8?", first: "uuid", end: "uuid" } as const;

/** Whether a job of the range is to be kept, or lives. Stops at the first. */
const kept = reading("find_kept_jobs", rangeParameters, (db, p) =>
  db.selectNoFrom((eb) => {
    const row = eb
      .selectFrom("job_ledger as l")
      .where("l.id", ">=", p.first)
      .where("l.id", "<", p.end)
      .where((of) => sql<boolean>`case when ${isRemovable(of, "l", p)} or ${isFollowed(of)} then false else true end`)
      .select("l.id");
    const live = eb.selectFrom("job_queue as q").where("q.id", ">=", p.first).where("q.id", "<", p.end).select("q.id");
    return eb.or([eb.exists(row), eb.exists(live)]).as("kept");
  }),
);

/** Another run of the job, in the same partition, decides. */
function isFollowed(eb: Parameters<typeof isRemovable>[0]): RawBuilder<boolean> {
  const later = eb
    .selectFrom("job_ledger as next")
    .where("next.id", "=", sql<string>`l.id`)
    .where("next.run_number", ">", sql<number>`l.run_number`)
    .select("next.id")
    .limit(sql.lit(1));
  return sql<boolean>`(${later}) is not null`;
}

/** What hangs on jobs, and by which column. */
const sideTables = [
  ["job_attempts", "job_id"],
  ["job_events", "job_id"],
  ["job_logs", "job_id"],
  ["job_idempotency_keys", "job_id"],
  ["job_replays", "source_job_id"],
] as const;

async function forgetSideRows(executor: Executor, { first, end }: Partition, signal?: AbortSignal): Promise<void> {
  for (const statement of sideRows) {
    for (let deleted = SIDE_ROWS; deleted >= SIDE_ROWS && !signal?.aborted; ) {
      deleted = (await statement.executeFirst(executor, { first, end, limit: SIDE_ROWS }))?.deleted ?? 0;
    }
  }
}

const sideRows = sideTables.map(([table, job]) =>
  writing(
    `forget_${table}_of_partition`,
    { first: "uuid", end: "uuid", limit: "int4" },
    (_db, p, schema) => sql<{ deleted: number }>`
      with gone as (
        delete from ${sql.id(schema, table)} where ctid = any(array(
          select ctid from ${sql.id(schema, table)}
          where ${sql.id(job)} >= ${p.first} and ${sql.id(job)} < ${p.end} limit ${p.limit}
        )) returning ${sql.id(job)}
      )
      select count(*)::integer as deleted from gone`,
  ),
);

/** How many jobs went with it; null when it is kept after all, or gone. */
async function dropped(
  executor: Executor,
  policy: PreparedAges,
  keyAge: number | null,
  partition: Partition,
): Promise<number | "blocked" | null> {
  for (let tries = 1; ; tries += 1) {
    try {
      return await inOwnTransaction(executor, (trx) => dropHeld(trx, policy, keyAge, partition));
    } catch (error) {
      if (!isLedgerError(error) || (error.code !== "db.lock_timeout" && error.code !== "db.deadlock")) throw error;
      if (tries === DROP_TRIES) return "blocked";
      await new Promise((resolve) => setTimeout(resolve, PAUSE_MS * (0.5 + Math.random())));
    }
  }
}

/** Nothing is added to the partition while it is looked at once more: what ended since the first look is kept. */
async function dropHeld(
  trx: Executor,
  { ages }: PreparedAges,
  keyAge: number | null,
  { name, first, end }: Partition,
): Promise<number | null> {
  await capLockTimeout(impatient(trx));
  const held = await hold.executeFirst(trx, { name });
  if (held?.held !== true) return null;
  if ((await kept.executeFirst(trx, { ages, keyAge, first, end }))?.kept !== false) return null;
  const jobs = (await discount.executeFirst(trx, { first, end }))?.jobs ?? 0;
  await drop.execute(trx, { name });
  return jobs;
}

const hold = writing(
  "hold_job_ledger_partition",
  { name: "text" },
  (_db, p, schema) => sql<{ held: boolean }>`
    with turn as materialized (select ${takeTurn(schema)} as taken)
    select case when taken then ${sql.id(schema, "hold_job_ledger_partition")}(${p.name}) else false end as held from turn`,
);

/** No trigger tells of rows that go with their table. */
const discount = writing("discount_job_ledger_partition", { first: "uuid", end: "uuid" }, (db, p) =>
  db
    .with("job", (qb) =>
      qb
        .selectFrom("job_ledger as l")
        .where("l.id", ">=", p.first)
        .where("l.id", "<", p.end)
        .where((eb) => sql<boolean>`not ${isFollowed(eb)}`)
        .groupBy(["l.type", "l.organization_id", "l.status"])
        .select(["l.type", "l.organization_id", "l.status", sql<string>`count(*)`.as("jobs")]),
    )
    .with("discounted", (qb) =>
      qb
        .insertInto("status_count_deltas")
        .columns(["subject", "type", "organization_id", "status", "delta"])
        .expression((eb) =>
          eb
            .selectFrom("job")
            .select([
              sql<string>`'job'`.as("subject"),
              "job.type",
              "job.organization_id",
              sql<string>`job.status::text`.as("status"),
              sql<string>`-job.jobs`.as("delta"),
            ]),
        ),
    )
    .selectNoFrom(sql<number>`(select coalesce(sum(jobs), 0)::integer from job)`.as("jobs")),
);

const drop = writing(
  "drop_job_ledger_partition",
  { name: "text" },
  (_db, p, schema) => sql`select ${sql.id(schema, "drop_job_ledger_partition")}(${p.name})`,
);
