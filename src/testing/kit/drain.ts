/** Draining: runs what is due, and what becomes due by that, until nothing is. */
import { sql } from "kysely";
import type { AnyWorkflowDefinition, JobStatus, LedgerError } from "../../index.ts";
import type { Handler } from "../../worker/index.ts";
import { InlineWorker } from "../../worker/inline.ts";
import { advance } from "./advance.ts";
import { typesOf, WORKER_ID } from "./run.ts";
import { type KitParts, tablesOf } from "./tables.ts";
import { type AttemptOutcome, type FailedAttempt, Tally } from "./tally.ts";

export interface DrainOptions {
  /** Jobs of other types are left. */
  readonly handlers: readonly Handler[];
  /** The workflows that schedules may start. Default: none. */
  readonly workflows?: readonly AnyWorkflowDefinition[];
  /**
   * Whether time advances to when the next job of a handled type is due, such as a retry after its backoff, until there is none. Gates and
   * deadlines that come due on the way fire. Default false: what is due later is left.
   */
  readonly includeFuture?: boolean;
  /** How many attempts there may be: a handler that enqueues its own job has no end. Default 1000. */
  readonly maxJobs?: number;
  /** How many handlers run at once. Default 1: one after the other, in the order of claims. */
  readonly concurrency?: number;
}

/** How many attempts came to what, with the names of a worker's events, and the rest. */
export interface Drained extends Readonly<Record<AttemptOutcome, number>> {
  /** The attempts that did not succeed, in order. */
  readonly failures: readonly FailedAttempt[];
  /** Jobs that have not ended: due later, of other types, paused, or under another worker's lease. */
  readonly left: readonly LeftJob[];
  /** Why timers, schedules or expired leases could not be dealt with. */
  readonly setAside: readonly LedgerError[];
}

export interface LeftJob {
  readonly id: string;
  readonly type: string;
  readonly status: JobStatus;
  readonly attempt: number;
  readonly runAt: Date;
}

const DEFAULT_MAX_JOBS = 1000;

export async function drain(parts: KitParts, options: DrainOptions): Promise<Drained> {
  const { includeFuture = false, maxJobs = DEFAULT_MAX_JOBS, concurrency = 1, workflows = [] } = options;
  const tally = new Tally();
  const handlers = options.handlers.map((handler) => tally.watched(handler));
  const { ledger } = parts;
  const { onEvent } = tally;
  const worker = new InlineWorker({ ledger, handlers, workflows, concurrency, workerId: WORKER_ID, onEvent });
  for (;;) {
    const before = tally.progress;
    await worker.sweep();
    await worker.turn();
    if (tally.attempts > maxJobs) throw new Error(endless(maxJobs, tally));
    const wasIdle = tally.progress === before;
    if (wasIdle && !(includeFuture && (await advanceToNext(parts, typesOf(handlers))))) break;
  }
  const { counts, failures, setAside } = tally;
  return { ...counts, failures, setAside, left: await leftJobs(parts) };
}

function endless(maxJobs: number, { counts, failures }: Tally): string {
  const outcomes = Object.entries(counts).filter(([, count]) => count > 0);
  const last = failures.at(-1);
  const failure = last === undefined ? "" : ` The last failure was of ${last.type}: ${last.failure?.code}.`;
  return (
    `drain: more than ${maxJobs} attempts (${outcomes.map(([name, count]) => `${count} ${name}`).join(", ")}) ` +
    `and there is still more to do. Does a handler enqueue a job like its own? Else raise maxJobs.${failure}`
  );
}

/** Whether there is a job that is due later; if so, it is due now. */
async function advanceToNext(parts: KitParts, types: readonly string[]): Promise<boolean> {
  const next = await tablesOf(parts.db, parts.ledger.schema)
    .selectFrom("job_queue as q")
    .leftJoin("job_definitions as d", "d.type", "q.type")
    .where("q.status", "=", "PENDING")
    .where("q.type", "in", types)
    .where(sql<boolean>`d.enabled is not false and d.paused is not true and q.run_at > clock_timestamp()`)
    .select(sql<number | null>`extract(epoch from min(q.run_at) - clock_timestamp())::float8`.as("seconds"))
    .executeTakeFirst();
  if (next === undefined || next.seconds === null) return false;
  await advance(parts, Math.max(0, next.seconds));
  return true;
}

async function leftJobs({ db, ledger }: KitParts): Promise<LeftJob[]> {
  const rows = await tablesOf(db, ledger.schema)
    .selectFrom("job_queue as q")
    .select(["q.id", "q.type", "q.status", "q.attempt"])
    .select(sql<number>`(extract(epoch from q.run_at) * 1000)::float8`.as("run_at"))
    .orderBy("q.run_at")
    .orderBy("q.id")
    .execute();
  return rows.map(({ run_at, ...job }) => ({ ...job, runAt: new Date(run_at) }));
}
