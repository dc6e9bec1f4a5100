/** Eager claims: jobs that settlements release, leased in the same statement where a claim would take them next. */
import { afterEach, describe, expect, test } from "@jest/globals";
import {
  type ClaimedJob,
  defineJob,
  type EagerClaimOptions,
  type GraphSpec,
  type SettledAndClaimed,
  type StepSpec,
} from "../../src/index.ts";
import { expectInvariants } from "../invariants.ts";
import { codeOf } from "../jobs/fixtures.ts";
import { graphOf, ledgerOf } from "../runs/fixtures.ts";
import { createTestDatabase } from "../support/database.ts";
import { waitForBackend } from "../support/waiting.ts";
import { outliveCuts } from "../worker/support.ts";

const database = await createTestDatabase();
const ledger = ledgerOf(database);
let types = 0;

afterEach(() => expectInvariants(database));

type Job = NonNullable<StepSpec["job"]>;

/** A step `first`, and the others after it. Each has the type `<type>.<key>`. */
function fan(type: string, others: Readonly<Record<string, Partial<Job>>>): GraphSpec {
  const after = Object.fromEntries(Object.keys(others).map((key) => [key, ["first"]]));
  const graph = graphOf(type, { first: [], ...after });
  const steps = graph.steps.map((step) => (step.job ? { ...step, job: { ...step.job, ...others[step.key] } } : step));
  return { ...graph, steps };
}

/** Completes the first step of a new run of it. */
async function completed(
  others: Readonly<Record<string, Partial<Job>>>,
  claim: Partial<EagerClaimOptions> = {},
  before: (type: string) => Promise<unknown> = async () => {},
): Promise<{ type: string; runId: string } & SettledAndClaimed> {
  types += 1;
  const type = `fan-${types}`;
  const { id: runId } = await ledger.runs.enqueue(fan(type, others));
  const [first] = await ledger.jobs.claim({ workerId: "worker", limit: 1, types: [`${type}.first`] });
  if (first === undefined) throw new Error("the first step could not be claimed");
  await before(type);
  const wanted = Object.keys(others).map((key) => `${type}.${key}`);
  const settlements = [{ lease: first.lease, success: { output: { n: 1 } } }];
  const options = { workerId: "worker", limit: 10, types: [...wanted, `${type}.other`], ...claim };
  return { type, runId, ...(await ledger.jobs.settleAndClaim(settlements, options)) };
}

async function paused(type: string): Promise<void> {
  await ledger.jobs.sync([defineJob(type)]);
  await ledger.jobs.pause([type]);
}

async function disabled(type: string): Promise<void> {
  await ledger.jobs.sync([defineJob(type)]);
  await database.pool.query("update runledger.job_definitions set enabled = false where type = $1", [type]);
}

const keysOf = (jobs: readonly ClaimedJob[]) => jobs.map(({ type }) => type.split(".")[1]);

async function queued(type: string): Promise<Record<string, unknown>> {
  const { rows } = await database.pool.query<{ key: string; status: string; attempt: number }>(
    "select split_part(type, '.', 2) as key, status, attempt from runledger.job_queue where type like $1 || '.%'",
    [type],
  );
  return Object.fromEntries(rows.map(({ key, status, attempt }) => [key, `${status} ${attempt}`]));
}

test("a released job is claimed as it would be by a claim, in one statement", async () => {
  const others = { next: { payload: { deep: [1] }, priority: 7, maxAttempts: 3, timeoutSeconds: 5 } };
  const { statements, result } = await database.record(() => completed(others));
  const plain = await completed(others, { types: ["none"] });
  const [byClaim] = await ledger.jobs.claim({ workerId: "worker", limit: 1, types: [`${plain.type}.next`] });
  const [eager] = result.claimed;
  if (byClaim === undefined || eager === undefined) throw new Error("nothing was claimed");

  const { lease, type, ...rest } = byClaim;
  expect(result.results).toEqual([{ ok: true, status: "SUCCEEDED", runAt: null }]);
  expect(eager).toEqual({
    ...rest,
    type: `${result.type}.next`,
    lease: { ...lease, jobId: eager.lease.jobId, workflowRunId: result.runId },
    workflowStepId: expect.any(String),
    runAt: expect.any(Date),
    enqueuedAt: expect.any(Date),
    leaseExpiresAt: expect.any(Date),
  });
  expect(await rowOf(eager)).toEqual(await rowOf(byClaim));
  expect(statements.filter((text) => text.includes("complete_step_jobs"))).toHaveLength(1);
  expect(statements.filter((text) => text.includes("claim_jobs"))).toHaveLength(1);
  expect(await ledger.steps.prerequisites([eager])).toEqual(
    new Map([[eager.lease.jobId, { outputs: { first: { n: 1 } }, failures: {}, undecodable: null }]]),
  );
  expect(await ledger.jobs.complete(eager.lease)).toMatchObject({ status: "SUCCEEDED" });
});

/** All columns of the job's row but those that tell it from its like. */
async function rowOf({ lease }: ClaimedJob): Promise<unknown> {
  const { rows } = await database.pool.query(
    `select to_jsonb(q) - '{id,type,workflow_run_id,workflow_step_id,run_at,enqueued_at,leased_at,lease_expires_at}'::text[]
       || jsonb_build_object('lease', round(extract(epoch from q.lease_expires_at - q.leased_at)), 'order', q.enqueued_at <= q.leased_at) as row
     from runledger.job_queue as q where id = $1`,
    [lease.jobId],
  );
  return rows[0];
}

test("of many released jobs the first in claim order are claimed, as many as were asked for", async () => {
  const others = { low: { priority: 1 }, high: { priority: 9 }, middle: { priority: 5 }, top: { priority: 10 } };
  const { type, claimed, more } = await completed(others, { limit: 2 });

  expect(keysOf(claimed)).toEqual(["top", "high"]);
  expect(more).toBe(true);
  expect(await queued(type)).toEqual({ low: "PENDING 0", middle: "PENDING 0", high: "LEASED 1", top: "LEASED 1" });
});

test("where all that is released is claimed, there is no more", async () => {
  expect(await completed({ a: {}, b: {} })).toMatchObject({ more: false, claimed: [{}, {}] });
  expect(await completed({})).toMatchObject({ more: false, claimed: [] });
});

describe("nothing is claimed before a job that a claim would take first:", () => {
  const other = (type: string) => `${type}.other`;
  const due: Readonly<Record<string, (type: string) => Promise<unknown>>> = {
    "one that is due": (type) => ledger.jobs.enqueue(other(type), {}),
    "one of lower priority": (type) => ledger.jobs.enqueue(other(type), {}, { priority: 1 }),
    "one with a limit": (type) => ledger.jobs.enqueue(other(type), {}, { limit: { key: type, concurrency: 1 } }),
  };
  test.each(Object.entries(due))("%s", async (_, before) => {
    const { type, claimed, more } = await completed({ next: { priority: 50 } }, {}, before);

    expect(claimed).toEqual([]);
    expect(more).toBe(true);
    expect(await queued(type)).toMatchObject({ next: "PENDING 0", other: "PENDING 0" });
  });

  const none: typeof due = {
    "one that is not due": (type) => ledger.jobs.enqueue(other(type), {}, { runAt: new Date(Date.now() + 3_600_000) }),
    "one of another type": (type) => ledger.jobs.enqueue(`${type}.unwanted`, {}),
    "one of a paused type": async (type) => {
      await paused(other(type));
      await ledger.jobs.enqueue(other(type), {});
    },
    "one that somebody has": async (type) => {
      await ledger.jobs.enqueue(other(type), {});
      await ledger.jobs.claim({ workerId: "other", limit: 1, types: [other(type)] });
    },
  };
  test.each(Object.entries(none))("but not because of %s", async (_, before) => {
    const { claimed, more } = await completed({ next: {} }, {}, before);

    expect(keysOf(claimed)).toEqual(["next"]);
    expect(more).toBe(false);
  });
});

describe("a released job is left to claims:", () => {
  test.each<[string, Partial<Job>, ((type: string) => Promise<unknown>)?]>([
    ["with a delay", { delaySeconds: 60 }],
    ["with a limit", { limit: { key: "eager", concurrency: 1 } }],
    ["of a paused type", {}, (type) => paused(`${type}.next`)],
    ["of a disabled type", {}, (type) => disabled(`${type}.next`)],
  ])("%s", async (...[, job, before]) => {
    const { type, claimed } = await completed({ next: job, free: {} }, {}, before);

    expect(keysOf(claimed)).toEqual(["free"]);
    expect(await queued(type)).toEqual({ next: "PENDING 0", free: "LEASED 1" });
  });

  test("of a type that was not asked for", async () => {
    const { claimed, more } = await completed({ next: {} }, { types: ["other"] });
    expect([claimed, more]).toEqual([[], true]);
  });
});

test("a join whose prerequisites end in one batch is claimed once", async () => {
  const { id } = await ledger.runs.enqueue(graphOf("join", { a: [], b: [], c: ["a", "b"] }));
  const jobs = await ledger.jobs.claim({ workerId: "worker", limit: 2, types: ["join.a", "join.b"] });
  const settlements = jobs.map(({ lease }) => ({ lease, success: {} }));
  const claim = { workerId: "worker", limit: 2, types: ["join.c"] };

  expect(keysOf((await ledger.jobs.settleAndClaim(settlements, claim)).claimed)).toEqual(["c"]);
  expect(await ledger.runs.getStatus(id, { global: true })).toMatchObject({ status: "RUNNING" });
});

test("ends that do not go the short way claim nothing, and say that there may be more", async () => {
  await ledger.runs.enqueue(graphOf("failing", { a: [], b: ["a?"] }));
  const [a] = await ledger.jobs.claim({ workerId: "worker", limit: 1, types: ["failing.a"] });
  if (a === undefined) throw new Error("nothing was claimed");
  const settlements = [{ lease: a.lease, failure: { kind: "TERMINAL", code: "broken", message: "" } as const }];
  const claim = { workerId: "worker", limit: 2, types: ["failing.b"] };

  expect(await ledger.jobs.settleAndClaim(settlements, claim)).toEqual({
    results: [{ ok: true, status: "DEAD_LETTERED", runAt: null }],
    claimed: [],
    more: true,
  });
});

test("what is claimed is answered, even if the database goes away before all is settled", async () => {
  outliveCuts(database);
  await ledger.runs.enqueue(graphOf("kept", { a: [], b: ["a"] }));
  const { id: failing } = await ledger.runs.enqueue(graphOf("cut", { a: [], b: ["a?"] }));
  const jobs = await ledger.jobs.claim({ workerId: "worker", limit: 2, types: ["kept.a", "cut.a"] });
  const settlements = jobs.map(({ lease, type }) =>
    type === "kept.a"
      ? { lease, success: {} }
      : { lease, failure: { kind: "TERMINAL", code: "broken", message: "" } as const },
  );
  const blocker = await database.pool.connect();
  await blocker.query("begin");
  await blocker.query("select from runledger.workflow_steps where run_id = $1 for update", [failing]);
  const settling = ledger.jobs.settleAndClaim(settlements, { workerId: "worker", limit: 2, types: ["kept.b"] });
  const { pid } = await waitForBackend({ client: database.pool });
  await database.pool.query("select pg_terminate_backend($1)", [pid]);
  const { results, claimed, more } = await settling;
  await blocker.query("rollback");
  blocker.release();

  expect(keysOf(claimed)).toEqual(["b"]);
  expect(more).toBe(true);
  const [kept, cut] = jobs[0]?.type === "kept.a" ? results : [...results].reverse();
  expect(kept).toMatchObject({ ok: true, status: "SUCCEEDED" });
  expect(cut).toMatchObject({ ok: false, error: { category: "unavailable" } });
  expect(await queued("cut")).toEqual({ a: "LEASED 1" });
});

test("in a caller's transaction nothing is claimed", async () => {
  await ledger.runs.enqueue(graphOf("within", { a: [], b: ["a"] }));
  const [a] = await ledger.jobs.claim({ workerId: "worker", limit: 1, types: ["within.a"] });
  if (a === undefined) throw new Error("nothing was claimed");
  const claim = { workerId: "worker", limit: 2, types: ["within.b"] };
  const settle = () =>
    database.db
      .transaction()
      .execute((trx) => ledger.in(trx).jobs.settleAndClaim([{ lease: a.lease, success: {} }], claim));

  expect(await settle()).toMatchObject({ results: [{ ok: true }], claimed: [], more: true });
  expect(await queued("within")).toEqual({ b: "PENDING 0" });
});

test.each<[string, object]>([
  ["limit", { limit: 0 }],
  ["types", { types: undefined }],
  ["types[0]", { types: [""] }],
  ["workerId", { workerId: "" }],
])("a wrong %s is refused before anything is written", async (_, wrong) => {
  types += 1;
  const type = `refused-${types}`;
  await ledger.jobs.enqueue(type, {});
  const [job] = await ledger.jobs.claim({ workerId: "worker", limit: 1, types: [type] });
  if (job === undefined) throw new Error("nothing was claimed");
  const claim = { workerId: "worker", limit: 1, types: ["any"], ...wrong };

  expect(await codeOf(() => ledger.jobs.settleAndClaim([{ lease: job.lease, success: {} }], claim))).toBe(
    "input.invalid",
  );
  expect(await ledger.jobs.get(job.lease.jobId, { admin: true })).toMatchObject({ status: "LEASED" });
});
