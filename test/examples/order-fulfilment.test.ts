/** The order: however it ends, stock, card, payments and order agree. */
import { expect, test } from "@jest/globals";
import type { ShopTables } from "../../examples/order-fulfilment/tables.ts";
import { type Desk, desk, type Ended, runIdIn } from "./program.ts";

const TIMEOUT = 60_000;
const STOCK = 100;
const MONEY = 1_000_000;

const done = {
  reserve: "SUCCEEDED",
  charge: "SUCCEEDED",
  refund: "SUCCEEDED",
  release: "SUCCEEDED",
  close: "SUCCEEDED",
};
const nothingUndone = { refund: { undone: false }, release: { undone: false }, close: { reason: null } };

test.each([
  { flags: [], quantity: 1, steps: { ...done, ship: "SUCCEEDED" } },
  { flags: ["--approve"], quantity: 5, steps: { ...done, approve: "SUCCEEDED", ship: "SUCCEEDED" } },
])(
  "an order of $quantity ($flags) is charged once and shipped",
  async ({ flags, quantity, steps }) => {
    const shop = await desk<ShopTables>("order-fulfilment");
    const ended = await shop.start(flags);

    const amount = quantity * 4000;
    expect(ended).toMatchObject({ code: 0, errors: "" });
    expect(await statusesOf(shop, ended)).toEqual({ run: "SUCCEEDED", ...steps });
    expect(await outputsOf(shop, ended)).toMatchObject(nothingUndone);
    expect(await tablesOf(shop)).toEqual({
      orders: [{ status: "SHIPPED", reason: null, quantity, amount, run_id: runIdIn(ended.output) }],
      payments: [{ kind: "CHARGE", amount }],
      reservations: [],
      available: STOCK - quantity,
      balance: MONEY - amount,
    });
  },
  TIMEOUT,
);

test.each([
  { flag: "--reject", reason: "approve: refused", by: "--reject", code: "workflow.external_failed" },
  { flag: "--expire", reason: "approve: expired", by: "runledger", code: "workflow.external_expired" },
])(
  "$flag: a charged order without an approval is refunded, released and closed",
  async ({ flag, reason, by, code }) => {
    const shop = await desk<ShopTables>("order-fulfilment");
    const ended = await shop.start([flag]);

    expect(ended).toMatchObject({ code: 3, errors: "" });
    expect(await statusesOf(shop, ended)).toEqual({
      run: "COMPLETED_WITH_ERRORS",
      ...done,
      approve: "FAILED",
      ship: "CANCELED",
    });
    const { steps } = await shop.runOf(ended);
    expect(steps.find(({ key }) => key === "approve")).toMatchObject({ completedBy: by, errorCode: code });
    expect(await tablesOf(shop)).toEqual({
      orders: [{ status: "CLOSED", reason, quantity: 5, amount: 20_000, run_id: runIdIn(ended.output) }],
      payments: [
        { kind: "CHARGE", amount: 20_000 },
        { kind: "REFUND", amount: -20_000 },
      ],
      reservations: [],
      available: STOCK,
      balance: MONEY,
    });
  },
  TIMEOUT,
);

test(
  "--decline: an order whose card is declined is released and closed, and nothing is refunded",
  async () => {
    const shop = await desk<ShopTables>("order-fulfilment");
    const ended = await shop.start(["--decline"]);

    expect(ended).toMatchObject({ code: 3, errors: "" });
    expect(await statusesOf(shop, ended)).toEqual({
      run: "COMPLETED_WITH_ERRORS",
      ...done,
      charge: "FAILED",
      ship: "CANCELED",
    });
    expect(await outputsOf(shop, ended)).toMatchObject({ refund: { undone: false }, release: { undone: true } });
    const reason = "charge: The card was declined.";
    expect(await tablesOf(shop)).toEqual({
      orders: [{ status: "CLOSED", reason, quantity: 1, amount: 4000, run_id: runIdIn(ended.output) }],
      payments: [],
      reservations: [],
      available: STOCK,
      balance: MONEY,
    });
  },
  TIMEOUT,
);

test(
  "the order and its run are written in one transaction",
  async () => {
    const { start, db } = await desk<ShopTables>("order-fulfilment");
    await start([]);

    // Both times are that of their transaction's beginning, to the microsecond.
    const together = await db
      .selectFrom("shop.orders as o")
      .innerJoin("runledger.workflow_runs as r", "r.id", "o.run_id")
      .whereRef("r.created_at", "=", "o.placed_at")
      .select("r.type")
      .execute();
    expect(together).toEqual([{ type: "order-fulfilment" }]);
  },
  TIMEOUT,
);

test(
  "the next order finds what the last one left",
  async () => {
    const shop = await desk<ShopTables>("order-fulfilment");
    for (const flag of ["--approve", "--reject", "--approve"]) await shop.start([flag]);

    const { orders, available, balance } = await tablesOf(shop);
    expect(orders.map(({ status }) => status)).toEqual(["SHIPPED", "CLOSED", "SHIPPED"]);
    expect({ available, balance }).toEqual({ available: STOCK - 10, balance: MONEY - 40_000 });
  },
  TIMEOUT,
);

test("two answers are a wrong call", async () => {
  const { start } = await desk("order-fulfilment");

  expect(await start(["--approve", "--reject"])).toMatchObject({ code: 2, output: "" });
});

async function statusesOf(shop: Desk<ShopTables>, ended: Ended): Promise<Record<string, string>> {
  const { status, steps } = await shop.runOf(ended);
  return { run: status, ...Object.fromEntries(steps.map((step) => [step.key, step.status])) };
}

async function outputsOf(shop: Desk<ShopTables>, ended: Ended) {
  const { steps } = await shop.runOf(ended);
  return Object.fromEntries(steps.map(({ key, output }) => [key, output]));
}

async function tablesOf({ db }: Desk<ShopTables>) {
  const stock = await db.selectFrom("shop.stock").select("available").executeTakeFirstOrThrow();
  const card = await db.selectFrom("shop.cards").select("balance").where("card", "=", "full").executeTakeFirstOrThrow();
  const orders = db.selectFrom("shop.orders").orderBy("run_id");
  const payments = db.selectFrom("shop.payments").orderBy("kind");
  return {
    orders: await orders.select(["status", "reason", "quantity", "amount", "run_id"]).execute(),
    payments: await payments.select(["kind", "amount"]).execute(),
    reservations: await db.selectFrom("shop.reservations").selectAll().execute(),
    available: stock.available,
    balance: card.balance,
  };
}
