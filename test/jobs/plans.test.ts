/**
 * Plans of the hot statements on large tables (FEATURES F-J4, F-H3): they go by index, and read about as
 * many pages as they have rows to do with, whatever the backlog and the history.
 *
 * RUNLEDGER_TEST_PLAN_ROWS=1000000 makes the tables larger and shows the figures.
 */
import { beforeAll, expect, test } from "@jest/globals";
import { Kysely, PostgresDialect, sql } from "kysely";
import { createLedger, type Lease, type Ledger } from "../../src/index.ts";
import { createTestDatabase } from "../support/database.ts";
import { codeOf, failure, globally, success } from "./fixtures.ts";

const database = await createTestDatabase();
const rows = Number(process.env.RUNLEDGER_TEST_PLAN_ROWS ?? 100_000);
const showsFigures = process.env.RUNLEDGER_TEST_PLAN_ROWS !== undefined;

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

const allExpired = "update runledger.job_queue set lease_expires_at = now() - interval '1 s' where status = 'LEASED'";

interface PlanNode {
  readonly "Node Type": string;
  readonly "Relation Name"?: string;
  readonly "Index Name"?: string;
  readonly "Actual Rows": number;
  readonly "Actual Loops": number;
  readonly "Shared Hit Blocks": number;
  readonly "Shared Read Blocks": number;
  readonly Plans?: readonly PlanNode[];
}
interface Explained {
  readonly nodes: readonly PlanNode[];
  readonly buffers: number;
}

const leased: Lease[] = [];
let ended = "";

beforeAll(async () => {
  await database.pool.query(`
    create function public.id_of(n bigint) returns uuid language sql as $$
      select (lpad(to_hex((extract(epoch from now()) * 1000)::bigint), 12, '0') || '7000' || '8' || lpad(to_hex(n), 15, '0'))::uuid
    $$`);
  // As a service with a large backlog has it: most of it cannot be claimed, and stands before what can.
  await fillQueue("paused", rows * 0.25, { priority: 1000 });
  await fillQueue("disabled", rows * 0.05, { priority: 2000 });
  await fillQueue("bulk-0", rows * 0.2, { priority: 500, runAt: "now() + interval '1 day'" });
  for (let n = 0; n < 5; n += 1) await fillQueue(`bulk-${n}`, rows * 0.1, { priority: n % 2 === 0 ? 100 : 50 });
  await fillQueue("rare", 20, { priority: -10 });
  await fillQueue("to-lease", 2000, { priority: 1 });
  await database.pool.query(
    `insert into runledger.job_ledger (id, run_number, status, type, priority, run_at, attempt, max_attempts,
       timeout_seconds, enqueued_at, ended_at, payload)
     select public.id_of(10000000000 + n), 1, 'SUCCEEDED', 'bulk-' || n % 5, 100, now(), 1, 8, 900, now(), now(), '{"n": 1}'
     from generate_series(1, $1::int) n`,
    [rows],
  );
  for (const [status, first, count] of [
    ["DEAD_LETTERED", 20_000_000_000, rows * 0.2],
    ["CANCELED", 30_000_000_000, rows * 0.1],
  ] as const) {
    await database.pool.query(
      `insert into runledger.job_ledger (id, run_number, status, type, priority, run_at, attempt, max_attempts,
         timeout_seconds, enqueued_at, ended_at, payload, failure_kind, error_code)
       select public.id_of($2::bigint + n), 1, $1::text::runledger.job_status, 'bulk-' || n % 5, 100, now(), 8, 8, 900, now(), now(),
         '{"n": 1}', case when $1::text = 'DEAD_LETTERED' then 'TERMINAL'::runledger.failure_kind end, 'c' || n % 3
       from generate_series(1, $3::int) n`,
      [status, first, Math.round(count)],
    );
  }
  await database.pool.query(`
    insert into runledger.job_definitions (type, enabled, paused)
      values ('paused', true, true), ('disabled', false, false);
    insert into runledger.job_idempotency_keys (type, key, job_id, requested)
      select 'bulk-0', 'k' || n, public.id_of(10000000000 + n), '{}' from generate_series(1, 50000) n`);
  for (const table of ["job_queue", "job_ledger", "job_definitions", "job_idempotency_keys"]) {
    await database.pool.query(`vacuum (analyze) runledger.${table}`);
  }
  const jobs = await ledger.jobs.claim({ workerId: "w", limit: 2000, types: ["to-lease"], leaseSeconds: 3600 });
  leased.push(...jobs.map(({ lease }) => lease));
  expect(leased).toHaveLength(2000);
  ended = (await database.pool.query("select id from runledger.job_ledger limit 1")).rows[0].id;
}, 600_000);

// What is asked for, how many rows it is about, pages at most. A row found by index costs about four pages, one that is
// changed some more.
const claims: readonly [string, { types?: string[]; limit: number }, number][] = [
  ["one job of any type", { limit: 1 }, 300],
  ["50 jobs of any type", { limit: 50 }, 2500],
  ["500 jobs of any type", { limit: 500 }, 17_000],
  ["50 jobs of one type", { limit: 50, types: ["bulk-1"] }, 2000],
  ["50 jobs of one type whose first lane is all in the future", { limit: 50, types: ["bulk-0"] }, 2000],
  ["50 jobs of three types", { limit: 50, types: ["bulk-1", "bulk-2", "bulk-3"] }, 2000],
  ["the few jobs of a rare type", { limit: 50, types: ["rare"] }, 700],
  ["a type that has none", { limit: 50, types: ["none"] }, 30],
  ["a paused and a disabled type", { limit: 50, types: ["paused", "disabled"] }, 30],
];

test.each(claims)("claim: %s", async (name, options, bound) => {
  const explained = await explain(name, "claim_jobs", (l) => l.jobs.claim({ workerId: "w", ...options }));

  expectByIndex(explained);
  expect(explained.buffers).toBeLessThan(bound);
});

/** What is asked for, the statement that is explained, pages at most, what is done before. */
const others: readonly [string, string, (ledger: Ledger) => Promise<unknown>, number, string?][] = [
  ["heartbeat of 100", "heartbeat_jobs", (l) => l.jobs.heartbeat(leased.slice(0, 100)), 5000],
  ["hand back of 100", "hand_back_jobs", (l) => l.jobs.handBack(leased.slice(0, 100)), 5000],
  ["progress", "progress_job", (l) => l.jobs.progress(first(), { done: 1 }), 60],
  ["checkpoint", "checkpoint_job", (l) => l.jobs.checkpoint(first(), {}), 60],
  [
    "settle 100 that succeeded",
    "settle_attempts",
    (l) => l.jobs.settle(leased.slice(0, 100).map((lease) => success(lease))),
    7000,
  ],
  [
    "settle 100 that failed",
    "settle_attempts",
    (l) => l.jobs.settle(leased.slice(0, 100).map((lease) => failure(lease))),
    7000,
  ],
  ["find expired leases", "expired_leases", (l) => l.jobs.reap({ limit: 100 }), 2500],
  ["settle 100 that expired", "settle_expired_attempts", (l) => l.jobs.reap({ limit: 100 }), 7000, allExpired],
  ["cancel", "cancel_job", (l) => l.jobs.cancel(first().jobId, { scope: globally }), 100],
  ["find 100 live jobs", "walk_live_jobs", (l) => cancelMany(l), 700],
  ["cancel 100", "cancel_jobs", (l) => cancelMany(l), 7000],
  ["find 100 dead jobs", "walk_dead_jobs", (l) => requeueMany(l, "DEAD_LETTERED"), 2500],
  ["look through dead jobs of which none fits", "walk_dead_jobs", (l) => requeueMany(l, "DEAD_LETTERED", "none"), 3500],
  ["find 100 cancelled jobs", "walk_canceled_jobs", (l) => requeueMany(l, "CANCELED"), 2500],
  ["requeue 100", "requeue_jobs", (l) => requeueMany(l, "DEAD_LETTERED"), 12_000],
  ["find 100 succeeded jobs", "walk_succeeded_jobs", (l) => replayMany(l), 2500],
  ["replay 100", "replay_jobs", (l) => replayMany(l), 12_000],
  ["look for 100 replays that were made", "find_job_replays", (l) => replayMany(l).then(() => replayMany(l)), 2500],
  ["snooze 100", "settle_attempts_with_again", (l) => l.jobs.settle(leased.slice(0, 100).map(snoozed)), 7000],
  ["continue 100", "settle_attempts_with_again", (l) => l.jobs.settle(leased.slice(0, 100).map(continued)), 9000],
  ["get of a live job", "get_job", (l) => l.jobs.get(first().jobId, globally), 60],
  ["get of an ended job", "get_job", (l) => l.jobs.get(ended, globally), 60],
  [
    "enqueue 100",
    "enqueue_jobs",
    (l) => l.jobs.enqueueMany(Array.from({ length: 100 }, () => ({ type: "bulk-0", payload: 1 }))),
    3000,
  ],
  [
    "a key that exists",
    "find_keyed_jobs",
    (l) => codeOf(() => l.jobs.enqueue("bulk-0", 1, { idempotencyKey: "k777" })),
    100,
  ],
];

test.each(others.map(([name, ...rest]) => [name, rest] as const))(
  "%s",
  async (name, [statement, call, bound, before]) => {
    const explained = await explain(name, statement, call, before);

    expectNoScanOf(explained, "job_queue");
    expectNoScanOf(explained, "job_ledger");
    expectNoScanOf(explained, "job_idempotency_keys");
    // Only who looks for expired leases goes through all that are leased.
    if (statement !== "expired_leases") expect(indexesOf(explained)).not.toContain("job_queue_leased");
    expect(explained.buffers).toBeLessThan(bound);
  },
);

test("complete 100", async () => {
  sent = [];
  await ledger.jobs.settle(leased.slice(1800, 1900).map((lease) => success(lease)));
  const [{ sql: text, parameters } = { sql: "", parameters: [] }] = sent;
  expect(text).toContain("/* runledger:complete_jobs */");

  const [, ...rest] = parameters;
  const others = leased.slice(1900).map(({ jobId }) => jobId);
  const plan = await explained("complete 100", { sql: text, parameters: [others, ...rest] });

  expectNoScanOf(plan, "job_queue");
  expectNoScanOf(plan, "job_ledger");
  expect(indexesOf(plan)).toEqual(["job_queue_pkey"]);
  expect(plan.buffers).toBeLessThan(5000);
});

test("claim: 50 jobs of one lane without statistics, as after a first burst", async () => {
  await database.pool.query("alter table runledger.job_queue set (autovacuum_enabled = false)");
  await database.pool.query("truncate runledger.job_queue");
  await fillQueue("burst", rows * 0.5, { priority: 100 });

  const explained = await explain("one lane, no statistics", "claim_jobs", (l) =>
    l.jobs.claim({ workerId: "w", limit: 50 }),
  );

  expectByIndex(explained);
  expect(explained.buffers).toBeLessThan(2000);
});

const snoozed = (lease: Lease) => ({ lease, snooze: { seconds: 1 } });
const continued = (lease: Lease) => ({ lease, continuation: { checkpoint: 1 } });

function cancelMany({ jobs }: Ledger) {
  return jobs.cancelMany({ scope: globally, filter: {}, limit: 100 });
}

function requeueMany({ jobs }: Ledger, status: "DEAD_LETTERED" | "CANCELED", errorCode = "c1") {
  return jobs.requeueMany({ scope: globally, filter: { status, errorCode }, limit: 100 });
}

function replayMany({ jobs }: Ledger) {
  return jobs.replayMany({ scope: globally, filter: {}, key: "k", limit: 100 });
}

/** What the call sends, run once more under EXPLAIN; nothing of either is kept. */
async function explain(
  name: string,
  statement: string,
  call: (ledger: Ledger) => Promise<unknown>,
  before = "select 1",
): Promise<Explained> {
  return explained(name, await captured(statement, call, before), before);
}

async function explained(name: string, found: Sent, before = "select 1"): Promise<Explained> {
  const client = await database.pool.connect();
  try {
    await client.query("begin");
    await client.query(before);
    const { rows: lines } = await client.query(`explain (analyze, buffers, format json) ${found.sql}`, [
      ...found.parameters,
    ]);
    await client.query("rollback");
    const [{ Plan: plan, "Execution Time": ms }] = lines[0]["QUERY PLAN"];
    const nodes = flattened(plan);
    // What is written after the last row has come out does not count at the top; some of it may count twice here.
    const writes = nodes.filter((node) => node["Node Type"] === "ModifyTable");
    const buffers = pagesOf(plan) + writes.reduce((sum, node) => sum + pagesOf(node), 0);
    if (showsFigures)
      process.stdout.write(`${rows} rows | ${name} | ${pagesOf(plan)} + ${buffers - pagesOf(plan)} | ${ms} ms\n`);
    return { nodes, buffers };
  } finally {
    client.release();
  }
}

async function captured(statement: string, call: (ledger: Ledger) => Promise<unknown>, before: string): Promise<Sent> {
  const trx = await db.startTransaction().execute();
  await sql.raw(before).execute(trx);
  sent = [];
  await call(ledger.in(trx));
  await trx.rollback().execute();
  const found = sent.find((query) => query.sql.includes(`/* runledger:${statement}`));
  if (found === undefined) throw new Error(`${statement} was not sent`);
  return found;
}

function pagesOf(node: PlanNode): number {
  return node["Shared Hit Blocks"] + node["Shared Read Blocks"];
}

function flattened(node: PlanNode): PlanNode[] {
  return [node, ...(node.Plans ?? []).flatMap(flattened)];
}

function expectNoScanOf({ nodes }: Explained, table: string): void {
  const scans = nodes.filter((node) => node["Node Type"] === "Seq Scan" && node["Relation Name"]?.startsWith(table));
  // An empty partition costs nothing to look through.
  expect(scans.filter((node) => node["Actual Loops"] > 0 && pagesOf(node) > 0)).toEqual([]);
}

/** The queue is read by the index of a claim's order; the claimed rows need not be found again. */
function expectByIndex(explained: Explained): void {
  expectNoScanOf(explained, "job_queue");
  expect(indexesOf(explained)).toEqual(["job_queue_pending"]);
}

function indexesOf({ nodes }: Explained): string[] {
  const names = nodes.map((node) => node["Index Name"] ?? "").filter((name) => name.startsWith("job_queue"));
  return [...new Set(names)].sort();
}

function first(): Lease {
  const [lease] = leased;
  if (lease === undefined) throw new Error("nothing is leased");
  return lease;
}

let filled = 0;

async function fillQueue(
  type: string,
  count: number,
  { priority, runAt = "now() - interval '1 h'" }: { priority: number; runAt?: string },
) {
  await database.pool.query(
    `insert into runledger.job_queue (id, type, priority, run_at, max_attempts, timeout_seconds, payload)
     select public.id_of($4 + n), $1, $2, ${runAt} + n * interval '1 ms', 8, 900, '{"n": 1}'
     from generate_series(1, $3::int) n`,
    [type, priority, Math.round(count), filled],
  );
  filled += Math.round(count);
}
