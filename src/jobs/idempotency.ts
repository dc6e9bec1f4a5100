/** Enqueue with idempotency keys (FEATURES F-J3): the key is taken first, and the job follows it. */
import { sql } from "kysely";
import { announceJobs } from "../database/announce.ts";
import type { Executor } from "../database/executor.ts";
import { type Placeholders, rowsOf } from "../database/parameters.ts";
import { reading, writing } from "../database/statement.ts";
import { decodeJobStatus } from "../database/statuses.ts";
import { allOrNothing, inTransaction, requireReadCommitted } from "../database/transaction.ts";
import { type Remembered, sameRequest } from "../database/values/sameness.ts";
import { LedgerError } from "../errors.ts";
import { boundedHere, boundedInCaller, lockWaitFor } from "../locks/wait.ts";
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
import type { PreparedJob } from "./request.ts";

/**
 * Enqueues jobs of which some have a key. A single job: one round trip when its key is new, two when
 * it exists. Several: the same within one transaction. In a caller's transaction three more, for its level and the
 * bound of the wait for who takes the same key, and for several another, for a savepoint.
 */
export async function enqueueKeyed(
  executor: Executor,
  jobs: readonly PreparedJob[],
  options: EnqueueOptions,
): Promise<EnqueuedJob[]> {
  await requireReadCommitted(executor, "job.enqueue_idempotency_unsupported_isolation");
  // A single job whose key exists has written nothing, so there is nothing to take back.
  if (jobs.length === 1) return boundedInCaller(executor, () => takeOrFind(executor, jobs, options));
  return inTransaction(executor, (trx) =>
    allOrNothing(trx, () => boundedInCaller(trx, () => takeOrFind(trx, jobs, options))),
  );
}

async function takeOrFind(
  executor: Executor,
  jobs: readonly PreparedJob[],
  options: EnqueueOptions,
): Promise<EnqueuedJob[]> {
  const flags = { ...enqueueFlags(executor, options), lockWait: lockWaitFor(executor) };
  const taken = await take.executeFirst(executor, { ...keyedArrays(jobs), ...flags });
  refuseUnknownTypes(taken?.refused ?? []);
  const inserted = new Set(taken?.inserted ?? []);
  const kept = jobs.filter(({ id }) => !inserted.has(id));
  const found = kept.length === 0 ? new Map<string, EnqueuedJob>() : await findExisting(executor, kept);
  return jobs.map(({ id }) => found.get(id) ?? insertedJob(id));
}

/** The jobs that hold the keys, by the id that the request would have got. Throws `job.idempotency_conflict`. */
async function findExisting(executor: Executor, jobs: readonly PreparedJob[]): Promise<Map<string, EnqueuedJob>> {
  const { ids, types, runAts, organizations, keys, requested } = keyedArrays(jobs);
  const rows = await existing.execute(executor, { ids, types, runAts, organizations, keys, requested });
  const requests = new Map(jobs.map(({ id, requested: request }) => [id, request]));
  for (const row of rows) {
    if (!(row.same_time && (row.same || (await isSame(executor, row, requests))))) {
      throw new LedgerError("job.idempotency_conflict");
    }
  }
  if (rows.length < jobs.length)
    throw new LedgerError("job.not_found", { message: "A job of an idempotency key is gone." });
  return new Map(
    rows.map((row) => [
      row.id,
      { id: row.job_id, status: decodeJobStatus(row.status), runNumber: row.run_number, disposition: "existing" },
    ]),
  );
}

type FoundRow = Awaited<ReturnType<typeof existing.execute>>[number];

function isSame(executor: Executor, { id, stored }: FoundRow, requests: ReadonlyMap<string, Remembered>) {
  const request = requests.get(id);
  return request !== undefined && stored !== null && sameRequest(executor.settings.values, stored, request);
}

function keyedArrays(jobs: readonly PreparedJob[]) {
  return {
    ...jobArrays(jobs),
    keys: jobs.map(({ idempotencyKey }) => idempotencyKey),
    requested: jobs.map(({ requested }) => requested.stored),
  };
}

const keyParameters = {
  ids: "uuid[]",
  types: "text[]",
  organizations: "uuid?[]",
  runAts: "timestamptz?[]",
  keys: "text?[]",
  requested: "jsonb[]",
} as const;

function keyRows(p: Placeholders<typeof keyParameters>) {
  return rowsOf("keyed", {
    id: p.ids,
    type: p.types,
    organization_id: p.organizations,
    run_at: p.runAts,
    key: p.keys,
    requested: p.requested,
  });
}

const takeParameters = { ...jobArrayParameters, ...keyParameters, lockWait: "int4?" } as const;

// Keys are taken in their own order, so that two batches which share keys cannot wait for each other.
// An insert waits for another session's insert of the same key: it then finds nothing left to take.
const take = writing("enqueue_keyed_jobs", takeParameters, (db, p, schema) =>
  db
    .with("input", (qb) => qb.selectFrom(inputRows(p)).selectAll())
    .with("refused", (qb) => refusedTypes(qb, p))
    .with("taken", (qb) =>
      qb
        .insertInto("job_idempotency_keys")
        .columns(["job_id", "type", "organization_id", "key", "requested", "requested_run_at"])
        .expression((eb) =>
          eb
            .selectFrom(keyRows(p))
            .where("keyed.key", "is not", null)
            .where(boundedHere(p.lockWait))
            .where(sql<boolean>`not exists (select from refused)`)
            .select(["keyed.id", "keyed.type", "keyed.organization_id", "keyed.key", "keyed.requested", "keyed.run_at"])
            .orderBy("keyed.type")
            .orderBy("keyed.organization_id")
            .orderBy("keyed.key"),
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
      announceJobs(p.notify, schema, sql`select from inserted where run_at <= now()`).as("announced"),
    ]),
);

// The job is looked up by id in the queue, then the ledger: a join with the view would read all of both.
const existing = reading("find_keyed_jobs", keyParameters, (db, p) =>
  db
    .selectFrom(keyRows(p))
    .innerJoin("job_idempotency_keys as k", (join) =>
      join
        .onRef("k.type", "=", "keyed.type")
        .on(sql<boolean>`k.tenant = coalesce(keyed.organization_id::text, 'global')`)
        .onRef("k.key", "=", "keyed.key"),
    )
    .innerJoinLateral(
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
    .select([
      "keyed.id",
      "k.job_id",
      "job.status",
      "job.run_number",
      sql<boolean>`k.requested_run_at is not distinct from keyed.run_at`.as("same_time"),
      sql<boolean>`k.requested = keyed.requested`.as("same"),
      sql<string | null>`case when k.requested <> keyed.requested then k.requested::text end`.as("stored"),
    ]),
);
