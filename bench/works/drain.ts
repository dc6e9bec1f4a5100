/** A backlog of jobs that do nothing, worked off by one process; from its readiness to the last end that is stored. */
import { now, type Tuning } from "../harness/contestant.ts";
import type { Sizes } from "../harness/sizes.ts";
import type { Host, Report, Work } from "../harness/work.ts";
import { fill, rate, stored } from "./parts.ts";

const STARTING_MS = 30_000;

export function drain(sizes: Sizes, tuning: Tuning): Work {
  const tuned = tuning === "tuned";
  const jobs = tuned ? sizes.drain : sizes.drainDefaults;
  return {
    id: `drain-${tuning}`,
    title: `drain ${jobs} jobs, one process, ${tuned ? "tuned" : "defaults"}`,
    tuning,
    metrics: [{ name: "jobs/s", better: "more" }],
    parts: { fill, drain: (host, count) => drained(host, count, sizes.patienceSeconds * (tuned ? 5_000 : 1_000)) },
    can: ({ waits }) => tuned || waits,
    run: async (stage) => {
      await (await stage.join()).play("fill", jobs);
      const worker = await stage.join();
      return [rate(await worker.play("drain", jobs))];
    },
  };
}

/** Of who takes longer than that, the rate until then is taken. */
export async function drained(host: Host, count: number, withinMs: number): Promise<Report> {
  const { contestant, starts } = host;
  const called = now();
  await contestant.work(starts.started);
  // Start-up is not what is measured, unless jobs were taken meanwhile.
  const began = starts.count > 0 ? called : now();
  if (!(await starts.reaches(1, STARTING_MS))) throw new Error("Nothing has started.");
  if (await starts.reaches(count, withinMs)) await stored(host, count);
  return { units: starts.count, ms: now() - began, waits: [] };
}
