/** Running one job inline: claimed, run and settled in this process, as a worker would. */
import { sql } from "kysely";
import {
  CHILD_RUN_JOB,
  type ClaimedJob,
  type Failure,
  type JobStatus,
  type JsonValue,
  type Ledger,
  LedgerError,
} from "../../index.ts";
import type { Handler } from "../../worker/index.ts";
import { InlineWorker } from "../../worker/inline.ts";
import { type KitParts, tablesOf } from "./tables.ts";
import { type AttemptOutcome, Tally } from "./tally.ts";

export interface RunJobOptions {
  /** One of them must be for the job's type. */
  readonly handlers: readonly Handler[];
  /** Whether what the handler throws is thrown again, once the failure is stored. Default false. */
  readonly rethrow?: boolean;
}

/** What came of one attempt. */
export interface RanJob {
  readonly outcome: AttemptOutcome;
  /** The job's status now. */
  readonly status: JobStatus;
  /** The output as it is stored: that of the step, where the job is one. */
  readonly output: JsonValue | null;
  /** What is stored of a failure; null when there was none. */
  readonly failure: Failure | null;
  /** What the handler threw, the very object; undefined when it did not. */
  readonly error: unknown;
  /** When it is tried again, if it is. */
  readonly runAt: Date;
}

export async function runJob(parts: KitParts, jobId: string, options: RunJobOptions): Promise<RanJob> {
  const { ledger } = parts;
  const tally = new Tally();
  const handlers = options.handlers.map((handler) => tally.watched(handler));
  const worker = new InlineWorker({ ledger, handlers, concurrency: 1, workerId: WORKER_ID, onEvent: tally.onEvent });
  await worker.run(await claimOne(parts, jobId, typesOf(handlers)));
  const { outcome, failures } = tally;
  if (outcome === undefined) throw new Error(`No outcome of the job ${jobId} was seen.`);
  const error = failures[0]?.error;
  if (options.rethrow && failures.length > 0) throw error ?? new Error(`The job ${jobId} ended as ${outcome}.`);
  const job = await ledger.jobs.get(jobId, { admin: true }, REVEALED);
  const output = job.workflowRunId === null ? job.output : await stepOutput(ledger, job.workflowRunId, jobId);
  return { outcome, status: job.status, output, failure: failures[0]?.failure ?? null, error, runAt: job.runAt };
}

export const WORKER_ID = "runledger/testing";

/** The types that a worker with these handlers takes. */
export function typesOf(handlers: readonly Handler[]): string[] {
  return [...handlers.map(({ type }) => type), CHILD_RUN_JOB];
}

/** A test wants to see what there is. */
const REVEALED = { values: "revealed" } as const;

async function stepOutput({ runs }: Ledger, runId: string, jobId: string): Promise<JsonValue | null> {
  const { steps } = await runs.get(runId, { admin: true }, REVEALED);
  return steps.find((step) => step.jobId === jobId)?.output ?? null;
}

const FIRST = { priority: 2_147_483_647, runAt: sql<Date>`'epoch'::timestamptz` };

/**
 * Claims this very job, due or not, by the ledger's own claim: for that moment it is the first of its type. Nobody else
 * sees it like that, and it is back in its place when the transaction ends.
 */
async function claimOne({ db, ledger }: KitParts, jobId: string, types: readonly string[]): Promise<ClaimedJob> {
  return db.transaction().execute(async (trx) => {
    const queue = tablesOf(trx, ledger.schema);
    const job = await queue
      .selectFrom("job_queue")
      .where("id", "=", jobId)
      .select(["type", "status", "priority", "run_at", sql<string>`run_at::text`.as("exact_run_at")])
      .forUpdate()
      .executeTakeFirst();
    if (job?.status !== "PENDING") throw new Error(await reasonOf(ledger, jobId));
    if (!types.includes(job.type)) throw new LedgerError("worker.no_handler", { details: { type: job.type } });
    const change = queue.updateTable("job_queue").where("id", "=", jobId);
    await change.set({ priority: FIRST.priority, run_at: FIRST.runAt }).execute();
    const [claimed] = await ledger.in(trx).jobs.claim({ workerId: WORKER_ID, limit: 1, types: [job.type] });
    if (claimed?.lease.jobId !== jobId)
      throw new Error(`${named(jobId, job.type)} is held back: paused, or by a limit.`);
    await change.set({ priority: job.priority, run_at: job.exact_run_at }).execute();
    return { ...claimed, priority: job.priority, runAt: job.run_at };
  });
}

async function reasonOf({ jobs }: Ledger, jobId: string): Promise<string> {
  const { type, status } = await jobs.get(jobId, { admin: true });
  return `${named(jobId, type)} cannot be run: it is ${status}, not PENDING.`;
}

function named(jobId: string, type: string): string {
  return `The job ${jobId} of the type ${type}`;
}
