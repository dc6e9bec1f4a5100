/** The child runs: one for each customer, added up by their parent, cancelled with it. */
import { expect, test } from "@jest/globals";
import { sql } from "kysely";
import type { BillingTables } from "../../examples/monthly-billing/tables.ts";
import type { Run } from "../../src/index.ts";
import { type Desk, desk } from "./program.ts";

const TIMEOUT = 60_000;
const CUSTOMERS = 12;
const HANGING = ["customer-2", "customer-5", "customer-8"];

test(
  "a month is billed by a child run for each customer, and their parent adds them up",
  async () => {
    const billing = await desk<BillingTables>("monthly-billing");
    const first = await billing.start(["--month", "2026-01"]);

    expect(first).toMatchObject({ code: 0, errors: "" });
    const run = await billing.runOf(first);
    const due = await dueBy(billing, "2026-01");
    const cents = due.reduce((sum, { cents }) => sum + cents, 0);
    expect(due).toHaveLength(CUSTOMERS);
    expect(await invoicesOf(billing, "2026-01")).toEqual(due);
    expect(await monthsOf(billing)).toEqual([{ month: "2026-01", invoices: CUSTOMERS, cents }]);

    const total = run.steps.find(({ key }) => key === "total");
    expect(run.status).toBe("SUCCEEDED");
    expect(total).toMatchObject({ status: "SUCCEEDED", output: { invoices: CUSTOMERS, cents } });
    expect(
      run.steps.filter(({ childRunId }) => childRunId !== null).map(({ key, output }) => ({ key, output })),
    ).toEqual(expect.arrayContaining(due.map((invoice) => ({ key: `bill:${invoice.customer}`, output: invoice }))));
    expect(await childStatuses(billing, run)).toEqual(Array(CUSTOMERS).fill("SUCCEEDED"));

    const second = await billing.start(["--month", "2026-01"]);
    expect(second).toMatchObject({ code: 0, errors: "" });
    expect(await billing.runIds()).toHaveLength(1 + CUSTOMERS);
    expect(await invoicesOf(billing, "2026-01")).toEqual(due);
  },
  TIMEOUT,
);

test(
  "a cancel of the month cancels the children that have not ended; the same month again bills the rest",
  async () => {
    const billing = await desk<BillingTables>("monthly-billing");
    const canceled = await billing.start(["--month", "2026-02", "--cancel"]);

    expect(canceled).toMatchObject({ code: 3, errors: "" });
    const run = await billing.runOf(canceled);
    const due = await dueBy(billing, "2026-02");
    expect(run).toMatchObject({ status: "CANCELED", canceledReason: "--cancel" });
    expect(await childStatuses(billing, run)).toEqual([
      ...Array(HANGING.length).fill("CANCELED"),
      ...Array(CUSTOMERS - HANGING.length).fill("SUCCEEDED"),
    ]);
    expect(await invoicesOf(billing, "2026-02")).toEqual(due.filter(({ customer }) => !HANGING.includes(customer)));
    expect(await monthsOf(billing)).toEqual([]);
    expect(await liveJobs(billing)).toBe(0);

    const again = await billing.start(["--month", "2026-02"]);
    expect(again).toMatchObject({ code: 0, errors: "" });
    expect(await invoicesOf(billing, "2026-02")).toEqual(due);
    const cents = due.reduce((sum, invoice) => sum + invoice.cents, 0);
    expect(await monthsOf(billing)).toEqual([{ month: "2026-02", invoices: CUSTOMERS, cents }]);
    expect((await billing.runOf(again)).status).toBe("CANCELED");
    const recovered = await billing.db
      .selectFrom("runledger.workflow_runs")
      .where("source_run_id", "=", run.id)
      .select(["status", "source_kind"])
      .execute();
    expect(recovered).toEqual([{ status: "SUCCEEDED", source_kind: "recover" }]);
  },
  TIMEOUT,
);

/** What each customer owes, by the tables alone. */
async function dueBy({ db }: Desk<BillingTables>, month: string) {
  return db
    .selectFrom("billing.calls as c")
    .innerJoin("billing.customers as p", "p.id", "c.customer")
    .where("c.month", "=", month)
    .select(["c.customer", sql<number>`c.calls * p.cents_per_call`.as("cents")])
    .orderBy("c.customer")
    .execute();
}

async function invoicesOf({ db }: Desk<BillingTables>, month: string) {
  return db
    .selectFrom("billing.invoices")
    .where("month", "=", month)
    .select(["customer", "cents"])
    .orderBy("customer")
    .execute();
}

async function monthsOf({ db }: Desk<BillingTables>) {
  return db.selectFrom("billing.months").selectAll().execute();
}

async function childStatuses({ db }: Desk<BillingTables>, { id }: Run): Promise<string[]> {
  const rows = await db
    .selectFrom("runledger.workflow_runs")
    .where("parent_run_id", "=", id)
    .select("status")
    .execute();
  return rows.map(({ status }) => status).sort();
}

async function liveJobs({ db }: Desk<BillingTables>): Promise<number> {
  const rows = await db.selectFrom("runledger.job_queue").select("id").execute();
  return rows.length;
}
