/** The saga: whichever booking fails, the others are cancelled; the same trip is booked once. */
import { expect, test } from "@jest/globals";
import { items, type TravelTables } from "../../examples/travel-saga/tables.ts";
import { type Desk, desk } from "./program.ts";

const TIMEOUT = 60_000;

test(
  "a trip is booked whole, and the same trip again books nothing",
  async () => {
    const travel = await desk<TravelTables>("travel-saga");
    const first = await travel.start(["--trip", "lisbon"]);

    expect(first).toMatchObject({ code: 0, errors: "" });
    const { id, status } = await travel.runOf(first);
    expect(status).toBe("SUCCEEDED");
    const booked = await bookingsOf(travel, "lisbon");
    expect(booked.map(({ item, status, reason }) => ({ item, status, reason }))).toEqual(
      ["car", "flight", "hotel"].map((item) => ({ item, status: "BOOKED", reason: null })),
    );
    expect(await confirmed(travel)).toEqual(["lisbon"]);

    const second = await travel.start(["--trip", "lisbon", "--sold-out", "car"]);
    expect(second).toMatchObject({ code: 0, errors: "" });
    expect(second.output).toContain(`Run ${id} was enqueued before for lisbon.`);
    expect(await travel.runIds()).toEqual([id]);
    expect(await bookingsOf(travel, "lisbon")).toEqual(booked);
  },
  TIMEOUT,
);

test.each(items)(
  "when the %s is sold out the others are cancelled and say why",
  async (soldOut) => {
    const travel = await desk<TravelTables>("travel-saga");
    const ended = await travel.start(["--trip", "oslo", "--sold-out", soldOut]);

    expect(ended).toMatchObject({ code: 3, errors: "" });
    const { status, steps } = await travel.runOf(ended);
    expect(status).toBe("COMPLETED_WITH_ERRORS");
    expect(Object.fromEntries(steps.map((step) => [step.key, step.status]))).toEqual({
      flight: "SUCCEEDED",
      hotel: "SUCCEEDED",
      car: "SUCCEEDED",
      [soldOut]: "FAILED",
      confirm: "CANCELED",
      "cancel-flight": "SUCCEEDED",
      "cancel-hotel": "SUCCEEDED",
      "cancel-car": "SUCCEEDED",
    });
    const rows = await bookingsOf(travel, "oslo");
    expect(rows.map(({ item, status, reason }) => ({ item, status, reason }))).toEqual(
      ["car", "flight", "hotel"]
        .filter((item) => item !== soldOut)
        .map((item) => ({ item, status: "CANCELED", reason: `${soldOut}: The ${soldOut} is sold out.` })),
    );
    expect(await confirmed(travel)).toEqual([]);
  },
  TIMEOUT,
);

test(
  "a trip that was interrupted goes on, and is booked once",
  async () => {
    const travel = await desk<TravelTables>("travel-saga");
    await travel.start(["--trip", "rome"], (output, interrupt) => {
      if (output.includes("books rome")) interrupt();
    });
    const second = await travel.start(["--trip", "rome"]);

    expect(second).toMatchObject({ code: 0, errors: "" });
    expect(await travel.runIds()).toEqual([(await travel.runOf(second)).id]);
    expect((await bookingsOf(travel, "rome")).map(({ status }) => status)).toEqual(["BOOKED", "BOOKED", "BOOKED"]);
    expect(await confirmed(travel)).toEqual(["rome"]);
  },
  TIMEOUT,
);

test("what cannot be sold out is a wrong call", async () => {
  const { start } = await desk("travel-saga");

  expect(await start(["--sold-out", "boat"])).toMatchObject({ code: 2, output: "" });
});

async function bookingsOf({ db }: Desk<TravelTables>, trip: string) {
  return db.selectFrom("travel.bookings").selectAll().where("trip", "=", trip).orderBy("item").execute();
}

async function confirmed({ db }: Desk<TravelTables>): Promise<string[]> {
  const rows = await db.selectFrom("travel.trips").select("trip").execute();
  return rows.map(({ trip }) => trip);
}
