/** What tests of keys of live jobs need: the rows they are about, and sessions that hold them. */
import type { Ledger } from "../../src/index.ts";
import type { TestDatabase } from "../support/database.ts";

/** Waits for the job of a key: who inserts, replaces or changes it. */
export const marker = "runledger:enqueue_jobs_with_live_keys";

export interface LiveRow {
  readonly id: string;
  readonly status: string;
  readonly payload: unknown;
  readonly active_key: string | null;
  readonly debounce_key: string | null;
}

/** The live jobs of a type, in id order. */
export async function liveJobs({ pool }: Pick<TestDatabase, "pool">, type: string): Promise<LiveRow[]> {
  const { rows } = await pool.query<LiveRow>(
    "select id, status, payload, active_key, debounce_key from runledger.job_queue where type = $1 order by id",
    [type],
  );
  return rows;
}

/** Begins a transaction, does something in it with a ledger bound to it, and leaves it open. */
export async function openWith<T>(database: TestDatabase, ledger: Ledger, action: (ledger: Ledger) => Promise<T>) {
  const trx = await database.db.startTransaction().execute();
  const result = await action(ledger.in(trx));
  return {
    result,
    commit: () => trx.commit().execute(),
    rollback: () => trx.rollback().execute(),
  };
}
