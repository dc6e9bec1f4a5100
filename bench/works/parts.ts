/** What the processes of several works do. */
import { setTimeout as pause } from "node:timers/promises";
import { now, type Payload } from "../harness/contestant.ts";
import { type Host, nothing, type Part, type Report } from "../harness/work.ts";

const BATCH = 1_000;
const LOOK_MS = 10;
/** Longer than anything here takes that works. */
const PATIENCE_MS = 300_000;

/** Enqueues so many jobs and leaves them. */
export const fill: Part = async ({ contestant }, count) => {
  for (let from = 0; from < count; from += BATCH)
    await contestant.enqueueMany(payloads(from, Math.min(BATCH, count - from)));
  return nothing;
};

/** Starts to work. */
export const start: Part = async ({ contestant, starts }) => {
  await contestant.work(starts.started);
  return nothing;
};

/** Waits until exactly so many have started and the database holds that they have ended. */
export const collect: Part = async (host, count) => {
  const { starts } = host;
  if (!(await starts.reaches(count, PATIENCE_MS))) throw new Error(`Only ${starts.count} of ${count} have started.`);
  await stored(host, count);
  const report: Report = { units: starts.count, ms: 0, waits: starts.waits };
  starts.reset();
  return report;
};

export async function stored({ starts, pending }: Host, count: number): Promise<void> {
  const end = now() + PATIENCE_MS;
  while ((await pending()) > 0) {
    if (now() > end) throw new Error(`Not all of ${count} have ended.`);
    await pause(LOOK_MS);
  }
  if (starts.count !== count) throw new Error(`${starts.count} have started, of ${count}.`);
}

export function payloads(from: number, count: number, at?: number): Payload[] {
  return Array.from({ length: count }, (_, place) => ({ n: from + place, ...(at === undefined ? {} : { at }) }));
}

export async function timed(action: () => Promise<unknown>): Promise<number> {
  const began = now();
  await action();
  return now() - began;
}

/** Units a second. */
export function rate({ units, ms }: Pick<Report, "units" | "ms">): number {
  return (units * 1_000) / ms;
}
