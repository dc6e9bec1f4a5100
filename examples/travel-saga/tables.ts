/** The program's own tables, beside the ledger's. */
import type { Kysely } from "kysely";

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
  const schema = db.schema.withSchema("travel");
  await db.schema.createSchema("travel").ifNotExists().execute();
  await schema
    .createTable("bookings")
    .ifNotExists()
    .addColumn("trip", "text", (column) => column.notNull())
    .addColumn("item", "text", (column) => column.notNull())
    .addColumn("reference", "text", (column) => column.notNull())
    .addColumn("status", "text", (column) => column.notNull())
    .addColumn("reason", "text")
    .addPrimaryKeyConstraint("bookings_pkey", ["trip", "item"])
    .execute();
  await schema
    .createTable("trips")
    .ifNotExists()
    .addColumn("trip", "text", (column) => column.primaryKey())
    .execute();
}
