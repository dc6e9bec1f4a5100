/** Whatever the tables hold, and before anything is known about them, keys are looked up by their own indexes. */
import { beforeAll, describe, expect, test } from "@jest/globals";
import type { JobOptions, Ledger, RunOptions } from "../../src/index.ts";
import { graphOf } from "../runs/fixtures.ts";
import { createTestDatabase } from "../support/database.ts";
import { planOf } from "../support/explain.ts";

const database = await createTestDatabase();
const rows = 50_000;

beforeAll(async () => {
  for (const table of ["job_queue", "job_idempotency_keys", "workflow_runs", "workflow_idempotency_keys"]) {
    await database.pool.query(`alter table runledger.${table} set (autovacuum_enabled = false)`);
  }
  // All of one type: only the key tells them apart.
  await database.pool.query(
    `insert into runledger.job_queue (id, type, priority, run_at, max_attempts, timeout_seconds, payload, active_key, debounce_key)
     select gen_random_uuid(), 'many', 100, now(), 8, 900, '{}', case when n % 2 = 0 then 'k' || n end,
       case when n % 2 = 1 then 'k' || n end
     from generate_series(1, $1::int) n`,
    [rows],
  );
  // Each was the job of a key that another one has now.
  for (const [status, keys] of [
    ["DEAD_LETTERED", "n"],
    ["SUCCEEDED", "100000 + n"],
  ]) {
    await database.pool.query(
      `insert into runledger.job_ledger (id, run_number, status, type, priority, run_at, attempt, max_attempts, timeout_seconds,
         enqueued_at, ended_at, payload, active_key, failure_kind, error_code, error_message)
       select gen_random_uuid(), 1, $1::runledger.job_status, 'many', 100, now(), 1, 8, 900, now(), now(), '{}', 'k' || ${keys},
         f.kind, f.code, f.code
       from generate_series(1, 1000) n, (select case when $1 = 'DEAD_LETTERED' then 'TERMINAL' end::runledger.failure_kind as kind,
         case when $1 = 'DEAD_LETTERED' then 'c' end as code) f`,
      [status],
    );
  }
  await database.pool.query(
    `insert into runledger.job_idempotency_keys (type, key, job_id, requested, expires_at)
     select 'many', 'k' || n, q.id, '{}', now() - interval '1 s' from generate_series(1, $1::int) n,
       (select id from runledger.job_queue limit 1) q`,
    [rows],
  );
  await database.pool.query(
    `insert into runledger.workflow_runs (id, type, status, step_count, open_count, waiting_count, errored_count, active_key)
     select gen_random_uuid(), 'many', 'RUNNING', 1, 1, 0, 0, 'k' || n from generate_series(1, $1::int) n`,
    [rows],
  );
  await database.pool.query(
    `insert into runledger.workflow_idempotency_keys (type, key, run_id, requested, expires_at)
     select 'many', 'k' || n, r.id, '{}', now() - interval '1 s' from generate_series(1, $1::int) n,
       (select id from runledger.workflow_runs limit 1) r`,
    [rows],
  );
}, 120_000);

const jobs = (count: number, optionsOf: (key: string) => JobOptions) => (l: Ledger) =>
  l.jobs.enqueueMany(
    Array.from({ length: count }, (_, n) => ({ type: "many", payload: n, ...optionsOf(`k${1000 + 2 * n}`) })),
  );
const runs = (count: number, optionsOf: (key: string) => RunOptions) => (l: Ledger) =>
  l.runs.enqueueMany(
    Array.from({ length: count }, (_, n) => ({ graph: graphOf("many", { a: [] }), ...optionsOf(`k${1000 + n}`) })),
  );

const scope = { global: true } as const;

const afterExpiring = (kind: "job" | "workflow", call: (l: Ledger) => Promise<unknown>) => async (l: Ledger) => {
  await database.pool.query(`update runledger.${kind}_idempotency_keys set expires_at = now() where key like 'k1%'`);
  return call(l);
};

/** What is asked for, the statement, how many keys, pages at most for each. */
const table: readonly [string, string, (count: number) => (l: Ledger) => Promise<unknown>, number][] = [
  ["active keys", "enqueue_jobs_with_live_keys", (count) => jobs(count, (key) => ({ active: { key } })), 40],
  ["live jobs of active keys", "find_live_jobs", (count) => jobs(count, (key) => ({ active: { key } })), 10],
  [
    "active keys whose jobs are replaced",
    "enqueue_jobs_with_live_keys",
    (count) => jobs(count, (key) => ({ active: { key, replace: true } })),
    100,
  ],
  [
    "debounced jobs",
    "enqueue_jobs_with_live_keys",
    (count) => jobs(count, (key) => ({ debounce: { key: `k${Number(key.slice(1)) + 1}`, seconds: 60 } })),
    100,
  ],
  [
    "active keys of dead jobs",
    "requeue_jobs",
    (count) => (l) => l.jobs.requeueMany({ scope, filter: { status: "DEAD_LETTERED" }, limit: count }),
    20,
  ],
  [
    "active keys of jobs that are replayed",
    "replay_jobs",
    (count) => (l) => l.jobs.replayMany({ scope, filter: {}, key: "k", limit: count }),
    20,
  ],
  ["keys", "enqueue_keyed_jobs", (count) => jobs(count, (key) => ({ idempotencyKey: key })), 120],
  ["keys that are found", "find_keyed_jobs", (count) => jobs(count, (key) => ({ idempotencyKey: key })), 20],
  [
    "keys that have expired",
    "enqueue_jobs_with_expired_keys",
    (count) =>
      afterExpiring(
        "job",
        jobs(count, (key) => ({ idempotencyKey: key })),
      ),
    120,
  ],
  ["active keys of runs", "enqueue_keyed_workflow_runs", (count) => runs(count, (key) => ({ active: { key } })), 60],
  ["live runs", "find_active_workflow_runs", (count) => runs(count, (key) => ({ active: { key } })), 10],
  ["keys of runs", "enqueue_keyed_workflow_runs", (count) => runs(count, (key) => ({ idempotencyKey: key })), 200],
  [
    "keys of runs that are found",
    "find_keyed_workflow_runs",
    (count) => runs(count, (key) => ({ idempotencyKey: key })),
    20,
  ],
  [
    "keys of runs that have expired",
    "enqueue_workflow_runs_with_expired_keys",
    (count) =>
      afterExpiring(
        "workflow",
        runs(count, (key) => ({ idempotencyKey: key })),
      ),
    200,
  ],
];

describe.each(["before any ANALYZE", "after one"])("%s", (when) => {
  beforeAll(async () => {
    if (when === "after one") await database.pool.query("analyze");
  });

  describe.each(["force_generic_plan", "force_custom_plan"] as const)("with %s", (mode) => {
    test.each(table.flatMap(([name, ...rest]) => [1, 100].map((count) => [`${count} ${name}`, count, rest] as const)))(
      "%s",
      async (name, count, [statement, callOf, bound]) => {
        const { scans, buffers } = await planOf(database, mode, callOf(count), `/* runledger:${statement} */`);
        if (process.env.RUNLEDGER_TEST_PLAN_FIGURES)
          process.stdout.write(`${when} | ${mode} | ${name} | ${buffers} | ${scans}\n`);

        expect(scans.filter((scan) => /^Seq Scan (job_queue|job_idempotency|workflow)/.test(scan))).toEqual([]);
        expect(buffers).toBeLessThan(bound * count);
      },
    );
  });
});
