/** Replay: what a job did that succeeded is done again, by a new job that knows where it comes from (FEATURES F-J9). */
import { sql } from "kysely";
import { announceJobs } from "../database/announce.ts";
import type { JsonColumn } from "../database/column-types.ts";
import type { Executor } from "../database/executor.ts";
import { newIds, validUuid } from "../database/ids.ts";
import type { JsonText } from "../database/json.ts";
import { rowsOf } from "../database/parameters.ts";
import { inScope, type Scope, scopeArguments, scopeParameters } from "../database/scope.ts";
import { reading, writing } from "../database/statement.ts";
import { decodeJobStatus } from "../database/statuses.ts";
import { requireReadCommitted } from "../database/transaction.ts";
import { type Remembered, remembered, sameRequest } from "../database/values/sameness.ts";
import { optionalText, storedValues } from "../database/values/write.ts";
import { LedgerError } from "../errors.ts";
import { boundedHere, boundedInCaller, lockWaitFor } from "../locks/wait.ts";
import { activeKeyTaken, endedRun } from "./active-again.ts";
import { validName } from "./arguments.ts";
import { settingColumns } from "./ending.ts";
import { type EnqueuedJob, insertedJob } from "./insertion.ts";
import { withLatest } from "./latest.ts";
import { storableText } from "./outcome.ts";

export interface ReplaySettings {
  readonly scope: Scope;
  /** The same job and key give the same replay, for as long as the job is kept. At most 512 bytes. */
  readonly key: string;
  /** Who replays; kept with the event of the job that is replayed. */
  readonly replayedBy?: string;
  /** Kept with the event of the job that is replayed. */
  readonly reason?: string;
}

export interface ReplayOptions extends ReplaySettings {
  /** In place of the job's payload. */
  readonly payload?: unknown;
}

/**
 * Enqueues a new job that does again what a succeeded one did: its type, settings, tags and payload, or another
 * payload; idempotent by the key. One round trip, two when the key was used before; three more in a caller's
 * transaction. Throws `job.not_found`, `job.replay_not_succeeded`, `job.replay_conflicting_key`, `job.active_key_taken`,
 * `job.workflow_requeue_not_supported`, `job.replay_unsupported_isolation`, `scope.required`, `input.invalid`,
 * `payload.not_json`, `payload.too_large`, `payload.reserved`, `payload.unencodable`, `payload.undecodable`,
 * `payload.codec_unavailable`.
 */
export async function replayJob(executor: Executor, jobId: string, options: ReplayOptions): Promise<EnqueuedJob> {
  const payload = optionalText(executor.settings.values, options.payload, "payload");
  const [answer] = await replayJobs(executor, [validUuid(jobId, "jobId")], options, payload);
  if (answer === undefined) throw new LedgerError("job.not_found");
  if (!answer.ok) throw answer.error;
  return answer.job;
}

export type ReplayAnswer = { readonly id: string } & (
  | { readonly ok: true; readonly job: EnqueuedJob }
  | { readonly ok: false; readonly error: LedgerError }
);

/** Replays each of the jobs, and answers for each. Round trips and errors as `replayJob`. */
export async function replayJobs(
  executor: Executor,
  ids: readonly string[],
  { scope, key, replayedBy, reason }: ReplaySettings,
  payload: JsonText | null = null,
): Promise<ReplayAnswer[]> {
  const common = { ids, key: validName(key, "key"), ...scopeArguments(scope) };
  const { values, notify } = executor.settings;
  const request = (await remembered(values, [payload === null ? "{}" : `{"payload":${payload}}`]))(0);
  const requested = request.stored;
  const given = {
    ...common,
    newIds: newIds(ids.length),
    payload: (await storedValues(values, "payload", [payload]))(0),
    requested,
    replayedBy: replayedBy === undefined ? null : validName(replayedBy, "replayedBy"),
    reason: reason === undefined ? null : storableText(reason),
    lockWait: lockWaitFor(executor),
    notify,
  };
  await requireReadCommitted(executor, "job.replay_unsupported_isolation");
  return boundedInCaller(executor, async () => {
    const rows = await replay.execute(executor, given);
    const made = rows.map((row): ReplayAnswer | RefusedRow =>
      row.state === "REPLAYED" ? { id: row.job_id, ok: true, job: insertedJob(row.new_id) } : row,
    );
    const others = made.filter((row) => "state" in row).map(({ job_id }) => job_id);
    // Also of a job that could not be replayed any more, a key gives the replay that was made.
    const before = others.length === 0 ? [] : await existing.execute(executor, { ...common, ids: others, requested });
    const found = new Map<string, FoundReplay>();
    for (const row of before) found.set(row.source_job_id, await foundReplay(executor, row, request));
    return made.map((row) => ("state" in row ? answerOf(row, found.get(row.job_id)) : row));
  });
}

type ReplayState = "REPLAYED" | "EXISTING" | "NOT_FOUND" | "OF_RUN" | "NOT_SUCCEEDED" | "KEY_TAKEN";

interface RefusedRow {
  readonly job_id: string;
  readonly state: ReplayState;
}

/** Null: the key was used for another request. */
type FoundReplay = EnqueuedJob | null;

async function foundReplay(
  { settings }: Executor,
  { same, stored, job_id, status, run_number }: Awaited<ReturnType<typeof existing.execute>>[number],
  request: Remembered,
): Promise<FoundReplay> {
  if (!same && (stored === null || !(await sameRequest(settings.values, stored, request)))) return null;
  return { id: job_id, status: decodeJobStatus(status), runNumber: run_number, disposition: "existing" };
}

function answerOf({ job_id: id, state }: RefusedRow, before: FoundReplay | undefined): ReplayAnswer {
  if (before === null) return { id, ok: false, error: new LedgerError("job.replay_conflicting_key") };
  if (before !== undefined) return { id, ok: true, job: before };
  if (state === "OF_RUN") return { id, ok: false, error: new LedgerError("job.workflow_requeue_not_supported") };
  if (state === "KEY_TAKEN") return { id, ok: false, error: new LedgerError("job.active_key_taken") };
  if (state === "NOT_SUCCEEDED") return { id, ok: false, error: new LedgerError("job.replay_not_succeeded") };
  return { id, ok: false, error: new LedgerError("job.not_found") };
}

const replayParameters = {
  ids: "uuid[]",
  newIds: "uuid[]",
  key: "text",
  payload: "jsonb?",
  requested: "jsonb",
  replayedBy: "text?",
  reason: "text?",
  lockWait: "int4?",
  notify: "bool",
  ...scopeParameters,
} as const;

// The keys are taken first, in id order, and the jobs follow them, in the order in which an enqueue takes active keys: an
// insert waits for another session's of the same key.
const replay = writing("replay_jobs", replayParameters, (db, p, schema) =>
  db
    .with("input", (qb) => qb.selectFrom(rowsOf("given", { job_id: p.ids, new_id: p.newIds })).selectAll())
    .with(
      (cte) => cte("looked").materialized(),
      (qb) =>
        withLatest(qb).select([
          "input.job_id",
          "input.new_id",
          "latest.run_number",
          "latest.type",
          "latest.organization_id",
          "latest.active_key",
          sql<ReplayState>`case
            when latest.run_number is null or not ${inScope("latest.organization_id", p)} then 'NOT_FOUND'
            when latest.workflow_run_id is not null then 'OF_RUN'
            when latest.status <> 'SUCCEEDED' then 'NOT_SUCCEEDED'
            else 'REPLAYED'
          end`.as("state"),
        ]),
    )
    .with(
      (cte) => cte("judged").materialized(),
      (qb) =>
        qb
          .selectFrom("looked as k")
          .select(["k.job_id", "k.new_id", "k.run_number"])
          .select(
            sql<ReplayState>`case
              when k.state = 'REPLAYED' and ${activeKeyTaken(qb, "k")} then 'KEY_TAKEN' else k.state
            end`.as("state"),
          ),
    )
    .with("taken", (qb) =>
      qb
        .insertInto("job_replays")
        .columns(["source_job_id", "key", "source_run_number", "job_id", "requested"])
        .expression((eb) =>
          eb
            .selectFrom("judged as k")
            .where("k.state", "=", "REPLAYED")
            .where(boundedHere(p.lockWait))
            .select([
              "k.job_id",
              sql<string>`${p.key}`.as("key"),
              sql<number>`k.run_number`.as("source_run_number"),
              "k.new_id",
              sql<string>`${p.requested}`.as("requested"),
            ])
            .orderBy("k.job_id"),
        )
        .onConflict((conflict) => conflict.doNothing())
        .returning(["source_job_id", "source_run_number", "job_id"]),
    )
    .with("inserted", (qb) =>
      qb
        .insertInto("job_queue")
        .columns(["id", ...settingColumns, "source_job_id", "source_run_number", "run_at", "payload"])
        .expression((eb) =>
          eb
            .selectFrom("taken as t")
            .innerJoinLateral(
              () => endedRun(qb, sql<boolean>`id = t.source_job_id and run_number = t.source_run_number`).as("l"),
              (join) => join.onTrue(),
            )
            .select([
              "t.job_id",
              ...settingColumns.map((column) => `l.${column}` as const),
              "t.source_job_id",
              "t.source_run_number",
              sql<Date>`now()`.as("run_at"),
              sql<string>`coalesce(${p.payload}, l.payload)`.as("payload"),
            ])
            .orderBy("l.type")
            .orderBy("l.organization_id")
            .orderBy("l.active_key")
            .orderBy("t.job_id"),
        )
        .returning(["id", "source_job_id", "source_run_number"]),
    )
    .with("noted", (qb) =>
      qb
        .insertInto("job_events")
        .columns(["job_id", "run_number", "event", "actor", "details"])
        .expression((eb) =>
          eb.selectFrom("inserted as i").select([
            sql<string>`i.source_job_id`.as("job_id"),
            sql<number>`i.source_run_number`.as("run_number"),
            sql<string>`'replayed'`.as("event"),
            sql<string | null>`${p.replayedBy}`.as("actor"),
            sql<JsonColumn>`jsonb_strip_nulls(jsonb_build_object(
                'job_id', i.id, 'reason', ${p.reason}, 'corrected', case when ${p.payload} is not null then true end
              ))`.as("details"),
          ]),
        ),
    )
    .with(
      (cte) => cte("announced").materialized(),
      (qb) => qb.selectNoFrom(announceJobs(p.notify, schema, sql`select from inserted`).as("jobs")),
    )
    .selectFrom("judged as k")
    .innerJoin("announced", (join) => join.onTrue())
    .select([
      "k.job_id",
      "k.new_id",
      sql<ReplayState>`case
        when k.state = 'REPLAYED' and not coalesce(k.new_id in (select id from inserted), false) then 'EXISTING'
        else k.state
      end`.as("state"),
    ])
    .orderBy("k.job_id"),
);

const existingParameters = { ids: "uuid[]", key: "text", requested: "jsonb", ...scopeParameters } as const;

const existing = reading("find_job_replays", existingParameters, (db, p) =>
  withLatest(
    db.with("input", (qb) =>
      qb
        .selectFrom("job_replays as r")
        .where(sql<boolean>`r.source_job_id = any(${p.ids})`)
        .where("r.key", "=", p.key)
        .select([
          "r.source_job_id",
          "r.job_id",
          sql<boolean>`r.requested = ${p.requested}`.as("same"),
          sql<string | null>`case when r.requested <> ${p.requested} then r.requested::text end`.as("stored"),
        ]),
    ),
  )
    .where(inScope("latest.organization_id", p))
    .where("latest.run_number", "is not", null)
    .select([
      "input.source_job_id",
      "input.job_id",
      "input.same",
      "input.stored",
      sql<string>`latest.status`.as("status"),
      sql<number>`latest.run_number`.as("run_number"),
    ]),
);
