/** Timers: whatever is due by the database's clock happens, wherever and however often it runs (FEATURES F-W6, F-W12). */
import { sql } from "kysely";
import { toDateOrNull, toNumber } from "../database/decode.ts";
import type { Executor } from "../database/executor.ts";
import type { StoredJson } from "../database/json.ts";
import { reading } from "../database/statement.ts";
import { requireReadCommitted } from "../database/transaction.ts";
import { LedgerError } from "../errors.ts";
import { validInteger } from "../jobs/arguments.ts";
import { type DueGate, expireGates } from "../steps/expiry.ts";
import { isTerminalOutcome, type TerminalStatus } from "../steps/resolve.ts";
import { enforceDeadlines } from "./deadlines.ts";

export interface FireTimersOptions {
  /** At most this many gates, and as many runs, 1 to 10 000. Default 200. */
  readonly limit?: number;
}

/** A gate that ended because its time was over. */
export interface ExpiredGate {
  readonly runId: string;
  readonly stepKey: string;
  readonly status: TerminalStatus;
}

export interface FiredTimers {
  readonly expiredGates: readonly ExpiredGate[];
  /** The ids of the runs that were cancelled because of their deadlines. */
  readonly canceledRuns: readonly string[];
  /** What could not be ended, such as a gate that somebody completes just now: it is left for the next call. */
  readonly setAside: readonly SetAsideTimer[];
  /** When the next is due that was not in this call's reach, or null. */
  readonly nextAt: Date | null;
  /** How long that is after the beginning of the call, by the database's clock, in milliseconds; below 0 when it is due. */
  readonly nextInMs: number | null;
}

/** A gate, or with `stepKey` null a run. */
export interface SetAsideTimer {
  readonly runId: string;
  readonly stepKey: string | null;
  readonly error: LedgerError;
}

const DEFAULT_LIMIT = 200;
const MAX_LIMIT = 10_000;
/** Who is in the way of a timer is not waited for as long as for anybody else: the others are due too. */
const LOCK_WAIT_MS = 250;

/**
 * Expires gates and cancels runs past their deadlines. One round trip when nothing is due, and those of
 * `expireGates` and `enforceDeadlines` for what is; in a caller's transaction one more, for its level, and while
 * deadlines are due the gates are left to the next one. Throws
 * `db.*` when the database is gone, `input.invalid`, `workflow.fire_timers_unsupported_isolation`.
 */
export async function fireTimers(executor: Executor, options: FireTimersOptions = {}): Promise<FiredTimers> {
  const limit = validInteger(options.limit, "limit", 1, MAX_LIMIT) ?? DEFAULT_LIMIT;
  await requireReadCommitted(executor, "workflow.fire_timers_unsupported_isolation");
  const { gates, runIds, next } = await lookedUp(executor, limit);
  const impatient = hurried(executor);
  const { expired, setAside } = await expireGates(impatient, gates);
  const ended = await enforceDeadlines(impatient, runIds);
  return {
    expiredGates: expired.map(({ runId, stepKey, outcome }) => ({ runId, stepKey, status: outcome })),
    canceledRuns: ended.canceled,
    setAside: [
      ...setAside.map(({ gate: { runId, stepKey }, error }) => ({ runId, stepKey, error })),
      ...ended.setAside.map(({ runId, error }) => ({ runId, stepKey: null, error })),
    ],
    nextAt: next?.at ?? null,
    nextInMs: next?.inMs ?? null,
  };
}

function hurried(executor: Executor): Executor {
  const { settings } = executor;
  return { ...executor, settings: { ...settings, lockWaitMs: Math.min(settings.lockWaitMs, LOCK_WAIT_MS) } };
}

interface Next {
  readonly at: Date;
  readonly inMs: number;
}

interface Look {
  readonly gates: readonly DueGate[];
  readonly runIds: readonly string[];
  readonly next: Next | null;
}

async function lookedUp(executor: Executor, limit: number): Promise<Look> {
  // One row more than the limit says that more is due, and since when.
  const rows = await look.execute(executor, { rows: limit + 1 });
  const gates = rows.filter(({ what }) => what === "gate");
  const runs = rows.filter(({ what }) => what === "run");
  // In one transaction the cancels' job rows would come after the gates' step rows: out of the order of LOCKS.md §3.
  const gateLimit = executor.transaction === "caller" && runs.length > 0 ? 0 : limit;
  const nexts = [gates[gateLimit], runs[limit], rows.find(({ what }) => what === "next")].flatMap(nextOf);
  return {
    gates: gates.slice(0, gateLimit).map(dueGate),
    runIds: runs.slice(0, limit).flatMap(({ run_id }) => run_id ?? []),
    next: nexts.sort((a, b) => a.inMs - b.inMs)[0] ?? null,
  };
}

type Row = Awaited<ReturnType<typeof look.execute>>[number];

function nextOf(row: Row | undefined): Next[] {
  const at = toDateOrNull(row?.at);
  return at === null ? [] : [{ at, inMs: toNumber(row?.in_ms) }];
}

function dueGate({ run_id, step_id, step_key, outcome, output }: Row): DueGate {
  if (run_id === null || step_id === null || step_key === null || !isTerminalOutcome(outcome)) {
    throw new LedgerError("workflow.internal_state");
  }
  return { runId: run_id, stepId: step_id, stepKey: step_key, outcome, output };
}

/** Stable within a statement, unlike clock_timestamp(), so that an index serves; and not as old as the caller's transaction. */
const asked = sql<Date>`statement_timestamp()`;
const noText = sql<string | null>`null::text`;
const noJson = sql<StoredJson | null>`null::text`;
const noId = sql<string | null>`null::uuid`;

const what = (word: "gate" | "run" | "next") => sql<typeof word>`${sql.lit(word)}`.as("what");

const inMs = (at: string) => sql<number>`extract(epoch from ${sql.ref(at)} - ${asked})::float8 * 1000`;

// Each branch is a walk along the beginning of a partial index that holds nothing but open timers.
const look = reading("look_at_timers", { rows: "int4" }, (db, p) =>
  db
    .with("gate", (qb) =>
      qb
        .selectFrom("workflow_steps as s")
        .where("s.open_since", "is not", null)
        .where("s.expires_at", "<=", asked)
        .select(["s.run_id", "s.id", "s.step_key", "s.expires_at", "s.expiry_outcome", "s.expiry_output"])
        .orderBy("s.expires_at")
        .limit(p.rows),
    )
    .with("run", (qb) =>
      qb
        .selectFrom("workflow_runs as r")
        .where("r.ended_at", "is", null)
        .where("r.deadline_at", "<=", asked)
        .select(["r.id", "r.deadline_at"])
        .orderBy("r.deadline_at")
        .limit(p.rows),
    )
    .with(
      (cte) => cte("next").materialized(),
      (qb) =>
        qb.selectNoFrom((eb) =>
          eb
            .fn<Date | null>("least", [
              eb
                .selectFrom("workflow_steps as s")
                .where("s.open_since", "is not", null)
                .where("s.expires_at", ">", asked)
                .select("s.expires_at")
                .orderBy("s.expires_at")
                .limit(1),
              eb
                .selectFrom("workflow_runs as r")
                .where("r.ended_at", "is", null)
                .where("r.deadline_at", ">", asked)
                .select("r.deadline_at")
                .orderBy("r.deadline_at")
                .limit(1),
            ])
            .as("at"),
        ),
    )
    .selectFrom("gate as g")
    .select([
      what("gate"),
      sql<string | null>`g.run_id`.as("run_id"),
      sql<string | null>`g.id`.as("step_id"),
      sql<string | null>`g.step_key`.as("step_key"),
      sql<string | null>`g.expiry_outcome::text`.as("outcome"),
      sql<StoredJson | null>`g.expiry_output::text`.as("output"),
      "g.expires_at as at",
      inMs("g.expires_at").as("in_ms"),
    ])
    .unionAll((eb) =>
      eb
        .selectFrom("run as d")
        .select([
          what("run"),
          sql<string | null>`d.id`.as("run_id"),
          noId.as("step_id"),
          noText.as("step_key"),
          noText.as("outcome"),
          noJson.as("output"),
          "d.deadline_at as at",
          inMs("d.deadline_at").as("in_ms"),
        ]),
    )
    .unionAll((eb) =>
      eb
        .selectFrom("next as n")
        .select([
          what("next"),
          noId.as("run_id"),
          noId.as("step_id"),
          noText.as("step_key"),
          noText.as("outcome"),
          noJson.as("output"),
          "n.at",
          inMs("n.at").as("in_ms"),
        ]),
    )
    .orderBy("at"),
);
