/** pg-boss. `tuned`: LISTEN/NOTIFY and fetching on while batches come full, as pgboss.io/api/workers says. */
import { PgBoss } from "pg-boss";
import type { Contestant, Payload, Tuning } from "../harness/contestant.ts";

const QUEUE = "noop";

/** What a flow releases is announced by nobody: it waits for a look of the flow's resolver and one of the worker, hence the intervals. */
const settings = {
  tuned: {
    instance: { max: 20, useListenNotify: true, flowIntervalSeconds: 1 },
    worker: {
      batchSize: 1_000,
      burstWhenBatchFull: true,
      localConcurrency: 4,
      pollingIntervalSeconds: 0.5,
      notifyPollingIntervalSeconds: 0.5,
    },
  },
  defaults: { instance: {}, worker: {} },
};

export async function open(url: string, tuning: Tuning): Promise<Contestant> {
  const { instance, worker } = settings[tuning];
  const boss = new PgBoss({ connectionString: url, ...instance });
  boss.on("error", () => {});
  await boss.start();
  // In a copied database the queue is there already, as the defaults have it.
  await boss.createQueue(QUEUE);
  if (tuning === "tuned") await boss.updateQueue(QUEUE, { notify: true });
  return {
    pending: `select count(*) from pgboss.job where name = '${QUEUE}' and state not in ('completed', 'cancelled', 'failed')`,
    install: async () => {},
    work: async (started) => {
      await boss.work<Payload>(QUEUE, worker, async (jobs) => {
        for (const { data } of jobs) started(data);
      });
    },
    enqueue: (payload) => boss.send(QUEUE, payload),
    enqueueMany: (payloads) =>
      boss.insert(
        QUEUE,
        payloads.map((data) => ({ data })),
      ),
    enqueueChains: async (runs, steps) => {
      for (let run = 0; run < runs; run += 1) await boss.flow(chain(steps));
    },
    enqueueFan: (width) => boss.flow(fan(width)),
    close: () => boss.stop({ graceful: false }),
  };
}

function chain(length: number) {
  return Array.from({ length }, (_, n) => ({
    ref: `step-${n}`,
    name: QUEUE,
    data: { n },
    ...(n === 0 ? {} : { dependsOn: [`step-${n - 1}`] }),
  }));
}

function fan(width: number) {
  const items = Array.from({ length: width }, (_, n) => `item-${n}`);
  return [
    { ref: "first", name: QUEUE, data: { n: 0 } },
    ...items.map((ref, n) => ({ ref, name: QUEUE, data: { n: n + 1 }, dependsOn: ["first"] })),
    { ref: "join", name: QUEUE, data: { n: width + 1 }, dependsOn: items },
  ];
}
