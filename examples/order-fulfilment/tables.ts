/** The shop's own tables, beside the ledger's. */
import { type Generated, type Kysely, sql } from "kysely";
import type { RunledgerDatabase } from "../../src/index.ts";

type OrderStatus = "OPEN" | "SHIPPED" | "CLOSED";

export interface ShopTables {
  "shop.stock": { sku: string; available: number };
  "shop.cards": { card: string; balance: number };
  "shop.orders": {
    id: string;
    sku: string;
    quantity: number;
    amount: number;
    card: string;
    status: OrderStatus;
    /** Why it was closed without a shipment. */
    reason: string | null;
    run_id: string;
    placed_at: Generated<Date>;
  };
  /** What is set aside for an order, until it is shipped or closed. */
  "shop.reservations": { order_id: string; sku: string; quantity: number };
  /** A charge, and with a negative amount its refund: each happens once to an order. */
  "shop.payments": { order_id: string; kind: "CHARGE" | "REFUND"; amount: number };
}

export type ShopDatabase = RunledgerDatabase & ShopTables;

export async function createTables(db: Kysely<ShopDatabase>): Promise<void> {
  await sql`
    create schema if not exists shop;
    create table if not exists shop.stock (sku text primary key, available int not null check (available >= 0));
    create table if not exists shop.cards (card text primary key, balance int not null check (balance >= 0));
    create table if not exists shop.orders (
      id text primary key, sku text not null references shop.stock, quantity int not null, amount int not null,
      card text not null references shop.cards, status text not null, reason text, run_id uuid not null,
      placed_at timestamptz not null default now()
    );
    create table if not exists shop.reservations (
      order_id text primary key references shop.orders, sku text not null references shop.stock, quantity int not null
    );
    create table if not exists shop.payments (
      order_id text references shop.orders, kind text, amount int not null, primary key (order_id, kind)
    );
    insert into shop.stock values ('kettle', 100) on conflict do nothing;
    insert into shop.cards values ('full', 1000000), ('empty', 0) on conflict do nothing;
  `.execute(db);
}
