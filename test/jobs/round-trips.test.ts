/** Round trips of each jobs function, as their doc comments have them: alone, and in the caller's transaction. */
import { beforeEach, expect, test } from "@jest/globals";
import { createLedger, defineJob, type JobOptions, type Ledger, WorkflowBuilder } from "../../src/index.ts";
import { createTestDatabase } from "../support/database.ts";
import { claimedOne, codeOf, expire, globally, leased } from "./fixtures.ts";

const database = await createTestDatabase();
const ledger = createLedger({ db: database.db });

type Call = (ledger: Ledger) => Promise<unknown>;

let keys = 0;
const newKey = () => {
  keys += 1;
  return `key-${keys}`;
};
const leaseOf = async (type: string) => (await leased(ledger, type)).lease;

const active = (replace = false) => ({ active: { key: newKey(), replace } });
const debounced = () => ({ debounce: { key: newKey(), seconds: 60 } });
const throttled = () => ({ throttle: { key: newKey(), seconds: 60 } });
const ofAllKinds = (n: number): JobOptions =>
  [active(), active(true), debounced(), throttled(), { idempotencyKey: newKey() }][n % 5] ?? {};
/** The second of two requests for one key. */
const again = (keyOf: () => JobOptions) => async () => {
  const options = keyOf();
  await ledger.jobs.enqueue("job", {}, options);
  return (l: Ledger) => l.jobs.enqueue("job", {}, options);
};

/** What is called, what is prepared for it, statements alone, statements in the caller's transaction. */
const table: readonly [string, () => Promise<Call> | Call, number, number][] = [
  ["enqueue", () => (l) => l.jobs.enqueue("job", {}), 1, 1],
  [
    "enqueueMany of 1000",
    () => (l) => l.jobs.enqueueMany(Array.from({ length: 1000 }, () => ({ type: "job", payload: 1 }))),
    1,
    1,
  ],
  ["enqueueMany of none", () => (l) => l.jobs.enqueueMany([]), 0, 0],
  ["enqueue, strict and refused", () => (l) => codeOf(() => l.jobs.enqueue("unknown", {}, { strict: true })), 1, 1],
  ["enqueue with a new key", () => (l) => l.jobs.enqueue("job", {}, { idempotencyKey: newKey() }), 1, 4],
  [
    "enqueue with a key that exists",
    async () => {
      const idempotencyKey = newKey();
      await ledger.jobs.enqueue("job", {}, { idempotencyKey });
      return (l) => l.jobs.enqueue("job", {}, { idempotencyKey });
    },
    2,
    5,
  ],
  ["enqueueMany of 1000 with new keys", () => (l) => l.jobs.enqueueMany(keyed(newKey())), 3, 5],
  [
    "enqueueMany of 1000 with keys that exist",
    async () => {
      const requests = keyed(newKey());
      await ledger.jobs.enqueueMany(requests);
      return (l) => l.jobs.enqueueMany(requests);
    },
    4,
    6,
  ],
  [
    "enqueue with a key that has expired",
    async () => {
      const options = { idempotencyKey: newKey(), idempotencyTtlSeconds: 60 };
      await ledger.jobs.enqueue("job", {}, options);
      await database.pool.query("update runledger.job_idempotency_keys set expires_at = now() where key = $1", [
        options.idempotencyKey,
      ]);
      return (l) => l.jobs.enqueue("job", {}, options);
    },
    3,
    6,
  ],
  ["enqueue with a new throttle key", () => (l) => l.jobs.enqueue("job", {}, throttled()), 1, 4],
  ["enqueue that is throttled", again(throttled), 2, 5],
  ["enqueue with a new active key", () => (l) => l.jobs.enqueue("job", {}, active()), 1, 4],
  ["enqueue with an active key that is taken", again(active), 2, 5],
  ["enqueue that replaces", again(() => active(true)), 1, 4],
  ["enqueue that is debounced", again(debounced), 1, 4],
  [
    "enqueueMany of 1000 with new keys of all kinds",
    () => (l) =>
      l.jobs.enqueueMany(Array.from({ length: 1000 }, (_, n) => ({ type: "job", payload: n, ...ofAllKinds(n) }))),
    4,
    6,
  ],
  [
    "enqueueMany of 1000 with keys of all kinds that are taken",
    async () => {
      const requests = Array.from({ length: 1000 }, (_, n) => ({ type: "job", payload: n, ...ofAllKinds(n) }));
      await ledger.jobs.enqueueMany(requests);
      return (l) => l.jobs.enqueueMany(requests);
    },
    6,
    8,
  ],
  ["claim of 50", () => async (l) => l.jobs.claim({ workerId: "w", limit: 50 }), 1, 1],
  ["claim of one type", () => async (l) => l.jobs.claim({ workerId: "w", limit: 50, types: ["job"] }), 1, 1],
  [
    "claim where there is nothing",
    () => async (l) => l.jobs.claim({ workerId: "w", limit: 50, types: ["none"] }),
    1,
    1,
  ],
  ["claim of 50 with limits", limitedJobs, 5, 4],
  ["heartbeat of none", () => (l) => l.jobs.heartbeat([]), 0, 0],
  [
    "heartbeat",
    async () =>
      (
        (lease) => (l) =>
          l.jobs.heartbeat([lease])
      )(await leaseOf("beat")),
    1,
    3,
  ],
  [
    "handBack",
    async () =>
      (
        (lease) => (l) =>
          l.jobs.handBack([lease])
      )(await leaseOf("back")),
    1,
    3,
  ],
  [
    "progress",
    async () =>
      (
        (lease) => (l) =>
          l.jobs.progress(lease, { done: 1 })
      )(await leaseOf("progress")),
    1,
    3,
  ],
  [
    "checkpoint",
    async () =>
      (
        (lease) => (l) =>
          l.jobs.checkpoint(lease, {})
      )(await leaseOf("checkpoint")),
    1,
    3,
  ],
  [
    "log of 3",
    async () =>
      (
        (lease) => (l) =>
          l.jobs.log(lease, lines)
      )(await leaseOf("log")),
    1,
    3,
  ],
  [
    "complete",
    async () =>
      (
        (lease) => (l) =>
          l.jobs.complete(lease, { output: 1 })
      )(await leaseOf("complete")),
    1,
    3,
  ],
  [
    "fail",
    async () =>
      (
        (lease) => (l) =>
          l.jobs.fail(lease, { code: "c", message: "m" })
      )(await leaseOf("fail")),
    1,
    3,
  ],
  [
    "snooze",
    async () =>
      (
        (lease) => (l) =>
          l.jobs.snooze(lease, { seconds: 1 })
      )(await leaseOf("snooze")),
    1,
    3,
  ],
  [
    "continue",
    async () =>
      (
        (lease) => (l) =>
          l.jobs.continue(lease, { checkpoint: 1 })
      )(await leaseOf("continue")),
    1,
    3,
  ],
  [
    "settle of each outcome in one batch",
    async () => {
      await ledger.jobs.enqueueMany(Array.from({ length: 4 }, () => ({ type: "each", payload: 1 })));
      const [a, b, c, d] = (await ledger.jobs.claim({ workerId: "w", limit: 4, types: ["each"] })).map(
        ({ lease }) => lease,
      );
      if (!(a && b && c && d)) throw new Error("the jobs are not there");
      return (l) =>
        l.jobs.settle([
          { lease: a, success: {} },
          { lease: b, failure: { code: "c", message: "m" } },
          { lease: c, snooze: { seconds: 1 } },
          { lease: d, continuation: {} },
        ]);
    },
    2,
    3,
  ],
  [
    "settle of 50",
    async () => {
      await ledger.jobs.enqueueMany(Array.from({ length: 50 }, () => ({ type: "settle", payload: 1 })));
      const jobs = await ledger.jobs.claim({ workerId: "w", limit: 50, types: ["settle"] });
      return (l) => l.jobs.settle(jobs.map(({ lease }) => ({ lease, success: {} })));
    },
    1,
    3,
  ],
  ["reap of nothing", () => (l) => l.jobs.reap(), 1, 2],
  [
    "reap",
    async () => {
      const lease = await leaseOf("reap");
      await expire(database, [lease.jobId]);
      return (l) => l.jobs.reap();
    },
    2,
    3,
  ],
  [
    "cancel",
    async () =>
      (
        ({ id }) =>
        (l) =>
          l.jobs.cancel(id, { scope: globally })
      )(await ledger.jobs.enqueue("job", {})),
    1,
    4,
  ],
  [
    "cancel of a job that has ended",
    async () => {
      const lease = await leaseOf("ended");
      await ledger.jobs.complete(lease);
      return (l) => l.jobs.cancel(lease.jobId, { scope: globally });
    },
    2,
    5,
  ],
  [
    "get",
    async () =>
      (
        ({ id }) =>
        (l) =>
          l.jobs.get(id, globally)
      )(await ledger.jobs.enqueue("job", {})),
    1,
    1,
  ],
  [
    "requeue",
    async () =>
      (
        (id) => (l) =>
          l.jobs.requeue(id, { scope: globally, expected: { status: "DEAD_LETTERED", runNumber: 1 } })
      )(await deadJob(newKey())),
    1,
    4,
  ],
  [
    "replay with a new key",
    async () =>
      (
        (id) => (l) =>
          l.jobs.replay(id, { scope: globally, key: "k" })
      )(await succeededJob(newKey())),
    1,
    4,
  ],
  [
    "replay with a key that exists",
    async () => {
      const id = await succeededJob("replay-again");
      await ledger.jobs.replay(id, { scope: globally, key: "k" });
      return (l) => l.jobs.replay(id, { scope: globally, key: "k" });
    },
    2,
    5,
  ],
  [
    "cancelMany of one batch",
    async () => {
      const type = newKey();
      await ledger.jobs.enqueueMany(Array.from({ length: 50 }, () => ({ type, payload: 1 })));
      return (l) => l.jobs.cancelMany({ scope: globally, filter: { type }, limit: 50 });
    },
    2,
    6,
  ],
  [
    "requeueMany of one batch",
    async () => {
      const type = newKey();
      for (const _ of [1, 2]) await deadJob(type);
      return (l) => l.jobs.requeueMany({ scope: globally, filter: { type, status: "DEAD_LETTERED" }, limit: 2 });
    },
    2,
    6,
  ],
  [
    "replayMany of one batch",
    async () => {
      const type = newKey();
      for (const _ of [1, 2]) await succeededJob(type);
      return (l) => l.jobs.replayMany({ scope: globally, filter: { type }, limit: 2, key: "k" });
    },
    2,
    6,
  ],
  ["sync", () => (l) => l.jobs.sync([defineJob("a"), defineJob("b")], { mode: "exact" }), 1, 1],
  ["pause", () => (l) => l.jobs.pause(["a"]), 1, 1],
  ["resume", () => (l) => l.jobs.resume(["a"]), 1, 1],
  ["pause of nothing", () => (l) => l.jobs.pause([]), 0, 0],
  [
    "complete of a step that releases another",
    async () =>
      (
        (lease) => (l) =>
          l.jobs.complete(lease)
      )(await stepLease()),
    1,
    5,
  ],
];

// A walk looks at so many rows of the queue in one statement.
beforeEach(() => database.pool.query("truncate runledger.job_queue"));

test.each(table)("%s", async (_name, prepare, alone, inTransaction) => {
  const first = await prepare();
  const { statements } = await database.record(() => first(ledger));
  expect(statements).toHaveLength(alone);

  const second = await prepare();
  const trx = await database.db.startTransaction().execute();
  const bound = await database.record(() => second(ledger.in(trx)));
  expect(bound.statements).toHaveLength(inTransaction);
  await trx.rollback().execute();
});

async function limitedJobs(): Promise<Call> {
  const limit = { key: newKey(), concurrency: 50 };
  await ledger.jobs.enqueueMany(Array.from({ length: 50 }, () => ({ type: "limited", payload: 1, limit })));
  return (l) => l.jobs.claim({ workerId: "w", limit: 50, types: ["limited"] });
}

const lines = (["info", "warn", "error"] as const).map((level) => ({ level, message: level }));

function keyed(prefix: string) {
  return Array.from({ length: 1000 }, (_, n) => ({ type: "job", payload: n, idempotencyKey: `${prefix}-${n}` }));
}

async function deadJob(type: string): Promise<string> {
  const lease = await leaseOf(type);
  await ledger.jobs.fail(lease, { kind: "TERMINAL", code: "c", message: "m" });
  return lease.jobId;
}

async function succeededJob(type: string): Promise<string> {
  const lease = await leaseOf(type);
  await ledger.jobs.complete(lease);
  return lease.jobId;
}

async function stepLease() {
  const graph = new WorkflowBuilder("round-trips");
  const first = graph.job("first", "round-trips-first", {});
  graph.job("second", "round-trips-second", {}, { onSuccess: [first] });
  await ledger.runs.enqueue(graph.build());
  return (await claimedOne(ledger, "round-trips-first")).lease;
}
