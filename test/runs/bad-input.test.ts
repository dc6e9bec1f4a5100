/** Bad input to each public function of runs and steps: what was tried, and the code that it got. Nothing is written by any of it. */
import { afterEach, expect, test } from "@jest/globals";
import { Kysely, PostgresDialect } from "kysely";
import pg from "pg";
import { createLedger, type Ledger } from "../../src/index.ts";
import { expectInvariants } from "../invariants.ts";
import { createTestDatabase } from "../support/database.ts";
import {
  codeOf,
  countOf,
  failure,
  graphOf,
  ledgerOf,
  otherOrganization,
  someOrganization,
  TestRun,
  unknownId,
} from "./fixtures.ts";

// Wrong on purpose, as an untyped caller could.
// biome-ignore lint/suspicious/noExplicitAny: see above
type Wrong = any;

const database = await createTestDatabase({ max: 4 });
const ledger = ledgerOf(database);

const mine = { scope: { organization: someOrganization } };
const run = await TestRun.start(
  database,
  ledger,
  { a: [], b: ["a"], gate: [], gateLate: ["gate"] },
  { organizationId: someOrganization },
);
const { lease } = await run.claim("a");
const step = { key: "s", dependencies: [], job: { type: "work", payload: null } };
const graph = (change: object = {}) => ({ type: "bad", steps: [step], resultStep: null, ...change }) as Wrong;
const withStep = (change: object) => graph({ steps: [{ ...step, ...change }] });
const withJob = (change: object) => withStep({ job: { ...step.job, ...change } });
const circular: { self?: unknown } = {};
circular.self = circular;
const long = "x".repeat(513);

type Call = (ledger: Ledger) => Promise<unknown>;
type Row = readonly [fn: string, tried: string, code: string, call: Call];

const scopes: readonly [string, Wrong][] = [
  ["no scope", undefined],
  ["null", null],
  ["an empty scope", {}],
  ["two scopes", { global: true, organization: someOrganization }],
  ["global: false", { global: false }],
  ["an organization that is no UUID", { organization: "acme" }],
  ["a word", "admin"],
];
const runIds: readonly [string, Wrong][] = [
  ["an empty id", ""],
  ["a blank id", " "],
  ["no UUID", "42"],
  ["a number", 42],
  ["null", null],
  ["undefined", undefined],
  ["SQL", `${unknownId}'; drop schema runledger cascade; --`],
];
/** Each function of one run. */
const ofRun: readonly [string, (l: Ledger, id: Wrong, scope: Wrong) => Promise<unknown>, string][] = [
  ["runs.get", (l, id, scope) => l.runs.get(id, scope), "workflow.run_not_found"],
  ["runs.getStatus", (l, id, scope) => l.runs.getStatus(id, scope), "workflow.run_not_found"],
  ["runs.getResult", (l, id, scope) => l.runs.getResult(id, { scope }), "workflow.run_not_found"],
  ["runs.cancel", (l, id, scope) => l.runs.cancel(id, { scope }), "workflow.run_not_found"],
  ["steps.complete", (l, id, scope) => l.steps.complete(id, "gate", { scope }), "workflow.step_not_found"],
];

const rows: readonly Row[] = [
  ...ofRun.flatMap(([fn, call, notFound]): Row[] => [
    ...runIds.map(([tried, id]): Row => [fn, `runId: ${tried}`, "input.invalid", (l) => call(l, id, mine.scope)]),
    ...scopes.map(([tried, scope]): Row => [fn, `scope: ${tried}`, "scope.required", (l) => call(l, run.id, scope)]),
    [fn, "an unknown run", notFound, (l) => call(l, unknownId, { admin: true })],
    [fn, "a run of an organization, as global", notFound, (l) => call(l, run.id, { global: true })],
    [fn, "a run of another organization", notFound, (l) => call(l, run.id, { organization: otherOrganization })],
  ]),

  ["runs.enqueue", "no steps", "workflow.invalid_dag_no_steps", (l) => l.runs.enqueue(graph({ steps: [] }))],
  ["runs.enqueue", "a blank type", "workflow.invalid_dag_blank_type", (l) => l.runs.enqueue(graph({ type: " \t" }))],
  ["runs.enqueue", "no type", "workflow.invalid_dag_blank_type", (l) => l.runs.enqueue(graph({ type: undefined }))],
  [
    "runs.enqueue",
    "a type of 513 bytes",
    "workflow.invalid_dag_step_shape",
    (l) => l.runs.enqueue(graph({ type: long })),
  ],
  [
    "runs.enqueue",
    "a type with NUL",
    "workflow.invalid_dag_step_shape",
    (l) => l.runs.enqueue(graph({ type: "a\0b" })),
  ],
  [
    "runs.enqueue",
    "a type with half a surrogate pair",
    "workflow.invalid_dag_step_shape",
    (l) => l.runs.enqueue(graph({ type: "\ud800" })),
  ],
  [
    "runs.enqueue",
    "a step key that is a number",
    "workflow.invalid_dag_blank_step_key",
    (l) => l.runs.enqueue(withStep({ key: 7 })),
  ],
  [
    "runs.enqueue",
    "a step key of 513 bytes",
    "workflow.invalid_dag_step_shape",
    (l) => l.runs.enqueue(withStep({ key: long })),
  ],
  ["runs.enqueue", "a blank job type", "workflow.invalid_dag_blank_type", (l) => l.runs.enqueue(withJob({ type: "" }))],
  [
    "runs.enqueue",
    "a job type that is an object",
    "workflow.invalid_dag_blank_type",
    (l) => l.runs.enqueue(withJob({ type: {} })),
  ],
  [
    "runs.enqueue",
    "maxAttempts: 0",
    "workflow.invalid_dag_step_shape",
    (l) => l.runs.enqueue(withJob({ maxAttempts: 0 })),
  ],
  [
    "runs.enqueue",
    "maxAttempts: '3'",
    "workflow.invalid_dag_step_shape",
    (l) => l.runs.enqueue(withJob({ maxAttempts: "3" })),
  ],
  [
    "runs.enqueue",
    "timeoutSeconds: -1",
    "workflow.invalid_dag_step_shape",
    (l) => l.runs.enqueue(withJob({ timeoutSeconds: -1 })),
  ],
  [
    "runs.enqueue",
    "priority: 2 ** 40",
    "workflow.invalid_dag_step_shape",
    (l) => l.runs.enqueue(withJob({ priority: 2 ** 40 })),
  ],
  ["runs.enqueue", "an undefined payload", "payload.not_json", (l) => l.runs.enqueue(withJob({ payload: undefined }))],
  ["runs.enqueue", "a bigint in a payload", "payload.not_json", (l) => l.runs.enqueue(withJob({ payload: { n: 1n } }))],
  ["runs.enqueue", "a circular payload", "payload.not_json", (l) => l.runs.enqueue(withJob({ payload: circular }))],
  ["runs.enqueue", "NUL in a payload", "payload.not_json", (l) => l.runs.enqueue(withJob({ payload: "a\0" }))],
  [
    "runs.enqueue",
    "a dependency on nobody",
    "workflow.invalid_dag_missing_dependency",
    (l) => l.runs.enqueue(graphOf("bad", { a: ["b"] })),
  ],
  [
    "runs.enqueue",
    "a dependency on itself",
    "workflow.invalid_dag_self_dependency",
    (l) => l.runs.enqueue(graphOf("bad", { a: ["a"] })),
  ],
  [
    "runs.enqueue",
    "a dependency twice",
    "workflow.invalid_dag_duplicate_dependency",
    (l) => l.runs.enqueue(graphOf("bad", { a: [], b: ["a", "a?"] })),
  ],
  [
    "runs.enqueue",
    "a blank dependency",
    "workflow.invalid_dag_blank_dependency",
    (l) => l.runs.enqueue(graphOf("bad", { a: [" "] })),
  ],
  [
    "runs.enqueue",
    "a cycle",
    "workflow.invalid_dag_cycle",
    (l) => l.runs.enqueue(graphOf("bad", { a: ["c"], b: ["a"], c: ["b?"] })),
  ],
  [
    "runs.enqueue",
    "an unknown kind of dependency",
    "workflow.invalid_dag_step_shape",
    (l) =>
      l.runs.enqueue(graph({ steps: [step, { ...step, key: "t", dependencies: [{ key: "s", kind: "ON_LUCK" }] }] })),
  ],
  [
    "runs.enqueue",
    "a result step that is not there",
    "workflow.invalid_dag_result_step",
    (l) => l.runs.enqueue(graph({ resultStep: "t" })),
  ],
  [
    "runs.enqueue",
    "an organization that is no UUID",
    "input.invalid",
    (l) => l.runs.enqueue(graph(), { organizationId: "acme" }),
  ],
  ["runs.enqueue", "a blank idempotency key", "input.invalid", (l) => l.runs.enqueue(graph(), { idempotencyKey: " " })],
  [
    "runs.enqueue",
    "an idempotency key of 513 bytes",
    "input.invalid",
    (l) => l.runs.enqueue(graph(), { idempotencyKey: long }),
  ],
  [
    "runs.enqueue",
    "an idempotency key with NUL",
    "input.invalid",
    (l) => l.runs.enqueue(graph(), { idempotencyKey: "a\0b" }),
  ],
  [
    "runs.enqueueMany",
    "a good run before a bad one",
    "workflow.invalid_dag_no_steps",
    (l) => l.runs.enqueueMany([{ graph: graph() }, { graph: graph({ steps: [] }) }]),
  ],

  ["runs.getResult", "timeoutMs: -1", "input.invalid", (l) => l.runs.getResult(run.id, { ...mine, timeoutMs: -1 })],
  [
    "runs.getResult",
    "timeoutMs: '5'",
    "input.invalid",
    (l) => l.runs.getResult(run.id, { ...mine, timeoutMs: "5" as Wrong }),
  ],
  [
    "runs.getResult",
    "a run without a result step",
    "workflow.result_not_declared",
    (l) => l.runs.getResult(run.id, mine),
  ],

  ["steps.complete", "an empty step key", "input.invalid", (l) => l.steps.complete(run.id, "", mine)],
  ["steps.complete", "a step key that is null", "input.invalid", (l) => l.steps.complete(run.id, null as Wrong, mine)],
  ["steps.complete", "a step key with NUL", "input.invalid", (l) => l.steps.complete(run.id, "a\0b", mine)],
  ["steps.complete", "an unknown step", "workflow.step_not_found", (l) => l.steps.complete(run.id, "nowhere", mine)],
  ["steps.complete", "a JOB step", "workflow.external_step_not_external", (l) => l.steps.complete(run.id, "b", mine)],
  [
    "steps.complete",
    "a blocked gate",
    "workflow.external_step_not_waiting",
    (l) => l.steps.complete(run.id, "gateLate", mine),
  ],
  [
    "steps.complete",
    "an unknown outcome",
    "input.invalid",
    (l) => l.steps.complete(run.id, "gate", { ...mine, outcome: "DONE" as Wrong }),
  ],
  [
    "steps.complete",
    "an output with FAILED",
    "input.invalid",
    (l) => l.steps.complete(run.id, "gate", { ...mine, outcome: "FAILED", output: 1 }),
  ],
  [
    "steps.complete",
    "an output that is a function",
    "payload.not_json",
    (l) => l.steps.complete(run.id, "gate", { ...mine, output: () => 1 }),
  ],
  [
    "steps.complete",
    "a completer that is blank",
    "input.invalid",
    (l) => l.steps.complete(run.id, "gate", { ...mine, completedBy: "" }),
  ],

  [
    "jobs.complete",
    "a step's output that is a bigint",
    "payload.not_json",
    (l) => l.jobs.complete(lease, { output: 1n }),
  ],
  [
    "jobs.complete",
    "a step's lease of another attempt",
    "job.lease_owner_mismatch",
    (l) => l.jobs.complete({ ...lease, attempt: 2 }),
  ],
  [
    "jobs.complete",
    "a step's lease of another worker",
    "job.lease_owner_mismatch",
    (l) => l.jobs.complete({ ...lease, workerId: "w" }),
  ],
  [
    "jobs.complete",
    "a step's lease of another run number",
    "job.lease_owner_mismatch",
    (l) => l.jobs.complete({ ...lease, runNumber: 2 }),
  ],
  [
    "jobs.complete",
    "a step's lease of an unknown run",
    "job.lease_owner_mismatch",
    (l) => l.jobs.complete({ ...lease, workflowRunId: unknownId }),
  ],
  [
    "jobs.complete",
    "a step's lease whose run is no UUID",
    "input.invalid",
    (l) => l.jobs.complete({ ...lease, workflowRunId: "r" }),
  ],
  [
    "jobs.fail",
    "a step's failure of kind LEASE_EXPIRED",
    "input.invalid",
    (l) => l.jobs.fail(lease, { ...failure, kind: "LEASE_EXPIRED" as Wrong }),
  ],
  [
    "jobs.fail",
    "a step's failure without a code",
    "input.invalid",
    (l) => l.jobs.fail(lease, { ...failure, code: "" }),
  ],
  ["jobs.cancel", "the job of a step", "job.workflow_requeue_not_supported", (l) => l.jobs.cancel(lease.jobId, mine)],
];

afterEach(async () => {
  expect(await run.statuses()).toEqual({
    a: "ENQUEUED",
    b: "BLOCKED",
    gate: "WAITING_FOR_EXTERNAL",
    gateLate: "BLOCKED",
  });
  expect(await countOf(database, "runledger.workflow_runs")).toBe(1);
  await expectInvariants(database);
});

test.each(rows)("%s, %s: %s", async (_, __, code, call) => {
  expect(await codeOf(call(ledger))).toBe(code);
});

test("a refusal leaves the caller's transaction usable", async () => {
  const committed = database.db.transaction().execute(async (trx) => {
    expect(await codeOf(ledger.in(trx).runs.cancel(unknownId, mine))).toBe("workflow.run_not_found");
    expect(await codeOf(ledger.in(trx).steps.complete(run.id, "gateLate", mine))).toBe(
      "workflow.external_step_not_waiting",
    );
    return "still usable";
  });

  expect(await committed).toBe("still usable");
});

test("every function of a closed pool says that the database cannot be reached", async () => {
  const pool = new pg.Pool({ connectionString: database.url });
  const closed = createLedger({ db: new Kysely<unknown>({ dialect: new PostgresDialect({ pool }) }) });
  await pool.end();
  const calls: Promise<unknown>[] = [
    ...ofRun.map(([, call]) => call(closed, run.id, mine.scope)),
    closed.runs.enqueue(graph()),
    closed.runs.enqueue(graph(), { idempotencyKey: "k" }),
    closed.jobs.complete(lease),
    closed.jobs.fail(lease, failure),
    closed.jobs.settle([{ lease, success: {} }]),
    closed.jobs.reap(),
  ];

  expect(await Promise.all(calls.map(codeOf))).toEqual(calls.map(() => "db.unavailable"));
});
