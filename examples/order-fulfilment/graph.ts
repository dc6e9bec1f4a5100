/** An order: reserve, charge, ask for an approval where it is large, ship; and what undoes it if that ends otherwise. */
import { defineJob, defineWorkflow, typed } from "../../src/index.ts";

/** Amounts are cents. */
export interface Order {
  readonly orderId: string;
  readonly sku: string;
  readonly quantity: number;
  readonly amount: number;
  readonly card: string;
  /** How long an approval may take, where one is needed. */
  readonly decideWithinSeconds: number;
}

export interface Reservation {
  readonly sku: string;
  readonly quantity: number;
}

export interface Charge {
  readonly card: string;
  readonly amount: number;
}

export interface Shipment {
  readonly parcel: string;
}

export interface Approval {
  readonly approvedBy: string;
}

export interface Undone {
  /** False when there was nothing to undo. */
  readonly undone: boolean;
}

export const reserve = defineJob("order.reserve", { input: typed<Order>(), output: typed<Reservation>() });

export const charge = defineJob("order.charge", { input: typed<Order>(), output: typed<Charge>() });

export const ship = defineJob("order.ship", {
  input: typed<Order>(),
  output: typed<Shipment>(),
  prerequisites: typed<{ readonly charge: Charge }>(),
});

export const refund = defineJob("order.refund", {
  input: typed<Order>(),
  output: typed<Undone>(),
  // ON_TERMINAL: whichever of them did not succeed has no output.
  prerequisites: typed<{ readonly charge?: Charge; readonly ship?: Shipment }>(),
});

export const release = defineJob("order.release", {
  input: typed<Order>(),
  output: typed<Undone>(),
  prerequisites: typed<{ readonly reserve?: Reservation; readonly ship?: Shipment }>(),
});

export const close = defineJob("order.close", {
  input: typed<Order>(),
  output: typed<{ readonly reason: string | null }>(),
  prerequisites: typed<{ readonly ship?: Shipment; readonly refund: Undone; readonly release: Undone }>(),
});

/** An order of more than this waits for an approval. */
const APPROVAL_ABOVE = 100_00;

export const orderFulfilment = defineWorkflow("order-fulfilment", {
  input: typed<Order>(),
  build(graph, order) {
    const reserved = graph.job("reserve", reserve, order);
    const charged = graph.job("charge", charge, order, { onSuccess: [reserved] });
    const approvals =
      order.amount > APPROVAL_ABOVE
        ? [
            graph.external("approve", {
              output: typed<Approval>(),
              onSuccess: [charged],
              expires: { afterSeconds: order.decideWithinSeconds, outcome: "FAILED" },
            }),
          ]
        : [];
    const shipped = graph.job("ship", ship, order, { onSuccess: [charged, ...approvals] });

    // These run whatever became of the order, and look whether there is anything to undo.
    const refunded = graph.job("refund", refund, order, { onTerminal: [charged, shipped] });
    const released = graph.job("release", release, order, { onTerminal: [reserved, shipped] });
    graph.job("close", close, order, {
      onSuccess: [refunded, released],
      onTerminal: [reserved, charged, ...approvals, shipped],
    });
    return shipped;
  },
});
