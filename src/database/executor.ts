import type { Kysely, Transaction } from "kysely";
import { Announcer } from "./announcer.ts";
import type { LedgerTables } from "./tables.ts";
import { defaultRules, type ValueRules } from "./values/rules.ts";

/** How a ledger behaves, the same for all of its functions. */
export interface LedgerSettings {
  /** Whether new jobs and ended runs are announced by NOTIFY. Polling works without. */
  readonly notify: boolean;
  /** The longest that a function waits for one lock, in milliseconds. */
  readonly lockWaitMs: number;
  /** What is done with payloads, outputs, checkpoints and fields of logs. */
  readonly values: ValueRules;
}

/** The longest wait where nothing else is said. */
export const DEFAULT_LOCK_WAIT_MS = 5000;

type GivenSettings = Omit<LedgerSettings, "values"> & Partial<Pick<LedgerSettings, "values">>;

// Any database type, plugins and dialect: this is the border where the service's own handle comes in.
// biome-ignore lint/suspicious/noExplicitAny: Kysely is invariant in its database type, no other type takes every handle
export type AnyDatabase = any;
export type AnyKysely = Kysely<AnyDatabase>;
export type AnyTransaction = Transaction<AnyDatabase>;

/**
 * What every function that touches the database takes first: a handle bound to the ledger's schema,
 * free of the service's plugins, and the knowledge of whose transaction it runs in.
 */
export interface Executor {
  readonly handle: Kysely<LedgerTables>;
  /** The handle or transaction as the service has it, plugins included: for what it writes itself in the same commit. */
  readonly source: AnyKysely;
  readonly schema: string;
  readonly settings: LedgerSettings;
  /** The transaction around this executor: none, one that the ledger began, or the caller's. */
  readonly transaction: "none" | "own" | "caller";
  readonly announcer: Announcer;
  /** Set when a statement of the transaction failed; cleared by going back to a savepoint. */
  readonly health: { failed: boolean };
}

/** Binds the service's handle. The order matters: `withoutPlugins` would take the schema away again. */
export function createExecutor(db: AnyKysely, schema: string, settings: GivenSettings): Executor {
  return {
    handle: db.withoutPlugins().withSchema(schema),
    source: db,
    schema,
    settings: { values: defaultRules, ...settings },
    transaction: db.isTransaction ? "caller" : "none",
    announcer: new Announcer(),
    health: { failed: false },
  };
}

/** The service's transaction that an executor with a transaction stands on. */
export function transactionOf({ source }: Executor): AnyTransaction {
  if (!isTransaction(source)) throw new Error("the executor has no transaction");
  return source;
}

function isTransaction(db: AnyKysely): db is AnyTransaction {
  return db.isTransaction;
}
