/** Bounding a wait for locks: `lock_timeout` is capped for the wait and put back as it was (LOCKS.md §1). */
import { type RawBuilder, sql } from "kysely";
import type { Executor } from "../database/executor.ts";
import { reading } from "../database/statement.ts";

/**
 * Runs `body` with `lock_timeout` at most the ledger's bound; a stricter value of the caller's stays
 * in force. The value before is put back after it, also after an error that left the transaction
 * alive; in a dead one the setting dies with it. Two round trips of its own. Only inside a
 * transaction: the setting is local to it.
 */
export async function withBoundedWait<T>(executor: Executor, body: () => Promise<T>): Promise<T> {
  executor.health.failed = false;
  const previous = await capLockTimeout(executor);
  try {
    return await body();
  } finally {
    if (!executor.health.failed) await restoreLockTimeout.execute(executor, { previous });
  }
}

/**
 * Runs `body` with its waits bounded in a caller's transaction too; elsewhere its statements see to that themselves,
 * by `boundedHere`. Two round trips of its own in a caller's transaction, none elsewhere.
 */
export function boundedInCaller<T>(executor: Executor, body: () => Promise<T>): Promise<T> {
  return executor.transaction === "caller" ? withBoundedWait(executor, body) : body();
}

/** Caps `lock_timeout` for the rest of the transaction and returns the value before, as PostgreSQL writes it. */
export async function capLockTimeout(executor: Executor): Promise<string> {
  const row = await cap.executeFirst(executor, { bound: executor.settings.lockWaitMs });
  if (row === undefined) throw new Error("pg_settings has no lock_timeout");
  return row.previous;
}

/** The bound for `boundedHere`: none in a caller's transaction, whose setting must not change under it. */
export function lockWaitFor(executor: Executor): number | null {
  return executor.transaction === "caller" ? null : executor.settings.lockWaitMs;
}

/**
 * A condition that is always true and caps `lock_timeout` before the row locks of its query are
 * taken, so that a statement that is its own transaction needs no round trip for it. A null bound
 * leaves the setting alone.
 */
export function boundedHere(bound: RawBuilder<number | null>): RawBuilder<boolean> {
  const current = sql`current_setting('lock_timeout')`;
  const milliseconds = sql`extract(epoch from ${current}::interval) * 1000`;
  return sql<boolean>`(
    select case
      when ${bound} is null then ''
      when ${milliseconds} between 1 and ${bound} then ${current}
      else set_config('lock_timeout', (${bound})::text, true)
    end
  ) is not null`;
}

// set_config takes its value from `previous`, so the read comes first whatever the plan.
const cap = reading(
  "cap_lock_timeout",
  { bound: "int4" },
  (_db, p) => sql<{ previous: string }>`
    with previous as materialized (
      select current_setting('lock_timeout') as value, setting::bigint as milliseconds
      from pg_settings where name = 'lock_timeout'
    )
    select previous.value as previous,
      set_config(
        'lock_timeout',
        case
          when previous.milliseconds = 0 or previous.milliseconds > ${p.bound} then (${p.bound})::text
          else previous.value
        end,
        true
      )
    from previous`,
);

const restoreLockTimeout = reading(
  "restore_lock_timeout",
  { previous: "text" },
  (_db, p) => sql`select set_config('lock_timeout', ${p.previous}, true)`,
);
