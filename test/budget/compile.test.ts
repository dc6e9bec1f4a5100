/** Statements are built and compiled once; from then on no call pays for the query builder. */
import { afterAll, beforeAll, beforeEach, describe, expect, jest, test } from "@jest/globals";
import { PostgresQueryCompiler } from "kysely";
import {
  type ClaimedJob,
  createLedger,
  defineJob,
  type GraphSpec,
  type Lease,
  type Ledger,
  type Settlement,
  typed,
  WorkflowBuilder,
} from "../../src/index.ts";
import { createWorker, handle } from "../../src/worker/index.ts";
import { createTestDatabase } from "../support/database.ts";

const database = await createTestDatabase();
const ledger = createLedger({ db: database.db });
const compile = jest.spyOn(PostgresQueryCompiler.prototype, "compileQuery");
const globally = { global: true } as const;
const failure = { kind: "RETRYABLE", code: "test.failed", message: "It failed." } as const;
const continuation = { checkpoint: 1, delaySeconds: 60 };

/** Each with a type of its own, so that none takes another's jobs. */
const calls: readonly [name: string, call: (ledger: Ledger) => Promise<unknown>][] = [
  ["enqueue", (l) => l.jobs.enqueue("one", {})],
  ["enqueue with keys", (l) => l.jobs.enqueue("keyed", {}, { idempotencyKey: unique(), tags: ["a"], priority: 5 })],
  ["enqueue with an active key", (l) => l.jobs.enqueue("active", {}, { active: { key: unique() } })],
  ["enqueue with a limit", (l) => l.jobs.enqueue("limited", {}, { limit: { key: "k", concurrency: 1 } })],
  ["enqueueMany", (l) => l.jobs.enqueueMany([jobOf("many"), jobOf("many")])],
  ["claim where there is nothing", (l) => l.jobs.claim({ workerId: "w", limit: 10, types: ["nothing"] })],
  ["claim of any type", (l) => l.jobs.claim({ workerId: "w", limit: 1 })],
  ["claim with a limit", limited],
  ["claim and settle", (l) => settled(l, "success", (lease) => ({ lease, success: { output: 1 } }))],
  ["claim and fail", (l) => settled(l, "failure", (lease) => ({ lease, failure }))],
  ["claim and continue", (l) => settled(l, "continuation", (lease) => ({ lease, continuation }))],
  ["claim, heartbeat, progress, checkpoint, log and hand back", running],
  ["claim and complete", async (l) => l.jobs.complete((await claimed(l, "completed")).lease)],
  ["reap", (l) => l.jobs.reap()],
  ["enqueue a run", (l) => l.runs.enqueue(graph())],
  ["enqueue runs", (l) => l.runs.enqueueMany([{ graph: graph() }, { graph: graph() }])],
  ["work on a run until its end", run],
  ["get a job and a run", read],
  ["fire timers and schedules", (l) => Promise.all([l.runs.fireTimers(), l.schedules.fireDue({ workflows: [] })])],
];

beforeEach(() => {
  compile.mockClear();
});
afterAll(() => compile.mockRestore());

describe("after the first time nothing is compiled by", () => {
  beforeAll(async () => {
    for (const [, call] of calls) await call(ledger);
    // Whoever sees none at all is looking in the wrong place.
    expect(compile.mock.calls.length).toBeGreaterThan(calls.length);
    for (const [, call] of calls) await inTransaction(call);
  });

  test.each(calls)("%s", async (_name, call) => {
    await call(ledger);
    await call(createLedger({ db: database.db }));
    await inTransaction(call);

    expect(compile).not.toHaveBeenCalled();
  });

  test("a worker", async () => {
    const job = defineJob("worked", { input: typed<{ n: number }>() });
    let ended = 0;
    let reached = () => {};
    const worker = createWorker({
      ledger,
      handlers: [handle(job, () => {})],
      onEvent: ({ type }) => {
        if (type !== "succeeded") return;
        ended += 1;
        if (ended % 100 === 0) reached();
      },
    });
    const work = async () => {
      const done = new Promise<void>((resolve) => {
        reached = resolve;
      });
      await ledger.jobs.enqueueMany(Array.from({ length: 100 }, (_, n) => ({ type: "worked", payload: { n } })));
      await done;
    };
    await worker.start();
    try {
      await work();
      compile.mockClear();
      await work();

      expect(compile).not.toHaveBeenCalled();
    } finally {
      await worker.stop();
    }
  });
});

let uniques = 0;
function unique(): string {
  uniques += 1;
  return `key-${uniques}`;
}

function jobOf(type: string) {
  return { type, payload: { n: 1 } };
}

async function claimed(l: Ledger, type: string): Promise<ClaimedJob> {
  await l.jobs.enqueue(type, {});
  const [job] = await l.jobs.claim({ workerId: "w", limit: 1, types: [type] });
  if (job === undefined) throw new Error("nothing was claimed");
  return job;
}

async function settled(l: Ledger, type: string, settlement: (lease: Lease) => Settlement): Promise<void> {
  const { lease } = await claimed(l, type);
  expect(await l.jobs.settle([settlement(lease)])).toMatchObject([{ ok: true }]);
}

async function limited(l: Ledger): Promise<void> {
  await l.jobs.enqueue("limited", {}, { limit: { key: unique(), concurrency: 1 } });
  const jobs = await l.jobs.claim({ workerId: "w", limit: 1, types: ["limited"] });
  await l.jobs.settle(jobs.map(({ lease }) => ({ lease, success: {} })));
}

async function running(l: Ledger): Promise<void> {
  const { lease } = await claimed(l, "running");
  await l.jobs.heartbeat([lease]);
  await l.jobs.progress(lease, { done: 1, total: 2 });
  await l.jobs.checkpoint(lease, { page: 1 });
  await l.jobs.log(lease, [{ level: "info", message: "going on" }]);
  await l.jobs.handBack([lease]);
}

function graph(): GraphSpec {
  const builder = new WorkflowBuilder("run");
  const first = builder.job("first", "step", {});
  const gate = builder.external("gate", { onSuccess: [first] });
  builder.result(builder.job("last", "step", {}, { onSuccess: [gate] }));
  return builder.build();
}

async function run(l: Ledger): Promise<void> {
  const { id } = await l.runs.enqueue(graph());
  const work = async () => {
    const jobs = await l.jobs.claim({ workerId: "w", limit: 100, types: ["step"] });
    await l.steps.prerequisites(jobs);
    await l.jobs.settle(jobs.map(({ lease }) => ({ lease, success: { output: 1 } })));
  };
  await work();
  await l.steps.complete(id, "gate", { scope: globally });
  await work();
  expect(await l.runs.getResult(id, { scope: globally, timeoutMs: 0 })).toBe(1);
}

async function read(l: Ledger): Promise<void> {
  const [{ id: jobId }, { id: runId }] = [await l.jobs.enqueue("read", {}), await l.runs.enqueue(graph())];
  await l.jobs.get(jobId, globally);
  await l.runs.get(runId, globally);
  await l.runs.getStatus(runId, globally);
}

function inTransaction(call: (ledger: Ledger) => Promise<unknown>): Promise<unknown> {
  return database.db.transaction().execute((trx) => call(ledger.in(trx)));
}
