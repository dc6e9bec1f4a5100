/** Runs of steps one after the other: how many a second, and how long a step waits for the end of the one before it. */
import { setTimeout as pause } from "node:timers/promises";
import { now } from "../harness/contestant.ts";
import type { Sizes } from "../harness/sizes.ts";
import { type Host, nothing, type Report, type Work } from "../harness/work.ts";
import { percentile } from "../measure.ts";
import { collect, rate, start, timed } from "./parts.ts";

const STEPS = 5;
const IDLE_MS = 100;

export function chains(sizes: Sizes): Work {
  return {
    id: "chains",
    title: `${sizes.chains} runs of a ${STEPS}-step chain, enqueue to end`,
    tuning: "tuned",
    metrics: [{ name: "runs/s", better: "more" }],
    parts: { start, collect, enqueue },
    can: (entry) => entry.chains,
    run: async (stage) => {
      const [worker, client] = await Promise.all([stage.join(), stage.join()]);
      const run = (units: number) =>
        Promise.all([worker.play("collect", units * STEPS), client.play("enqueue", units)]);
      await worker.play("start");
      await run(1);
      const units = sizes.chains;
      return [rate({ units, ms: await timed(() => run(units)) })];
    },
  };
}

export function stepLatency(sizes: Sizes): Work {
  return {
    id: "latency-step",
    title: "end of a step to start of the next, idle, defaults",
    tuning: "defaults",
    metrics: [
      { name: "p50 ms", better: "less" },
      { name: "p99 ms", better: "less" },
    ],
    parts: { start, collect, enqueue },
    can: ({ gaps }) => gaps,
    run: async (stage) => {
      const [worker, client] = await Promise.all([stage.join(), stage.join()]);
      await worker.play("start");
      const waits: number[] = [];
      const next = async () => {
        const [report] = await Promise.all([worker.play("collect", STEPS), client.play("enqueue", 1)]);
        return report.waits;
      };
      await next();
      for (const end = now() + sizes.sampleSeconds * 1_000; waits.length < sizes.samples && now() < end; ) {
        await pause(Math.random() * IDLE_MS);
        waits.push(...(await next()));
      }
      return [percentile(waits, 0.5), percentile(waits, 0.99)];
    },
  };
}

async function enqueue({ contestant }: Host, runs: number): Promise<Report> {
  await contestant.enqueueChains?.(runs, STEPS);
  return nothing;
}
