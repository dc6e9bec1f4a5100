/** Keys of live jobs: active keys, which a job holds until it ends, and debounce keys, which it holds until it is claimed (FEATURES F-J12). */
import { type RawBuilder, sql } from "kysely";
import { announceDue, announcing } from "../database/announce.ts";
import type { Executor } from "../database/executor.ts";
import { sameTenant } from "../database/live-keys.ts";
import { type Placeholders, rowsOf } from "../database/parameters.ts";
import { inRounds } from "../database/rounds.ts";
import { reading, writing } from "../database/statement.ts";
import { decodeJobStatus } from "../database/statuses.ts";
import { boundedHere, lockWaitFor } from "../locks/wait.ts";
import {
  type EnqueuedJob,
  type EnqueueOptions,
  enqueueFlags,
  inputColumns,
  insertAdmitted,
  insertedJob,
  jobArrayParameters,
  jobArrays,
  liveKeyColumns,
  refusedTypes,
  refuseUnknownTypes,
} from "./insertion.ts";
import type { KeyedJob, PreparedKey } from "./keys.ts";
import type { limitColumns } from "./limits.ts";

type LiveKey = Extract<PreparedKey, { kind: "active" | "debounce" }>;
type LiveKeyedJob = KeyedJob & { readonly key: LiveKey };
type Answers = Map<string, EnqueuedJob>;

export function isOfLiveJob(job: KeyedJob): job is LiveKeyedJob {
  return job.key?.kind === "active" || job.key?.kind === "debounce";
}

/**
 * Inserts the jobs whose keys are free, gives the pending jobs of the others what is to replace theirs, and finds the rest.
 * One round trip, two where some are found. Throws `job.definition_not_found_or_disabled`.
 */
export function takeOrJoin(
  executor: Executor,
  jobs: readonly LiveKeyedJob[],
  options: EnqueueOptions,
): Promise<Answers> {
  return inRounds(
    jobs,
    ({ id }) => id,
    async (rest) => {
      const answers = await takeOrReplace(executor, rest, options);
      // A debounced job that is not there any more is a new one; an active one may be running.
      const kept = rest.filter(({ id, key }) => !answers.has(id) && key.kind === "active");
      if (kept.length === 0) return answers;
      return new Map([...answers, ...(await findLive(executor, kept))]);
    },
  );
}

async function takeOrReplace(
  executor: Executor,
  jobs: readonly LiveKeyedJob[],
  options: EnqueueOptions,
): Promise<Answers> {
  const news = announcing(executor);
  const flags = { ...enqueueFlags(news, options), lockWait: lockWaitFor(executor) };
  const row = await take.executeFirst(executor, { ...jobArrays(jobs), ...liveKeyArrays(jobs), ...flags });
  refuseUnknownTypes(row?.refused ?? []);
  if (row === undefined) return new Map();
  news.after({ jobs: row.due });
  return new Map([...row.inserted.map((id) => [id, insertedJob(id)] as const), ...replacedJobs(row)]);
}

interface ReplacedRow {
  /** Requests, and the jobs that they came upon. */
  readonly requests: readonly string[];
  readonly jobs: readonly string[];
  /** Those of the jobs that were pending, and their run numbers. */
  readonly replaced: readonly string[];
  readonly run_numbers: readonly number[];
}

function replacedJobs({ requests, jobs, replaced, run_numbers }: ReplacedRow): Answers {
  const runNumbers = new Map(replaced.map((id, place) => [id, run_numbers[place]]));
  const answers: Answers = new Map();
  for (const [place, request] of requests.entries()) {
    const id = jobs[place] ?? "";
    const runNumber = runNumbers.get(id);
    if (runNumber !== undefined) answers.set(request, { id, status: "PENDING", runNumber, disposition: "replaced" });
  }
  return answers;
}

/** The live jobs that hold the keys, but for pending ones that came in between and are to be replaced. */
async function findLive(executor: Executor, jobs: readonly LiveKeyedJob[]): Promise<Answers> {
  const { ids, types, organizations } = jobArrays(jobs);
  const { activeKeys, replaces } = liveKeyArrays(jobs);
  const rows = await live.execute(executor, { ids, types, organizations, activeKeys, replaces });
  return new Map(
    rows.map((row) => [
      row.id,
      {
        id: row.job_id,
        status: decodeJobStatus(row.status),
        runNumber: row.run_number,
        disposition: "existing_active",
      },
    ]),
  );
}

function liveKeyArrays(jobs: readonly LiveKeyedJob[]) {
  return {
    activeKeys: jobs.map(({ key }) => (key.kind === "active" ? key.key : null)),
    debounceKeys: jobs.map(({ key }) => (key.kind === "debounce" ? key.key : null)),
    replaces: jobs.map(({ key }) => key.kind === "debounce" || key.replaces),
    waits: jobs.map(({ key }) => (key.kind === "debounce" ? key.seconds : null)),
    longestWaits: jobs.map(({ key }) => (key.kind === "debounce" ? key.maxSeconds : null)),
    newPriorities: jobs.map(({ requestedSettings }) => requestedSettings.priority),
    newMaxAttempts: jobs.map(({ requestedSettings }) => requestedSettings.maxAttempts),
    newTimeouts: jobs.map(({ requestedSettings }) => requestedSettings.timeoutSeconds),
  };
}

const takeParameters = {
  ...jobArrayParameters,
  activeKeys: "text?[]",
  debounceKeys: "text?[]",
  replaces: "bool[]",
  waits: "float8?[]",
  longestWaits: "float8?[]",
  newPriorities: "int4?[]",
  newMaxAttempts: "int4?[]",
  newTimeouts: "int4?[]",
  lockWait: "int4?",
} as const;

function givenRows(p: Placeholders<typeof takeParameters>) {
  const { run_at, ...columns } = inputColumns(p);
  return rowsOf("given", {
    ...columns,
    new_run_at: run_at,
    active_key: p.activeKeys,
    debounce_key: p.debounceKeys,
    replaces: p.replaces,
    wait_seconds: p.waits,
    longest_wait_seconds: p.longestWaits,
    new_priority: p.newPriorities,
    new_max_attempts: p.newMaxAttempts,
    new_timeout_seconds: p.newTimeouts,
  });
}

/** A limit may follow from the payload: the one that comes with the new one counts, if there is one. */
const limitOfNewest = {
  limit_key: newest<string>("limit_key"),
  limit_concurrency: newest<number>("limit_concurrency"),
  limit_starts: newest<number>("limit_starts"),
  limit_period_seconds: newest<number>("limit_period_seconds"),
};

function newest<T>(column: (typeof limitColumns)[number]): RawBuilder<T | null> {
  return sql<T | null>`case when h.limit_key is null then ${sql.ref(`q.${column}`)} else ${sql.ref(`h.${column}`)} end`;
}

/** Whether a subquery's rows have the value: hashed, where a join would compare each with each. */
const isIn = (value: RawBuilder<unknown>, rows: RawBuilder<unknown>) => sql<boolean>`(${value} in (${rows})) is true`;

// Who holds a key is looked up without locks, and locked in id order where it is pending still: what a claim was faster
// with, or an end, is not replaced, and its key may be free. Free keys are taken in their own order; an insert
// waits for whoever inserts, changes or ends the job of the same key, and goes by what comes of it.
const take = writing("enqueue_jobs_with_live_keys", takeParameters, (db, p, schema) =>
  db
    .with("input", (qb) =>
      qb
        .selectFrom(givenRows(p))
        .selectAll("given")
        .select(
          sql<Date | null>`coalesce(given.new_run_at, clock_timestamp() + make_interval(secs => given.wait_seconds))`.as(
            "run_at",
          ),
        ),
    )
    .with("refused", (qb) => refusedTypes(qb, p))
    .with("seen", (qb) =>
      qb
        .selectFrom("input as i")
        .innerJoinLateral(
          (eb) =>
            eb
              .selectFrom("job_queue as q")
              .whereRef("q.type", "=", "i.type")
              .where(sameTenant("q", "i"))
              .whereRef("q.active_key", "=", "i.active_key")
              .where("q.active_key", "is not", null)
              .select("q.id as job_id")
              .unionAll(
                eb
                  .selectFrom("job_queue as q")
                  .whereRef("q.type", "=", "i.type")
                  .where(sameTenant("q", "i"))
                  .whereRef("q.debounce_key", "=", "i.debounce_key")
                  .where("q.debounce_key", "is not", null)
                  .select("q.id as job_id"),
              )
              .as("holder"),
          (join) => join.onTrue(),
        )
        .where("i.replaces", "=", true)
        .where(sql<boolean>`not exists (select from refused)`)
        .selectAll("i")
        .select("holder.job_id"),
    )
    // Of several requests for one job the last counts.
    .with("newest", (qb) =>
      qb
        .selectFrom("seen")
        .distinctOn("seen.job_id")
        .selectAll("seen")
        .orderBy("seen.job_id")
        .orderBy("seen.id", "desc"),
    )
    .with(
      (cte) => cte("held").materialized(),
      (qb) =>
        qb
          .selectFrom("newest as n")
          .innerJoinLateral(
            (eb) =>
              eb
                .selectFrom("job_queue as q")
                .whereRef("q.id", "=", "n.job_id")
                .where("q.status", "=", "PENDING")
                // A claim that was given back has no debounce key any more.
                .where(sql<boolean>`(q.active_key is not null or q.debounce_key is not null)`)
                .select("q.id as held_id")
                .forUpdate("q")
                .as("pending"),
            (join) => join.onTrue(),
          )
          .where(boundedHere(p.lockWait))
          .selectAll("n"),
    )
    .with("replaced", (qb) =>
      qb
        .updateTable("job_queue as q")
        .from("held as h")
        .whereRef("q.id", "=", "h.job_id")
        .set((eb) => ({
          payload: sql<string>`h.payload`,
          priority: sql<number>`coalesce(h.new_priority, q.priority)`,
          // An attempt is left, whatever is asked for.
          max_attempts: sql<number>`greatest(coalesce(h.new_max_attempts, q.max_attempts), q.attempt + 1)`,
          timeout_seconds: sql<number>`coalesce(h.new_timeout_seconds, q.timeout_seconds)`,
          run_at: sql<Date>`case
            when h.debounce_key is null then coalesce(h.new_run_at, q.run_at)
            else least(
              clock_timestamp() + make_interval(secs => h.wait_seconds),
              q.enqueued_at + make_interval(secs => h.longest_wait_seconds)
            )
          end`,
          tags: sql<string[] | null>`coalesce(h.tags::text[], q.tags)`,
          ...limitOfNewest,
          // Of the payload before.
          checkpoint: eb.lit(null),
          progress_done: eb.lit(null),
          progress_total: eb.lit(null),
        }))
        .returning(["q.id", "q.run_number", "q.run_at", "q.debounce_key"]),
    )
    .with("noted", (qb) =>
      qb
        .insertInto("job_events")
        .columns(["job_id", "run_number", "event"])
        .expression((eb) =>
          eb
            .selectFrom("replaced as r")
            .where("r.debounce_key", "is", null)
            .select(["r.id", "r.run_number", sql<string>`'replaced'`.as("event")]),
        ),
    )
    .with("inserted", (qb) =>
      insertAdmitted(
        qb,
        sql`${boundedHere(p.lockWait)} and not exists (select from refused) and not ${isIn(
          sql`input.id`,
          sql`select s.id from seen as s where ${isIn(sql`s.job_id`, sql`select id from replaced`)}`,
        )}`,
        liveKeyColumns,
      ).onConflict((conflict) => conflict.doNothing()),
    )
    .selectNoFrom([
      sql<string[]>`array(select type from refused)`.as("refused"),
      sql<string[]>`array(select id from inserted)`.as("inserted"),
      sql<string[]>`array(select id from seen)`.as("requests"),
      sql<string[]>`array(select job_id from seen)`.as("jobs"),
      sql<string[]>`array(select id from replaced)`.as("replaced"),
      sql<number[]>`array(select run_number from replaced)`.as("run_numbers"),
      ...announceDue(
        p.notify,
        schema,
        sql`select from inserted where run_at <= now() union all select from replaced where run_at <= now()`,
      ),
    ]),
);

const liveParameters = {
  ids: "uuid[]",
  types: "text[]",
  organizations: "uuid?[]",
  activeKeys: "text?[]",
  replaces: "bool[]",
} as const;

const live = reading("find_live_jobs", liveParameters, (db, p) =>
  db
    .selectFrom(
      rowsOf("keyed", {
        id: p.ids,
        type: p.types,
        organization_id: p.organizations,
        key: p.activeKeys,
        replaces: p.replaces,
      }),
    )
    .innerJoinLateral(
      (eb) =>
        eb
          .selectFrom("job_queue as q")
          .whereRef("q.type", "=", "keyed.type")
          .where(sameTenant("q", "keyed"))
          .whereRef("q.active_key", "=", "keyed.key")
          .where("q.active_key", "is not", null)
          .select(["q.id", "q.status", "q.run_number"])
          .limit(1)
          .as("job"),
      (join) => join.onTrue(),
    )
    .where(sql<boolean>`not (keyed.replaces and job.status = 'PENDING')`)
    .select(["keyed.id", "job.id as job_id", "job.status", "job.run_number"]),
);
