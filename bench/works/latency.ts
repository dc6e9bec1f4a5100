/** From the call that enqueues a job, in one process, to the first line of its handler, in another. */
import { setTimeout as pause } from "node:timers/promises";
import { now, type Tuning } from "../harness/contestant.ts";
import type { Sizes } from "../harness/sizes.ts";
import { type Host, nothing, type Report, type Work } from "../harness/work.ts";
import { percentile } from "../measure.ts";
import { drained } from "./drain.ts";
import { collect, fill, payloads, rate, start } from "./parts.ts";

const TICK_MS = 10;
const PEAK_MS = 60_000;
/** Between two jobs on an idle system: not in step with anybody's polling. */
const IDLE_MS = 100;

const latencies = [
  { name: "p50 ms", better: "less" },
  { name: "p99 ms", better: "less" },
] as const;

export function idleLatency(sizes: Sizes, tuning: Tuning): Work {
  return {
    id: `latency-idle-${tuning}`,
    title: `enqueue to start, idle, ${tuning}`,
    tuning,
    metrics: latencies,
    parts: { start, collect, one },
    can: ({ waits }) => waits,
    run: async (stage) => {
      const [worker, client] = await Promise.all([stage.join(), stage.join()]);
      await worker.play("start");
      const waits: number[] = [];
      const next = async () => {
        const [report] = await Promise.all([worker.play("collect", 1), client.play("one")]);
        return report.waits;
      };
      // The first one finds connections that are not open and code that is not compiled.
      await next();
      for (const end = now() + sizes.sampleSeconds * 1_000; waits.length < sizes.samples && now() < end; ) {
        await pause(Math.random() * IDLE_MS);
        waits.push(...(await next()));
      }
      return percentiles(waits);
    },
  };
}

export function loadedLatency(sizes: Sizes): Work {
  return {
    id: "latency-loaded",
    title: "enqueue to start, at half of the own peak",
    tuning: "tuned",
    metrics: [...latencies, { name: "jobs/s", better: "more" }],
    parts: {
      fill,
      collect,
      peak: async (host, count) => {
        const report = await drained(host, count, PEAK_MS);
        host.starts.reset();
        return report;
      },
      load: (host, jobsPerSecond) => load(host, jobsPerSecond, sizes.loadSeconds),
    },
    can: ({ waits }) => waits,
    run: async (stage) => {
      const [worker, client] = await Promise.all([stage.join(), stage.join()]);
      await client.play("fill", sizes.peak);
      const half = rate(await worker.play("peak", sizes.peak)) / 2;
      const [{ waits }] = await Promise.all([
        worker.play("collect", Math.floor(half * sizes.loadSeconds)),
        client.play("load", half),
      ]);
      return [...percentiles(waits), half];
    },
  };
}

async function one({ contestant }: Host): Promise<Report> {
  await contestant.enqueue({ n: 0, at: now() });
  return nothing;
}

/** Enqueues in a batch a tick. A tick that comes late counts from when it was due: a client that is slowed down hides nothing. */
async function load({ contestant }: Host, jobsPerSecond: number, seconds: number): Promise<Report> {
  const total = Math.floor(jobsPerSecond * seconds);
  const began = now();
  for (let [sent, at] = [0, began]; sent < total; at += TICK_MS) {
    await pause(Math.max(0, at - now()));
    const due = Math.min(total, Math.ceil(((at - began + TICK_MS) * jobsPerSecond) / 1_000)) - sent;
    if (due > 0) await contestant.enqueueMany(payloads(sent, due, at));
    sent += due;
  }
  return nothing;
}

function percentiles(waits: readonly number[]): readonly number[] {
  return [percentile(waits, 0.5), percentile(waits, 0.99)];
}
