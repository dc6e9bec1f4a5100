/**
 * Plans of lists, counts, timelines and retention on large tables (FEATURES F-H2, F-H3): a page, or a batch, costs about as much as it
 * has rows, whatever the history.
 *
 * RUNLEDGER_TEST_PLAN_ROWS=1000000 makes the tables larger and shows the figures.
 */
import { beforeAll, expect, test } from "@jest/globals";
import { Kysely, PostgresDialect } from "kysely";
import { createLedger, type Ledger, type RetentionPolicies } from "../../src/index.ts";
import { createTestDatabase } from "../support/database.ts";

const database = await createTestDatabase();
const rows = Number(process.env.RUNLEDGER_TEST_PLAN_ROWS ?? 100_000);
const showsFigures = process.env.RUNLEDGER_TEST_PLAN_ROWS !== undefined;
const scope = { admin: true } as const;
const organization = "0190a5f0-0000-7000-8000-000000000001";

interface Sent {
  readonly sql: string;
  readonly parameters: readonly unknown[];
}
let sent: Sent[] = [];
let onSent: (text: string) => void = () => {};
const db = new Kysely<unknown>({
  dialect: new PostgresDialect({ pool: database.pool }),
  log: ({ query }) => {
    sent.push({ sql: query.sql, parameters: query.parameters });
    onSent(query.sql);
  },
});
const ledger = createLedger({ db, notify: false });

interface PlanNode {
  readonly "Node Type": string;
  readonly "Relation Name"?: string;
  readonly "Index Name"?: string;
  readonly "Actual Loops": number;
  readonly "Shared Hit Blocks": number;
  readonly "Shared Read Blocks": number;
  readonly Plans?: readonly PlanNode[];
}

let someJob = "";
let someRun = "";

beforeAll(async () => {
  // Thirty weeks of history; a few jobs of a rare type, dead ones, and jobs of one organization among the many.
  await database.pool.query(`
    create function public.id_at(n bigint) returns uuid language sql as $$
      select (lpad(to_hex((extract(epoch from now() - (30 * (1 - n::float8 / ${rows})) * interval '7 days') * 1000)::bigint), 12, '0')
        || '7000' || '8' || lpad(to_hex(n), 15, '0'))::uuid
    $$`);
  await database.pool.query(`
    do $$
    declare
      week timestamptz := date_trunc('week', now()) - interval '32 weeks';
      hex text;
      upper_hex text;
    begin
      for n in 0..31 loop
        hex := lpad(to_hex((extract(epoch from week + n * interval '7 days') * 1000)::bigint), 12, '0') || repeat('0', 20);
        upper_hex := lpad(to_hex((extract(epoch from week + (n + 1) * interval '7 days') * 1000)::bigint), 12, '0') || repeat('0', 20);
        execute format('create table runledger.past_%s partition of runledger.job_ledger for values from (%L) to (%L)', n, hex::uuid, upper_hex::uuid);
      end loop;
    end $$`);
  await database.pool.query(
    `insert into runledger.job_ledger (id, run_number, status, failure_kind, type, organization_id, priority, run_at, attempt, max_attempts,
       timeout_seconds, enqueued_at, ended_at, payload)
     select public.id_at(n), 1, (case when n % 1000 = 0 then 'DEAD_LETTERED' else 'SUCCEEDED' end)::runledger.job_status,
       (case when n % 1000 = 0 then 'TERMINAL' end)::runledger.failure_kind,
       case when n % 1000 = 7 then 'rare' else 'bulk-' || n % 5 end,
       case when n % 500 = 3 then $2::uuid end, 100, now(), 1, 8, 900, now(), now() - (30 * (1 - n::float8 / $1)) * interval '7 days', '{"n": 1}'
     from generate_series(1, $1::int - 1) n`,
    [rows, organization],
  );
  await database.pool.query(
    `insert into runledger.job_queue (id, type, priority, run_at, max_attempts, timeout_seconds, payload)
     select public.id_at($1 + n), case when n % 2000 = 7 then 'rare' else 'bulk-' || n % 5 end, 100, now(), 8, 900, '{}'
     from generate_series(1, $1::int / 2) n`,
    [rows],
  );
  await database.pool.query(
    `insert into runledger.workflow_runs (id, type, organization_id, status, step_count, open_count, waiting_count, errored_count,
       ended_at, created_at)
     select public.id_at(n), case when n % 1000 = 7 then 'rare' else 'bulk-' || n % 5 end,
       case when n % 500 = 3 then $2::uuid end,
       (case when n % 1000 = 0 then 'COMPLETED_WITH_ERRORS' when n % 2000 = 11 then 'RUNNING' else 'SUCCEEDED' end)::runledger.run_status,
       2, (n % 2000 = 11)::int, 0, (n % 1000 = 0)::int,
       case when n % 2000 <> 11 then now() - (30 * (1 - n::float8 / $1)) * interval '7 days' end, now()
     from generate_series(1, $1::int / 2) n`,
    [rows, organization],
  );
  await database.pool.query(
    `insert into runledger.workflow_steps (run_id, id, step_key, kind, status, pending_count, unsatisfied_count, dependent_count,
       job_id, job_type, payload, ended_at)
     select r.id, (left(r.id::text, 24) || lpad(to_hex(k), 12, '0'))::uuid, 'k' || k, 'JOB', 'SUCCEEDED', 0, 0, 2 - k, r.id, 'bulk-1', '{}', now()
     from runledger.workflow_runs as r, generate_series(1, 2) as k where r.ended_at is not null and r.status = 'SUCCEEDED'`,
  );
  await database.pool.query(`
    insert into runledger.job_logs (job_id, run_number, attempt, level, message)
      select public.id_at(1 + n % 1000), 1, 1, 'info', 'line' from generate_series(1, 50000) as n;
    insert into runledger.job_attempts (job_id, run_number, attempt, worker_id, started_at, ended_at, failure_kind, error_code, error_message)
      select id, 1, 1, 'w', now(), now(), 'TERMINAL', 'c', 'm' from runledger.job_ledger where status = 'DEAD_LETTERED';
    insert into runledger.job_idempotency_keys (type, key, job_id, requested, expires_at)
      select 'bulk-0', 'k' || n, public.id_at(n * 3), '{}', case when n % 2 = 0 then now() + interval '1 year' end
      from generate_series(1, 20000) as n`);
  for (const table of [
    "job_queue",
    "job_ledger",
    "workflow_runs",
    "workflow_steps",
    "job_logs",
    "job_idempotency_keys",
  ]) {
    await database.pool.query(`vacuum (analyze) runledger.${table}`);
  }
  while ((await ledger.maintenance.compactCounts({ limit: 100_000 })).folded > 0);
  someJob = (await database.pool.query("select id from runledger.job_ledger where status = 'DEAD_LETTERED' limit 1"))
    .rows[0].id;
  someRun = (await database.pool.query("select id from runledger.workflow_runs where status = 'SUCCEEDED' limit 1"))
    .rows[0].id;
}, 600_000);

const past = () => ({ from: new Date(Date.now() - 70 * 86_400_000), to: new Date(Date.now() - 69 * 86_400_000) });

/** What is asked for, the statement, pages at most, the tables of which no row may be read by a scan. */
const reads: readonly [string, string, (l: Ledger) => Promise<unknown>, number][] = [
  ["jobs, newest first", "list_jobs", (l) => l.jobs.list({ scope }), 1500],
  ["ended jobs", "list_ended_jobs", (l) => l.jobs.list({ scope, status: "SUCCEEDED" }), 1500],
  [
    "ended jobs of a while ago",
    "list_ended_jobs",
    (l) => l.jobs.list({ scope, status: "SUCCEEDED", enqueuedBetween: past() }),
    2500,
  ],
  [
    "ended jobs of a rare type",
    "list_ended_jobs_of_type",
    (l) => l.jobs.list({ scope, status: "SUCCEEDED", type: "rare" }),
    2500,
  ],
  ["jobs of a rare type", "list_jobs_of_type", (l) => l.jobs.list({ scope, type: "rare" }), 3000],
  [
    "pending jobs of a rare type",
    "list_live_jobs_of_type",
    (l) => l.jobs.list({ scope, type: "rare", status: "PENDING" }),
    700,
  ],
  [
    "pending jobs of a frequent type",
    "list_live_jobs_of_type",
    (l) => l.jobs.list({ scope, type: "bulk-1", status: "PENDING" }),
    1500,
  ],
  ["jobs of an organization", "list_jobs_of_organization", (l) => l.jobs.list({ scope: { organization } }), 2500],
  ["dead letters", "list_dead_letters", (l) => l.jobs.deadLetters({ scope }), 2500],
  ["the timeline of a job", "get_job_timeline", (l) => l.jobs.timeline(someJob, scope), 150],
  ["the log of a job", "list_job_logs", (l) => l.jobs.logs(someJob, scope), 100],
  ["counts of jobs", "count_jobs", (l) => l.jobs.counts(scope), 100],
  ["runs, newest first", "list_workflow_runs", (l) => l.runs.list({ scope }), 1000],
  ["runs of a rare type", "list_workflow_runs_of_type", (l) => l.runs.list({ scope, type: "rare" }), 1000],
  [
    "runs of an organization",
    "list_workflow_runs_of_organization",
    (l) => l.runs.list({ scope: { organization } }),
    1000,
  ],
  [
    "runs that failed",
    "list_workflow_runs_with_errors",
    (l) => l.runs.list({ scope, status: "COMPLETED_WITH_ERRORS" }),
    1000,
  ],
  ["canceled runs", "list_canceled_workflow_runs", (l) => l.runs.list({ scope, status: "CANCELED" }), 1000],
  ["runs that live", "list_live_workflow_runs", (l) => l.runs.list({ scope, status: "RUNNING" }), 1000],
  ["the timeline of a run", "get_workflow_timeline", (l) => l.runs.timeline(someRun, scope), 100],
  [
    "the timeline of a run with attempts",
    "get_workflow_timeline_with_attempts",
    (l) => l.runs.timeline(someRun, scope, { attempts: true }),
    300,
  ],
  ["counts of runs", "count_workflow_runs", (l) => l.runs.counts(scope), 100],
];

test.each(reads)("%s", async (name, statement, call, bound) => {
  sent = [];
  await call(ledger);
  const explained = await explain(name, statement);

  expectNoScans(explained);
  expect(explained.buffers).toBeLessThan(bound);
});

// Of the partitions some jobs are kept, so that they are gone through.
const oneType: RetentionPolicies = { jobs: { types: { "bulk-1": { SUCCEEDED: 100 } } } };
const kept: RetentionPolicies = { jobs: { SUCCEEDED: 1 }, runs: { SUCCEEDED: 1 } };
const batches: readonly [string, string, RetentionPolicies, number][] = [
  ["jobs to go", "hold_retired_jobs", oneType, 20_000],
  ["jobs to keep", "hold_retired_jobs", { jobs: { CANCELED: 1 } }, 5_000],
  ["deleting jobs", "forget_jobs", oneType, 30_000],
  ["runs to go", "hold_retired_workflow_runs", { runs: { SUCCEEDED: 100 } }, 30_000],
  ["runs to keep", "hold_retired_workflow_runs", { runs: { CANCELED: 1 } }, 5_000],
  ["deleting runs", "forget_workflow_runs", { runs: { SUCCEEDED: 100 } }, 60_000],
  ["expired keys", "forget_expired_job_idempotency_keys", kept, 3_000],
];

test.each(batches)("retention, a batch of 1000: %s", async (name, statement, policies, bound) => {
  sent = [];
  const stop = new AbortController();
  onSent = (text) => {
    if (text.includes(`/* runledger:${statement} */`)) stop.abort();
  };
  await ledger.maintenance.retain({ policies, signal: stop.signal });
  const explained = await explain(name, statement);

  expectNoScans(explained);
  expect(explained.buffers).toBeLessThan(bound);
});

async function explain(name: string, statement: string) {
  const found = sent.find(({ sql }) => sql.includes(`/* runledger:${statement} */`));
  if (found === undefined)
    throw new Error(`${statement} was not sent, but ${sent.map(({ sql }) => sql.slice(0, 60)).join("\n")}`);
  const client = await database.pool.connect();
  try {
    await client.query("begin");
    const { rows: answer } = await client.query(`explain (analyze, buffers, format json) ${found.sql}`, [
      ...(await fresh(statement, found.parameters)),
    ]);
    await client.query("rollback");
    const [{ Plan: plan, "Execution Time": ms }] = answer[0]["QUERY PLAN"];
    const nodes = flattened(plan);
    const writes = nodes.filter((node) => node["Node Type"] === "ModifyTable");
    const buffers = pagesOf(plan) + writes.reduce((sum, node) => sum + pagesOf(node), 0);
    if (showsFigures) process.stdout.write(`${rows} rows | ${name} | ${buffers} pages | ${ms} ms\n`);
    return { nodes, buffers };
  } finally {
    client.release();
  }
}

/** What was deleted when the statement was caught is gone: others take its place. */
async function fresh(statement: string, parameters: readonly unknown[]): Promise<readonly unknown[]> {
  const others: Readonly<Record<string, string>> = {
    forget_jobs: "select id from runledger.job_ledger where type = 'bulk-1' and status = 'SUCCEEDED' limit 1000",
    forget_workflow_runs: "select id from runledger.workflow_runs where status = 'SUCCEEDED' order by id limit 500",
  };
  const text = others[statement];
  if (text === undefined) return parameters;
  const { rows: found } = await database.pool.query(text);
  return parameters.map(() => found.map(({ id }) => id));
}

function expectNoScans({ nodes }: { readonly nodes: readonly PlanNode[] }): void {
  const large = /^(job_queue|job_ledger|past_|workflow_|job_logs|job_attempts|job_idempotency)/;
  const scans = nodes.filter((node) => node["Node Type"] === "Seq Scan" && large.test(node["Relation Name"] ?? ""));
  // A partition that is empty, or a table of a few pages, costs nothing to look through.
  expect(scans.filter((node) => node["Actual Loops"] > 0 && pagesOf(node) > 20)).toEqual([]);
}

function pagesOf(node: PlanNode): number {
  return node["Shared Hit Blocks"] + node["Shared Read Blocks"];
}

function flattened(node: PlanNode): PlanNode[] {
  return [node, ...(node.Plans ?? []).flatMap(flattened)];
}
