/** graphile-worker. `tuned` is the preset of worker.graphile.org/docs/performance. */
import { Logger, makeWorkerUtils, type Runner, run, type TaskList } from "graphile-worker";
import type { Contestant, Payload, Tuning } from "../harness/contestant.ts";

const TASK = "noop";

declare global {
  namespace GraphileWorker {
    interface Tasks {
      noop: Payload;
    }
  }
}

const tuned = {
  concurrentJobs: 24,
  maxPoolSize: 25,
  localQueue: { size: 500 },
  completeJobBatchDelay: 0,
  failJobBatchDelay: 0,
};

/** Its own logs every job. */
const logger = new Logger(() => () => {});

export async function open(url: string, tuning: Tuning): Promise<Contestant> {
  const utils = await makeWorkerUtils({
    preset: { worker: { connectionString: url, maxPoolSize: 16, logger } },
  });
  let runner: Runner | undefined;
  return {
    pending: "select count(*) from graphile_worker._private_jobs",
    install: () => utils.migrate(),
    work: async (started) => {
      const taskList: TaskList = { [TASK]: async (payload) => started(payload) };
      runner = await run({
        preset: { worker: { connectionString: url, logger, ...(tuning === "tuned" ? tuned : {}) } },
        taskList,
        parsedCronItems: [],
        noHandleSignals: true,
      });
    },
    enqueue: (payload) => utils.addJob(TASK, payload),
    enqueueMany: (payloads) => utils.addJobs(payloads.map((payload) => ({ identifier: TASK, payload }))),
    close: async () => {
      await runner?.stop();
      await utils.release();
    },
  };
}
