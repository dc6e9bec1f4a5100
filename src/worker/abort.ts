/** Why a handler's signal was aborted. */

/**
 * - `cancel`: the job or its run was cancelled.
 * - `timeout`: the attempt ran longer than the job's `timeoutSeconds`.
 * - `lease_lost`: the lease expired or the job was taken away.
 * - `shutdown`: the worker stops and its time for running handlers is over.
 */
export type AbortKind = "cancel" | "timeout" | "lease_lost" | "shutdown";

const reasons: Readonly<Record<AbortKind, { readonly code: string; readonly message: string }>> = {
  cancel: { code: "job.canceled", message: "The job was cancelled." },
  timeout: { code: "job.timeout", message: "The attempt ran longer than the job's timeout." },
  lease_lost: { code: "job.lease_lost", message: "The lease on the job was lost." },
  shutdown: { code: "worker.shutdown", message: "The worker stopped before the attempt ended." },
};

/** The `reason` of a handler's signal, and what `signal.throwIfAborted()` throws. */
export class JobAborted extends Error {
  override readonly name = "JobAborted";
  readonly kind: AbortKind;
  /** `job.canceled`, `job.timeout`, `job.lease_lost` or `worker.shutdown`. */
  readonly code: string;

  constructor(kind: AbortKind) {
    super(reasons[kind].message);
    this.kind = kind;
    this.code = reasons[kind].code;
  }
}
