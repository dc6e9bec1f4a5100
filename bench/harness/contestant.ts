/** What a system must offer to be measured. It implements what it can; a work asks only those who can do it. */

/** `defaults`: as its first page shows it. `tuned`: as its documentation says for throughput and latency. */
export type Tuning = "tuned" | "defaults";

/** What every job and step carries. */
export interface Payload {
  readonly n: number;
  /** When it was asked for, or what it depends on had ended: milliseconds of the machine's monotonic clock. */
  readonly at?: number;
}

/** Called when a handler starts, with the payload of its job or step. */
export type Started = (payload: Payload) => void;

/** How the items of a fan-out run: as steps of the one run, or as runs of their own. */
export type Fan = "steps" | "child runs";

/** One system, in one process, on one database that `install` has prepared. */
export interface Contestant {
  /** A query for `count`: how many jobs or runs are enqueued whose end is not stored. */
  readonly pending: string;
  /** Creates its tables in an empty database. */
  install(): Promise<void>;
  /** Starts to run what is enqueued, here or from other processes. */
  work(started: Started): Promise<void>;
  /** Enqueues one job: stored when this resolves. */
  enqueue(payload: Payload): Promise<unknown>;
  /** Enqueues many at once, all or none, in the fastest way that is documented. */
  enqueueMany(payloads: readonly Payload[]): Promise<unknown>;
  /** Starts runs of so many steps, one after the other. */
  enqueueChains?(runs: number, steps: number): Promise<unknown>;
  /** Starts one run: a step, so many that depend on it, and one that depends on all those. */
  enqueueFan?(width: number, fan: Fan): Promise<unknown>;
  close(): Promise<void>;
}

/** What the module of a contestant exports. */
export interface ContestantModule {
  open(url: string, tuning: Tuning): Promise<Contestant>;
}

/** Milliseconds of the clock that all processes of the machine share. */
export function now(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}
