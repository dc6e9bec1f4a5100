/**
 * What each step does. All of it is in this database, so each handler completes its job in one commit with what it
 * writes: that happens once, however often the step is tried.
 */
import type { Transaction } from "kysely";
import type { Lease } from "../../src/index.ts";
import { type Handler, handle } from "../../src/worker/index.ts";
import { causeOf } from "../support/cause.ts";
import type { Service } from "../support/service.ts";
import { charge, close, refund, release, reserve, ship } from "./graph.ts";
import { closeOrder, giveMoneyBack, handOver, putBack, setAside, takeMoney } from "./shop.ts";
import type { ShopDatabase, ShopTables } from "./tables.ts";

type Body = (trx: Transaction<ShopDatabase>) => Promise<void>;

export function handlers({ ledger }: Service<ShopTables>): Handler[] {
  const once = async <Output>(lease: Lease, output: Output, body: Body): Promise<Output> => {
    await ledger.jobs.complete(lease, { output }, body);
    return output;
  };
  return [
    handle(reserve, ({ payload: order, lease }) =>
      once(lease, { sku: order.sku, quantity: order.quantity }, (trx) => setAside(trx, order)),
    ),

    handle(charge, ({ payload: order, lease }) =>
      once(lease, { card: order.card, amount: order.amount }, (trx) => takeMoney(trx, order)),
    ),

    handle(ship, ({ payload: order, lease }) =>
      once(lease, { parcel: `parcel of ${order.orderId}` }, (trx) => handOver(trx, order)),
    ),

    handle(refund, ({ payload: order, prerequisites, lease }) => {
      const { charge: charged, ship: shipped } = prerequisites;
      if (charged === undefined || shipped !== undefined) return { undone: false };
      return once(lease, { undone: true }, (trx) => giveMoneyBack(trx, order));
    }),

    handle(release, ({ payload: order, prerequisites, lease }) => {
      const { reserve: reserved, ship: shipped } = prerequisites;
      if (reserved === undefined || shipped !== undefined) return { undone: false };
      return once(lease, { undone: true }, (trx) => putBack(trx, order));
    }),

    handle(close, ({ payload: order, prerequisites, failures, lease }) => {
      if (prerequisites.ship !== undefined) return { reason: null };
      const reason = causeOf(failures);
      return once(lease, { reason }, (trx) => closeOrder(trx, order, reason));
    }),
  ];
}
