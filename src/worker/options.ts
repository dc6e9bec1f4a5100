/** A worker's options, with their units and defaults, checked when it is made. */
import { randomUUID } from "node:crypto";
import { hostname } from "node:os";
import {
  type AnyWorkflowDefinition,
  isLedgerError,
  type Ledger,
  LedgerError,
  type RetentionPolicies,
  requireRetention,
} from "../index.ts";
import { childRuns } from "./child-runs.ts";
import type { WorkerEvent } from "./events.ts";
import type { Handler } from "./handlers.ts";
import type { MaintainSettings } from "./maintain.ts";
import type { WorkerSyncOptions } from "./sync.ts";

export interface WorkerOptions {
  /** A ledger on a pool: not one of `ledger.in(trx)`. */
  readonly ledger: Ledger;
  /** One for each type that this worker takes; the jobs of child runs it takes by itself. With none it takes no jobs at all. */
  readonly handlers: readonly Handler[];
  /** How many handlers run at once at most, 1 to 10 000. Default 10. */
  readonly concurrency?: number;
  /** How long a lease lives without a heartbeat, in seconds, 1 to 86 400. Heartbeats go at a third of it. Default 60. */
  readonly leaseSeconds?: number;
  /**
   * How often an idle worker asks for jobs, in milliseconds, 10 to 3 600 000, whether or not it listens: what becomes due later (a
   * retry, a `runAt`) is not announced and starts at most this much late. Where it cannot listen it asks again 50 ms after it
   * found jobs, and then ever less often until this interval is reached. Default 1000.
   */
  readonly pollIntervalMs?: number;
  /** How many jobs one claim takes at most, 1 to 10 000. Default 500. */
  readonly batchSize?: number;
  /**
   * How many jobs may be claimed ahead of free slots, 0 to 10 000. Only done while handlers are short, and never for more
   * than start within about 100 ms at their pace, so that no job waits here while another worker is idle; 0 never does it. Default 1000.
   */
  readonly prefetch?: number;
  /** Who claims, 1 to 512 bytes; must differ between workers that live at the same time. Default: host, process and a random part. */
  readonly workerId?: string;
  /**
   * Whether this worker settles leases that have expired, of any worker, and fires the timers of any run (gates that
   * expire, deadlines), and how often about it looks, in milliseconds. A timer that it has seen fires on time, one
   * that began since at most this much late. Some worker or process must. Default: true, every 15 000.
   */
  readonly reap?: boolean | { readonly intervalMs: number };
  /**
   * Whether this worker fires schedules, and how often it looks for new ones, in milliseconds. A schedule that it has seen fires
   * on time, one that is new or changed at most this much late. Some worker or process must. Default: true, every 15 000.
   */
  readonly schedule?: boolean | { readonly intervalMs: number };
  /**
   * Whether this worker keeps the ledger in order, and how often, in milliseconds: it makes partitions ahead, folds the
   * kept counts and deletes expired idempotency keys. With `retention` it deletes what is past by that, in a pass every
   * `retentionIntervalMs`. Some worker or process must. Default: true, every 60 000 and 3 600 000; nothing that has ended is deleted.
   */
  readonly maintain?: boolean | MaintainOptions;
  /** The workflows that schedules may start from this worker; those of others are left to workers that know them. Default: none. */
  readonly workflows?: readonly AnyWorkflowDefinition[];
  /**
   * What `start()` writes before the first claim: the definitions of the handlers' jobs and the given schedules, as
   * `ledger.jobs.sync` and `ledger.schedules.sync` do. `true` is `{ mode: "additive" }`. Default: nothing is written.
   */
  readonly sync?: boolean | WorkerSyncOptions;
  /** Told of what happens, at once and in order. Must not throw: that would be a crash of the worker. */
  readonly onEvent?: (event: WorkerEvent) => void;
}

export interface MaintainOptions {
  readonly intervalMs?: number;
  readonly retention?: RetentionPolicies;
  readonly retentionIntervalMs?: number;
}

/** The options that whoever deploys a worker may decide, rather than its code. */
export type DeployedOptions = Pick<
  WorkerOptions,
  | "concurrency"
  | "leaseSeconds"
  | "pollIntervalMs"
  | "batchSize"
  | "prefetch"
  | "workerId"
  | "reap"
  | "schedule"
  | "maintain"
>;

/** Each of them by its name, and what is within them. */
export type DeployedOption =
  | keyof DeployedOptions
  | `${"reap" | "schedule" | "maintain"}.intervalMs`
  | "maintain.retentionIntervalMs";

type Called = (option: DeployedOption) => string;

interface DeployedSettings {
  readonly concurrency: number;
  readonly leaseSeconds: number;
  readonly pollIntervalMs: number;
  readonly batchSize: number;
  readonly prefetch: number;
  readonly workerId: string;
  /** Null: it does not reap. */
  readonly reapIntervalMs: number | null;
  /** Null: it does not fire schedules. */
  readonly scheduleIntervalMs: number | null;
  /** Null: it does not maintain. */
  readonly maintain: MaintainSettings | null;
}

/** The options with everything decided. */
export interface Settings extends DeployedSettings {
  readonly ledger: Ledger;
  readonly handlers: ReadonlyMap<string, Handler>;
  readonly workflows: readonly AnyWorkflowDefinition[];
  /** Null: it does not sync. */
  readonly sync: WorkerSyncOptions | null;
  readonly onEvent: (event: WorkerEvent) => void;
}

const MAX_JOBS = 10_000;
const MAX_INTERVAL_MS = 3_600_000;
const DEFAULT_INTERVAL_MS = 15_000;
const MAINTAIN_MS = 60_000;
const RETENTION_MS = 3_600_000;
const MAX_RETENTION_MS = 7 * 86_400_000;
const known: Readonly<Record<keyof WorkerOptions, true>> = {
  ledger: true,
  handlers: true,
  concurrency: true,
  leaseSeconds: true,
  pollIntervalMs: true,
  batchSize: true,
  prefetch: true,
  workerId: true,
  reap: true,
  schedule: true,
  maintain: true,
  workflows: true,
  sync: true,
  onEvent: true,
};

/** Throws `config.invalid`. */
export function settingsOf(options: WorkerOptions): Settings {
  const unknown = Object.keys(options).filter((name) => !(name in known));
  if (unknown.length > 0) throw invalid(`There is no option ${unknown.join(", ")}.`);
  if (typeof options.ledger?.jobs?.claim !== "function") throw invalid("ledger must be made by createLedger.");
  const { onEvent = () => {} } = options;
  if (typeof onEvent !== "function") throw invalid("onEvent must be a function.");
  return {
    ...deployedSettingsOf(options),
    ledger: options.ledger,
    handlers: byType(options.handlers, childRuns(options.ledger)),
    workflows: workflowsIn(options.workflows),
    sync: syncIn(options.sync),
    onEvent,
  };
}

/** `called` gives what an option is called where it comes from. Throws `config.invalid`, in those words. */
export function deployedSettingsOf(options: DeployedOptions, called: Called = (option) => option): DeployedSettings {
  return {
    concurrency: integer(options.concurrency, called("concurrency"), 10, 1, MAX_JOBS),
    leaseSeconds: integer(options.leaseSeconds, called("leaseSeconds"), 60, 1, 86_400),
    pollIntervalMs: integer(options.pollIntervalMs, called("pollIntervalMs"), 1000, 10, MAX_INTERVAL_MS),
    batchSize: integer(options.batchSize, called("batchSize"), 500, 1, MAX_JOBS),
    prefetch: integer(options.prefetch, called("prefetch"), 1_000, 0, MAX_JOBS),
    workerId: workerName(options.workerId, called("workerId")),
    reapIntervalMs: interval(options.reap, "reap", called),
    scheduleIntervalMs: interval(options.schedule, "schedule", called),
    maintain: maintenance(options.maintain, called),
  };
}

function byType(handlers: readonly Handler[], standing: Handler): ReadonlyMap<string, Handler> {
  if (!Array.isArray(handlers)) throw invalid("handlers must be a list of handlers.");
  const map = new Map<string, Handler>(handlers.length === 0 ? [] : [[standing.type, standing]]);
  for (const handler of handlers) {
    if (typeof handler?.type !== "string" || typeof handler.run !== "function") {
      throw invalid("Every handler must be made by handle().");
    }
    if (map.has(handler.type)) throw invalid(`Two handlers are given for the job type ${handler.type}.`);
    map.set(handler.type, handler);
  }
  return map;
}

function integer(value: unknown, name: string, standard: number, minimum: number, maximum: number): number {
  if (value === undefined) return standard;
  if (typeof value !== "number" || !Number.isInteger(value) || value < minimum || value > maximum) {
    throw invalid(`${name} must be an integer from ${minimum} to ${maximum}.`);
  }
  return value;
}

function workerName(value: unknown, name: string): string {
  if (value === undefined) return `${hostname()}:${process.pid}:${randomUUID().slice(0, 8)}`;
  if (typeof value !== "string" || value.trim() === "" || value.includes("\0") || Buffer.byteLength(value) > 512) {
    throw invalid(`${name} must be a string of 1 to 512 bytes that is not blank.`);
  }
  return value;
}

/** Of a loop that may be switched off, which null says. */
function interval(option: WorkerOptions["reap"], name: "reap" | "schedule", called: Called): number | null {
  if (option === undefined || option === true) return DEFAULT_INTERVAL_MS;
  if (option === false) return null;
  if (typeof option !== "object" || option === null) throw invalid(`${name} must be a boolean or { intervalMs }.`);
  return integer(option.intervalMs, called(`${name}.intervalMs`), DEFAULT_INTERVAL_MS, 10, MAX_INTERVAL_MS);
}

function maintenance(option: WorkerOptions["maintain"] = true, called: Called): MaintainSettings | null {
  if (option === false) return null;
  const options = option === true ? {} : option;
  if (typeof options !== "object" || options === null) throw invalid("maintain must be a boolean or an object.");
  const { intervalMs, retention, retentionIntervalMs, ...unknown } = options;
  const [name] = Object.keys(unknown);
  if (name !== undefined) throw invalid(`There is no option maintain.${name}.`);
  return {
    intervalMs: integer(intervalMs, called("maintain.intervalMs"), MAINTAIN_MS, 10, MAX_INTERVAL_MS),
    retention: retention === undefined ? null : checkedPolicies(retention),
    retentionIntervalMs: integer(
      retentionIntervalMs,
      called("maintain.retentionIntervalMs"),
      RETENTION_MS,
      10,
      MAX_RETENTION_MS,
    ),
  };
}

/** What is misspelt is told when the worker is made, not an hour later. */
function checkedPolicies(retention: RetentionPolicies): RetentionPolicies {
  try {
    requireRetention(retention);
    return retention;
  } catch (cause) {
    const reason = isLedgerError(cause) ? cause.message : "It is no policy.";
    throw new LedgerError("config.invalid", { message: `maintain.retention: ${reason}`, cause });
  }
}

function workflowsIn(workflows: WorkerOptions["workflows"] = []): readonly AnyWorkflowDefinition[] {
  const fit = Array.isArray(workflows) && workflows.every((workflow) => typeof workflow?.graph === "function");
  if (!fit) throw invalid("workflows must be made by defineWorkflow().");
  return workflows;
}

function syncIn(sync: WorkerOptions["sync"] = false): WorkerSyncOptions | null {
  if (typeof sync === "boolean") return sync ? {} : null;
  if (typeof sync !== "object" || sync === null) throw invalid("sync must be a boolean or an object.");
  const { mode, catalogue: _catalogue, schedules, ...unknown } = sync;
  const [name] = Object.keys(unknown);
  if (name !== undefined) throw invalid(`There is no option sync.${name}.`);
  if (mode !== undefined && mode !== "additive" && mode !== "exact") {
    throw invalid("sync.mode must be additive or exact.");
  }
  if (schedules !== undefined && !Array.isArray(schedules))
    throw invalid("sync.schedules must be a list of schedules.");
  return sync;
}

function invalid(message: string): LedgerError {
  return new LedgerError("config.invalid", { message });
}
