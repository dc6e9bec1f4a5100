/** Fires the schedules that are due. */
import { performance } from "node:perf_hooks";
import type { AnyWorkflowDefinition, FiredSchedules, Ledger } from "../index.ts";
import type { Emit } from "./events.ts";
import { jittered } from "./reaper.ts";

/** At most so much later than due, so that the workers of a fleet do not all look at the same moment. */
const SPREAD_MS = 50;

/**
 * One call of `ledger.schedules.fireDue`. Answers when the next is due, in milliseconds: at the latest after the
 * interval, because a schedule that is new or changed is not announced.
 */
export async function fireSchedulesOnce(
  ledger: Ledger,
  workflows: readonly AnyWorkflowDefinition[],
  emit: Emit,
  intervalMs: number,
): Promise<number> {
  const calledAt = performance.now();
  const fired = await ledger.schedules.fireDue({ workflows });
  report(fired, emit);
  const { nextInMs } = fired;
  // Whoever else holds what is due fires it: to look again at once would find the same.
  const stuck = fired.fired.length + fired.skipped.length + fired.setAside.length === 0;
  if (nextInMs === null || (stuck && nextInMs <= 0)) return jittered(intervalMs);
  const next = nextInMs - (performance.now() - calledAt) + SPREAD_MS * Math.random();
  return Math.min(jittered(intervalMs), nextInMs <= 0 ? 0 : Math.max(0, next));
}

function report({ fired, skipped, setAside }: FiredSchedules, emit: Emit): void {
  for (const tick of fired) emit({ type: "schedule_fired", ...tick });
  for (const tick of skipped) emit({ type: "schedule_skipped", ...tick });
  for (const schedule of setAside) emit({ type: "schedule_set_aside", ...schedule });
}
