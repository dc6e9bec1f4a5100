/** What each step does. What it writes is committed with its job's end, so a step that was made twice is booked once. */
import { type Handler, handle, TerminalError } from "../../src/worker/index.ts";
import { causeOf } from "../support/cause.ts";
import type { Service } from "../support/service.ts";
import { book, cancel, confirm } from "./graph.ts";
import { type Item, items, type TravelTables } from "./tables.ts";

/** `soldOut` is the world outside, where not everything can be had. */
export function handlers({ ledger }: Service<TravelTables>, soldOut: Item | null): Handler[] {
  return [
    handle(book, async ({ payload: { trip, item }, lease }) => {
      if (item === soldOut) throw new TerminalError("travel.sold_out", `The ${item} is sold out.`);
      // A real booking is made at somebody else's, under a key that makes it once: the job's id is the same in each attempt.
      const booking = { item, reference: lease.jobId };
      await ledger.jobs.complete(lease, { output: booking }, async (trx) => {
        const row = { ...booking, trip, status: "BOOKED" as const, reason: null };
        await trx.insertInto("travel.bookings").values(row).execute();
      });
      return booking;
    }),

    handle(confirm, async ({ payload: { trip }, prerequisites, lease }) => {
      const bookings = items.map((item) => prerequisites[item]);
      await ledger.jobs.complete(lease, { output: bookings }, async (trx) => {
        await trx.insertInto("travel.trips").values({ trip }).execute();
      });
      return bookings;
    }),

    handle(cancel, async ({ payload: { trip, item }, prerequisites, failures, lease }) => {
      const made = prerequisites[item];
      if (prerequisites.confirm !== undefined || made === undefined) return { canceled: false };
      const reason = causeOf(failures);
      const output = { canceled: true };
      await ledger.jobs.complete(lease, { output }, async (trx) => {
        await trx
          .updateTable("travel.bookings")
          .set({ status: "CANCELED", reason })
          .where("trip", "=", trip)
          .where("item", "=", item)
          .execute();
      });
      return output;
    }),
  ];
}
