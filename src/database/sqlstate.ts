/** What a driver's error says, and the one place where SQLSTATE becomes a code of ours. */
import type { LedgerErrorCode } from "../errors.ts";

export interface DriverFacts {
  readonly sqlstate: string | undefined;
  readonly constraint: string | undefined;
  /** The connection broke while a statement was under way. */
  readonly connectionLost: boolean;
}

const lostInFlight = new Set(["ECONNRESET", "EPIPE", "CONNECTION_CLOSED", "CONNECTION_DESTROYED", "ETIMEDOUT"]);
const neverConnected = new Set([
  "ECONNREFUSED",
  "ENOTFOUND",
  "EAI_AGAIN",
  "EHOSTUNREACH",
  "ENETUNREACH",
  "CONNECT_TIMEOUT",
]);
const lostMessage = /connection terminated|connection ended|server closed the connection|socket has been ended/i;
// "not queryable": the connection was lost earlier, and the statement was not sent.
const unreachableMessage =
  /timeout exceeded when trying to connect|connection timeout|not queryable|driver has already been destroyed|after calling end on the pool/i;

export function driverFacts(error: unknown): DriverFacts {
  const code = stringField(error, "code");
  const sqlstate = code !== undefined && /^[0-9A-Z]{5}$/.test(code) && !neverConnected.has(code) ? code : undefined;
  return {
    sqlstate: sqlstate === "EPIPE" ? undefined : sqlstate,
    constraint: stringField(error, "constraint") ?? stringField(error, "constraint_name"),
    connectionLost: !isUnreachable(error) && wasLost(error, code),
  };
}

/** Whether an error comes from the driver or the server at all, and not from a mistake in code. */
export function isDriverError(error: unknown): boolean {
  return driverFacts(error).sqlstate !== undefined || isConnectionError(error);
}

/** The code for a driver's error: by the key that was taken, else by SQLSTATE, else by its class. */
export function codeOf(error: unknown): LedgerErrorCode {
  const { sqlstate, constraint = "" } = driverFacts(error);
  if (isConnectionError(error)) return "db.unavailable";
  if (sqlstate === undefined) return "db.error";
  const taken = sqlstate === UNIQUE_VIOLATION ? byKey[constraint] : undefined;
  return taken ?? bySqlstate[sqlstate] ?? byClass[sqlstate.slice(0, 2)] ?? "db.error";
}

const UNIQUE_VIOLATION = "23505";

/** The unique indexes that what lives again can run into. */
const byKey: Readonly<Record<string, LedgerErrorCode>> = {
  job_queue_active_key: "job.active_key_taken",
  workflow_runs_active_key: "workflow.active_key_taken",
};

/** What the functions in SQL raise, for codes that no SQLSTATE of PostgreSQL stands for. They never change. */
const ofSqlClient = {
  RL001: "input.invalid",
  RL002: "job.definition_not_found_or_disabled",
  RL003: "job.idempotency_conflict",
  RL004: "job.enqueue_idempotency_unsupported_isolation",
  RL005: "job.not_found",
  RL006: "payload.not_json",
  RL007: "payload.too_large",
  RL008: "payload.reserved",
  RL009: "job.enqueue_active_key_unsupported_isolation",
  RL010: "job.enqueue_debounce_unsupported_isolation",
  RL011: "job.enqueue_throttle_unsupported_isolation",
} as const satisfies Readonly<Record<string, LedgerErrorCode>>;

/** The SQLSTATE that the functions in SQL raise for a code. */
export function sqlstateOf(code: LedgerErrorCode): string {
  const found = Object.entries(bySqlstate).find(([, known]) => known === code);
  if (found === undefined) throw new Error(`no SQLSTATE stands for ${code}`);
  return found[0];
}

const bySqlstate: Readonly<Record<string, LedgerErrorCode>> = {
  ...ofSqlClient,
  "40001": "db.serialization_conflict",
  "40P01": "db.deadlock",
  "55P03": "db.lock_timeout",
  "57014": "db.query_canceled",
  "57P03": "db.unavailable",
  "53300": "db.unavailable",
  "25P02": "db.transaction_aborted",
  "42501": "db.forbidden",
  // While connecting: the database takes no connections, or is not there (yet).
  "55000": "db.unavailable",
  "3D000": "db.unavailable",
  "3F000": "schema.missing",
  "42P01": "schema.missing",
  "42703": "schema.missing",
  "42883": "schema.missing",
};

const byClass: Readonly<Record<string, LedgerErrorCode>> = {
  "08": "db.unavailable",
  "22": "db.value_rejected",
  "23": "db.constraint_violated",
  "28": "db.forbidden",
  "53": "db.unavailable",
  "57": "db.unavailable",
};

/** Whether the connection broke, now or before, or could not be made. */
export function isConnectionError(error: unknown): boolean {
  return driverFacts(error).connectionLost || isUnreachable(error);
}

function wasLost(error: unknown, code: string | undefined): boolean {
  return (code !== undefined && lostInFlight.has(code)) || lostMessage.test(messageOf(error)) || isShutdown(code);
}

/** 57P01 and 57P02: the server ended the session, perhaps between a commit and its answer. */
function isShutdown(code: string | undefined): boolean {
  return code === "57P01" || code === "57P02";
}

function isUnreachable(error: unknown): boolean {
  const code = stringField(error, "code");
  return (code !== undefined && neverConnected.has(code)) || unreachableMessage.test(messageOf(error));
}

function messageOf(error: unknown): string {
  // Not instanceof: an error may come from another realm, as under jest.
  return stringField(error, "message") ?? "";
}

function stringField(error: unknown, field: string): string | undefined {
  if (typeof error !== "object" || error === null || !(field in error)) return undefined;
  const value: unknown = Reflect.get(error, field);
  return typeof value === "string" ? value : undefined;
}
