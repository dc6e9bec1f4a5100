/** What each step does. */
import { setTimeout as sleep } from "node:timers/promises";
import { type Handler, handle } from "../../src/worker/index.ts";
import type { Service } from "../support/service.ts";
import { type BillKey, customerBill, invoice, meter, plan, total } from "./graph.ts";
import type { BillingTables } from "./tables.ts";

/** `hangs` says of which customers the meter does not answer. */
export function handlers({ db, ledger }: Service<BillingTables>, hangs: (customer: string) => boolean): Handler[] {
  return [
    handle(plan, async ({ payload: { month }, append }) => {
      const customers = await db.selectFrom("billing.customers").select("id").orderBy("id").execute();
      append("bills", (graph) => {
        const bills = customers.map(({ id }) => {
          const key: BillKey = `bill:${id}`;
          return graph.child(key, customerBill, { customer: id, month });
        });
        graph.job("total", total, { month }, { onSuccess: bills });
      });
      return customers.length;
    }),

    handle(meter, async ({ payload: { customer, month }, signal }) => {
      if (hangs(customer)) await sleep(HANGS_MS, undefined, { signal });
      const { calls } = await db
        .selectFrom("billing.calls")
        .select("calls")
        .where("customer", "=", customer)
        .where("month", "=", month)
        .executeTakeFirstOrThrow();
      return calls;
    }),

    handle(invoice, async ({ payload: { customer, month }, prerequisites, lease }) => {
      const { cents_per_call: price } = await db
        .selectFrom("billing.customers")
        .select("cents_per_call")
        .where("id", "=", customer)
        .executeTakeFirstOrThrow();
      const output = { customer, cents: prerequisites.meter * price };
      await ledger.jobs.complete(lease, { output }, async (trx) => {
        // A run that was cancelled may have written it, and another takes the month up again.
        await trx
          .insertInto("billing.invoices")
          .values({ ...output, month })
          .onConflict((conflict) => conflict.doNothing())
          .execute();
      });
      return output;
    }),

    handle(total, async ({ payload: { month }, prerequisites, lease }) => {
      const bills = Object.values(prerequisites);
      const output = { invoices: bills.length, cents: bills.reduce((sum, { cents }) => sum + cents, 0) };
      await ledger.jobs.complete(lease, { output }, async (trx) => {
        await trx
          .insertInto("billing.months")
          .values({ ...output, month })
          .execute();
      });
      return output;
    }),
  ];
}

const HANGS_MS = 3_600_000;
