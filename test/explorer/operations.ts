/** The operations that are explored: each is one call of the ledger's public functions. */
import type { RunledgerDatabase } from "../../src/database/tables.ts";
import type { Ledger, LedgerErrorCode, StepSettlement } from "../../src/index.ts";
import { isLedgerError } from "../../src/index.ts";
import type { Actor } from "./play.ts";
import type { Session } from "./session.ts";

export interface Operation {
  readonly name: string;
  /** It is a transaction in itself: in one of the service's it would be the same statements. */
  readonly transaction?: boolean;
  /** Outside of a transaction each part is done or not by itself, and the answer is that of each, in a list. */
  readonly parts?: readonly Operation[];
  /** Answers in words that are the same in every schedule. */
  call(ledger: Ledger): Promise<unknown>;
  /** What it may end in when another session was faster; any other error is a defect. */
  readonly codes?: readonly LedgerErrorCode[];
}

/** An operation in a session: as a service calls it, or in a transaction that the service commits afterwards. */
export interface Player extends Actor {
  readonly operation: Operation;
  /** What does the same when each is played by itself. */
  readonly parts?: readonly Player[];
}

/** The operation in each of the ways that differ on the server. */
export function playersOf(operation: Operation, bind: LedgerOf): Player[] {
  return operation.transaction ? [alone(operation, bind)] : [alone(operation, bind), inTransaction(operation, bind)];
}

/** As a service calls it. */
export function alone(operation: Operation, bind: LedgerOf): Player {
  const parts = operation.parts?.map((part) => alone(part, bind));
  const run: Player["run"] = ({ db }) => inWords(operation.call(bind(db)));
  return { name: operation.name, operation, run, ...(parts && { parts }) };
}

/** In a transaction of the service, which goes on after an error of the ledger and commits. */
export function inTransaction(operation: Operation, bind: LedgerOf): Player {
  return {
    name: `${operation.name} in a transaction`,
    operation,
    run: ({ db }) =>
      db
        .transaction()
        .setIsolationLevel("read committed")
        .execute((trx) => inWords(operation.call(bind(db).in(trx)))),
  };
}

export type LedgerOf = (db: Session["db"]) => Ledger<RunledgerDatabase>;

/** A LedgerError that leaves the transaction alive becomes a word; all others end it. */
export async function inWords(call: Promise<unknown>): Promise<unknown> {
  try {
    return await call;
  } catch (error) {
    if (isLedgerError(error) && error.sqlstate === undefined) return wordOf(error.code);
    throw error;
  }
}

export function wordOf(code: string): string {
  return `refused: ${code}`;
}

/** Settles, and answers item by item. */
export async function settle(ledger: Ledger, settlements: readonly StepSettlement[]): Promise<string[]> {
  const results = await ledger.jobs.settle(settlements);
  return results.map((result) => (result.ok ? result.status : wordOf(result.error.code)));
}

/** The codes that an answer holds. */
export function codesIn(answer: unknown): string[] {
  return [...JSON.stringify(answer ?? null).matchAll(/"refused: ([^"]+)"/g)].map(([, code]) => String(code));
}

/** Settles a batch; outside of a transaction item by item, each with its own outcome. */
export function settling(name: string, settlements: readonly StepSettlement[]): Operation {
  const codes = ["job.lease_owner_mismatch"] as const;
  const parts = settlements.map(
    (item): Operation => ({ name, codes, call: async (l) => (await settle(l, [item]))[0] }),
  );
  return { name, codes, parts, call: (ledger) => settle(ledger, settlements) };
}

export function named(operations: Readonly<Record<string, Operation>>, name: string): Operation {
  const operation = operations[name];
  if (operation === undefined) throw new Error(`there is no operation ${name}`);
  return operation;
}
