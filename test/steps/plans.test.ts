/**
 * What it costs to complete a step does not depend on how large its run is. The statement is explained in a
 * transaction that is rolled back; RUNLEDGER_TEST_PLAN_FIGURES=1 shows the figures.
 */
import { afterEach, beforeAll, expect, test } from "@jest/globals";
import { Kysely, PostgresDialect } from "kysely";
import { createLedger, type GraphSpec, type Lease, type StepSpec } from "../../src/index.ts";
import { expectInvariants } from "../invariants.ts";
import { failure, globally } from "../runs/fixtures.ts";
import { createTestDatabase } from "../support/database.ts";

const database = await createTestDatabase({ max: 4 });
const showsFigures = process.env.RUNLEDGER_TEST_PLAN_FIGURES !== undefined;

interface Sent {
  readonly sql: string;
  readonly parameters: readonly unknown[];
}
let sent: Sent[] = [];
const db = new Kysely<unknown>({
  dialect: new PostgresDialect({ pool: database.pool }),
  log: ({ query }) => {
    sent.push({ sql: query.sql, parameters: query.parameters });
  },
});
const ledger = createLedger({ db, notify: false });

// Other runs, so that the tables are of a size at which the planner has a choice.
beforeAll(async () => {
  const graph = { type: "other", steps: [{ key: "gate", dependencies: [] }], resultStep: null };
  await ledger.runs.enqueueMany(Array(3000).fill({ graph }));
});

afterEach(() => expectInvariants(database));

interface PlanNode {
  readonly "Node Type": string;
  readonly "Relation Name"?: string;
  readonly "Shared Hit Blocks": number;
  readonly "Shared Read Blocks": number;
  readonly Plans?: readonly PlanNode[];
}

const job = (key: string, dependencies: StepSpec["dependencies"] = []): StepSpec => ({
  key,
  dependencies,
  job: { type: `plans.${key.replace(/\d+$/, "")}`, payload: null },
});
const after = (...keys: string[]) => keys.map((key) => ({ key, kind: "ON_SUCCESS" as const }));
const many = (count: number, step: (n: number) => StepSpec) => Array.from({ length: count }, (_, n) => step(n));

/** `first` is the step that is completed; it has two dependents. */
const graphs: Record<string, StepSpec[]> = {
  "10 steps": [job("first"), job("x", after("first")), job("y", after("first")), ...many(7, (n) => job(`root${n}`))],
  "10 000 steps": [
    job("first"),
    job("x", after("first")),
    job("y", after("first")),
    ...many(9_997, (n) => job(`chain${n}`, n === 0 ? [] : after(`chain${n - 1}`))),
  ],
  "a fan-in of 10 000": [
    job("first"),
    ...many(9_999, (n) => job(`root${n}`)),
    job("x", after("first", ...many(9_999, (n) => job(`root${n}`)).map(({ key }) => key))),
    job("y", after("first")),
  ],
};

const types = ["plans.x", "plans.y"];
const ways: Readonly<Record<string, (lease: Lease) => Promise<unknown>>> = {
  "a completion": (lease) => ledger.jobs.complete(lease),
  "a completion that claims what it releases": (lease) =>
    ledger.jobs.settleAndClaim([{ lease, success: {} }], { workerId: "w", limit: 2, types }),
};

test.each(Object.entries(ways))(
  "%s reads about as many pages in a run of 10 000 steps as in one of 10",
  async (...[, complete]) => {
    const leases = new Map<string, Lease>();
    for (const [name, steps] of Object.entries(graphs)) leases.set(name, await started(steps));
    for (const table of ["workflow_runs", "workflow_steps", "workflow_step_dependencies", "job_queue", "job_ledger"]) {
      await database.pool.query(`vacuum (analyze) runledger.${table}`);
    }

    const figures = new Map<string, { buffers: number; sequential: string[] }>();
    for (const [name, lease] of leases) {
      sent = [];
      await complete(lease);
      const [statement, ...more] = sent;
      expect(more).toEqual([]);
      if (statement === undefined) throw new Error("nothing was sent");
      // Once more in the same state as before: as an explanation, of another run of the same graph.
      const again = await started(graphs[name] ?? []);
      figures.set(name, await explained(statement, lease, again));
    }

    if (showsFigures) console.log(Object.fromEntries(figures));
    const [small, long, wide] = [...figures.values()];
    for (const { sequential } of figures.values()) expect(sequential).toEqual([]);
    expect(long?.buffers).toBeLessThan(2 * (small?.buffers ?? 0));
    expect(wide?.buffers).toBeLessThan(2 * (small?.buffers ?? 0));
  },
);

test("a claim with a completion reads few pages, whatever waits in the queue", async () => {
  const later = Array.from({ length: 5_000 }, (_, n) => ({
    type: types[n % 2] ?? "",
    payload: n,
    runAt: "2999-01-01T00:00:00Z",
    settings: { priority: n % 3 },
  }));
  const figures: number[] = [];
  for (const waiting of [[], later]) {
    await ledger.jobs.enqueueMany(waiting);
    await database.pool.query("vacuum (analyze) runledger.job_queue");
    const [lease, other] = [await started(graphs["10 steps"] ?? []), await started(graphs["10 steps"] ?? [])];
    sent = [];
    await ways["a completion that claims what it releases"]?.(lease);
    const [statement] = sent;
    if (statement === undefined) throw new Error("nothing was sent");
    const { buffers, sequential } = await explained(statement, lease, other);
    expect(sequential).toEqual([]);
    figures.push(buffers);
  }

  if (showsFigures) console.log(figures);
  // Three more lanes of each type, each found by a descent of its own.
  expect((figures[1] ?? 0) - (figures[0] ?? 0)).toBeLessThan(60);
});

test("a failure locks what it reaches by index, whatever else the run has", async () => {
  const lease = await started(graphs["10 000 steps"] ?? []);
  await database.pool.query("vacuum (analyze) runledger.workflow_steps, runledger.workflow_step_dependencies");
  sent = [];
  await ledger.jobs.fail(lease, failure);
  const closure = sent.find(({ sql: text }) => text.includes("lock_workflow_step_closure_for_update"));
  const edges = sent.find(({ sql: text }) => text.includes("workflow_step_edges"));
  if (closure === undefined || edges === undefined) throw new Error("the failure took another way");

  for (const statement of [closure, edges]) {
    const { buffers, sequential } = await explainedAs(statement, statement.parameters);
    expect(sequential).toEqual([]);
    // The pages of a materialized CTE are counted where it is made and where it is read.
    expect(buffers).toBeLessThan(90);
  }
});

test("prerequisites' outputs and a run's status are read by index", async () => {
  const graph: GraphSpec = { type: "plans", steps: graphs["a fan-in of 10 000"] ?? [], resultStep: "x" };
  const { id } = await ledger.runs.enqueue(graph);
  const jobs = await ledger.jobs.claim({ workerId: "w", limit: 3, types: ["plans.root"] });
  await database.pool.query("vacuum (analyze) runledger.workflow_steps, runledger.workflow_step_dependencies");
  sent = [];
  await ledger.steps.prerequisites(jobs);
  await ledger.runs.getStatus(id, globally.scope);
  await ledger.runs.getResult(id, globally).catch(() => {});

  expect(sent).toHaveLength(3);
  for (const statement of sent) {
    const { buffers, sequential } = await explainedAs(statement, statement.parameters);
    expect(sequential).toEqual([]);
    expect(buffers).toBeLessThan(40);
  }
});

/** Starts a run of the graph and claims its first step. */
async function started(steps: StepSpec[]): Promise<Lease> {
  const { id } = await ledger.runs.enqueue({ type: "plans", steps, resultStep: null });
  const jobs = await ledger.jobs.claim({ workerId: "w", limit: 10, types: ["plans.first"] });
  const found = jobs.find(({ lease }) => lease.workflowRunId === id);
  if (found === undefined) throw new Error("the first step could not be claimed");
  return found.lease;
}

/** The statement that completed the one lease, explained for the other. */
function explained(statement: Sent, completed: Lease, other: Lease) {
  const parameters = statement.parameters.map((value) => {
    const [only] = Array.isArray(value) ? value : [];
    if (only === completed.jobId) return [other.jobId];
    return only === completed.workflowRunId ? [other.workflowRunId] : value;
  });
  return explainedAs(statement, parameters);
}

/** Runs the statement under EXPLAIN and takes back what it wrote. */
async function explainedAs(statement: Sent, parameters: readonly unknown[]) {
  const client = await database.pool.connect();
  try {
    await client.query("begin");
    const { rows } = await client.query(`explain (analyze, buffers, format json) ${statement.sql}`, [...parameters]);
    const [{ Plan: plan }] = rows[0]["QUERY PLAN"];
    const nodes = flattened(plan);
    return {
      buffers: nodes.reduce((sum, node) => sum + ownBuffers(node), 0),
      sequential: nodes
        .filter((node) => node["Node Type"] === "Seq Scan")
        .map((node) => node["Relation Name"] ?? "")
        // A few rows, whatever happens.
        .filter((table) => table !== "job_definitions")
        .sort(),
    };
  } finally {
    await client.query("rollback");
    client.release();
  }
}

/** A node's count includes its children's, but for the CTEs that run after the main query. */
function ownBuffers(node: PlanNode): number {
  const all = (of: PlanNode) => of["Shared Hit Blocks"] + of["Shared Read Blocks"];
  return Math.max(0, all(node) - (node.Plans ?? []).reduce((sum, child) => sum + all(child), 0));
}

function flattened(node: PlanNode): PlanNode[] {
  return [node, ...(node.Plans ?? []).flatMap(flattened)];
}
