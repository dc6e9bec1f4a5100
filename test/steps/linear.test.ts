/**
 * A run's work grows with its steps and no faster, also before the first ANALYZE has told the planner how large it
 * is. Work is counted in pages that the server reads, not in time. RUNLEDGER_TEST_PLAN_FIGURES=1 shows the figures.
 */
import { afterEach, beforeAll, expect, test } from "@jest/globals";
import { defineJob, type GraphSpec, type StepSpec, typed, WorkflowBuilder } from "../../src/index.ts";
import { expectInvariants } from "../invariants.ts";
import { globally, ledgerOf } from "../runs/fixtures.ts";
import { createTestDatabase } from "../support/database.ts";

// One connection, so that its counters are all there is.
const database = await createTestDatabase({ max: 1 });
const ledger = ledgerOf(database, { notify: false });
const showsFigures = process.env.RUNLEDGER_TEST_PLAN_FIGURES !== undefined;

const tables = ["workflow_runs", "workflow_steps", "workflow_step_dependencies", "job_queue", "job_ledger"];

beforeAll(async () => {
  for (const table of tables.filter((name) => name !== "job_ledger")) {
    await database.pool.query(`alter table runledger.${table} set (autovacuum_enabled = false)`);
  }
});

afterEach(() => expectInvariants(database));

async function pagesRead(): Promise<number> {
  await database.pool.query("select pg_stat_force_next_flush()");
  const { rows } = await database.pool.query<{ pages: string }>(`
    select sum(heap_blks_hit + heap_blks_read + coalesce(idx_blks_hit, 0) + coalesce(idx_blks_read, 0)) as pages
    from pg_statio_user_tables where schemaname = 'runledger'`);
  return Number(rows[0]?.pages);
}

/** Runs all steps of the graph, so many at once, and answers with the pages that this took for each step. */
async function pagesPerStep(graph: GraphSpec, steps: number, batch: number): Promise<number> {
  const before = await pagesRead();
  const { id } = await ledger.runs.enqueue(graph);
  for (;;) {
    const jobs = await ledger.jobs.claim({ workerId: "w", limit: batch });
    if (jobs.length === 0) break;
    await ledger.steps.prerequisites(jobs);
    await ledger.jobs.settle(jobs.map(({ lease, payload }) => ({ lease, success: { output: outputOf(payload) } })));
  }
  const pages = (await pagesRead()) - before;
  expect(await ledger.runs.getStatus(id, globally.scope)).toMatchObject({ status: "SUCCEEDED", stepCount: steps });
  return pages / steps;
}

/** A step whose payload is a number puts out an array of that many; others hand their payload on. */
function outputOf(payload: unknown): unknown {
  return typeof payload === "number" ? Array.from({ length: payload }, () => ({})) : payload;
}

const step = (key: string, needs: readonly string[] = []): StepSpec => ({
  key,
  job: { type: `linear.${key.replace(/\d+$/, "")}`, payload: {} },
  dependencies: needs.map((need) => ({ key: need, kind: "ON_SUCCESS" })),
});
const keys = (count: number) => Array.from({ length: count }, (_, n) => `s${n}`);

const chain = (count: number): GraphSpec => ({
  type: "chain",
  steps: keys(count).map((key, n) => step(key, n === 0 ? [] : [`s${n - 1}`])),
  resultStep: null,
});

const fan = (width: number): GraphSpec => ({
  type: "fan",
  steps: [step("first"), ...keys(width).map((key) => step(key, ["first"])), step("last", keys(width))],
  resultStep: null,
});

const list = defineJob("linear.list", { input: typed<number>(), output: typed<object[]>() });

function mapOf(width: number): GraphSpec {
  const graph = new WorkflowBuilder("map");
  const each = graph.map("each", "linear.each", { over: graph.job("list", list, width) });
  graph.job("last", "linear.last", {}, { onSuccess: [each] });
  return graph.build();
}

test.each<[string, (size: number) => GraphSpec, number, number, number, number]>([
  ["a chain of 1 000 steps, one by one", chain, 250, 1000, 0, 1],
  ["a fan-out and fan-in of 10 000", fan, 1000, 10_000, 2, 500],
  ["a map over 10 000", mapOf, 1000, 10_000, 3, 500],
])(
  "%s costs each step about what a smaller one does",
  async (name, graphOf, small, large, more, batch) => {
    const few = await pagesPerStep(graphOf(small), small + more, batch);
    const many = await pagesPerStep(graphOf(large), large + more, batch);

    if (showsFigures) console.log(name, { few, many });
    expect(many).toBeLessThan(1.5 * few);
  },
  240_000,
);
