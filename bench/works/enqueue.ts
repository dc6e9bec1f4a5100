/** Enqueueing: one job at a time, by one client and by many, and in batches. Nobody works on them. */
import type { Sizes } from "../harness/sizes.ts";
import type { Host, Part, Report, Work } from "../harness/work.ts";
import { payloads, rate, timed } from "./parts.ts";

const BATCH = 1_000;
/** What every client enqueues before time is taken: connections are open then, and code is compiled. */
const WARM_UP = 10;

export function enqueueOneByOne(sizes: Sizes, clients: number): Work {
  return enqueueing(
    `enqueue-${clients}`,
    `enqueue one at a time, ${clients} client${clients === 1 ? "" : "s"}`,
    (host) =>
      counted(host, clients * WARM_UP, Math.floor(sizes.single / clients) * clients, (count) =>
        Promise.all(
          Array.from({ length: clients }, async (_, client) => {
            for (let n = client; n < count; n += clients) await host.contestant.enqueue({ n });
          }),
        ),
      ),
  );
}

export function enqueueBatches(sizes: Sizes): Work {
  return enqueueing("enqueue-batch", `enqueue in batches of ${BATCH}`, (host) =>
    counted(host, BATCH, sizes.batches * BATCH, async (count) => {
      for (let from = 0; from < count; from += BATCH) await host.contestant.enqueueMany(payloads(from, BATCH));
    }),
  );
}

function enqueueing(id: string, title: string, enqueue: Part): Work {
  return {
    id,
    title,
    tuning: "tuned",
    metrics: [{ name: "jobs/s", better: "more" }],
    parts: { enqueue },
    can: () => true,
    run: async (stage) => {
      const client = await stage.join();
      return [rate(await client.play("enqueue"))];
    },
  };
}

type Enqueue = (count: number) => Promise<unknown>;

/** In the end it looks whether all are there. */
async function counted(host: Host, warmUp: number, count: number, enqueue: Enqueue): Promise<Report> {
  await enqueue(warmUp);
  const ms = await timed(() => enqueue(count));
  const units = (await host.pending()) - warmUp;
  if (units !== count) throw new Error(`${units} jobs are stored, of ${count}.`);
  return { units, ms, waits: [] };
}
