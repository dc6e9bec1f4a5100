/** One run: a step, many that depend on it, and one that depends on all of those; from the call that starts it to its end. */
import type { Fan } from "../harness/contestant.ts";
import type { Entry } from "../harness/roster.ts";
import { nothing, type Work } from "../harness/work.ts";
import { collect, rate, start, timed } from "./parts.ts";

export function fanOut(width: number, fan: Fan): Work {
  const id = fan === "steps" ? `fan-${width}` : `fan-${width}-children`;
  const widthOf = ({ fans }: Entry) => Math.min(width, fans[fan] ?? 0);
  return {
    id,
    title: `fan-out 1 → ${width} → 1, ${fan}`,
    tuning: "tuned",
    metrics: [{ name: "items/s", better: "more" }],
    parts: {
      start,
      collect,
      enqueue: async ({ contestant }, items) => {
        await contestant.enqueueFan?.(items, fan);
        return nothing;
      },
    },
    // Who takes a few less than that is measured with those.
    can: (entry) => widthOf(entry) >= width * 0.9,
    run: async (stage) => {
      const [worker, client] = await Promise.all([stage.join(), stage.join()]);
      const run = (units: number) => Promise.all([worker.play("collect", units + 2), client.play("enqueue", units)]);
      await worker.play("start");
      await run(1);
      const units = widthOf(stage.entry);
      return [rate({ units, ms: await timed(() => run(units)) })];
    },
  };
}
