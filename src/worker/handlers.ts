/** Handlers: a function for a job type, with what its definition says of payload, output and prerequisites. */
import type { StandardSchemaV1 } from "@standard-schema/spec";
import {
  type AnyJobDefinition,
  type ClaimedJob,
  isLedgerError,
  type JsonValue,
  type Lease,
  LedgerError,
  type LogLine,
  type OutputOf,
  type PayloadOf,
  type PrerequisiteFailures,
  type PrerequisiteOutputs,
  type PrerequisitesOf,
  parsed,
  type ScheduleTick,
  typed,
  type WorkflowAddition,
} from "../index.ts";
import { TerminalError } from "./failures.ts";

/** What a handler is called with. All functions may be taken out of it by destructuring. */
export interface JobContext<Payload = JsonValue, Prerequisites = PrerequisiteOutputs> {
  readonly payload: Payload;
  /**
   * The outputs of the prerequisites that succeeded, by step key; `{}` for a job that is not a step. The
   * graph's builder checks that a step has what its definition asks for; a job enqueued alone has none.
   */
  readonly prerequisites: Prerequisites;
  /** Why the others of the prerequisites, those that the step depends on ON_TERMINAL, did not succeed, by step key. */
  readonly failures: PrerequisiteFailures;
  /** Aborted with a `JobAborted` reason. A handler that stops because of it must throw: a return is a success. */
  readonly signal: AbortSignal;
  /** 1 for the first attempt. */
  readonly attempt: number;
  /** What an earlier attempt saved, or null. */
  readonly checkpoint: JsonValue | null;
  /**
   * The right to this attempt. With it a handler can complete the job in one commit with what it writes,
   * `ledger.jobs.complete(lease, { output }, async (trx) => {…})`; what it returns or throws is then ignored.
   */
  readonly lease: Lease;
  /** The tick of a schedule that the job is for, or null; null also for the steps of a run, whose graph was built with it. */
  readonly schedule: ScheduleTick | null;
  /** The job as it was claimed. */
  readonly job: ClaimedJob;
  /** Stores how far the job is. One round trip. Throws `job.progress_invalid`, `job.lease_owner_mismatch`. */
  progress(done: number, total?: number): Promise<void>;
  /** Stores what a later attempt needs to resume. One round trip. Throws `payload.not_json`, `job.lease_owner_mismatch`. */
  saveCheckpoint(checkpoint: unknown): Promise<void>;
  /**
   * Adds steps to the job's run, in one commit with its success: dynamic fan-out. A key adds to a run once, so an
   * attempt that is made again may say the same. What does not fit the run ends the job as PANICKED with the code
   * of the refusal, and so does an addition of an attempt that continues. Throws `workflow.append_not_a_step`.
   */
  append(key: string, build: (graph: WorkflowAddition) => unknown): void;
  /** Appends a line to the job's log. One round trip. Throws `payload.not_json`, `job.lease_owner_mismatch`. */
  log(level: LogLine["level"], message: string, fields?: unknown): Promise<void>;
}

/** What `handle` takes: a definition, or the name of a type that has none in code. */
export type HandledJob = AnyJobDefinition | string;
/** The payload that a handler of `J` receives: after the definition's schema has read it. */
export type HandlerPayload<J extends HandledJob> = J extends string ? JsonValue : PayloadOf<J>;
/** The prerequisites' outputs that a handler of `J` finds. */
export type HandlerPrerequisites<J extends HandledJob> = J extends string
  ? PrerequisiteOutputs
  : unknown extends PrerequisitesOf<J>
    ? PrerequisiteOutputs
    : PrerequisitesOf<J>;
/** What a handler of `J` returns: it must have a JSON form. */
export type HandlerOutput<J extends HandledJob> = J extends string ? unknown : OutputOf<J>;

export type HandlerFunction<J extends HandledJob> = (
  context: JobContext<HandlerPayload<J>, HandlerPrerequisites<J>>,
) => HandlerOutput<J> | Promise<HandlerOutput<J>>;

/** @internal What a handler is about to be called for. */
export interface HandlerCall {
  readonly job: ClaimedJob;
  readonly prerequisites: PrerequisiteOutputs;
  /** What the function is called with, once payload and prerequisites have been read. */
  context<Payload, Prerequisites>(payload: Payload, prerequisites: Prerequisites): JobContext<Payload, Prerequisites>;
}

/** A handler of one job type; made by `handle`. */
export interface Handler {
  readonly type: string;
  /** @internal What it was made with; none for a type that has no definition in code. */
  readonly definition?: AnyJobDefinition;
  /** @internal Reads the payload and calls the function. */
  readonly run: (call: HandlerCall) => Promise<unknown>;
  /** @internal Its return means that the attempt has been ended already. */
  readonly endsItself?: true;
}

/**
 * Binds a function to a job type. The definition's `input` schema reads the payload first; a payload that
 * does not fit ends the job as TERMINAL with the code `payload.invalid`.
 *
 * ```ts
 * handle(sendReceipt, async ({ payload, signal }) => {
 *   const { id } = await mailer.send(payload.orderId, { signal });
 *   return { messageId: id };
 * });
 * ```
 */
export function handle<J extends HandledJob>(job: J, run: HandlerFunction<J>): Handler {
  const type = typeof job === "string" ? job : job.type;
  if (typeof type !== "string" || type.trim() === "" || typeof run !== "function") {
    throw new LedgerError("config.invalid", { message: "handle() takes a job definition or type, and a function." });
  }
  const schema = (typeof job === "string" ? undefined : job.input) ?? typed<HandlerPayload<J>>();
  const prerequisitesType = typed<HandlerPrerequisites<J>>();
  return {
    type,
    ...(typeof job === "string" ? {} : { definition: job }),
    run: async (call) => {
      const payload = await read(schema, call.job.payload);
      return run(call.context(payload, await parsed(prerequisitesType, call.prerequisites)));
    },
  };
}

function read<Payload>(schema: StandardSchemaV1<unknown, Payload>, payload: JsonValue): Payload | Promise<Payload> {
  try {
    const value = parsed(schema, payload);
    return value instanceof Promise ? value.catch(refusePayload) : value;
  } catch (error) {
    return refusePayload(error);
  }
}

/** The payload stays as it is, so no later attempt can fare better. */
function refusePayload(error: unknown): never {
  if (!isLedgerError(error) || error.code !== "payload.invalid") throw error;
  const { paths } = error.details;
  const at = Array.isArray(paths) && paths.length > 0 ? ` At: ${paths.join(", ")}.` : "";
  throw new TerminalError(error.code, `${error.message}${at}`, { cause: error });
}
