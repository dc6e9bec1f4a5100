/** Job definitions in code: a type name, what its payload and output look like, and requests made from them. */
import type { StandardSchemaV1 } from "@standard-schema/spec";
import { LedgerError } from "../errors.ts";
import type { JobKeys } from "./key-options.ts";
import type { DefinedLimit, RequestedLimit } from "./limits.ts";
import type { ScheduleTick } from "./tick.ts";

/** The settings of one job; what is left out comes from the type's definition in the database, else from the defaults. */
export interface JobOptions extends JobKeys {
  /** Higher first. Default 100. */
  readonly priority?: number;
  /** How often the job may be started before it is dead-lettered. Default 8. */
  readonly maxAttempts?: number;
  /** How long one attempt may run, in seconds. Default 900. */
  readonly timeoutSeconds?: number;
  /** Not started before this time. Default: at once. */
  readonly runAt?: Date | string;
  /** The tenant. Default: the global tenant. */
  readonly organizationId?: string | null;
  /** Free labels for lists and reports. */
  readonly tags?: readonly string[];
  /** How many jobs of a key run at once or start in a period. What is left out comes from the definition in code. */
  readonly limit?: RequestedLimit;
}

/** A job to enqueue: what `enqueueMany` takes. */
export interface JobRequest extends JobOptions {
  readonly type: string;
  readonly payload: unknown;
  /** Checks the payload before anything is written. */
  readonly schema?: StandardSchemaV1 | undefined;
  /** What the definition in code says. Not part of the request that an idempotency key remembers. */
  readonly defaults?: JobDefaults;
  /** The tick that the job is for. A schedule that fires sets it. */
  readonly schedule?: ScheduleTick;
  /** The limit that the definition in code has for this payload; asked for when the schema has checked it. */
  readonly definedLimit?: (() => RequestedLimit) | undefined;
}

/** A job type with its payload's and output's shapes. */
export interface JobDefinition<
  Type extends string = string,
  Input = unknown,
  Payload = Input,
  Output = unknown,
  Prerequisites = unknown,
> {
  readonly type: Type;
  /** Carries the type of the prerequisites' outputs that a step of this job needs; nothing at run time. */
  readonly prerequisites: StandardSchemaV1<Prerequisites, Prerequisites> | undefined;
  readonly input: StandardSchemaV1<Input, Payload> | undefined;
  readonly output: StandardSchemaV1<unknown, Output> | undefined;
  readonly defaults: JobDefaults;
  readonly version: number;
  readonly backoff: BackoffPolicy;
  readonly limit: DefinedLimit<Input> | undefined;
  /** A request with this definition's type; it is checked when it is enqueued. */
  request(input: Input, options?: JobOptions): JobRequest;
}

// Any definition, whatever its payload: the input is in a contravariant place, so only `any` fits all.
// biome-ignore lint/suspicious/noExplicitAny: see above
export type AnyJobDefinition = JobDefinition<string, any, any, any, any>;

export type JobDefaults = Pick<JobOptions, "priority" | "maxAttempts" | "timeoutSeconds">;

/** The policy of a type: that of failures in general, and of those with certain codes. */
export interface BackoffPolicy extends BackoffTiming {
  /** By the failure's code, `job.timeout` and `job.lease_expired` included: what differs for it. */
  readonly byCode?: Readonly<Record<string, BackoffTiming>>;
}

/** The delay before attempt n + 1: `initialSeconds * factor ^ (n - 1)`, at most `maxSeconds`, less a random share. */
export interface BackoffTiming {
  /** Default 1. */
  readonly initialSeconds?: number;
  /** 1 to 1000; 1 is a fixed delay. Default 2. */
  readonly factor?: number;
  /** Default 3600. */
  readonly maxSeconds?: number;
  /** The largest share that is taken off at random, 0 to 1. Default 0.5. */
  readonly jitter?: number;
}

/** What a caller hands over to enqueue a job of this definition. */
export type InputOf<D> = D extends JobDefinition<string, infer Input, infer _P, infer _O, infer _R> ? Input : never;
/** What the handler receives: the input after the schema has read it. */
export type PayloadOf<D> =
  D extends JobDefinition<string, infer _I, infer Payload, infer _O, infer _R> ? Payload : never;
/** What the handler returns. */
export type OutputOf<D> = D extends JobDefinition<string, infer _I, infer _P, infer Output, infer _R> ? Output : never;
/** The outputs, by step key, that the handler finds when the job is a step. */
export type PrerequisitesOf<D> =
  D extends JobDefinition<string, infer _I, infer _P, infer _O, infer Prerequisites> ? Prerequisites : never;

export interface DefineJobOptions<Input, Payload, Output, Prerequisites> extends JobDefaults {
  /** Counts up with changes of the payload's shape. Default 1. */
  readonly version?: number;
  readonly backoff?: BackoffPolicy;
  /** How many jobs of a key run at once or start in a period; the key is a text, or made from each payload. */
  readonly limit?: DefinedLimit<Input>;
  /** Any Standard Schema (zod, valibot, arktype), or `typed<T>()` for a shape without a check. */
  readonly input?: StandardSchemaV1<Input, Payload>;
  /** The shape of what the handler returns. */
  readonly output?: StandardSchemaV1<unknown, Output> | StandardSchemaV1<Output, Output>;
  /** The outputs of prerequisites, by step key, that a step of this job needs; the builder checks the graph for them. */
  readonly prerequisites?: StandardSchemaV1<Prerequisites, Prerequisites>;
}

/**
 * Defines a job type.
 *
 * ```ts
 * const sendReceipt = defineJob("send-receipt", { input: typed<{ orderId: string }>(), maxAttempts: 5 });
 * await ledger.jobs.enqueue(sendReceipt, { orderId: "o-1" });
 * ```
 */
export function defineJob<
  const Type extends string,
  Input = unknown,
  Payload = Input,
  Output = unknown,
  Prerequisites = unknown,
>(
  type: Type,
  options: DefineJobOptions<Input, Payload, Output, Prerequisites> = {},
): JobDefinition<Type, Input, Payload, Output, Prerequisites> {
  const { input, output, prerequisites, version = 1, backoff = {}, limit, ...defaults } = options;
  return Object.freeze({
    type,
    prerequisites,
    input,
    output: output as StandardSchemaV1<unknown, Output> | undefined,
    defaults,
    version,
    backoff,
    limit,
    request: (payload: Input, requestOptions: JobOptions = {}): JobRequest => ({
      ...requestOptions,
      type,
      payload,
      schema: input,
      defaults,
      definedLimit: limitOf(limit, payload),
    }),
  });
}

/** The limit of a definition for one payload; its key is made when this is called. */
export function limitOf<Input>(
  limit: DefinedLimit<Input> | undefined,
  payload: Input,
): (() => RequestedLimit) | undefined {
  if (limit === undefined) return undefined;
  const { key, ...settings } = limit;
  return () => ({ ...settings, key: typeof key === "function" ? key(payload) : key });
}

/** A Standard Schema that only carries a type: nothing is checked at run time. */
export function typed<T>(): StandardSchemaV1<T, T> {
  return { "~standard": { version: 1, vendor: "runledger", validate: (value) => ({ value: value as T }) } };
}

/**
 * What the schema makes of the value, or `payload.invalid` with the paths, not the values, that do not fit. A promise only
 * where the schema itself takes one.
 */
export function parsed<Payload>(
  schema: StandardSchemaV1<unknown, Payload>,
  value: unknown,
): Payload | Promise<Payload> {
  const result = schema["~standard"].validate(value);
  return result instanceof Promise ? result.then(valueIn) : valueIn(result);
}

function valueIn<Payload>(result: StandardSchemaV1.Result<Payload>): Payload {
  if (result.issues === undefined) return result.value;
  const paths = result.issues.map(({ path = [] }) =>
    path.map((segment) => String(typeof segment === "object" ? segment.key : segment)).join("."),
  );
  throw new LedgerError("payload.invalid", { details: { paths: [...new Set(paths)] } });
}
