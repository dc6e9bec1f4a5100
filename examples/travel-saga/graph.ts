/** A trip: three bookings at the same time, a confirmation when all are made, and a clean-up for each. */
import { defineJob, defineWorkflow, typed } from "../../src/index.ts";
import { type Item, items } from "./tables.ts";

export interface Trip {
  readonly trip: string;
}

export interface TripItem extends Trip {
  readonly item: Item;
}

export interface Booking {
  readonly item: Item;
  readonly reference: string;
}

export const book = defineJob("travel.book", {
  input: typed<TripItem>(),
  output: typed<Booking>(),
});

export const confirm = defineJob("travel.confirm", {
  input: typed<Trip>(),
  output: typed<readonly Booking[]>(),
  prerequisites: typed<Readonly<Record<Item, Booking>>>(),
});

export const cancel = defineJob("travel.cancel", {
  input: typed<TripItem>(),
  output: typed<{ readonly canceled: boolean }>(),
  // It runs whatever became of these, so any of them may have no output.
  prerequisites: typed<{ readonly confirm?: readonly Booking[] } & { readonly [item in Item]?: Booking }>(),
});

export const travel = defineWorkflow("travel", {
  input: typed<Trip>(),
  build(graph, { trip }) {
    const booked = items.map((item) => graph.job(item, book, { trip, item }));
    const confirmed = graph.job("confirm", confirm, { trip }, { onSuccess: booked });
    // ON_TERMINAL of all, so no booking can still be on its way when its clean-up looks for it.
    for (const item of items) {
      graph.job(`cancel-${item}`, cancel, { trip, item }, { onTerminal: [confirmed, ...booked] });
    }
    return confirmed;
  },
});
