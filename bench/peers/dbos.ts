/** DBOS Transact. `tuned`: a larger pool and a queue that is looked at often, as docs.dbos.dev/typescript says of both. */
import { DBOS, DBOSClient, type WorkflowHandle } from "@dbos-inc/dbos-sdk";
import pg from "pg";
import { type Contestant, type Fan, now, type Payload, type Started, type Tuning } from "../harness/contestant.ts";

const APPLICATION = "bench";
const QUEUE = "noop";

const settings = {
  tuned: {
    instance: { systemDatabasePoolSize: 50 },
    queue: { minPollingIntervalMs: 10, workerConcurrency: 500 },
  },
  defaults: { instance: {}, queue: {} },
};

export async function open(url: string, tuning: Tuning): Promise<Contestant> {
  const { instance, queue } = settings[tuning];
  let started: Started = () => {};
  register((payload) => started(payload));
  const pool = new pg.Pool({ connectionString: url, max: 16 });
  pool.on("error", () => {});
  let client: Promise<DBOSClient> | undefined;
  const enqueue = async (workflowName: string, ...args: unknown[]) => {
    client ??= DBOSClient.create({ systemDatabasePool: pool, systemDatabaseUrl: url, applicationName: APPLICATION });
    await (await client).enqueue(target(workflowName), ...args);
  };
  /** There is no call for many; one transaction saves the commits. */
  const enqueueAll = async (workflowName: string, all: readonly (readonly unknown[])[]) => {
    client ??= DBOSClient.create({ systemDatabasePool: pool, systemDatabaseUrl: url, applicationName: APPLICATION });
    const [dbos, connection] = await Promise.all([client, pool.connect()]);
    try {
      await connection.query("begin");
      for (const args of all) await dbos.enqueueInTransaction(connection, target(workflowName), ...args);
      await connection.query("commit");
    } finally {
      connection.release();
    }
  };
  return {
    pending: "select count(*) from dbos.workflow_status where status in ('ENQUEUED', 'PENDING')",
    install: () => DBOS.migrate(url),
    work: async (on) => {
      started = on;
      DBOS.setConfig({
        name: APPLICATION,
        systemDatabaseUrl: url,
        applicationVersion: "1",
        logLevel: "error",
        ...instance,
      });
      await DBOS.launch();
      await DBOS.registerQueue(QUEUE, queue);
    },
    enqueue: (payload) => enqueue("job", payload),
    enqueueMany: (payloads) =>
      enqueueAll(
        "job",
        payloads.map((payload) => [payload]),
      ),
    enqueueChains: (runs, steps) =>
      enqueueAll(
        "chain",
        Array.from({ length: runs }, () => [steps]),
      ),
    enqueueFan: (width, fan) => enqueue("fan", width, fan),
    close: async () => {
      if (DBOS.isInitialized()) await DBOS.shutdown();
      await (await client)?.destroy();
      await pool.end();
    },
  };
}

function target(workflowName: string) {
  return { queueName: QUEUE, workflowName, appVersion: "1" };
}

function register(started: Started): void {
  const job = DBOS.registerWorkflow(async (payload: Payload) => started(payload), { name: "job" });
  const step = (payload: Payload) =>
    DBOS.runStep(
      async () => {
        started(payload);
        return now();
      },
      { name: `step-${payload.n}` },
    );
  DBOS.registerWorkflow(
    async (steps: number) => {
      let at = await step({ n: 0 });
      for (let n = 1; n < steps; n += 1) at = await step({ n, at });
    },
    { name: "chain" },
  );
  DBOS.registerWorkflow(
    async (width: number, fan: Fan) => {
      await step({ n: 0 });
      if (fan === "steps") await Promise.all(Array.from({ length: width }, (_, n) => step({ n: n + 1 })));
      else await children(job, width);
      await step({ n: width + 1 });
    },
    { name: "fan" },
  );
}

async function children(job: (payload: Payload) => Promise<void>, width: number): Promise<void> {
  const handles: WorkflowHandle<void>[] = [];
  for (let n = 0; n < width; n += 1) handles.push(await DBOS.startWorkflow(job, { queueName: QUEUE })({ n: n + 1 }));
  for (const handle of handles) await handle.getResult();
}
