/**
 * What claims cost beside limits (FEATURES F-J11): pages read do not grow with the number of jobs that must wait,
 * with statistics and without, as after a first burst. RUNLEDGER_TEST_PLAN_ROWS=100000 makes more of them wait.
 */
import { beforeAll, describe, expect, test } from "@jest/globals";
import { Kysely, PostgresDialect, sql } from "kysely";
import { createLedger, type Ledger } from "../../src/index.ts";
import { createTestDatabase } from "../support/database.ts";

const BLOCKED = Number(process.env.RUNLEDGER_TEST_PLAN_ROWS ?? 20_000);
const FULL_KEYS = 2000;

const database = await createTestDatabase();
let sent: { readonly sql: string; readonly parameters: readonly unknown[] }[] = [];
const db = new Kysely<unknown>({
  dialect: new PostgresDialect({ pool: database.pool }),
  log: ({ query }) => {
    sent.push({ sql: query.sql, parameters: query.parameters });
  },
});
const ledger = createLedger({ db, notify: false });

beforeAll(async () => {
  for (const table of ["job_queue", "job_limits", "job_limit_wakes"]) {
    await database.pool.query(`alter table runledger.${table} set (autovacuum_enabled = false)`);
  }
  await database.pool.query("insert into runledger.job_definitions (type, paused) values ('paused', true)");
  await fill("dense", BLOCKED, { key: "'dense'" });
  await fill("paused", BLOCKED, { key: "'paused'" });
  await fill("future", BLOCKED, { key: "'future'", runAt: "now() + interval '1 day'" });
  await fill("future", 2, { key: "'future'" });
  await fill("full", FULL_KEYS * 2, { key: `'full-' || n % ${FULL_KEYS}` });
  await fill("free", 500, { key: "null" });
  await drain(["dense", "future", "full"]);
}, 240_000);

/** The statement, the call, pages at most. A row found by index costs about four pages, one that is changed some more. */
const calls: readonly [string, string, (l: Ledger) => Promise<unknown>, number, string?][] = [
  ["a claim that finds only full keys", "claim_jobs", of(50, "dense", "full", "future"), 60],
  ["a claim of paused jobs", "claim_jobs", of(50, "paused"), 40],
  [
    "a claim of all types that finds none",
    "claim_jobs_of_all_types",
    (l) => l.jobs.claim({ workerId: "w", limit: 1 }),
    300,
  ],
  ["50 jobs without a limit", "claim_jobs", of(50, "dense", "full", "free"), 2000],
  ["hold of a key that came free", "hold_job_limits", of(50, "dense"), 160, release("dense")],
  ["claim of a key that came free", "claim_limited_jobs", of(50, "dense"), 200, release("dense")],
  ["claim of a key whose other jobs are in the future", "claim_limited_jobs", of(50, "future"), 200, release("future")],
  ["hold of 60 of 100 keys that came free", "hold_job_limits", of(50, "full"), 3500, release("full", 100)],
  ["claim of 50 of 100 keys that came free", "claim_limited_jobs", of(50, "full"), 7000, release("full", 100)],
  [
    "claim for others of a key with paused jobs",
    "claim_limited_jobs",
    of(50, "dense"),
    400,
    release("dense", 1, "paused"),
  ],
];

describe.each(["without statistics", "with statistics"])("%s", (statistics) => {
  beforeAll(async () => {
    if (statistics === "with statistics") await database.pool.query("vacuum (analyze)");
  });

  test.each(calls)("%s", async (_name, statement, call, bound, before = "select 1") => {
    const { pages, scans } = await explain(statement, call, before);

    expect(scans).toEqual([]);
    // Until a vacuum comes, the wakes that are answered are passed over in the index.
    expect(pages).toBeLessThan(statistics === "with statistics" ? bound : bound + 4000);
  });
});

test("one claim answers the wakes of all waiting jobs of one key", async () => {
  await fill("burst", BLOCKED, { key: "'burst'" });

  expect(await ledger.jobs.claim({ workerId: "w", limit: 50, types: ["burst"] })).toHaveLength(1);

  const { rows } = await database.pool.query("select from runledger.job_limit_wakes where key = 'burst'");
  expect(rows).toEqual([]);
}, 120_000);

test("a batch of jobs of one key leaves one wake, and of many keys one each", async () => {
  await ledger.jobs.enqueueMany(
    Array.from({ length: 1000 }, (_, n) => ({
      type: "batch",
      payload: n,
      limit: { key: n % 2 === 0 ? "even" : `odd-${n}`, concurrency: 1 },
    })),
  );

  const { rows } = await database.pool.query(
    "select key = 'even' as even, count(*)::int as wakes from runledger.job_limit_wakes where type = 'batch' group by 1 order by 1",
  );
  expect(rows).toEqual([
    { even: false, wakes: 500 },
    { even: true, wakes: 1 },
  ]);
});

function of(limit: number, ...types: string[]) {
  return (l: Ledger) => l.jobs.claim({ workerId: "w", limit, types });
}

/** Ends so many running jobs of a type, and makes those of another type wait for the same keys. */
function release(type: string, count = 1, other?: string): string {
  const moved = `update runledger.job_queue set limit_key = 'dense' where type = '${other}' and id in (
    select id from runledger.job_queue where type = '${other}' limit 50);`;
  return `${other === undefined ? "" : moved} delete from runledger.job_queue where id in (
    select id from runledger.job_queue where type = '${type}' and status = 'LEASED' order by id limit ${count})`;
}

/** Claims until all keys are full. */
async function drain(types: string[]): Promise<void> {
  while ((await ledger.jobs.claim({ workerId: "w", limit: 1000, types })).length > 0);
}

interface PlanNode {
  readonly "Node Type": string;
  readonly "Relation Name"?: string;
  readonly "Actual Loops": number;
  readonly "Shared Hit Blocks": number;
  readonly "Shared Read Blocks": number;
  readonly Plans?: readonly PlanNode[];
}

/** What the call sends, up to the statement, run once more under EXPLAIN; nothing of either is kept. */
async function explain(statement: string, call: (l: Ledger) => Promise<unknown>, before: string) {
  const statements = await statementsOf(call, before);
  const last = statements.findIndex((query) => query.sql.includes(`/* runledger:${statement} */`));
  if (last < 0) throw new Error(`${statement} was not sent`);
  const client = await database.pool.connect();
  try {
    await client.query("begin");
    await client.query(before);
    for (const query of statements.slice(0, last)) await client.query(query.sql, [...query.parameters]);
    const explained = statements[last] ?? { sql: "", parameters: [] };
    const text = `explain (analyze, buffers, format json) ${explained.sql}`;
    const { rows } = await client.query(text, [...explained.parameters]);
    await client.query("rollback");
    const [{ Plan: plan }] = rows[0]["QUERY PLAN"];
    const nodes = flattened(plan);
    const writes = nodes.filter((node) => node["Node Type"] === "ModifyTable");
    return {
      pages: pagesOf(plan) + writes.reduce((sum, node) => sum + pagesOf(node), 0),
      scans: nodes
        .filter((node) => node["Node Type"] === "Seq Scan" && node["Actual Loops"] > 0 && pagesOf(node) > 60)
        .map((node) => node["Relation Name"]),
    };
  } finally {
    client.release();
  }
}

async function statementsOf(call: (l: Ledger) => Promise<unknown>, before: string) {
  const trx = await db.startTransaction().execute();
  for (const part of before.split(";")) await sql.raw(part).execute(trx);
  sent = [];
  await call(ledger.in(trx));
  const statements = sent.filter((query) => query.sql.startsWith("/* runledger:"));
  await trx.rollback().execute();
  return statements;
}

function pagesOf(node: PlanNode): number {
  return node["Shared Hit Blocks"] + node["Shared Read Blocks"];
}

function flattened(node: PlanNode): PlanNode[] {
  return [node, ...(node.Plans ?? []).flatMap(flattened)];
}

async function fill(
  type: string,
  count: number,
  { key, runAt = "now() - interval '1 h'" }: { readonly key: string; readonly runAt?: string },
): Promise<void> {
  await database.pool.query(
    `insert into runledger.job_queue (id, type, priority, run_at, max_attempts, timeout_seconds, payload, limit_key,
       limit_concurrency)
     select gen_random_uuid(), $1, 100, ${runAt} + n * interval '1 ms', 8, 900, '{}', ${key},
       case when ${key} is not null then 1 end
     from generate_series(1, $2::int) n`,
    [type, count],
  );
}
