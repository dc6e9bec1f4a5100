/** A ledger knows the service's database type: each `@ts-expect-error` must not compile. `npm run typecheck` is the test. */
import { expect, test } from "@jest/globals";
import type { ControlledTransaction, Kysely, Transaction } from "kysely";
import {
  createLedger,
  type EnqueuedJob,
  type EnqueuedRun,
  type JobOptions,
  type Lease,
  type Ledger,
  type LedgerOptions,
  type RunOptions,
} from "../../src/index.ts";
import { createWorker, handle, type WorkerOptions } from "../../src/worker/index.ts";

interface App {
  accounts: { id: string; cents: number };
}
interface Other {
  invoices: { id: string };
}

/** Compiles only when both types are the same. */
type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
function same<A, B>(_: Same<A, B>): void {}

test("a ledger takes its database type from the handle that it is given", () => {
  const make = (db: Kysely<App>) => createLedger({ db, schema: "ledger" });
  same<ReturnType<typeof make>, Ledger<App>>(true);
  const withOptions = (options: LedgerOptions<App>) => createLedger(options);
  same<ReturnType<typeof withOptions>, Ledger<App>>(true);
  expect(make).not.toBe(withOptions);
});

test("the body of a completion is checked against it", () => {
  const complete = (ledger: Ledger<App>, lease: Lease) =>
    ledger.jobs.complete(lease, { output: 1 }, async (trx) => {
      same<typeof trx, Transaction<App>>(true);
      await trx.updateTable("accounts").set({ cents: 1 }).where("id", "=", "a").execute();
      // @ts-expect-error there is no such table
      await trx.updateTable("acounts").execute();
      // @ts-expect-error cents is a number
      await trx.insertInto("accounts").values({ id: "a", cents: "1" }).execute();
    });
  const wrong = (ledger: Ledger<App>, lease: Lease, body: (trx: Transaction<Other>) => Promise<void>) =>
    // @ts-expect-error the body is for another database
    ledger.jobs.complete(lease, {}, body);
  const sync = (ledger: Ledger<App>, lease: Lease) =>
    // @ts-expect-error a body that is not awaited could write after the commit
    ledger.jobs.complete(lease, {}, () => 1);
  expect([complete, wrong, sync]).toHaveLength(3);
});

test("an enqueue says what became of the request, in words that a switch can be held to", () => {
  same<EnqueuedJob["disposition"], "inserted" | "existing" | "existing_active" | "replaced" | "throttled">(true);
  same<EnqueuedRun["disposition"], "inserted" | "existing" | "existing_active">(true);
  const options: readonly JobOptions[] = [
    { idempotencyKey: "k", idempotencyTtlSeconds: 60 },
    { active: { key: "k", replace: true } },
    { debounce: { key: "k", seconds: 1, maxSeconds: 2 } },
    { throttle: { key: "k", seconds: 1 } },
    // @ts-expect-error a key is text
    { active: { key: 1 } },
    // @ts-expect-error for how long?
    { debounce: { key: "k" } },
    // @ts-expect-error for how long?
    { throttle: { key: "k" } },
  ];
  // @ts-expect-error a run that is there is not replaced
  const run: RunOptions = { active: { key: "k", replace: true } };
  expect([run, ...options]).toHaveLength(8);
});

test("in a transaction it stays the same", () => {
  const inside = (ledger: Ledger<App>, trx: Transaction<App>) => ledger.in(trx);
  same<ReturnType<typeof inside>, Ledger<App>>(true);
  const controlled = (ledger: Ledger<App>, trx: ControlledTransaction<App>) => ledger.in(trx);
  same<ReturnType<typeof controlled>, Ledger<App>>(true);
  const nested = (ledger: Ledger<App>, lease: Lease) =>
    ledger.jobs.complete(lease, {}, async (trx) => {
      same<ReturnType<typeof inside>, ReturnType<typeof ledger.in>>(true);
      await ledger.in(trx).jobs.enqueue("next", {});
    });
  expect([inside, controlled, nested]).toHaveLength(3);
});

test("what takes any ledger takes this one, and a ledger on another database is not it", () => {
  const anyLedger = (ledger: Ledger) => ledger.schema;
  const other = (ledger: Ledger<Other>) => ledger.schema;
  const worker = (ledger: Ledger<App>, options: Omit<WorkerOptions, "ledger">) => createWorker({ ...options, ledger });
  const use = (ledger: Ledger<App>, plain: Ledger) => {
    anyLedger(ledger);
    other(plain);
    // @ts-expect-error the ledger is on another database
    other(ledger);
    const again: Ledger = ledger;
    return handle("credit", ({ lease }) => again.jobs.complete(lease));
  };
  expect([worker, use]).toHaveLength(2);
});
