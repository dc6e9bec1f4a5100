/** workerOptionsFrom(): what whoever deploys a worker decides about it, from environment variables (FEATURES F-R4). */
import { LedgerError } from "../index.ts";
import { type DeployedOption, type DeployedOptions, deployedSettingsOf, type MaintainOptions } from "./options.ts";

/** Options for `createWorker`: those that a variable is set for, and no others. */
export interface EnvironmentOptions extends Omit<DeployedOptions, "maintain"> {
  /** Without policies of retention, which are for code: `maintain && { ...maintain, retention }`. */
  readonly maintain?: false | Omit<MaintainOptions, "retention">;
}

type Environment = Readonly<Record<string, string | undefined>>;

const PREFIX = "RUNLEDGER_WORKER_";

/** Which option is set by which variable. */
export const variables: Readonly<Record<DeployedOption, string>> = {
  concurrency: "RUNLEDGER_WORKER_CONCURRENCY",
  leaseSeconds: "RUNLEDGER_WORKER_LEASE_SECONDS",
  pollIntervalMs: "RUNLEDGER_WORKER_POLL_INTERVAL_MS",
  batchSize: "RUNLEDGER_WORKER_BATCH_SIZE",
  prefetch: "RUNLEDGER_WORKER_PREFETCH",
  workerId: "RUNLEDGER_WORKER_ID",
  reap: "RUNLEDGER_WORKER_REAP",
  "reap.intervalMs": "RUNLEDGER_WORKER_REAP_INTERVAL_MS",
  schedule: "RUNLEDGER_WORKER_SCHEDULE",
  "schedule.intervalMs": "RUNLEDGER_WORKER_SCHEDULE_INTERVAL_MS",
  maintain: "RUNLEDGER_WORKER_MAINTAIN",
  "maintain.intervalMs": "RUNLEDGER_WORKER_MAINTAIN_INTERVAL_MS",
  "maintain.retentionIntervalMs": "RUNLEDGER_WORKER_MAINTAIN_RETENTION_INTERVAL_MS",
};

/**
 * Reads the options of a worker that environment variables set, to be spread into `createWorker`. A variable that is not
 * there leaves its option to the code, or to the default. A value that makes no sense, the empty one included, and a
 * RUNLEDGER_WORKER_… that is no variable of these, are errors. Throws `config.invalid`, with the variable's name.
 *
 * ```ts
 * const worker = createWorker({ ledger, handlers, concurrency: 20, ...workerOptionsFrom() });
 * ```
 */
export function workerOptionsFrom(environment: Environment = process.env): EnvironmentOptions {
  refuseUnknown(environment);
  const values = valuesIn(environment);
  deployedSettingsOf(values, (option) => variables[option]);
  return { ...values, ...rolesIn(environment, values) };
}

/** Kubernetes sets these in each container beside a Service that is called runledger-worker. */
const SERVICE_LINK = /^RUNLEDGER_WORKER_(SERVICE_HOST|SERVICE_PORT|PORT)(_|$)/;

/** A misspelt variable would be a default that nobody asked for. */
function refuseUnknown(environment: Environment): void {
  const known = new Set(Object.values(variables));
  const ours = Object.keys(environment).filter((name) => name.startsWith(PREFIX) && !SERVICE_LINK.test(name));
  const unknown = ours.filter((name) => !known.has(name));
  if (unknown.length > 0) throw invalid(`There is no variable ${unknown.join(", ")}.`);
}

type Values = { -readonly [Option in keyof DeployedOptions]: Exclude<EnvironmentOptions[Option], boolean> };

/** All but the switches, so that the interval of a role is checked also where the role is off. */
function valuesIn(environment: Environment): Values {
  const values: Values = {};
  for (const option of ["concurrency", "leaseSeconds", "pollIntervalMs", "batchSize", "prefetch"] as const) {
    const value = integerIn(environment, option);
    if (value !== undefined) values[option] = value;
  }
  const workerId = environment[variables.workerId];
  if (workerId !== undefined) values.workerId = workerId;
  for (const role of ["reap", "schedule", "maintain"] as const) {
    const intervalMs = integerIn(environment, `${role}.intervalMs`);
    if (intervalMs !== undefined) values[role] = { intervalMs };
  }
  const retentionIntervalMs = integerIn(environment, "maintain.retentionIntervalMs");
  if (retentionIntervalMs !== undefined) values.maintain = { ...values.maintain, retentionIntervalMs };
  return values;
}

/** What is no whole number is left to the check of its range, which says what there should be. */
function integerIn(environment: Environment, option: DeployedOption): number | undefined {
  const text = environment[variables[option]];
  if (text === undefined) return undefined;
  return /^\d+$/.test(text) ? Number(text) : Number.NaN;
}

/** The roles that are switched: those that are off have no interval. */
function rolesIn(environment: Environment, values: Values): Pick<EnvironmentOptions, "reap" | "schedule" | "maintain"> {
  const reap = switchIn(environment, "reap");
  const schedule = switchIn(environment, "schedule");
  const maintain = switchIn(environment, "maintain");
  return {
    ...(reap !== undefined && { reap: reap && (values.reap ?? true) }),
    ...(schedule !== undefined && { schedule: schedule && (values.schedule ?? true) }),
    ...(maintain !== undefined && { maintain: maintain && (values.maintain ?? {}) }),
  };
}

function switchIn(environment: Environment, role: "reap" | "schedule" | "maintain"): boolean | undefined {
  const text = environment[variables[role]];
  if (text !== undefined && text !== "on" && text !== "off") throw invalid(`${variables[role]} must be on or off.`);
  return text === undefined ? undefined : text === "on";
}

function invalid(message: string): LedgerError {
  return new LedgerError("config.invalid", { message });
}
