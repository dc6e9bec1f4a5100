/** Settles leases that have expired, of any worker. */
import type { Ledger } from "../index.ts";
import type { Emit } from "./events.ts";

/** Of one statement; a full batch is followed by the next at once. */
const BATCH = 500;

/** One batch, in the round trips of `ledger.jobs.reap`. Answers when the next is due, in milliseconds. */
export async function reapOnce(ledger: Ledger, emit: Emit, intervalMs: number): Promise<number> {
  const { returned, deadLettered, setAside } = await ledger.jobs.reap({ limit: BATCH });
  if (returned + deadLettered > 0) emit({ type: "reaped", returned, deadLettered });
  for (const { jobId, error } of setAside) emit({ type: "set_aside", jobId, error });
  return returned + deadLettered + setAside.length >= BATCH ? 0 : jittered(intervalMs);
}

/** A quarter more or less, so that the workers of a fleet do not work in step. */
export function jittered(ms: number): number {
  return ms * (0.75 + Math.random() / 2);
}
