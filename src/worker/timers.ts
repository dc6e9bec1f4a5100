/** Fires what is due in time, of any run: gates that expire, runs past their deadline. */
import { performance } from "node:perf_hooks";
import type { FiredTimers, Ledger } from "../index.ts";
import type { Emit } from "./events.ts";
import { jittered } from "./reaper.ts";

/** At most so much later than due, so that the workers of a fleet do not all wake for the same gate. */
const SPREAD_MS = 50;

/**
 * One call of `ledger.runs.fireTimers`. Answers when the next is due, in milliseconds: at the latest after the
 * interval, because what has begun to wait since is not announced.
 */
export async function fireTimersOnce(ledger: Ledger, emit: Emit, intervalMs: number): Promise<number> {
  const calledAt = performance.now();
  const fired = await ledger.runs.fireTimers();
  report(fired, emit);
  const { expiredGates, canceledRuns, setAside, nextInMs } = fired;
  const stuck = setAside.length > 0 && expiredGates.length + canceledRuns.length === 0;
  if (nextInMs === null || (stuck && nextInMs <= 0)) return jittered(intervalMs);
  const next = nextInMs - (performance.now() - calledAt) + SPREAD_MS * Math.random();
  return Math.min(jittered(intervalMs), nextInMs <= 0 ? 0 : Math.max(0, next));
}

function report({ expiredGates, canceledRuns, setAside }: FiredTimers, emit: Emit): void {
  for (const { runId, stepKey, status } of expiredGates) emit({ type: "gate_expired", runId, stepKey, status });
  for (const runId of canceledRuns) emit({ type: "deadline_exceeded", runId });
  for (const { runId, stepKey, error } of setAside) emit({ type: "timer_set_aside", runId, stepKey, error });
}
