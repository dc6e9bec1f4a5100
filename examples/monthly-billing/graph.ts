/** A month is billed by a run with a child run for each customer that there is when it is planned. */
import { defineJob, defineWorkflow, typed } from "../../src/index.ts";

export interface CustomerMonth {
  readonly customer: string;
  readonly month: string;
}

export interface Invoice {
  readonly customer: string;
  readonly cents: number;
}

export const meter = defineJob("billing.meter", { input: typed<CustomerMonth>(), output: typed<number>() });

export const invoice = defineJob("billing.invoice", {
  input: typed<CustomerMonth>(),
  output: typed<Invoice>(),
  prerequisites: typed<{ readonly meter: number }>(),
});

/** The child run. It can be enqueued by itself too. */
export const customerBill = defineWorkflow("customer-bill", {
  input: typed<CustomerMonth>(),
  build(graph, input) {
    const metered = graph.job("meter", meter, input);
    return graph.job("invoice", invoice, input, { onSuccess: [metered] });
  },
});

export interface Month {
  readonly month: string;
}

/** Its handler adds the child runs, and `total` behind them. */
export const plan = defineJob("billing.plan", { input: typed<Month>(), output: typed<number>() });

export type BillKey = `bill:${string}`;

export const total = defineJob("billing.total", {
  input: typed<Month>(),
  output: typed<{ readonly invoices: number; readonly cents: number }>(),
  prerequisites: typed<Readonly<Record<BillKey, Invoice>>>(),
});

export const monthlyBilling = defineWorkflow("monthly-billing", {
  input: typed<Month>(),
  build(graph, input) {
    graph.job("plan", plan, input);
    return undefined;
  },
});
