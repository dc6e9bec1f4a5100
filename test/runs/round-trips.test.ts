/** Round trips of each function of runs and steps, as their doc comments have them: alone, and in the caller's transaction. */
import { expect, test } from "@jest/globals";
import type { ClaimedJob, Ledger } from "../../src/index.ts";
import { expectInvariants } from "../invariants.ts";
import { createTestDatabase } from "../support/database.ts";
import { startChild, startParent } from "./children.ts";
import { codeOf, failure, globally, graphOf, ledgerOf, TestRun } from "./fixtures.ts";
import { deadlineIsPast, gatesAreDue, startExpiring } from "./timed.ts";

const database = await createTestDatabase({ max: 3 });
const ledger = ledgerOf(database);

type Call = (ledger: Ledger) => Promise<unknown>;

const graph = (size: number) =>
  graphOf(
    "counted",
    Object.fromEntries(Array.from({ length: size }, (_, n) => [`s${n}`, n === 0 ? [] : [`s${n - 1}`]])),
  );
let keys = 0;
const key = () => {
  keys += 1;
  return { idempotencyKey: `key-${keys}` };
};
const activeKey = () => ({ active: { key: key().idempotencyKey } });
const started = (steps: Record<string, string[]>) => TestRun.start(database, ledger, steps);
const leaseIn = async (steps: Record<string, string[]>): Promise<ClaimedJob> => (await started(steps)).claim("a");

/** What is called, what is prepared for it, statements alone, statements in the caller's transaction. */
const table: readonly [what: string, prepare: () => Promise<Call> | Call, alone: number, inCallers: number][] = [
  ["enqueue a run", () => (l) => l.runs.enqueue(graph(3)), 1, 1],
  ["enqueue a run of 1000 steps", () => (l) => l.runs.enqueue(graph(1000)), 1, 1],
  ["enqueue 100 runs", () => (l) => l.runs.enqueueMany(Array(100).fill({ graph: graph(2) })), 1, 1],
  ["enqueue none", () => (l) => l.runs.enqueueMany([]), 0, 0],
  ["enqueue with a new key", () => (l) => l.runs.enqueue(graph(3), key()), 1, 4],
  [
    "enqueue with a key that exists",
    async () => {
      const options = key();
      await ledger.runs.enqueue(graph(3), options);
      return (l) => l.runs.enqueue(graph(3), options);
    },
    2,
    5,
  ],
  [
    "enqueue 50 runs with new keys",
    () => (l) => l.runs.enqueueMany(Array.from({ length: 50 }, () => ({ graph: graph(2), ...key() }))),
    3,
    5,
  ],
  [
    "enqueue 50 runs with keys that exist",
    async () => {
      const requests = Array.from({ length: 50 }, () => ({ graph: graph(2), ...key() }));
      await ledger.runs.enqueueMany(requests);
      return (l) => l.runs.enqueueMany(requests);
    },
    4,
    6,
  ],
  [
    "enqueue with a key that has expired",
    async () => {
      const options = { ...key(), idempotencyTtlSeconds: 60 };
      await ledger.runs.enqueue(graph(3), options);
      await database.pool.query("update runledger.workflow_idempotency_keys set expires_at = now() where key = $1", [
        options.idempotencyKey,
      ]);
      return (l) => l.runs.enqueue(graph(3), options);
    },
    3,
    6,
  ],
  ["enqueue with a new active key", () => (l) => l.runs.enqueue(graph(3), activeKey()), 1, 4],
  [
    "enqueue with an active key that is taken",
    async () => {
      const options = activeKey();
      await ledger.runs.enqueue(graph(3), options);
      return (l) => l.runs.enqueue(graph(3), options);
    },
    2,
    5,
  ],
  ["enqueue an invalid graph", () => (l) => codeOf(l.runs.enqueue(graph(0))), 0, 0],
  ["getStatus", async () => of(await started({ a: [] }), (l, id) => l.runs.getStatus(id, globally.scope)), 1, 1],
  ["get", async () => of(await started({ a: [], b: ["a"] }), (l, id) => l.runs.get(id, globally.scope)), 2, 2],
  [
    "getResult, one look",
    async () => {
      const { id } = await TestRun.start(database, ledger, { a: [] }, { result: "a" });
      return (l) => codeOf(l.runs.getResult(id, globally));
    },
    1,
    1,
  ],
  ["cancel", async () => of(await started({ a: [], b: ["a"] }), (l, id) => l.runs.cancel(id, globally)), 14, 13],
  [
    "cancel a run with five child runs",
    async () => {
      const keys = ["child1", "child2", "child3", "child4", "child5"];
      const parent = await startParent(database, ledger, Object.fromEntries(keys.map((child) => [child, []])));
      for (const child of keys) await startChild(database, ledger, parent, child, { a: [], b: ["a"] });
      return of(parent, (l, id) => l.runs.cancel(id, globally));
    },
    14,
    13,
  ],
  [
    "cancelMany of fifty runs",
    async () => {
      const runs = await ledger.runs.enqueueMany(Array(50).fill({ graph: { ...graph(2), type: "swept" } }));
      return (l) => l.runs.cancelMany({ ...globally, filter: { type: "swept" }, batchSize: runs.length + 1 });
    },
    15,
    15,
  ],
  ["cancelMany of none", () => (l) => l.runs.cancelMany({ ...globally, filter: { type: "nobody's" } }), 1, 2],
  [
    "cancel a run that has ended",
    async () => {
      const run = await started({ a: [] });
      await run.succeed("a");
      return of(run, (l, id) => l.runs.cancel(id, globally));
    },
    3,
    2,
  ],
  ["cancel an unknown run", () => (l) => codeOf(l.runs.cancel(crypto.randomUUID(), globally)), 3, 2],
  ["complete a step", async () => completing(await leaseIn({ a: [], b: ["a"], gate: ["a"] })), 1, 5],
  ["complete the last step", async () => completing(await leaseIn({ a: [] })), 1, 5],
  [
    "complete a step whose dependent is cancelled",
    async () => {
      const run = await started({ bad: [], a: [], b: ["bad", "a"], c: ["b"] });
      await run.fail("bad");
      return completing(await run.claim("a"));
    },
    8,
    11,
  ],
  ["fail a step", async () => failing(await leaseIn({ a: [], b: ["a"], any: ["a?"], c: ["b"] })), 8, 9],
  ["fail a step without dependents", async () => failing(await leaseIn({ a: [] })), 7, 8],
  [
    "fail a step that is tried again",
    async () => {
      const job = { type: "again", payload: null, maxAttempts: 5 };
      await ledger.runs.enqueue({ type: "again", steps: [{ key: "a", dependencies: [], job }], resultStep: null });
      const [claimed] = await ledger.jobs.claim({ workerId: "w", limit: 1, types: ["again"] });
      return (l) => l.jobs.fail((claimed as ClaimedJob).lease, { code: "again", message: "again" });
    },
    1,
    4,
  ],
  [
    "settle a batch of successes in ten runs",
    async () => {
      const jobs = await Promise.all(Array.from({ length: 10 }, () => leaseIn({ a: [], b: ["a"] })));
      return (l) => l.jobs.settle(jobs.map(({ lease }) => ({ lease, success: {} })));
    },
    1,
    5,
  ],
  [
    "settle a batch of successes in ten runs, and claim what they release",
    async () => {
      const runs = await Promise.all(Array.from({ length: 10 }, () => started({ a: [], b: ["a"] })));
      const jobs = await Promise.all(runs.map((run) => run.claim("a")));
      const claim = { workerId: "w", limit: 10, types: runs.map(({ type }) => `${type}.b`) };
      return (l) =>
        l.jobs.settleAndClaim(
          jobs.map(({ lease }) => ({ lease, success: {} })),
          claim,
        );
    },
    1,
    5,
  ],
  [
    "settle a batch of both in ten runs",
    async () => {
      const jobs = await Promise.all(Array.from({ length: 10 }, () => leaseIn({ a: [], b: ["a"] })));
      return (l) => l.jobs.settle(jobs.map(({ lease }, n) => (n % 2 ? { lease, success: {} } : { lease, failure })));
    },
    10,
    10,
  ],
  [
    "complete an external step",
    async () => of(await started({ gate: [], b: ["gate"] }), (l, id) => l.steps.complete(id, "gate", globally)),
    10,
    9,
  ],
  [
    "complete an external step again",
    async () => {
      const run = await started({ gate: [], b: ["gate"] });
      await ledger.steps.complete(run.id, "gate", globally);
      return of(run, (l, id) => l.steps.complete(id, "gate", globally));
    },
    5,
    4,
  ],
  [
    "keep an early completion of an external step",
    async () => {
      const run = await started({ a: [], gate: ["a"] });
      return of(run, (l, id) => l.steps.complete(id, "gate", { ...globally, keep: true }));
    },
    7,
    6,
  ],
  ["fire timers when none is due", () => (l) => l.runs.fireTimers(), 1, 2],
  [
    "expire gates of five runs",
    async () => {
      const expiring = () => startExpiring(database, ledger, { gate: [], b: ["gate"] });
      await gatesAreDue(database, ...(await Promise.all(Array.from({ length: 5 }, expiring))));
      return (l) => l.runs.fireTimers();
    },
    11,
    11,
  ],
  [
    "enforce the deadlines of five runs",
    async () => {
      const late = () => TestRun.start(database, ledger, { a: [], b: ["a"] }, { deadlineSeconds: 60 });
      await deadlineIsPast(database, ...(await Promise.all(Array.from({ length: 5 }, late))));
      return (l) => l.runs.fireTimers();
    },
    15,
    15,
  ],
  [
    "reap steps in five runs",
    async () => {
      const jobs = await Promise.all(Array.from({ length: 5 }, () => leaseIn({ a: [], b: ["a"] })));
      await database.pool.query("update runledger.job_queue set lease_expires_at = '-infinity' where id = any($1)", [
        jobs.map(({ lease }) => lease.jobId),
      ]);
      return (l) => l.jobs.reap();
    },
    10,
    11,
  ],
];

test.each(table)("%s", async (_, prepare, alone) => {
  const call = await prepare();
  const { statements } = await database.record(() => call(ledger));

  expect(named(statements)).toHaveLength(alone);
  await expectInvariants(database);
});

test.each(table)("%s, in the caller's transaction", async (_, prepare, __, inCallers) => {
  const call = await prepare();
  const { statements } = await database.record(() => database.db.transaction().execute((trx) => call(ledger.in(trx))));

  expect(named(statements.slice(1, -1))).toHaveLength(inCallers);
  await expectInvariants(database);
});

function of(run: TestRun, call: (ledger: Ledger, id: string) => Promise<unknown>): Call {
  return (l) => call(l, run.id);
}

function completing({ lease }: ClaimedJob): Call {
  return (l) => l.jobs.complete(lease);
}

function failing({ lease }: ClaimedJob): Call {
  return (l) => l.jobs.fail(lease, failure);
}

/** The statements' names, so that a wrong count shows what was sent. */
function named(statements: readonly string[]): string[] {
  return statements.map((text) => /runledger:(\w+)/.exec(text)?.[1] ?? text);
}
