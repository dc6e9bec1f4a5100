import { testDatabase } from "runledger/testing";
import { beforeEach, describe, expect, onTestFinished, test } from "vitest";
import {
  type Bank,
  createTables,
  notify,
  pay,
  type RefundTables,
  refundHandlers,
  requestRefund,
} from "../src/refunds.ts";

const scope = { global: true } as const;

/** What every test has: a database of its own, a bank that pays, and the mails that were sent. */
async function newShop() {
  const kit = await testDatabase<RefundTables>({ prepare: createTables });
  onTestFinished(() => kit.drop());
  const mails: string[] = [];
  const bank: Bank = { pay: async ({ orderId }) => `ref-${orderId}` };
  const mailer = { send: async (text: string) => void mails.push(text) };
  const handlers = refundHandlers(kit.ledger, { bank, mailer });
  const paid = async () => {
    const rows = await kit.db.selectFrom("refunds").select("order_id").where("paid_at", "is not", null).execute();
    return rows.map(({ order_id }) => order_id);
  };
  return { kit, mails, bank, handlers, paid };
}

let shop: Awaited<ReturnType<typeof newShop>>;
beforeEach(async () => {
  shop = await newShop();
});

describe("a small refund", () => {
  test("is enqueued with what it is about", async () => {
    const { kit } = shop;
    await requestRefund(kit.db, kit.ledger, { orderId: "o-1", cents: 500 });

    await kit.expectEnqueued(pay, { orderId: "o-1", cents: 500 }, { tags: ["small"], count: 1 });
    await kit.expectNotEnqueued(notify);
  });

  test("is not enqueued when it cannot be written down", async () => {
    const { kit } = shop;
    await expect(requestRefund(kit.db, kit.ledger, { orderId: "o-1", cents: -500 })).rejects.toThrow(
      /check constraint/,
    );

    await kit.expectNotEnqueued(pay);
  });

  test("is paid", async () => {
    const { kit, handlers, paid } = shop;
    await requestRefund(kit.db, kit.ledger, { orderId: "o-1", cents: 500 });
    const [job] = await kit.enqueued(pay);

    const result = await kit.run(job?.id ?? "", { handlers });

    expect(result).toMatchObject({ status: "SUCCEEDED", output: { reference: "ref-o-1" } });
    expect(await paid()).toEqual(["o-1"]);
  });

  test("is paid at the second try when the bank is away", async () => {
    const { kit, handlers, paid, bank } = shop;
    const payment = bank.pay;
    bank.pay = () => Promise.reject(new Error("The bank is closed."));
    await requestRefund(kit.db, kit.ledger, { orderId: "o-1", cents: 500 });
    expect(await kit.drain({ handlers })).toMatchObject({ retried: 1, left: [{ type: "refund.pay" }] });

    bank.pay = payment;
    expect(await kit.drain({ handlers, includeFuture: true })).toMatchObject({ succeeded: 1, left: [] });
    expect(await paid()).toEqual(["o-1"]);
  });
});

describe("a large refund", () => {
  test("is paid and told of when it was approved", async () => {
    const { kit, handlers, paid, mails } = shop;
    const { runId } = await requestRefund(kit.db, kit.ledger, { orderId: "o-2", cents: 50_000 });
    expect(await kit.drain({ handlers })).toMatchObject({ succeeded: 0 });
    expect(await paid()).toEqual([]);

    await kit.ledger.steps.complete(runId ?? "", "approve", { scope, completedBy: "ann" });
    expect(await kit.drain({ handlers })).toMatchObject({ succeeded: 2, failures: [], left: [] });
    expect(await paid()).toEqual(["o-2"]);
    expect(mails).toEqual(["Your refund for o-2 is on its way: ref-o-2."]);
  });

  test("is given up after three days without an approval", async () => {
    const { kit, handlers, paid } = shop;
    const { runId } = await requestRefund(kit.db, kit.ledger, { orderId: "o-2", cents: 50_000 });

    await kit.advance({ days: 3 });
    await kit.drain({ handlers });

    expect(await kit.ledger.runs.getStatus(runId ?? "", scope)).toMatchObject({ status: "COMPLETED_WITH_ERRORS" });
    expect(await paid()).toEqual([]);
  });
});
