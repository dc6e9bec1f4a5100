/** What a worker tells about itself. Nothing is written to the console: `onEvent` decides what becomes of it. */
import type {
  ClaimedJob,
  Failure,
  FiredTick,
  LedgerError,
  Retained,
  SetAsideSchedule,
  SkippedTick,
  TerminalStatus,
} from "../index.ts";

/** Which attempt an event is about. No payload: events are made to be logged. */
export interface AttemptView {
  readonly jobId: string;
  readonly type: string;
  readonly runNumber: number;
  readonly attempt: number;
  readonly maxAttempts: number;
  readonly organizationId: string | null;
  readonly workflowRunId: string | null;
}

/** What the worker was doing when an error came. */
export type Activity =
  | "claim"
  | "decode"
  | "heartbeat"
  | "settle"
  | "reap"
  | "timers"
  | "schedule"
  | "maintain"
  | "hand_back"
  | "event_handler";

export type WorkerEvent =
  /** Jobs came under lease in one claim. */
  | { readonly type: "claimed"; readonly jobs: readonly AttemptView[] }
  /** A handler was called. */
  | { readonly type: "started"; readonly job: AttemptView }
  /** The success is stored. */
  | { readonly type: "succeeded"; readonly job: AttemptView }
  /** The job will be tried at `runAt`; the attempt does not count. */
  | { readonly type: "snoozed"; readonly job: AttemptView; readonly runAt: Date | null }
  /** The run of the job is stored as a success, and its next run starts at `runAt`. */
  | { readonly type: "continued"; readonly job: AttemptView; readonly runAt: Date | null }
  /** The failure is stored and the job will be tried again at `runAt`. */
  | { readonly type: "retried"; readonly job: AttemptView; readonly failure: Failure; readonly runAt: Date | null }
  /** The failure is stored and the job is dead-lettered. */
  | { readonly type: "failed"; readonly job: AttemptView; readonly failure: Failure }
  /** The job was cancelled under the handler, whose signal is aborted. */
  | { readonly type: "canceled"; readonly job: AttemptView }
  /**
   * The lease is gone (`job.lease_owner_mismatch`), or the outcome could not be stored while it lived: the
   * reaper gives the job to another attempt.
   */
  | { readonly type: "lost"; readonly job: AttemptView; readonly error: unknown }
  /** Claims that were never started went back to the queue; their attempt does not count. */
  | { readonly type: "handed_back"; readonly jobs: readonly AttemptView[] }
  /** Expired leases, of any worker, were settled. */
  | { readonly type: "reaped"; readonly returned: number; readonly deadLettered: number }
  /** A job whose expired lease could not be settled: it is tried again later. */
  | { readonly type: "set_aside"; readonly jobId: string; readonly error: LedgerError }
  /** A gate that nobody completed in its time has ended. */
  | {
      readonly type: "gate_expired";
      readonly runId: string;
      readonly stepKey: string;
      readonly status: TerminalStatus;
    }
  /** A run that had not ended by its deadline was cancelled. */
  | { readonly type: "deadline_exceeded"; readonly runId: string }
  /** A gate that could not be expired, or with `stepKey` null a run that could not be cancelled: it is tried again later. */
  | {
      readonly type: "timer_set_aside";
      readonly runId: string;
      readonly stepKey: string | null;
      readonly error: LedgerError;
    }
  /** A tick of a schedule was fired, and started this job or run. */
  | ({ readonly type: "schedule_fired" } & FiredTick)
  /** A tick of a schedule was passed over, because the fire before it lives. */
  | ({ readonly type: "schedule_skipped" } & SkippedTick)
  /** A schedule that could not be fired: it is tried again later. */
  | ({ readonly type: "schedule_set_aside" } & SetAsideSchedule)
  /** Partitions of the ledger were made ahead of time. */
  | { readonly type: "partitions_made"; readonly partitions: readonly string[] }
  /** Something was deleted: expired keys, or what was past by the policies. */
  | ({ readonly type: "retained" } & Retained)
  /** Something failed. `fatal: false`: it is tried again. `fatal: true`: the worker stops and `done` rejects. */
  | { readonly type: "error"; readonly during: Activity; readonly error: unknown; readonly fatal: boolean }
  /** The worker has stopped; `abandoned` handlers had not returned and are left to the reaper. */
  | { readonly type: "stopped"; readonly abandoned: readonly AttemptView[] };

export type Emit = (event: WorkerEvent) => void;

export function viewOf({ lease, type, maxAttempts, organizationId }: ClaimedJob): AttemptView {
  const { jobId, runNumber, attempt, workflowRunId } = lease;
  return { jobId, type, runNumber, attempt, maxAttempts, organizationId, workflowRunId };
}
