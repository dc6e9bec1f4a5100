/** What code declares next to its handlers, told to the database at a worker's start (FEATURES F-J1, F-S2). */
import type { Ledger, ScheduleDefinition, SyncOptions } from "../index.ts";
import type { Handler } from "./handlers.ts";

export interface WorkerSyncOptions extends SyncOptions {
  /** Schedules of the same catalogue. Without them it has none that `exact` could disable; with an empty list it disables all. */
  readonly schedules?: readonly ScheduleDefinition[];
}

/** One round trip for the definitions of the handlers' jobs, two for schedules. */
export async function syncCatalogue(
  ledger: Ledger,
  handlers: Iterable<Handler>,
  { schedules, ...options }: WorkerSyncOptions,
): Promise<void> {
  const definitions = [...handlers].flatMap(({ definition }) => (definition === undefined ? [] : [definition]));
  await ledger.jobs.sync(definitions, options);
  if (schedules !== undefined) await ledger.schedules.sync(schedules, options);
}
