/** The program's own tables, beside the ledger's. */
import { type Kysely, sql } from "kysely";

export const items = ["flight", "hotel", "car"] as const;
export type Item = (typeof items)[number];

export interface TravelTables {
  /** What was ever booked for a trip; a cancelled booking stays as a row. */
  "travel.bookings": {
    trip: string;
    item: Item;
    reference: string;
    status: "BOOKED" | "CANCELED";
    /** Why it was cancelled. */
    reason: string | null;
  };
  /** Trips of which everything is booked. */
  "travel.trips": { trip: string };
}

export async function createTables<DB>(db: Kysely<DB>): Promise<void> {
  await sql`
    create schema if not exists travel;
    create table if not exists travel.bookings (
      trip text, item text, reference text not null, status text not null, reason text, primary key (trip, item)
    );
    create table if not exists travel.trips (trip text primary key);
  `.execute(db);
}
