/** Giving back claims that were never started: their attempt does not count. */
import { setTimeout as sleep } from "node:timers/promises";
import type { ClaimedJob, Ledger } from "../index.ts";
import { type Emit, viewOf } from "./events.ts";
import { mayPass, retryDelayMs } from "./transient.ts";

/**
 * One round trip; tried again, `tries` times in all, while the database is away. What cannot be given
 * back, or was lost, is left to the reaper. Throws only what is a bug.
 */
export async function handBack(
  { ledger, emit }: { readonly ledger: Ledger; readonly emit: Emit },
  jobs: readonly ClaimedJob[],
  tries: number,
): Promise<void> {
  if (jobs.length === 0) return;
  for (let failures = 0; failures < tries; failures += 1) {
    try {
      const returned = new Set(await ledger.jobs.handBack(jobs.map(({ lease }) => lease)));
      const back = jobs.filter(({ lease }) => returned.has(lease.jobId));
      if (back.length > 0) emit({ type: "handed_back", jobs: back.map(viewOf) });
      return;
    } catch (error) {
      if (!mayPass(error, failures)) throw error;
      emit({ type: "error", during: "hand_back", error, fatal: false });
      if (failures + 1 < tries) await sleep(retryDelayMs(failures));
    }
  }
}
