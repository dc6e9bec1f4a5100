/** runledger/worker: runs the handlers of a ledger's jobs. */
export { type AbortKind, JobAborted } from "./abort.ts";
export { type EnvironmentOptions, workerOptionsFrom } from "./environment.ts";
export type { Activity, AttemptView, WorkerEvent } from "./events.ts";
export { RetryableError, type RetryableErrorOptions, TerminalError } from "./failures.ts";
export {
  type HandledJob,
  type Handler,
  type HandlerFunction,
  type HandlerOutput,
  type HandlerPayload,
  type HandlerPrerequisites,
  handle,
  type JobContext,
} from "./handlers.ts";
export type { MaintainOptions, WorkerOptions } from "./options.ts";
export { Continue, Snooze } from "./outcomes.ts";
export type { WorkerSyncOptions } from "./sync.ts";
export { createWorker, type StopOptions, type Worker } from "./worker.ts";
