/** The one error type of the module, and the one table of its codes. */

export type ErrorCategory = "conflict" | "validation" | "not_found" | "forbidden" | "unavailable" | "internal";

interface CodeEntry {
  readonly category: ErrorCategory;
  /** Whether the same call may succeed when it is made again unchanged. */
  readonly retryable: boolean;
  readonly message: string;
}

const conflict = (message: string, retryable = false): CodeEntry => ({ category: "conflict", retryable, message });
const validation = (message: string): CodeEntry => ({ category: "validation", retryable: false, message });
const notFound = (message: string): CodeEntry => ({ category: "not_found", retryable: false, message });
const unavailable = (message: string, retryable = true): CodeEntry => ({ category: "unavailable", retryable, message });
const internal = (message: string): CodeEntry => ({ category: "internal", retryable: false, message });
const isolation = (operation: string): CodeEntry =>
  validation(`${operation} needs a READ COMMITTED transaction: it waits, then reads what others committed.`);

export const errorCodes = {
  "config.invalid": validation("The configuration is invalid."),
  "input.invalid": validation("An argument is invalid."),
  "payload.not_json": validation("The value cannot be stored as JSON."),
  "payload.too_large": validation("The value has more bytes as JSON than the ledger allows."),
  "payload.reserved": validation("An object whose one field is $runledger is reserved for encoded values."),
  "payload.unencodable": internal("The codec did not encode a value."),
  "payload.undecodable": internal("A stored value could not be decoded."),
  "payload.codec_unavailable": unavailable("The codec cannot be reached."),
  "payload.invalid": validation("The payload does not fit the input schema of its definition."),
  "scope.required": validation("An explicit scope is required: { global: true }, { organization } or { admin: true }."),

  "job.not_found": notFound("No such job in this scope."),
  "job.definition_not_found_or_disabled": validation("The job type has no enabled definition."),
  "job.idempotency_conflict": conflict("The idempotency key was used before with other values."),
  "job.enqueue_idempotency_unsupported_isolation": isolation("Enqueueing with an idempotency key"),
  "job.enqueue_active_key_unsupported_isolation": isolation("Enqueueing with an active key"),
  "job.enqueue_debounce_unsupported_isolation": isolation("Enqueueing with a debounce key"),
  "job.enqueue_throttle_unsupported_isolation": isolation("Enqueueing with a throttle key"),
  "job.active_key_taken": conflict("Another live job has the active key of this one."),
  "job.claim_unsupported_isolation": isolation("Claiming jobs with a limit"),
  "job.lease_owner_mismatch": conflict("The lease is no longer held: it expired, or the job was taken away."),
  "job.progress_invalid": validation("Progress needs 0 <= done <= total, against the stored values too."),
  "job.workflow_requeue_not_supported": conflict("The job belongs to a workflow run: act on the run instead."),
  "job.cancel_unsupported_isolation": isolation("Cancelling a job"),
  "job.requeue_conflict": conflict("The job is not in the expected status and run, or somebody requeued it just now."),
  "job.cancellation_not_quiesced": conflict(
    "A worker may still be at the cancelled job until its lease ends: requeue it after that.",
    true,
  ),
  "job.requeue_unsupported_isolation": isolation("Requeueing a job"),
  "job.replay_not_succeeded": conflict("Only a job that has succeeded can be replayed: requeue others."),
  "job.replay_conflicting_key": conflict("The key was used before for another replay of the job."),
  "job.replay_unsupported_isolation": isolation("Replaying a job"),

  "workflow.run_not_found": notFound("No such workflow run in this scope."),
  "workflow.step_not_found": notFound("No such step in this workflow run."),
  "workflow.internal_state": internal("The stored state of the workflow run is inconsistent."),
  "workflow.release_conflict": conflict("The workflow run is being cancelled or changed; nothing was written.", true),
  "workflow.enqueue_conflicting_retry": conflict("The idempotency key was used before with another request."),
  "workflow.enqueue_idempotency_unsupported_isolation": isolation("Enqueueing a run with an idempotency key"),
  "workflow.enqueue_active_key_unsupported_isolation": isolation("Enqueueing a run with an active key"),
  "workflow.active_key_taken": conflict("Another live workflow run has the active key of this one."),
  "workflow.cancel_unsupported_isolation": isolation("Cancelling a workflow run"),
  "workflow.terminal_completion_unsupported_isolation": isolation("Ending a job of a workflow run"),
  "workflow.external_completion_unsupported_isolation": isolation("Completing an external step"),
  "workflow.fire_timers_unsupported_isolation": isolation("Firing timers"),
  "workflow.external_step_not_waiting": conflict("The external step is not waiting for a completion."),
  "workflow.external_step_not_external": validation("The step is a JOB step: only its job's outcome completes it."),
  "workflow.external_step_conflicting_completion_retry": conflict(
    "The external step was completed with another outcome.",
  ),
  "workflow.external_step_conflicting_output_retry": conflict("The external step was completed with another output."),
  "workflow.retry_not_failed": conflict(
    "Only a workflow run that ended COMPLETED_WITH_ERRORS can be retried in place.",
  ),
  "workflow.retry_run_canceled": conflict("The workflow run was cancelled: recover it as a new run instead."),
  "workflow.retry_child_run": conflict("The workflow run is a step of another one: retry that step instead."),
  "workflow.retry_step_not_failed": conflict("The step has not failed, or was cancelled only because of others."),
  "workflow.retry_step_unsatisfied": conflict(
    "The step needs the success of a step that did not succeed and is not retried.",
  ),
  "workflow.retry_map_step": conflict("A map step cannot be retried by itself: rerun from the step that it maps over."),
  "workflow.retry_conflicting_key": conflict("The key was used before with another request."),
  "workflow.retry_unsupported_isolation": isolation("Retrying a workflow run"),
  "workflow.recover_not_ended": conflict("Only a workflow run that has ended can be recovered."),
  "workflow.recover_succeeded": conflict("The workflow run succeeded: rerun it from a step instead."),
  "workflow.recover_conflicting_key": conflict("The key was used before with another request."),
  "workflow.recover_unsupported_isolation": isolation("Recovering a workflow run"),
  "workflow.rerun_not_ended": conflict("Only a workflow run that has ended can be rerun."),
  "workflow.rerun_step_unsatisfied": conflict(
    "The step needs the success of a step that did not succeed and does not start anew.",
  ),
  "workflow.rerun_map_step": conflict(
    "The map step has no items to start anew: rerun from the step that it maps over.",
  ),
  "workflow.rerun_item_needed": conflict("The step depends on an item of a map step that will fan out anew."),
  "workflow.rerun_conflicting_key": conflict("The key was used before with another request."),
  "workflow.rerun_unsupported_isolation": isolation("Rerunning a workflow run"),
  "workflow.result_not_declared": validation("The workflow run declares no result step."),
  "workflow.result_missing": internal("The workflow run succeeded but its result step has no output."),
  "workflow.result_unsuccessful_terminal": conflict("The workflow run ended without success."),
  "workflow.result_wait_timeout": unavailable("The workflow run did not end in the time given."),
  "workflow.append_unsupported_isolation": isolation("Appending to a workflow run"),
  "workflow.append_run_ended": conflict("The workflow run has ended: nothing can be added."),
  "workflow.append_no_open_gate": conflict("No external gate of the workflow run is open, so nothing can be added."),
  "workflow.append_conflicting_retry": conflict("The mutation key was used before for another addition."),
  "workflow.append_unknown_dependency": validation("An added step depends on a step that does not exist."),
  "workflow.append_duplicate_step_key": validation("The workflow run has a step of this key already."),
  "workflow.step_continuation_not_declared": validation(
    "The job is a step that was not declared to continue: { continues: true }.",
  ),
  "workflow.append_not_a_step": validation("The job is not a step of a workflow run, so it cannot append."),
  "workflow.child_run_invalid": validation("The job does not stand for a child run."),

  "workflow.invalid_dag_blank_type": validation("A workflow or job type is blank."),
  "workflow.invalid_dag_blank_step_key": validation("A step key is blank."),
  "workflow.invalid_dag_no_steps": validation("A workflow needs at least one step."),
  "workflow.invalid_dag_step_shape": validation("The settings of a step do not fit its kind or range."),
  "workflow.invalid_dag_duplicate_step_key": validation("Two steps have the same key."),
  "workflow.invalid_dag_blank_dependency": validation("A dependency is blank."),
  "workflow.invalid_dag_self_dependency": validation("A step depends on itself."),
  "workflow.invalid_dag_duplicate_dependency": validation("A step names the same dependency twice."),
  "workflow.invalid_dag_missing_dependency": validation("A step depends on a step that does not exist."),
  "workflow.invalid_dag_cycle": validation("The dependencies form a cycle."),
  "workflow.invalid_dag_result_step": validation("The result step does not exist."),

  "schedule.cron_invalid": validation("The cron expression is invalid."),
  "schedule.time_zone_invalid": validation("The time zone is not a name of the IANA database that this system knows."),
  "schedule.not_found": notFound("No such schedule in this scope."),
  "schedule.ambiguous": conflict("Several tenants have a schedule of this name: give the scope of one."),
  "schedule.not_active": conflict("The schedule is paused or disabled, so it has no next time."),
  "schedule.workflow_unknown": validation("The schedule's workflow is not among the definitions that were given."),
  "schedule.build_failed": internal("The workflow's build function threw an error."),
  "schedule.fire_unsupported_isolation": isolation("Firing schedules"),

  "maintenance.transaction_unsupported": validation(
    "Retention takes transactions of its own, batch by batch: call it outside of one.",
  ),

  "schema.missing": unavailable("The ledger's schema is missing or older than this version needs.", false),

  "worker.invalid_state": validation("The worker is not in a state that allows this."),
  "worker.no_handler": internal("No handler is registered for the job's type."),

  "db.serialization_conflict": unavailable("The database gave up on concurrent changes."),
  "db.deadlock": unavailable("The database ended a deadlock."),
  "db.lock_timeout": unavailable("A lock was not granted in time."),
  "db.query_canceled": unavailable("The database canceled the statement."),
  "db.unavailable": unavailable("The database cannot be reached."),
  "db.commit_unconfirmed": unavailable(
    "The connection broke before the commit was confirmed: its outcome is unknown.",
    false,
  ),
  "db.transaction_aborted": internal("A statement of the transaction failed and the failure was ignored."),
  "db.constraint_violated": internal("A constraint of the database refused the change."),
  "db.value_rejected": validation("The database refused a value."),
  "db.forbidden": { category: "forbidden", retryable: false, message: "The database role lacks a privilege." },
  "db.error": internal("The database reported an unexpected error."),
} as const satisfies Record<string, CodeEntry>;

export type LedgerErrorCode = keyof typeof errorCodes;

/** Safe facts about an error: names, counts, times. Never a payload or a key of an idempotent call. */
export type ErrorDetails = Readonly<Record<string, string | number | boolean | null | readonly string[]>>;

export interface LedgerErrorOptions {
  /** Replaces the code's standing message; must be as safe to show. */
  readonly message?: string;
  readonly details?: ErrorDetails;
  readonly sqlstate?: string | undefined;
  readonly constraint?: string | undefined;
  readonly cause?: unknown;
}

const brand: unique symbol = Symbol.for("runledger.LedgerError");

/**
 * Every error that this module throws. `message`, `details` and `toJSON()` are safe to show to a
 * client; `sqlstate`, `constraint` and `cause` are for the log.
 */
export class LedgerError extends Error {
  override readonly name = "LedgerError";
  readonly code: LedgerErrorCode;
  readonly category: ErrorCategory;
  readonly retryable: boolean;
  readonly details: ErrorDetails;
  declare readonly sqlstate: string | undefined;
  declare readonly constraint: string | undefined;

  constructor(code: LedgerErrorCode, options: LedgerErrorOptions = {}) {
    const entry: CodeEntry = errorCodes[code];
    super(options.message ?? entry.message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.category = entry.category;
    this.retryable = entry.retryable;
    this.details = options.details ?? {};
    // Not enumerable: a logger that spreads the error must not send them to a client.
    Object.defineProperties(this, {
      sqlstate: { value: options.sqlstate, enumerable: false },
      constraint: { value: options.constraint, enumerable: false },
      [brand]: { value: true, enumerable: false },
    });
  }

  toJSON(): {
    code: LedgerErrorCode;
    category: ErrorCategory;
    retryable: boolean;
    message: string;
    details: ErrorDetails;
  } {
    const { code, category, retryable, message, details } = this;
    return { code, category, retryable, message, details };
  }
}

/** True for a LedgerError of any copy of this package; `instanceof` fails when two are installed. */
export function isLedgerError(error: unknown): error is LedgerError {
  return typeof error === "object" && error !== null && brand in error;
}
