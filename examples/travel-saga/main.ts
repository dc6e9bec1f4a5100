/**
 * npx tsx examples/travel-saga/main.ts [--trip <name>] [--sold-out flight|hotel|car]: books a flight, a hotel and a
 * car; when one is sold out, clean-up steps cancel the others. The same trip again finds its run and books nothing
 * twice. Exits with 0 when the trip is booked, with 3 when it was cancelled.
 */
import { randomUUID } from "node:crypto";
import { ended, exitCodes, flagsOf, refuse, runProgram } from "../support/program.ts";
import { travel } from "./graph.ts";
import { handlers } from "./handlers.ts";
import { createTables, items, type TravelTables } from "./tables.ts";

const flags = flagsOf({
  trip: { type: "string", default: `trip-${randomUUID().slice(0, 8)}` },
  "sold-out": { type: "string" },
});
const { trip, "sold-out": wanted = null } = flags;
const soldOut = items.find((item) => item === wanted) ?? null;
if (soldOut !== wanted) refuse(`--sold-out is ${items.join(", ")}, not "${wanted}".`);

await runProgram<TravelTables>({
  createTables,
  handlers: (service) => handlers(service, soldOut),
  async main({ db, ledger }) {
    const run = await ledger.runs.enqueue(travel, { trip }, { idempotencyKey: trip });
    console.log(`Run ${run.id} ${run.disposition === "inserted" ? "books" : "was enqueued before for"} ${trip}.`);

    const { status } = await ended(ledger, run.id);
    const bookings = db.selectFrom("travel.bookings").selectAll().where("trip", "=", trip).orderBy("item");
    for (const { item, status, reason } of await bookings.execute()) {
      console.log(`  ${item}: ${status}${reason === null ? "" : `: ${reason}`}`);
    }
    console.log(`The run is ${status}.`);
    return status === "SUCCEEDED" ? exitCodes.done : exitCodes.undone;
  },
});
