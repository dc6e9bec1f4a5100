/**
 * npx tsx examples/monthly-billing/main.ts [--month <month>] [--cancel]: bills all customers for a month, each by a
 * child run. With --cancel the meter hangs for some, and the run is cancelled with what is left of its children;
 * the same month again goes on from there. Exits with 0 when the month is billed, with 3 when it was cancelled.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { type Kysely, sql } from "kysely";
import type { EnqueuedRun, Ledger, RunledgerDatabase } from "../../src/index.ts";
import { ended, exitCodes, flagsOf, runProgram } from "../support/program.ts";
import { monthlyBilling } from "./graph.ts";
import { handlers } from "./handlers.ts";
import { type BillingTables, createTables, seed } from "./tables.ts";

type Database = Kysely<RunledgerDatabase & BillingTables>;

const LOOK_MS = 50;
const scope = { global: true } as const;
const flags = flagsOf({
  month: { type: "string", default: "2026-10" },
  cancel: { type: "boolean", default: false },
});
const { month } = flags;
/** With --cancel, three of them. */
const hangs = (customer: string) => flags.cancel && /[258]$/.test(customer);

await runProgram<BillingTables>({
  createTables,
  handlers: (service) => handlers(service, hangs),
  async main({ db, ledger }) {
    await seed(db, month);
    const run = await enqueued(ledger);
    if (flags.cancel) {
      await allButHanging(db);
      await ledger.runs.cancel(run.id, { scope, reason: "--cancel" });
    }
    const { status } = await ended(ledger, run.id);
    console.log(`The run is ${status}; its child runs: ${await childRuns(db, run.id)}.`);
    console.log(await summary(db));
    return status === "SUCCEEDED" ? exitCodes.done : exitCodes.undone;
  },
});

/** The run for the month; one that was cancelled is recovered: a new run that does what was left undone. */
async function enqueued({ runs }: Ledger): Promise<EnqueuedRun> {
  let run = await runs.enqueue(monthlyBilling, { month }, { idempotencyKey: month });
  console.log(`Run ${run.id} ${run.disposition === "inserted" ? "bills" : `is ${run.status} for`} ${month}.`);
  while (run.disposition === "existing" && run.status === "CANCELED") {
    run = await runs.recover(run.id, { scope, key: "again" });
    console.log(`Run ${run.id} goes on with what it left.`);
  }
  return run;
}

async function allButHanging(db: Database): Promise<void> {
  const customers = await db.selectFrom("billing.customers").select("id").execute();
  const billable = customers.filter(({ id }) => !hangs(id)).length;
  while ((await invoices(db)).length < billable) await sleep(LOOK_MS);
}

function invoices(db: Database) {
  return db.selectFrom("billing.invoices").select(["customer", "cents"]).where("month", "=", month).execute();
}

async function childRuns(db: Database, runId: string): Promise<string> {
  const counts = await db
    .selectFrom("runledger.workflow_runs")
    .where("parent_run_id", "=", runId)
    .groupBy("status")
    .select(["status", sql<number>`count(*)::int`.as("runs")])
    .orderBy("status")
    .execute();
  return counts.map(({ status, runs }) => `${runs} ${status}`).join(", ") || "none";
}

async function summary(db: Database): Promise<string> {
  const billed = await db.selectFrom("billing.months").selectAll().where("month", "=", month).executeTakeFirst();
  if (billed === undefined) return `${month} is not billed: ${(await invoices(db)).length} invoices were written.`;
  return `${month} is billed: ${billed.invoices} invoices, ${(billed.cents / 100).toFixed(2)} in all.`;
}
