/** The program's own tables, beside the ledger's, and what is in them at the start. */
import { type Kysely, sql } from "kysely";

export interface BillingTables {
  "billing.customers": { id: string; cents_per_call: number };
  "billing.calls": { customer: string; month: string; calls: number };
  "billing.invoices": { customer: string; month: string; cents: number };
  /** Months that have been billed whole. */
  "billing.months": { month: string; invoices: number; cents: number };
}

export async function createTables<DB>(db: Kysely<DB>): Promise<void> {
  await sql`
    create schema if not exists billing;
    create table if not exists billing.customers (id text primary key, cents_per_call int not null);
    create table if not exists billing.calls (
      customer text not null references billing.customers, month text, calls int not null, primary key (customer, month)
    );
    create table if not exists billing.invoices (
      customer text not null references billing.customers, month text, cents int not null, primary key (customer, month)
    );
    create table if not exists billing.months (month text primary key, invoices int not null, cents int not null);
  `.execute(db);
}

const CUSTOMERS = 12;

/** Customers, and what each has used in the month: no two the same. */
export async function seed(db: Kysely<BillingTables>, month: string): Promise<void> {
  const customers = Array.from({ length: CUSTOMERS }, (_, n) => ({ id: `customer-${n}`, cents_per_call: 5 + n }));
  const calls = customers.map(({ id }, n) => ({ customer: id, month, calls: 100 + n }));
  await db
    .insertInto("billing.customers")
    .values(customers)
    .onConflict((conflict) => conflict.doNothing())
    .execute();
  await db
    .insertInto("billing.calls")
    .values(calls)
    .onConflict((conflict) => conflict.doNothing())
    .execute();
}
