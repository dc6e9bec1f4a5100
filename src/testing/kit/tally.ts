/** What came of the attempts of a worker, from its events, with what the handlers threw. */
import { type Failure, isLedgerError, type LedgerError } from "../../index.ts";
import type { AttemptView, Handler, WorkerEvent } from "../../worker/index.ts";

/** How an attempt can end, by the names of the worker's events. */
export type AttemptOutcome = Exclude<Extract<WorkerEvent, { readonly job: AttemptView }>["type"], "started">;

const none: Readonly<Record<AttemptOutcome, number>> = {
  succeeded: 0,
  snoozed: 0,
  continued: 0,
  retried: 0,
  failed: 0,
  canceled: 0,
  lost: 0,
};

/** What is no failure, and says all by itself. */
const well: ReadonlySet<AttemptOutcome> = new Set(["succeeded", "snoozed", "continued"]);

/** What a sweep can come to, besides having to leave something. */
const steps: ReadonlySet<WorkerEvent["type"]> = new Set([
  "reaped",
  "gate_expired",
  "deadline_exceeded",
  "schedule_fired",
  "schedule_skipped",
]);

/** An attempt that ended in none of the ways that are meant to be. */
export interface FailedAttempt {
  readonly jobId: string;
  readonly type: string;
  readonly attempt: number;
  readonly outcome: AttemptOutcome;
  /** What is stored of it; null when it was cancelled or its lease was lost. */
  readonly failure: Failure | null;
  /** What the handler threw, if it did. */
  readonly error: unknown;
}

export class Tally {
  readonly counts = { ...none };
  readonly failures: FailedAttempt[] = [];
  /** The last attempt's. */
  outcome: AttemptOutcome | undefined;
  /** Why a lease, timer or schedule could not be dealt with. */
  readonly setAside: LedgerError[] = [];
  /** Attempts that ended, and leases, timers and schedules that were dealt with: while it grows there may be more to do. */
  progress = 0;
  readonly #thrown = new Map<string, unknown>();

  get attempts(): number {
    return Object.values(this.counts).reduce((sum, count) => sum + count, 0);
  }

  readonly onEvent = (event: WorkerEvent): void => {
    if (steps.has(event.type)) this.progress += 1;
    if (event.type.endsWith("set_aside") && "error" in event && isLedgerError(event.error)) {
      this.setAside.push(event.error);
    }
    if (!("job" in event) || event.type === "started") return;
    this.progress += 1;
    this.counts[event.type] += 1;
    this.outcome = event.type;
    if (well.has(event.type)) return;
    const { jobId, type, attempt } = event.job;
    const failure = "failure" in event ? event.failure : null;
    const error = this.#thrown.get(keyOf(event.job));
    this.failures.push({ jobId, type, attempt, outcome: event.type, failure, error });
  };

  /** The same handler, whose errors are remembered as they were thrown. */
  watched(handler: Handler): Handler {
    return {
      ...handler,
      run: async (call) => {
        try {
          return await handler.run(call);
        } catch (error) {
          this.#thrown.set(keyOf(call.job.lease), error);
          throw error;
        }
      },
    };
  }
}

function keyOf({ jobId, runNumber, attempt }: Pick<AttemptView, "jobId" | "runNumber" | "attempt">): string {
  return `${jobId} ${runNumber} ${attempt}`;
}
