/** Bad input to each public function of jobs: what was tried, and the code that it got. Nothing is written by any of it. */
import { expect, test } from "@jest/globals";
import { Kysely, PostgresDialect } from "kysely";
import pg from "pg";
import { v7 } from "uuid";
import {
  createLedger,
  defineJob,
  type JobOptions,
  type Lease,
  type Ledger,
  type LogLine,
  type Scope,
  WorkflowBuilder,
} from "../../src/index.ts";
import { createTestDatabase } from "../support/database.ts";
import { claimedOne, codeOf, globally, leased, unknownId } from "./fixtures.ts";

const database = await createTestDatabase();
const ledger = createLedger({ db: database.db });
const closed = await closedLedger();

const organizationId = v7();
const elsewhere = await ledger.jobs.enqueue("tenant", {}, { organizationId });
const { lease } = await leased(ledger, "held");
const graph = new WorkflowBuilder("bad-input");
graph.job("work", "bad-input-step", {});
await ledger.runs.enqueue(graph.build());
const step = await claimedOne(ledger, "bad-input-step");
const stale: Lease = { ...lease, attempt: lease.attempt + 1 };

// Wrong on purpose, as an untyped caller could.
// biome-ignore lint/suspicious/noExplicitAny: see above
type Wrong = any;
const circular: { self?: unknown } = {};
circular.self = circular;
const hostile = {
  toJSON: () => {
    throw new RangeError("on purpose");
  },
};
const long = "x".repeat(513);
const nul = "a\0b";
const half = "\ud800";

const expected = { status: "DEAD_LETTERED", runNumber: 1 } as const;

type Call = (ledger: Ledger) => Promise<unknown>;
type Row = readonly [fn: string, tried: string, code: string, call: Call];

const blanks: readonly [string, Wrong][] = [
  ["empty", ""],
  ["blank", " \t\n"],
  ["513 bytes", long],
  ["a NUL", nul],
  ["half a surrogate pair", half],
  ["a number", 7],
  ["null", null],
  ["undefined", undefined],
  ["an object", {}],
];

/** A name in each of its forms, but for those that the place allows. */
const names = (fn: string, what: string, call: (value: Wrong) => Call, allowed: readonly string[] = []): Row[] =>
  blanks
    .filter(([form]) => !allowed.includes(form))
    .map(([form, value]) => [fn, `${what}: ${form}`, "input.invalid", call(value)] as const);

const unstorable: readonly [string, Wrong][] = [
  ["undefined", undefined],
  ["a function", () => 1],
  ["a symbol", Symbol("s")],
  ["a bigint", 1n],
  ["a bigint within", { a: [1n] }],
  ["circular", circular],
  ["a NUL within", { a: nul }],
  ["a NUL in a key", { [nul]: 1 }],
  ["half a surrogate pair", [half]],
  ["a toJSON that throws", hostile],
];

const payloads = (fn: string, what: string, call: (value: Wrong) => Call, allowed: readonly string[] = []): Row[] =>
  unstorable
    .filter(([form]) => !allowed.includes(form))
    .map(([form, value]) => [fn, `${what}: ${form}`, "payload.not_json", call(value)] as const);

const integers = (fn: string, what: string, minimum: string, call: (value: Wrong) => Call): Row[] =>
  (
    [
      ["a fraction", 1.5],
      ["text", "1"],
      ["NaN", Number.NaN],
      ["infinite", Number.POSITIVE_INFINITY],
      ["2^31", 2 ** 31],
      ["a bigint", 1n],
      [`less than ${minimum}`, minimum === "1" ? 0 : -(2 ** 31)],
    ] as const
  ).map(([form, value]) => [fn, `${what}: ${form}`, "input.invalid", call(value)] as const);

const durations = (fn: string, what: string, call: (value: Wrong) => Call): Row[] =>
  (
    [
      ["0", 0],
      ["less than 0", -1],
      ["text", "60"],
      ["NaN", Number.NaN],
      ["infinite", Number.POSITIVE_INFINITY],
      ["a thousand years", 1000 * 366 * 86_400],
      ["a bigint", 1n],
    ] as const
  ).map(([form, value]) => [fn, `${what}: ${form}`, "input.invalid", call(value)] as const);

const oneOfEachKind: readonly JobOptions[] = [
  { idempotencyKey: "k" },
  { active: { key: "k" } },
  { debounce: { key: "k", seconds: 1 } },
  { throttle: { key: "k", seconds: 1 } },
];

const pairsOf = <T>(values: readonly T[]): [T, T][] =>
  values.flatMap((one, place) => values.slice(place + 1).map((other): [T, T] => [one, other]));

const times = (fn: string, what: string, call: (value: Wrong) => Call): Row[] =>
  (
    [
      ["text that is no time", "soon"],
      ["empty", ""],
      ["an invalid Date", new Date(Number.NaN)],
      ["a number", 1_700_000_000],
      ["null", null],
    ] as const
  ).map(([form, value]) => [fn, `${what}: ${form}`, "input.invalid", call(value)] as const);

const scopes = (fn: string, call: (scope: Scope) => Call): Row[] =>
  (
    [
      ["missing", undefined],
      ["null", null],
      ["empty", {}],
      ["two at once", { global: true, admin: true }],
      ["global: false", { global: false }],
      ["an organization that is no UUID", { organization: "acme" }],
      ["an organization that is null", { organization: null }],
      ["text", "global"],
    ] as const
  ).map(([form, scope]) => [fn, `scope: ${form}`, "scope.required", call(scope as Wrong)] as const);

const ids = (fn: string, call: (id: Wrong) => Call): Row[] =>
  (
    [
      ["empty", ""],
      ["text", "job-1"],
      ["a number", 7],
      ["null", null],
      ["undefined", undefined],
      ["a UUID without dashes", unknownId.replaceAll("-", "")],
    ] as const
  ).map(([form, id]) => [fn, `job id: ${form}`, "input.invalid", call(id)] as const);

/** Each function that takes a lease, with it. */
const underLease: readonly [string, (l: Ledger, lease: Lease) => Promise<unknown>][] = [
  ["heartbeat", (l, given) => l.jobs.heartbeat([given])],
  ["handBack", (l, given) => l.jobs.handBack([given])],
  ["progress", (l, given) => l.jobs.progress(given, { done: 1 })],
  ["checkpoint", (l, given) => l.jobs.checkpoint(given, {})],
  ["log", (l, given) => l.jobs.log(given, [{ level: "info", message: "m" }])],
  ["complete", (l, given) => l.jobs.complete(given)],
  ["fail", (l, given) => l.jobs.fail(given, { code: "c", message: "m" })],
  ["snooze", (l, given) => l.jobs.snooze(given, { seconds: 1 })],
  ["continue", (l, given) => l.jobs.continue(given)],
  ["settle", (l, given) => l.jobs.settle([{ lease: given, success: {} }])],
];

const brokenLeases: readonly [string, Wrong][] = [
  ["a job id that is no UUID", { ...lease, jobId: "x" }],
  ["no job id", { ...lease, jobId: undefined }],
  ["an attempt of 0", { ...lease, attempt: 0 }],
  ["no attempt", { ...lease, attempt: undefined }],
  ["an attempt as text", { ...lease, attempt: "1" }],
  ["a run number of 0", { ...lease, runNumber: 0 }],
  ["a blank worker", { ...lease, workerId: " " }],
  ["no worker", { ...lease, workerId: undefined }],
];

const leases: Row[] = underLease.flatMap(([fn, call]) =>
  brokenLeases.map(([form, given]) => [fn, `lease: ${form}`, "input.invalid", (l) => call(l, given)] as const),
);

const staleLeases: Row[] = underLease
  .filter(([fn]) => !["heartbeat", "handBack", "settle"].includes(fn))
  .map(([fn, call]) => [fn, "a stale lease", "job.lease_owner_mismatch", (l) => call(l, stale)] as const);

const table: readonly Row[] = [
  ...names("enqueue", "type", (type) => (l) => l.jobs.enqueueMany([{ type, payload: 1 }])),
  ...names("enqueue", "key", (idempotencyKey) => (l) => l.jobs.enqueue("t", 1, { idempotencyKey }), ["undefined"]),
  ...durations("enqueue", "idempotencyTtlSeconds", (idempotencyTtlSeconds) => (l) => {
    return l.jobs.enqueue("t", 1, { idempotencyKey: "k", idempotencyTtlSeconds });
  }),
  [
    "enqueue",
    "idempotencyTtlSeconds without a key",
    "input.invalid",
    (l) => l.jobs.enqueue("t", 1, { idempotencyTtlSeconds: 1 }),
  ],
  ...names("enqueue", "active.key", (key) => (l) => l.jobs.enqueue("t", 1, { active: { key } })),
  ...names("enqueue", "debounce.key", (key) => (l) => l.jobs.enqueue("t", 1, { debounce: { key, seconds: 1 } })),
  ...names("enqueue", "throttle.key", (key) => (l) => l.jobs.enqueue("t", 1, { throttle: { key, seconds: 1 } })),
  ...durations("enqueue", "debounce.seconds", (seconds) => (l) => {
    return l.jobs.enqueue("t", 1, { debounce: { key: "k", seconds } });
  }),
  ...durations("enqueue", "debounce.maxSeconds", (maxSeconds) => (l) => {
    return l.jobs.enqueue("t", 1, { debounce: { key: "k", seconds: 1, maxSeconds } });
  }),
  ...durations("enqueue", "throttle.seconds", (seconds) => (l) => {
    return l.jobs.enqueue("t", 1, { throttle: { key: "k", seconds } });
  }),
  ...["active", "debounce", "throttle"].flatMap((kind) =>
    [null, "k", 7].map((value): Row => {
      const options: Wrong = { [kind]: value };
      return ["enqueue", `${kind}: ${value}`, "input.invalid", (l) => l.jobs.enqueue("t", 1, options)];
    }),
  ),
  ...["debounce", "throttle"].map((kind): Row => {
    const options: Wrong = { [kind]: { key: "k" } };
    return ["enqueue", `${kind} without seconds`, "input.invalid", (l) => l.jobs.enqueue("t", 1, options)];
  }),
  ...["yes", null, 1].map((replace: Wrong): Row => {
    const active = { key: "k", replace };
    return ["enqueue", `active.replace: ${replace}`, "input.invalid", (l) => l.jobs.enqueue("t", 1, { active })];
  }),
  [
    "enqueue",
    "a longest wait that is shorter than the wait",
    "input.invalid",
    (l) => l.jobs.enqueue("t", 1, { debounce: { key: "k", seconds: 2, maxSeconds: 1 } }),
  ],
  [
    "enqueue",
    "debounce with runAt",
    "input.invalid",
    (l) => l.jobs.enqueue("t", 1, { runAt: new Date(), debounce: { key: "k", seconds: 2 } }),
  ],
  ...pairsOf(oneOfEachKind).map(
    ([one, other]): Row => [
      "enqueue",
      `${Object.keys(one)} and ${Object.keys(other)}`,
      "input.invalid",
      (l) => l.jobs.enqueue("t", 1, { ...one, ...other }),
    ],
  ),
  ...names("enqueue", "tag", (tag) => (l) => l.jobs.enqueue("t", 1, { tags: [tag] })),
  ...payloads("enqueue", "payload", (payload) => (l) => l.jobs.enqueue("t", payload)),
  ...integers("enqueue", "priority", "-2^31 + 1", (priority) => (l) => l.jobs.enqueue("t", 1, { priority })),
  ...integers("enqueue", "maxAttempts", "1", (maxAttempts) => (l) => l.jobs.enqueue("t", 1, { maxAttempts })),
  ...integers("enqueue", "timeoutSeconds", "1", (timeoutSeconds) => (l) => l.jobs.enqueue("t", 1, { timeoutSeconds })),
  ...times("enqueue", "runAt", (runAt) => (l) => l.jobs.enqueue("t", 1, { runAt })),
  [
    "enqueue",
    "runAt: past the database's last year",
    "db.value_rejected",
    (l) => l.jobs.enqueue("t", 1, { runAt: new Date(8.64e15) }),
  ],
  ["enqueue", "organization: no UUID", "input.invalid", (l) => l.jobs.enqueue("t", 1, { organizationId: "acme" })],
  [
    "enqueue",
    "one bad request among good ones",
    "input.invalid",
    (l) =>
      l.jobs.enqueueMany([
        { type: "t", payload: 1 },
        { type: "", payload: 1 },
      ]),
  ],
  [
    "enqueue",
    "strict, an unknown type",
    "job.definition_not_found_or_disabled",
    (l) => l.jobs.enqueue("unheard", 1, { strict: true }),
  ],
  ["enqueue", "a closed pool", "db.unavailable", () => closed.jobs.enqueue("t", 1)],
  ...integers("claim", "limit", "1", (limit) => (l) => l.jobs.claim({ workerId: "w", limit })),
  ["claim", "limit: 10 001", "input.invalid", (l) => l.jobs.claim({ workerId: "w", limit: 10_001 })],
  ...integers(
    "claim",
    "leaseSeconds",
    "1",
    (leaseSeconds) => (l) => l.jobs.claim({ workerId: "w", limit: 1, leaseSeconds }),
  ),
  ...names("claim", "workerId", (workerId) => (l) => l.jobs.claim({ workerId, limit: 1 })),
  ...names("claim", "types", (type) => (l) => l.jobs.claim({ workerId: "w", limit: 1, types: [type] })),
  ["claim", "a closed pool", "db.unavailable", () => closed.jobs.claim({ workerId: "w", limit: 1 })],
  ...leases,
  ...staleLeases,
  [
    "complete",
    "lease: a run id that is no UUID",
    "input.invalid",
    (l) => l.jobs.complete({ ...lease, workflowRunId: "x" }),
  ],
  [
    "complete",
    "lease of a step, without its run",
    "input.invalid",
    (l) => l.jobs.complete({ ...step.lease, workflowRunId: null }),
  ],
  [
    "complete",
    "lease of a step, with another run",
    "job.lease_owner_mismatch",
    (l) => l.jobs.complete({ ...step.lease, workflowRunId: unknownId }),
  ],
  [
    "fail",
    "lease of a step, with another run",
    "job.lease_owner_mismatch",
    (l) => l.jobs.fail({ ...step.lease, workflowRunId: unknownId }, { kind: "TERMINAL", code: "c", message: "m" }),
  ],
  ...integers("heartbeat", "leaseSeconds", "1", (seconds) => (l) => l.jobs.heartbeat([lease], seconds)),
  ["progress", "done: less than 0", "job.progress_invalid", (l) => l.jobs.progress(lease, { done: -1 })],
  [
    "progress",
    "done: more than the total",
    "job.progress_invalid",
    (l) => l.jobs.progress(lease, { done: 2, total: 1 }),
  ],
  ["progress", "done: text", "job.progress_invalid", (l) => l.jobs.progress(lease, { done: "1" as Wrong })],
  ["progress", "done: missing", "job.progress_invalid", (l) => l.jobs.progress(lease, {} as Wrong)],
  ...payloads("checkpoint", "checkpoint", (value) => (l) => l.jobs.checkpoint(lease, value)),
  ["log", "level: unknown", "input.invalid", (l) => l.jobs.log(lease, [{ level: "fatal" as Wrong, message: "m" }])],
  ["log", "level: missing", "input.invalid", (l) => l.jobs.log(lease, [{ message: "m" } as LogLine])],
  ...payloads("log", "fields", (fields) => (l) => l.jobs.log(lease, [{ level: "info", message: "m", fields }]), [
    "undefined",
  ]),
  ...payloads("complete", "output", (output) => (l) => l.jobs.complete(lease, { output }), ["undefined"]),
  ...names("fail", "code", (code) => (l) => l.jobs.fail(lease, { code, message: "m" })),
  [
    "fail",
    "kind: unknown",
    "input.invalid",
    (l) => l.jobs.fail(lease, { kind: "FATAL" as Wrong, code: "c", message: "m" }),
  ],
  [
    "fail",
    "kind: LEASE_EXPIRED, the reaper's own",
    "input.invalid",
    (l) => l.jobs.fail(lease, { kind: "LEASE_EXPIRED" as Wrong, code: "c", message: "m" }),
  ],
  ...times("fail", "notBefore", (notBefore) => (l) => l.jobs.fail(lease, { code: "c", message: "m", notBefore })),
  [
    "settle",
    "one bad outcome among good ones",
    "input.invalid",
    (l) =>
      l.jobs.settle([
        { lease, success: {} },
        { lease, failure: { code: "", message: "m" } },
      ]),
  ],
  ...integers("reap", "limit", "1", (limit) => (l) => l.jobs.reap({ limit })),
  ["reap", "a closed pool", "db.unavailable", () => closed.jobs.reap()],
  ...ids("cancel", (id) => (l) => l.jobs.cancel(id, { scope: globally })),
  ...scopes("cancel", (scope) => (l) => l.jobs.cancel(unknownId, { scope })),
  ["cancel", "an unknown id", "job.not_found", (l) => l.jobs.cancel(unknownId, { scope: { admin: true } })],
  ["cancel", "another tenant's job", "job.not_found", (l) => l.jobs.cancel(elsewhere.id, { scope: globally })],
  ["cancel", "a closed pool", "db.unavailable", () => closed.jobs.cancel(unknownId, { scope: globally })],
  ...times("snooze", "until", (until) => (l) => l.jobs.snooze(lease, { until })),
  ["snooze", "no time at all", "input.invalid", (l) => l.jobs.snooze(lease, {} as Wrong)],
  ["snooze", "a stale lease", "job.lease_owner_mismatch", (l) => l.jobs.snooze(stale, { seconds: 1 })],
  ...payloads("continue", "checkpoint", (checkpoint) => (l) => l.jobs.continue(lease, { checkpoint }), ["undefined"]),
  ...payloads("continue", "output", (output) => (l) => l.jobs.continue(lease, { output }), ["undefined"]),
  ["continue", "a delay as text", "input.invalid", (l) => l.jobs.continue(lease, { delaySeconds: "1" as Wrong })],
  [
    "continue",
    "lease of a step that was not declared to",
    "workflow.step_continuation_not_declared",
    (l) => l.jobs.continue(step.lease),
  ],
  ...ids("requeue", (id) => (l) => l.jobs.requeue(id, { scope: globally, expected })),
  ...scopes("requeue", (scope) => (l) => l.jobs.requeue(unknownId, { scope, expected })),
  ...payloads(
    "requeue",
    "payload",
    (payload) => (l) => l.jobs.requeue(unknownId, { scope: globally, expected, payload }),
    ["undefined"],
  ),
  ...integers(
    "requeue",
    "expected.runNumber",
    "1",
    (runNumber) => (l) => l.jobs.requeue(unknownId, { scope: globally, expected: { status: "CANCELED", runNumber } }),
  ),
  ["requeue", "nothing expected", "input.invalid", (l) => l.jobs.requeue(unknownId, { scope: globally } as Wrong)],
  [
    "requeue",
    "a status that cannot be requeued",
    "input.invalid",
    (l) => l.jobs.requeue(unknownId, { scope: globally, expected: { status: "SUCCEEDED" as Wrong, runNumber: 1 } }),
  ],
  [
    "requeue",
    "a reset that is not true or false",
    "input.invalid",
    (l) => l.jobs.requeue(unknownId, { scope: globally, expected, reset: "no" as Wrong }),
  ],
  ["requeue", "a closed pool", "db.unavailable", () => closed.jobs.requeue(unknownId, { scope: globally, expected })],
  ...ids("replay", (id) => (l) => l.jobs.replay(id, { scope: globally, key: "k" })),
  ...scopes("replay", (scope) => (l) => l.jobs.replay(unknownId, { scope, key: "k" })),
  ...names("replay", "key", (key) => (l) => l.jobs.replay(unknownId, { scope: globally, key })),
  ...payloads(
    "replay",
    "payload",
    (payload) => (l) => l.jobs.replay(unknownId, { scope: globally, key: "k", payload }),
    ["undefined"],
  ),
  ["replay", "a closed pool", "db.unavailable", () => closed.jobs.replay(unknownId, { scope: globally, key: "k" })],
  ...scopes("cancelMany", (scope) => (l) => l.jobs.cancelMany({ scope, filter: {} })),
  ...integers("cancelMany", "limit", "1", (limit) => (l) => l.jobs.cancelMany({ scope: globally, filter: {}, limit })),
  [
    "cancelMany",
    "too big a batch",
    "input.invalid",
    (l) => l.jobs.cancelMany({ scope: globally, filter: {}, batchSize: 1001 }),
  ],
  [
    "cancelMany",
    "onProgress that is no function",
    "input.invalid",
    (l) => l.jobs.cancelMany({ scope: globally, filter: {}, onProgress: 1 as Wrong }),
  ],
  ...scopes("requeueMany", (scope) => (l) => l.jobs.requeueMany({ scope, filter: { status: "CANCELED" } })),
  ["requeueMany", "no status", "input.invalid", (l) => l.jobs.requeueMany({ scope: globally, filter: {} as Wrong })],
  ...names(
    "requeueMany",
    "filter.errorCode",
    (errorCode) => (l) => l.jobs.requeueMany({ scope: globally, filter: { status: "CANCELED", errorCode } }),
  ),
  ...scopes("replayMany", (scope) => (l) => l.jobs.replayMany({ scope, filter: {}, key: "k" })),
  ...names("replayMany", "key", (key) => (l) => l.jobs.replayMany({ scope: globally, filter: {}, key })),
  ...times(
    "replayMany",
    "filter.endedAfter",
    (endedAfter) => (l) => l.jobs.replayMany({ scope: globally, filter: { endedAfter }, key: "k" }),
  ),
  ...ids("get", (id) => (l) => l.jobs.get(id, globally)),
  ...scopes("get", (scope) => (l) => l.jobs.get(unknownId, scope)),
  ["get", "an unknown id", "job.not_found", (l) => l.jobs.get(unknownId, { admin: true })],
  ["get", "another tenant's job", "job.not_found", (l) => l.jobs.get(elsewhere.id, { organization: v7() })],
  ["get", "a tenant's job, looked for globally", "job.not_found", (l) => l.jobs.get(elsewhere.id, globally)],
  ["get", "a closed pool", "db.unavailable", () => closed.jobs.get(unknownId, globally)],
  ...names("sync", "type", (type) => (l) => l.jobs.sync([defineJob(type)])),
  ...names("sync", "catalogue", (catalogue) => (l) => l.jobs.sync([], { catalogue }), ["undefined"]),
  ["sync", "one type twice", "input.invalid", (l) => l.jobs.sync([defineJob("a"), defineJob("a")])],
  [
    "sync",
    "a backoff by code as text",
    "input.invalid",
    (l) => l.jobs.sync([defineJob("a", { backoff: { byCode: "busy" as Wrong } })]),
  ],
  [
    "sync",
    "a backoff factor as text",
    "input.invalid",
    (l) => l.jobs.sync([defineJob("a", { backoff: { factor: "x" as Wrong } })]),
  ],
  ["sync", "mode: unknown", "input.invalid", (l) => l.jobs.sync([], { mode: "all" as Wrong })],
  ...names("pause", "type", (type) => (l) => l.jobs.pause([type])),
  ["ledger.in", "no transaction", "input.invalid", async (l) => l.in(database.db)],
  ["createLedger", "lockWaitMs: 0", "config.invalid", async () => createLedger({ db: database.db, lockWaitMs: 0 })],
  [
    "createLedger",
    "lockWaitMs: a fraction",
    "config.invalid",
    async () => createLedger({ db: database.db, lockWaitMs: 1.5 }),
  ],
  [
    "createLedger",
    "lockWaitMs: 2^31",
    "config.invalid",
    async () => createLedger({ db: database.db, lockWaitMs: 2 ** 31 }),
  ],
];

test.each(table)("%s with %s is %s", async (_fn, _tried, code, call) => {
  const before = await counts();

  expect(await codeOf(() => call(ledger))).toBe(code);

  expect(await counts()).toEqual(before);
});

test("a lease that says nothing of a run is one of a job outside of runs", async () => {
  const { lease: plain } = await leased(ledger, "without-run");
  const { workflowRunId: _, ...rest } = plain;

  expect(await ledger.jobs.complete(rest as Lease)).toEqual({ status: "SUCCEEDED", runAt: null });
});

test("a stale lease in a batch is answered, not thrown", async () => {
  expect(await ledger.jobs.heartbeat([stale])).toMatchObject([{ state: "LOST" }]);
  expect(await ledger.jobs.handBack([stale])).toEqual([]);
  expect(await ledger.jobs.settle([{ lease: stale, success: {} }])).toMatchObject([
    { ok: false, error: { code: "job.lease_owner_mismatch" } },
  ]);
});

test("megabytes of payload, checkpoint, output, log and message work where they are allowed", async () => {
  const roomy = createLedger({ db: database.db, values: { maxBytes: 4 * 1_048_576 } });
  const big = { text: 'ü\\"\n'.repeat(250_000), nested: Array.from({ length: 1000 }, (_, n) => ({ n })) };
  await roomy.jobs.enqueue("big", big);
  const job = await claimedOne(ledger, "big");
  expect(job.payload).toEqual(big);

  await roomy.jobs.checkpoint(job.lease, big);
  await roomy.jobs.log(job.lease, [{ level: "info", message: big.text, fields: big }]);
  await roomy.jobs.complete(job.lease, { output: big });

  const ended = await ledger.jobs.get(job.lease.jobId, globally);
  expect([ended.checkpoint, ended.output]).toEqual([big, big]);
});

test("text that looks like a refused escape is no refused escape", async () => {
  const payload = { text: "\\u0000 and \\\\u0000 and \\ud800", emoji: "😀", key: { "\\u0000": 1 } };
  await ledger.jobs.enqueue("escapes", payload);

  expect((await claimedOne(ledger, "escapes")).payload).toEqual(payload);
});

async function counts() {
  const { rows } = await database.pool.query(
    `select (select count(*)::int from runledger.job_queue) as queue, (select count(*)::int from runledger.job_ledger) as ledger,
       (select count(*)::int from runledger.job_idempotency_keys) as keys, (select count(*)::int from runledger.job_definitions) as definitions,
       (select count(*)::int from runledger.job_logs) as logs, (select count(*)::int from runledger.job_queue where status = 'LEASED') as leased`,
  );
  return rows[0];
}

async function closedLedger(): Promise<Ledger> {
  const pool = new pg.Pool({ connectionString: database.url });
  await pool.end();
  return createLedger({ db: new Kysely<unknown>({ dialect: new PostgresDialect({ pool }) }) });
}
