/** Refunds: small ones are paid at once, large ones when somebody has approved them within three days. */
import { type Kysely, sql } from "kysely";
import { defineJob, defineWorkflow, type Ledger, type RunledgerDatabase, typed } from "runledger";
import { type Handler, handle } from "runledger/worker";

export interface RefundTables {
  refunds: { order_id: string; cents: number; paid_at: Date | null };
}

export type RefundDatabase = RunledgerDatabase & RefundTables;

export async function createTables<DB>(db: Kysely<DB>): Promise<void> {
  await sql`
    create table refunds (order_id text primary key, cents int not null check (cents > 0), paid_at timestamptz)
  `.execute(db);
}

interface Refund {
  readonly orderId: string;
  readonly cents: number;
}

const APPROVED_FROM_CENTS = 10_000;
const THREE_DAYS_SECONDS = 3 * 86_400;

export const pay = defineJob("refund.pay", { input: typed<Refund>(), output: typed<{ readonly reference: string }>() });
export const notify = defineJob("refund.notify", {
  input: typed<Refund>(),
  prerequisites: typed<{ pay: { reference: string } }>(),
});

export const refund = defineWorkflow("refund", {
  input: typed<Refund>(),
  build(graph, input) {
    const approval = graph.external("approve", { expires: { afterSeconds: THREE_DAYS_SECONDS, outcome: "CANCELED" } });
    const paid = graph.job("pay", pay, input, { onSuccess: [approval] });
    graph.job("notify", notify, input, { onSuccess: [paid] });
    return paid;
  },
});

/** Writes the refund down, and in the same transaction what is to be done about it. */
export async function requestRefund(
  db: Kysely<RefundDatabase>,
  ledger: Ledger<RefundDatabase>,
  { orderId, cents }: Refund,
): Promise<{ readonly runId: string | null }> {
  return db.transaction().execute(async (trx) => {
    await trx.insertInto("refunds").values({ order_id: orderId, cents, paid_at: null }).execute();
    if (cents < APPROVED_FROM_CENTS) {
      await ledger.in(trx).jobs.enqueue(pay, { orderId, cents }, { tags: ["small"] });
      return { runId: null };
    }
    const { id } = await ledger.in(trx).runs.enqueue(refund, { orderId, cents }, { idempotencyKey: orderId });
    return { runId: id };
  });
}

export interface Bank {
  pay(refund: Refund): Promise<string>;
}

export interface Mailer {
  send(text: string): Promise<void>;
}

export function refundHandlers(
  ledger: Ledger<RefundDatabase>,
  { bank, mailer }: { readonly bank: Bank; readonly mailer: Mailer },
): Handler[] {
  return [
    handle(pay, async ({ payload, lease }) => {
      const reference = await bank.pay(payload);
      // Marked as paid and completed in one commit.
      await ledger.jobs.complete(lease, { output: { reference } }, (trx) =>
        trx.updateTable("refunds").set({ paid_at: sql<Date>`now()` }).where("order_id", "=", payload.orderId).execute(),
      );
      return { reference };
    }),
    handle(notify, ({ payload, prerequisites }) =>
      mailer.send(`Your refund for ${payload.orderId} is on its way: ${prerequisites.pay.reference}.`),
    ),
  ];
}
