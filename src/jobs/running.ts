/**
 * While an attempt runs: heartbeat, progress, checkpoint, logs, or the lease handed back (FEATURES F-J5, F-J6). In a
 * caller's transaction each takes two round trips more, for the bound of its wait.
 */
import { sql } from "kysely";
import { announceJobs } from "../database/announce.ts";
import { toDateOrNull } from "../database/decode.ts";
import type { Executor } from "../database/executor.ts";
import { rowsOf } from "../database/parameters.ts";
import { writing } from "../database/statement.ts";
import { optionalText, storedValue, storedValues, valueText } from "../database/values/write.ts";
import { LedgerError } from "../errors.ts";
import { boundedInCaller } from "../locks/wait.ts";
import { validInteger } from "./arguments.ts";
import {
  type Lease,
  leaseArguments,
  leaseKey,
  leaseKeyOf,
  leaseLost,
  leaseParameters,
  withFencedLeases,
} from "./lease.ts";
import { storableText } from "./outcome.ts";

/** `CANCELED`: the job was cancelled under the lease. `LOST`: the lease expired or the job was taken away. */
export interface Heartbeat {
  readonly jobId: string;
  readonly state: "EXTENDED" | "CANCELED" | "LOST";
  readonly leaseExpiresAt: Date | null;
}

const DEFAULT_LEASE_SECONDS = 60;

/** Extends leases, from now on by the database's clock, and says which are gone. One round trip. */
export async function heartbeat(
  executor: Executor,
  leases: readonly Lease[],
  leaseSeconds: number = DEFAULT_LEASE_SECONDS,
): Promise<Heartbeat[]> {
  if (leases.length === 0) return [];
  const rows = await boundedInCaller(executor, () =>
    extend.execute(executor, {
      ...leaseArguments(executor, leases),
      leaseSeconds: validInteger(leaseSeconds, "leaseSeconds", 1) ?? DEFAULT_LEASE_SECONDS,
    }),
  );
  const byLease = new Map(rows.map((row) => [row.lease_key, row]));
  return leases.map((lease) => {
    const row = byLease.get(leaseKey(lease));
    return { jobId: lease.jobId, state: row?.state ?? "LOST", leaseExpiresAt: toDateOrNull(row?.lease_expires_at) };
  });
}

/**
 * Gives leases back for jobs that were never started: the attempt does not count. Answers with the ids
 * that went back; the others were lost meanwhile. One round trip.
 */
export async function handBack(executor: Executor, leases: readonly Lease[]): Promise<string[]> {
  if (leases.length === 0) return [];
  const row = await boundedInCaller(executor, () =>
    giveBack.executeFirst(executor, {
      ...leaseArguments(executor, leases),
      notify: executor.settings.notify,
    }),
  );
  return row?.ids ?? [];
}

/** How far a job is, in units of the handler's own. */
export interface Progress {
  readonly done: number;
  /** Default: the total that is stored. */
  readonly total?: number;
}

/** Stores the progress. One round trip. Throws `job.progress_invalid`, `job.lease_owner_mismatch`. */
export async function reportProgress(executor: Executor, lease: Lease, progress: Progress): Promise<void> {
  const { done, total } = progress;
  if (!isCount(done) || (total !== undefined && (!isCount(total) || done > total))) {
    throw new LedgerError("job.progress_invalid");
  }
  const row = await boundedInCaller(executor, () =>
    setProgress.executeFirst(executor, {
      ...leaseArguments(executor, [lease]),
      done: String(done),
      total: total === undefined ? null : String(total),
    }),
  );
  if (!row?.held) throw leaseLost();
  if (!row.stored) throw new LedgerError("job.progress_invalid");
}

/**
 * Stores what a later attempt needs to resume. One round trip. Throws `payload.not_json`, `payload.too_large`,
 * `payload.reserved`, `payload.unencodable`, `payload.codec_unavailable`, `job.lease_owner_mismatch`.
 */
export async function saveCheckpoint(executor: Executor, lease: Lease, checkpoint: unknown): Promise<void> {
  const { values } = executor.settings;
  const stored = await storedValue(values, "checkpoint", valueText(values, checkpoint, "checkpoint"));
  const row = await boundedInCaller(executor, () =>
    setCheckpoint.executeFirst(executor, {
      ...leaseArguments(executor, [lease]),
      checkpoint: stored,
    }),
  );
  if (!row?.held) throw leaseLost();
}

/** From the least to the gravest. */
export const logLevels = ["debug", "info", "warn", "error"] as const;

export type LogLevel = (typeof logLevels)[number];

export interface LogLine {
  readonly level: LogLevel;
  readonly message: string;
  readonly fields?: unknown;
}

/**
 * Appends lines to the job's log. One round trip. Throws `input.invalid`, `payload.not_json`, `payload.too_large`,
 * `payload.reserved`, `payload.unencodable`, `payload.codec_unavailable`, `job.lease_owner_mismatch`.
 */
export async function appendLogs(executor: Executor, lease: Lease, lines: readonly LogLine[]): Promise<void> {
  if (lines.length === 0) return;
  if (!lines.every(({ level }) => logLevels.includes(level))) {
    throw new LedgerError("input.invalid", { message: `level must be one of ${logLevels.join(", ")}.` });
  }
  const { values } = executor.settings;
  const texts = lines.map(({ fields }, place) =>
    optionalText(values, fields, lines.length > 1 ? `lines[${place}].fields` : "fields"),
  );
  const fields = await storedValues(values, "log", texts);
  const row = await boundedInCaller(executor, () =>
    insertLogs.executeFirst(executor, {
      ...leaseArguments(executor, [lease]),
      levels: lines.map(({ level }) => level),
      messages: lines.map(({ message }) => storableText(message)),
      fields: lines.map((_, place) => fields(place)),
    }),
  );
  if (!row?.held) throw leaseLost();
}

function isCount(value: unknown): boolean {
  return Number.isSafeInteger(value) && Number(value) >= 0;
}

const held = sql<boolean>`exists (select from fenced)`.as("held");

// A cancelled job has left the queue; the ledger says that it was not just lost.
const extend = writing("heartbeat_jobs", { ...leaseParameters, leaseSeconds: "int4" }, (db, p) =>
  withFencedLeases(db, p)
    .with("extended", (qb) =>
      qb
        .updateTable("job_queue as q")
        .from("fenced as f")
        .whereRef("q.id", "=", "f.id")
        .set({ lease_expires_at: sql<Date>`clock_timestamp() + make_interval(secs => ${p.leaseSeconds})` })
        .returning(["q.id", "q.run_number", "q.attempt", "q.worker_id", "q.lease_expires_at"]),
    )
    .selectFrom("input")
    .leftJoin("extended as e", (join) =>
      join
        .onRef("e.id", "=", "input.job_id")
        .onRef("e.run_number", "=", "input.run_number")
        .onRef("e.attempt", "=", "input.attempt")
        .onRef("e.worker_id", "=", "input.worker_id"),
    )
    .select((eb) => [
      leaseKeyOf("input").as("lease_key"),
      "e.lease_expires_at",
      eb
        .case()
        .when("e.id", "is not", null)
        .then<Heartbeat["state"]>("EXTENDED")
        .when(
          eb.exists(
            eb
              .selectFrom("job_ledger as l")
              .whereRef("l.id", "=", "input.job_id")
              .whereRef("l.run_number", "=", "input.run_number")
              .where("l.status", "=", "CANCELED")
              .select("l.id"),
          ),
        )
        .then<Heartbeat["state"]>("CANCELED")
        .else<Heartbeat["state"]>("LOST")
        .end()
        .as("state"),
    ]),
);

const giveBack = writing("hand_back_jobs", { ...leaseParameters, notify: "bool" }, (db, p, schema) =>
  withFencedLeases(db, p)
    .with("returned", (qb) =>
      qb
        .updateTable("job_queue as q")
        .from("fenced as f")
        .whereRef("q.id", "=", "f.id")
        .set((eb) => ({
          status: "PENDING",
          attempt: eb("q.attempt", "-", 1),
          worker_id: null,
          leased_at: null,
          lease_expires_at: null,
        }))
        .returning("q.id"),
    )
    .selectNoFrom([
      sql<string[]>`array(select id from returned)`.as("ids"),
      announceJobs(p.notify, schema, sql`select from returned`).as("announced"),
    ]),
);

const setProgress = writing("progress_job", { ...leaseParameters, done: "int8", total: "int8?" }, (db, p) =>
  withFencedLeases(db, p)
    .with("changed", (qb) =>
      qb
        .updateTable("job_queue as q")
        .from("fenced as f")
        .whereRef("q.id", "=", "f.id")
        .where(sql<boolean>`${p.done} <= coalesce(${p.total}, f.progress_total, ${p.done})`)
        .set({ progress_done: p.done, progress_total: sql`coalesce(${p.total}, f.progress_total)` })
        .returning("q.id"),
    )
    .selectNoFrom([held, sql<boolean>`exists (select from changed)`.as("stored")]),
);

const setCheckpoint = writing("checkpoint_job", { ...leaseParameters, checkpoint: "jsonb" }, (db, p) =>
  withFencedLeases(db, p)
    .with("changed", (qb) =>
      qb
        .updateTable("job_queue as q")
        .from("fenced as f")
        .whereRef("q.id", "=", "f.id")
        .set({ checkpoint: p.checkpoint })
        .returning("q.id"),
    )
    .selectNoFrom(held),
);

const logParameters = { ...leaseParameters, levels: "text[]", messages: "text[]", fields: "jsonb?[]" } as const;

const insertLogs = writing("log_job", logParameters, (db, p) =>
  withFencedLeases(db, p)
    .with("logged", (qb) =>
      qb
        .insertInto("job_logs")
        .columns(["job_id", "run_number", "attempt", "level", "message", "fields"])
        .expression((eb) =>
          eb
            .selectFrom("fenced as f")
            .innerJoin(rowsOf("line", { level: p.levels, message: p.messages, fields: p.fields }), (join) =>
              join.onTrue(),
            )
            .select(["f.id", "f.run_number", "f.attempt", "line.level", "line.message", "line.fields"]),
        ),
    )
    .selectNoFrom(held),
);
