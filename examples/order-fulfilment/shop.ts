/** What the shop writes for an order. None of it commits by itself. */
import { type Kysely, sql } from "kysely";
import { TerminalError } from "../../src/worker/index.ts";
import type { Order } from "./graph.ts";
import type { ShopDatabase } from "./tables.ts";

type Shop = Kysely<ShopDatabase>;

/** Throws `order.out_of_stock`. */
export async function setAside(shop: Shop, { orderId, sku, quantity }: Order): Promise<void> {
  const taken = await shop
    .updateTable("shop.stock")
    .set({ available: sql`available - ${quantity}` })
    .where("sku", "=", sku)
    .where("available", ">=", quantity)
    .executeTakeFirst();
  if (taken.numUpdatedRows === 0n) throw new TerminalError("order.out_of_stock", "There are not enough in stock.");
  await shop.insertInto("shop.reservations").values({ order_id: orderId, sku, quantity }).execute();
}

export async function putBack(shop: Shop, { orderId, sku, quantity }: Order): Promise<void> {
  await shop.deleteFrom("shop.reservations").where("order_id", "=", orderId).execute();
  await shop
    .updateTable("shop.stock")
    .set({ available: sql`available + ${quantity}` })
    .where("sku", "=", sku)
    .execute();
}

/** Throws `order.card_declined`. */
export async function takeMoney(shop: Shop, { orderId, card, amount }: Order): Promise<void> {
  const charged = await shop
    .updateTable("shop.cards")
    .set({ balance: sql`balance - ${amount}` })
    .where("card", "=", card)
    .where("balance", ">=", amount)
    .executeTakeFirst();
  if (charged.numUpdatedRows === 0n) throw new TerminalError("order.card_declined", "The card was declined.");
  await shop.insertInto("shop.payments").values({ order_id: orderId, kind: "CHARGE", amount }).execute();
}

export async function giveMoneyBack(shop: Shop, { orderId, card, amount }: Order): Promise<void> {
  await shop
    .updateTable("shop.cards")
    .set({ balance: sql`balance + ${amount}` })
    .where("card", "=", card)
    .execute();
  await shop.insertInto("shop.payments").values({ order_id: orderId, kind: "REFUND", amount: -amount }).execute();
}

export async function handOver(shop: Shop, { orderId }: Order): Promise<void> {
  await shop.deleteFrom("shop.reservations").where("order_id", "=", orderId).execute();
  await shop.updateTable("shop.orders").set({ status: "SHIPPED" }).where("id", "=", orderId).execute();
}

export async function closeOrder(shop: Shop, { orderId }: Order, reason: string): Promise<void> {
  await shop.updateTable("shop.orders").set({ status: "CLOSED", reason }).where("id", "=", orderId).execute();
}
