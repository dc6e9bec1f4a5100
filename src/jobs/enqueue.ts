/** Enqueue: one statement for one job or a hundred thousand, and for single ones of the same moment; jobs with keys go by `keyed.ts`. */
import { sql } from "kysely";
import { announceDue, announcing } from "../database/announce.ts";
import type { Executor } from "../database/executor.ts";
import { Gatherer } from "../database/gatherer.ts";
import { inHalves } from "../database/halves.ts";
import { writing } from "../database/statement.ts";
import type { JobRequest } from "./definition.ts";
import { insertJob } from "./enqueue-one.ts";
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
import { enqueueKeyed } from "./keyed.ts";
import { prepareKeys } from "./keys.ts";
import { type PreparedJob, prepareJobs } from "./request.ts";

/**
 * Enqueues the jobs, all or none, and answers in the order of the requests. One round trip without keys, which a single job
 * without a transaction shares with others of the moment; with keys see `enqueueKeyed`. Throws `input.invalid`,
 * `payload.not_json`, `payload.too_large`, `payload.reserved`, `payload.invalid`, `payload.unencodable`,
 * `payload.codec_unavailable`, `job.definition_not_found_or_disabled`, `job.idempotency_conflict`, and for keys in a
 * caller's transaction `job.enqueue_idempotency_unsupported_isolation`, `job.enqueue_active_key_unsupported_isolation`,
 * `job.enqueue_debounce_unsupported_isolation`, `job.enqueue_throttle_unsupported_isolation`.
 */
export async function enqueueJobs(
  executor: Executor,
  requests: readonly JobRequest[],
  options: EnqueueOptions = {},
): Promise<EnqueuedJob[]> {
  if (requests.length === 0) return [];
  const keys = prepareKeys(requests);
  const jobs = await prepareJobs(executor.settings.values, requests);
  if (keys.some((key) => key !== null)) {
    const keyed = jobs.map((job, place) => ({ ...job, key: keys[place] ?? null }));
    return enqueueKeyed(executor, keyed, options);
  }
  const [job, ...more] = jobs;
  const isShared = more.length === 0 && executor.transaction === "none" && options.strict !== true;
  if (job !== undefined && isShared) await gathererOf(executor).add(job);
  else await insertJobs(executor, jobs, options);
  return jobs.map(({ id }) => insertedJob(id));
}

const gatherers = new WeakMap<Executor, Gatherer<PreparedJob>>();

/** For jobs that are enqueued one by one, each in a transaction of its own: many at the same moment need not be. */
function gathererOf(executor: Executor): Gatherer<PreparedJob> {
  const known = gatherers.get(executor);
  if (known !== undefined) return known;
  const gatherer = new Gatherer<PreparedJob>((jobs, settle) => {
    const insertPart = async (part: readonly PreparedJob[]) => {
      await insertJobs(executor, part, {});
      for (const job of part) settle(job);
    };
    return inHalves(executor, jobs, insertPart, settle);
  });
  gatherers.set(executor, gatherer);
  return gatherer;
}

/** Inserts prepared jobs and announces them. One round trip. */
async function insertJobs(executor: Executor, jobs: readonly PreparedJob[], options: EnqueueOptions): Promise<void> {
  const [job, ...more] = jobs;
  if (job !== undefined && more.length === 0) return insertJob(executor, job, options);
  const news = announcing(executor);
  const row = await insert.executeFirst(executor, { ...jobArrays(jobs), ...enqueueFlags(news, options) });
  refuseUnknownTypes(row?.refused ?? []);
  news.after({ jobs: row?.due === true });
}

const insert = writing("enqueue_jobs", jobArrayParameters, (db, p, schema) =>
  db
    .with("input", (qb) => qb.selectFrom(inputRows(p)).selectAll())
    .with("refused", (qb) => refusedTypes(qb, p))
    .with("inserted", (qb) => insertAdmitted(qb, sql`not exists (select from refused)`))
    .selectNoFrom([
      sql<string[]>`array(select type from refused)`.as("refused"),
      ...announceDue(p.notify, schema, sql`select from inserted where run_at <= now()`),
    ]),
);
