/**
 * What a cancel costs grows with the steps that it cancels and with nothing else. Each statement is explained in a
 * transaction that is rolled back; RUNLEDGER_TEST_PLAN_FIGURES=1 shows the figures.
 */
import { afterEach, beforeAll, expect, test } from "@jest/globals";
import { Kysely, PostgresDialect } from "kysely";
import { createLedger, type StepSpec } from "../../src/index.ts";
import { cancelRuns } from "../../src/runs/cancel.ts";
import { expectInvariants } from "../invariants.ts";
import { executorOf } from "../jobs/fixtures.ts";
import { createTestDatabase } from "../support/database.ts";
import { startChild, startParent } from "./children.ts";
import { globally } from "./fixtures.ts";

const database = await createTestDatabase({ max: 4 });
const showsFigures = process.env.RUNLEDGER_TEST_PLAN_FIGURES !== undefined;
const ledger = createLedger({ db: database.db, notify: false });

/** Other rows, so that the tables are of a size at which the planner has a choice, and a full scan shows. */
const OTHERS = 30_000;

beforeAll(async () => {
  const gate = { type: "other", steps: [{ key: "gate", dependencies: [] }], resultStep: null };
  await ledger.runs.enqueueMany(Array(OTHERS).fill({ graph: gate }));
  await ledger.jobs.enqueueMany(Array.from({ length: OTHERS }, () => ({ type: "other", payload: null })));
}, 60_000);

afterEach(() => expectInvariants(database));

test("ten thousand steps cost ten times what a thousand cost, in one run or in two hundred", async () => {
  const thousand = await workOf(await runsOf(1, 1000));
  const wide = await workOf(await runsOf(1, 10_000));
  const many = await workOf(await runsOf(200, 50));

  expect([...many.keys()]).toEqual([...wide.keys()]);
  for (const [name, { rows, scans }] of [...wide, ...many]) {
    const tenfold = 11 * Math.max(100, thousand.get(name)?.rows ?? 0);
    expect([name, rows <= tenfold, scans]).toEqual([name, true, []]);
  }
}, 60_000);

test("child runs are found by index, and cost no more than other runs", async () => {
  const keys = Array.from({ length: 50 }, (_, n) => `child${n}`);
  const parent = await startParent(database, ledger, Object.fromEntries(keys.map((key) => [key, []])));
  for (const key of keys) await startChild(database, ledger, parent, key, { a: [], b: ["a"] });

  const family = await workOf([parent.id]);

  for (const [name, { rows, scans }] of family) expect([name, rows < 2500, scans]).toEqual([name, true, []]);
}, 60_000);

interface Work {
  /** Rows that came out of all nodes, and rows that a filter or join threw away. */
  readonly rows: number;
  readonly scans: readonly string[];
}

interface PlanNode {
  readonly "Node Type": string;
  readonly "Relation Name"?: string;
  readonly "Actual Rows": number;
  readonly "Actual Loops": number;
  readonly "Rows Removed by Filter"?: number;
  readonly "Rows Removed by Join Filter"?: number;
  readonly "Rows Removed by Index Recheck"?: number;
  readonly Plans?: readonly PlanNode[];
}

/** The work of each statement of a cancel, which is taken back. */
async function workOf(ids: readonly string[]): Promise<Map<string, Work>> {
  for (const table of ["workflow_runs", "workflow_steps", "job_queue", "job_ledger"]) {
    await database.pool.query(`vacuum (analyze) runledger.${table}`);
  }
  const client = await database.pool.connect();
  const work = new Map<string, Work>();
  try {
    await client.query("begin");
    for (const [name, sql, parameters] of await statementsOf(ids)) {
      const { rows } = await client.query(`explain (analyze, format json) ${sql}`, [...parameters]);
      work.set(name, figures(rows[0]["QUERY PLAN"][0].Plan));
    }
  } finally {
    await client.query("rollback");
    client.release();
  }
  if (showsFigures) console.log(Object.fromEntries(work));
  return work;
}

/** What a cancel of these runs sends. */
async function statementsOf(ids: readonly string[]): Promise<[string, string, readonly unknown[]][]> {
  const sent: [string, string, readonly unknown[]][] = [];
  const db = new Kysely<unknown>({
    dialect: new PostgresDialect({ pool: database.pool }),
    log: ({ query: { sql, parameters } }) => {
      const name = /runledger:(\w+)/.exec(sql)?.[1];
      if (name?.includes("workflow")) sent.push([name, sql, parameters]);
    },
  });
  const trx = await db.startTransaction().execute();
  await cancelRuns(executorOf(trx), ids, globally);
  await trx.rollback().execute();
  return sent;
}

function figures(plan: PlanNode): Work {
  const nodes = flattened(plan);
  const removed = (node: PlanNode) =>
    (node["Rows Removed by Filter"] ?? 0) +
    (node["Rows Removed by Join Filter"] ?? 0) +
    (node["Rows Removed by Index Recheck"] ?? 0);
  return {
    rows: nodes.reduce((sum, node) => sum + (node["Actual Rows"] + removed(node)) * node["Actual Loops"], 0),
    scans: nodes.filter((node) => node["Node Type"] === "Seq Scan").map((node) => node["Relation Name"] ?? ""),
  };
}

function flattened(node: PlanNode): PlanNode[] {
  return [node, ...(node.Plans ?? []).flatMap(flattened)];
}

async function runsOf(count: number, size: number): Promise<string[]> {
  const job = { type: "wide", payload: null };
  const steps = Array.from({ length: size }, (_, n): StepSpec => ({ key: `s${n}`, dependencies: [], job }));
  const graph = { type: "wide", steps, resultStep: null };
  const runs = await ledger.runs.enqueueMany(Array(count).fill({ graph }));
  return runs.map(({ id }) => id);
}
