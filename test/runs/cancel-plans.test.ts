/**
 * What a cancel costs grows with the steps that it cancels and with nothing else. Each statement is explained in a
 * transaction that is rolled back; RUNLEDGER_TEST_PLAN_FIGURES=1 shows the figures.
 */
import { beforeAll, expect, test } from "@jest/globals";
import { Kysely, type LogEvent, PostgresDialect } from "kysely";
import { type CancelFilter, createLedger, type StepSpec } from "../../src/index.ts";
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

database.defer(() => expectInvariants(database));

test("ten thousand steps cost ten times what a thousand cost, in one run or in two hundred", async () => {
  const thousand = await workOf(await canceling(await runsOf(1, 1000)));
  const wide = await workOf(await canceling(await runsOf(1, 10_000)));
  const many = await workOf(await canceling(await runsOf(200, 50)));

  expect([...many.keys()]).toEqual([...wide.keys()]);
  for (const [name, { rows, scans }] of [...wide, ...many]) {
    // With room for the rows of the runs themselves; a loop in a loop would be a hundredfold.
    const tenfold = 13 * Math.max(100, thousand.get(name)?.rows ?? 0);
    expect([name, rows <= tenfold, scans]).toEqual([name, true, []]);
  }
}, 60_000);

test("child runs are found by index, and cost no more than other runs", async () => {
  const keys = Array.from({ length: 50 }, (_, n) => `child${n}`);
  const parent = await startParent(database, ledger, Object.fromEntries(keys.map((key) => [key, []])));
  for (const key of keys) await startChild(database, ledger, parent, key, { a: [], b: ["a"] });

  const family = await workOf(await canceling([parent.id]));

  for (const [name, { rows, scans }] of family) expect([name, rows < 2500, scans]).toEqual([name, true, []]);
}, 60_000);

test("a bulk cancel walks live runs page by page, by index", async () => {
  const ids = await runsOf(60, 1);
  const filters: CancelFilter[] = [{}, { type: "wide" }, { ids }, { type: "other", createdAfter: "2020-01-01" }];

  for (const filter of filters) {
    const pages = (await sentBy((db) => twoBatches(db, filter))).filter(([name]) => name.startsWith("find_live"));
    expect(pages.length).toBeGreaterThan(1);
    for (const [name, { rows, scans }] of await workOf(pages)) {
      expect([name, rows < 10 * PAGE, scans]).toEqual([name, true, []]);
    }
  }
}, 60_000);

const PAGE = 10;

async function twoBatches(db: Kysely<unknown>, filter: CancelFilter): Promise<void> {
  const enough = new Error("two batches are enough");
  let batches = 0;
  const onProgress = () => {
    batches += 1;
    if (batches === 2) throw enough;
  };
  const canceling = createLedger({ db }).runs.cancelMany({ ...globally, filter, batchSize: PAGE, onProgress });
  await expect(canceling).rejects.toBe(enough);
}

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

type Sent = [name: string, sql: string, parameters: readonly unknown[]];

/** The work of each of the statements, which is taken back. */
async function workOf(statements: readonly Sent[]): Promise<Map<string, Work>> {
  for (const table of ["workflow_runs", "workflow_steps", "job_queue", "job_ledger"]) {
    await database.pool.query(`vacuum (analyze) runledger.${table}`);
  }
  const client = await database.pool.connect();
  const work = new Map<string, Work>();
  try {
    await client.query("begin");
    for (const [name, sql, parameters] of statements) {
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

/** What a cancel of these runs sends, for them to be cancelled again. */
function canceling(ids: readonly string[]): Promise<Sent[]> {
  return sentBy(async (db) => {
    const trx = await db.startTransaction().execute();
    await cancelRuns(executorOf(trx), ids, globally);
    await trx.rollback().execute();
  });
}

/** The statements on runs and steps that the action sends. */
async function sentBy(action: (db: Kysely<unknown>) => Promise<void>): Promise<Sent[]> {
  const sent: Sent[] = [];
  const dialect = new PostgresDialect({ pool: database.pool });
  const log = ({ query: { sql, parameters } }: LogEvent) => {
    const name = /runledger:(\w+)/.exec(sql)?.[1];
    if (name?.includes("workflow")) sent.push([name, sql, parameters]);
  };
  await action(new Kysely<unknown>({ dialect, log }));
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
