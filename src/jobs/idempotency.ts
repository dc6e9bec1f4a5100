/** Keys that outlast their jobs: idempotency keys and the windows of a throttle (FEATURES F-J3, F-J12). The key is taken first, and the job follows it. */
import { type QueryCreator, type RawBuilder, sql } from "kysely";
import { announceDue, announcing } from "../database/announce.ts";
import type { Executor } from "../database/executor.ts";
import { type Placeholders, rowsOf } from "../database/parameters.ts";
import { inRounds } from "../database/rounds.ts";
import { reading, writing } from "../database/statement.ts";
import { decodeJobStatus } from "../database/statuses.ts";
import type { JobKeyKind } from "../database/tables.generated.ts";
import type { LedgerTables } from "../database/tables.ts";
import { type Remembered, sameRequest } from "../database/values/sameness.ts";
import { LedgerError } from "../errors.ts";
import { boundedHere, lockWaitFor } from "../locks/wait.ts";
import {
  type EnqueuedJob,
  type EnqueueOptions,
  enqueueFlags,
  inputRows,
  insertAdmitted,
  insertedJob,
  jobArrayParameters,
  jobArrays,
  refusedTypes,
  refuseUnknownTypes,
} from "./insertion.ts";
import type { KeyedJob } from "./keys.ts";

type Answers = Map<string, EnqueuedJob>;

/**
 * Inserts jobs without a key and those whose key is free or has expired, and finds those of the other keys. One round
 * trip, two where some are found, three where some have expired. Throws `job.idempotency_conflict`,
 * `job.definition_not_found_or_disabled`.
 */
export function takeOrFind(executor: Executor, jobs: readonly KeyedJob[], options: EnqueueOptions): Promise<Answers> {
  // Most keys are new or live: only who has found one that has expired pays for the looking for such.
  let statement = take;
  return inRounds(
    jobs,
    ({ id }) => id,
    async (rest) => {
      const answers = await takeKeys(executor, statement, rest, options);
      statement = takeAnew;
      const kept = rest.filter(({ id }) => !answers.has(id));
      if (kept.length === 0) return answers;
      return new Map([...answers, ...(await findExisting(executor, kept))]);
    },
  );
}

async function takeKeys(
  executor: Executor,
  statement: typeof take,
  jobs: readonly KeyedJob[],
  options: EnqueueOptions,
): Promise<Answers> {
  const news = announcing(executor);
  const flags = { ...enqueueFlags(news, options), lockWait: lockWaitFor(executor) };
  const row = await statement.executeFirst(executor, { ...jobArrays(jobs), ...keyArrays(jobs), ...flags });
  refuseUnknownTypes(row?.refused ?? []);
  news.after({ jobs: row?.due === true });
  return new Map((row?.inserted ?? []).map((id) => [id, insertedJob(id)]));
}

/** The jobs that hold the keys, by the id that the request would have got; none for a key that has expired or gone. */
async function findExisting(executor: Executor, jobs: readonly KeyedJob[]): Promise<Answers> {
  const rows = await existing.execute(executor, keyArrays(jobs));
  const requests = new Map(jobs.map(({ id, requested }) => [id, requested]));
  for (const row of rows) {
    if (!(row.same_time && (row.same || (await isSame(executor, row, requests))))) {
      throw new LedgerError("job.idempotency_conflict");
    }
  }
  return new Map(rows.map((row) => [row.id, existingJob(row)]));
}

type FoundRow = Awaited<ReturnType<typeof existing.execute>>[number];

function isSame(executor: Executor, { id, stored }: FoundRow, requests: ReadonlyMap<string, Remembered>) {
  const request = requests.get(id);
  return request !== undefined && stored !== null && sameRequest(executor.settings.values, stored, request);
}

function existingJob(row: FoundRow): EnqueuedJob {
  if (row.status === null || row.run_number === null) {
    throw new LedgerError("job.not_found", { message: "The job of a key is gone." });
  }
  return {
    id: row.job_id,
    status: decodeJobStatus(row.status),
    runNumber: row.run_number,
    disposition: row.kind === "THROTTLE" ? "throttled" : "existing",
  };
}

function keyArrays(jobs: readonly KeyedJob[]) {
  return {
    ids: jobs.map(({ id }) => id),
    types: jobs.map(({ type }) => type),
    organizations: jobs.map(({ organizationId }) => organizationId),
    runAts: jobs.map(({ runAt }) => runAt),
    keys: jobs.map(({ key }) => key?.key ?? null),
    kinds: jobs.map((job) => (job.key?.kind === "throttle" ? "THROTTLE" : "IDEMPOTENCY")),
    ttls: jobs.map(({ key }) => (key !== null && "ttlSeconds" in key ? key.ttlSeconds : null)),
    requested: jobs.map(({ requested }) => requested.stored),
  };
}

const keyParameters = {
  ids: "uuid[]",
  types: "text[]",
  organizations: "uuid?[]",
  runAts: "timestamptz?[]",
  keys: "text?[]",
  kinds: "text[]",
  ttls: "float8?[]",
  requested: "jsonb[]",
} as const;

type KeyPlaceholders = Placeholders<typeof keyParameters>;

function keyRows(p: KeyPlaceholders) {
  return rowsOf("keyed", {
    id: p.ids,
    type: p.types,
    organization_id: p.organizations,
    run_at: p.runAts,
    key: p.keys,
    kind: p.kinds,
    ttl_seconds: p.ttls,
    requested: p.requested,
  });
}

const takeParameters = { ...jobArrayParameters, ...keyParameters, lockWait: "int4?" } as const;

// Keys are taken in their own order, so that two batches which share keys cannot wait for each other; one that is
// named twice goes to the first. An insert waits for another session's insert of the same key: it then finds nothing left to take.
const take = writing("enqueue_keyed_jobs", takeParameters, (db, p, schema) =>
  taking(withInput(db, p), p, schema, null),
);

// A key that has expired is locked in the order of keys too, and deleted before the insert looks for it; others are not
// locked at all.
const takeAnew = writing("enqueue_jobs_with_expired_keys", takeParameters, (db, p, schema) =>
  taking(
    withInput(db, p)
      .with("stale", (qb) =>
        qb
          .selectFrom((eb) =>
            eb
              .selectFrom(keyRows(p))
              .where("keyed.key", "is not", null)
              .where(boundedHere(p.lockWait))
              .select(["keyed.type", "keyed.organization_id", "keyed.key", "keyed.kind"])
              .orderBy("keyed.type")
              .orderBy("keyed.organization_id")
              .orderBy("keyed.key")
              .orderBy("keyed.kind")
              .as("wanted"),
          )
          .innerJoinLateral(
            (eb) =>
              eb
                .selectFrom("job_idempotency_keys as k")
                .whereRef("k.type", "=", "wanted.type")
                .where(sql<boolean>`k.tenant = coalesce(wanted.organization_id::text, 'global')`)
                .whereRef("k.key", "=", "wanted.key")
                .where(sql<boolean>`k.kind = ${kindOf("wanted.kind", schema)}`)
                .where("k.expires_at", "<=", sql<Date>`clock_timestamp()`)
                .select(sql<string>`k.ctid`.as("place"))
                .forUpdate("k")
                .as("found"),
            (join) => join.onTrue(),
          )
          .select("found.place"),
      )
      .with("expired", (qb) =>
        qb
          .deleteFrom("job_idempotency_keys as k")
          .where(sql<boolean>`k.ctid = any(array(select place from stale))`)
          .returning("k.job_id"),
      ),
    p,
    schema,
    // Says nothing, but has the delete done first.
    sql`(select count(*) from expired) >= 0`,
  ),
);

type TakePlaceholders = Placeholders<typeof takeParameters>;

function withInput(db: QueryCreator<LedgerTables>, p: TakePlaceholders) {
  return db.with("input", (qb) => qb.selectFrom(inputRows(p)).selectAll()).with("refused", (qb) => refusedTypes(qb, p));
}

/** Takes the keys when `ready`, and inserts the jobs that got theirs or have none. */
function taking(
  db: ReturnType<typeof withInput>,
  p: TakePlaceholders,
  schema: string,
  ready: RawBuilder<boolean> | null,
) {
  return db
    .with("taken", (qb) =>
      qb
        .insertInto("job_idempotency_keys")
        .columns(["job_id", "type", "organization_id", "key", "kind", "requested", "requested_run_at", "expires_at"])
        .expression((eb) =>
          eb
            .selectFrom(keyRows(p))
            .where("keyed.key", "is not", null)
            .where(boundedHere(p.lockWait))
            .where(sql<boolean>`not exists (select from refused)`)
            .$call((query) => (ready === null ? query : query.where(ready)))
            .select([
              "keyed.id",
              "keyed.type",
              "keyed.organization_id",
              "keyed.key",
              kindOf("keyed.kind", schema).as("kind"),
              "keyed.requested",
              "keyed.run_at",
              sql<Date | null>`clock_timestamp() + make_interval(secs => keyed.ttl_seconds)`.as("expires_at"),
            ])
            .orderBy("keyed.type")
            .orderBy("keyed.organization_id")
            .orderBy("keyed.key")
            .orderBy("keyed.kind")
            .orderBy("keyed.id"),
        )
        .onConflict((conflict) => conflict.doNothing())
        .returning("job_id"),
    )
    .with("unkeyed", (qb) => qb.selectFrom(keyRows(p)).where("keyed.key", "is", null).select("keyed.id"))
    .with("inserted", (qb) =>
      insertAdmitted(
        qb,
        sql`input.id in (
          select job_id from taken union all select id from unkeyed where not exists (select from refused)
        )`,
      ),
    )
    .selectNoFrom([
      sql<string[]>`array(select type from refused)`.as("refused"),
      sql<string[]>`array(select id from inserted)`.as("inserted"),
      ...announceDue(p.notify, schema, sql`select from inserted where run_at <= now()`),
    ]);
}

// The job is looked up by id in the queue, then the ledger: a join with the view would read all of both.
const existing = reading("find_keyed_jobs", keyParameters, (db, p, schema) =>
  db
    .selectFrom(keyRows(p))
    .innerJoin("job_idempotency_keys as k", (join) =>
      join
        .onRef("k.type", "=", "keyed.type")
        .on(sql<boolean>`k.tenant = coalesce(keyed.organization_id::text, 'global')`)
        .onRef("k.key", "=", "keyed.key")
        .on(sql<boolean>`k.kind = ${kindOf("keyed.kind", schema)}`),
    )
    .leftJoinLateral(
      (eb) =>
        eb
          .selectFrom("job_queue as q")
          .whereRef("q.id", "=", "k.job_id")
          .select(["q.status", "q.run_number"])
          .unionAll(
            eb.selectFrom("job_ledger as l").whereRef("l.id", "=", "k.job_id").select(["l.status", "l.run_number"]),
          )
          .orderBy("run_number", "desc")
          .limit(1)
          .as("job"),
      (join) => join.onTrue(),
    )
    .where(sql<boolean>`(k.expires_at > clock_timestamp()) is not false`)
    .select([
      "keyed.id",
      "k.job_id",
      "k.kind",
      "job.status",
      "job.run_number",
      sql<boolean>`k.kind = 'THROTTLE' or k.requested_run_at is not distinct from keyed.run_at`.as("same_time"),
      sql<boolean>`k.kind = 'THROTTLE' or k.requested = keyed.requested`.as("same"),
      sql<string | null>`case when k.requested <> keyed.requested then k.requested::text end`.as("stored"),
    ]),
);

function kindOf(column: string, schema: string) {
  return sql<JobKeyKind>`${sql.ref(column)}::${sql.id(schema, "job_key_kind")}`;
}
