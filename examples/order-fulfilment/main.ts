/**
 * npx tsx examples/order-fulfilment/main.ts [--approve | --reject | --expire | --decline]: places an order and
 * fulfils it. With one of the first three it is large, so it needs an approval: it gets it, is refused it, or
 * nobody answers. With --decline the card has no money. Exits with 0 when the order was shipped, with 3 when it
 * was closed and all that had been done for it undone.
 */
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import type { Ledger, OpenGate, Step } from "../../src/index.ts";
import { ended, exitCodes, flagsOf, isTerminal, refuse, runProgram } from "../support/program.ts";
import type { Service } from "../support/service.ts";
import { type Order, orderFulfilment } from "./graph.ts";
import { handlers } from "./handlers.ts";
import { createTables, type ShopTables } from "./tables.ts";

const LOOK_MS = 50;
const PRICE = 40_00;
const scope = { global: true } as const;
const flag = { type: "boolean", default: false } as const;
const { approve, reject, expire, decline } = flagsOf({ approve: flag, reject: flag, expire: flag, decline: flag });
if ([approve, reject, expire, decline].filter(Boolean).length > 1) {
  refuse("--approve, --reject, --expire and --decline exclude each other.");
}

await runProgram<ShopTables>({
  createTables,
  handlers,
  async main(service) {
    const { db, ledger } = service;
    const order = newOrder();
    const runId = await place(service, order);
    console.log(`Run ${runId} fulfils ${order.orderId}: ${order.quantity} ${order.sku}, ${money(order.amount)}.`);
    if (approve || reject) await decide(ledger, runId);

    const run = await ended(ledger, runId);
    for (const step of run.steps) console.log(`  ${step.key}: ${step.status}  ${about(step)}`);
    const { status, reason } = await db
      .selectFrom("shop.orders")
      .select(["status", "reason"])
      .where("id", "=", order.orderId)
      .executeTakeFirstOrThrow();
    console.log(`The order is ${status}${reason === null ? "" : ` (${reason})`}; the run is ${run.status}.`);
    return status === "SHIPPED" ? exitCodes.done : status === "CLOSED" ? exitCodes.undone : exitCodes.failed;
  },
});

function newOrder(): Order {
  const quantity = approve || reject || expire ? 5 : 1;
  return {
    orderId: `order-${randomUUID().slice(0, 8)}`,
    sku: "kettle",
    quantity,
    amount: quantity * PRICE,
    card: decline ? "empty" : "full",
    decideWithinSeconds: expire ? 1 : 3600,
  };
}

/** The order and its run are committed together, or neither is. */
async function place({ db, ledger }: Service<ShopTables>, order: Order): Promise<string> {
  return db.transaction().execute(async (trx) => {
    const { orderId, sku, quantity, amount, card } = order;
    const { id } = await ledger.in(trx).runs.enqueue(orderFulfilment, order, { idempotencyKey: orderId });
    const row = { id: orderId, sku, quantity, amount, card, status: "OPEN" as const, reason: null, run_id: id };
    await trx.insertInto("shop.orders").values(row).execute();
    return id;
  });
}

/** What somebody in the back office does, who sees a list of the gates that are open. */
async function decide(ledger: Ledger, runId: string): Promise<void> {
  const gate = await openGate(ledger, runId);
  if (gate === undefined) return;
  const decision = approve
    ? { output: { approvedBy: "--approve" }, completedBy: "--approve" }
    : { outcome: "FAILED" as const, reason: "refused", completedBy: "--reject" };
  await ledger.steps.complete(runId, gate.stepKey, { scope, ...decision });
}

/** Undefined when the run ends without one. */
async function openGate({ runs, steps }: Ledger, runId: string): Promise<OpenGate | undefined> {
  for (;;) {
    const [gate] = (await steps.openGates({ scope, runId })).gates;
    if (gate !== undefined || isTerminal((await runs.getStatus(runId, scope)).status)) return gate;
    await sleep(LOOK_MS);
  }
}

function about({ status, output, reason, errorMessage, errorCode }: Step): string {
  return status === "SUCCEEDED" ? JSON.stringify(output) : (reason ?? errorMessage ?? errorCode ?? "");
}

function money(cents: number): string {
  return (cents / 100).toFixed(2);
}
