/** Policies do not change how statements find their rows: every statement of the ledger, as the owner and as each role. */
import { beforeAll, expect, test } from "@jest/globals";
import type pg from "pg";
import { allStatements } from "../../src/database/statement.ts";
import { createTestDatabase } from "../support/database.ts";
import { createLogins } from "./logins.ts";
import "../../src/index.ts";

const database = await createTestDatabase();
const logins = await createLogins(database);
const A = "00000000-0000-7000-8000-00000000000a";

interface PlanNode {
  readonly "Node Type": string;
  readonly "Relation Name"?: string;
  readonly "Index Name"?: string;
  readonly "Index Cond"?: string;
  readonly Plans?: readonly PlanNode[];
}

/** What removes history or a schedule is no worker's business. */
const operators: readonly string[] = [
  "drop_job_ledger_partition",
  "forget_job_attempts_of_partition",
  "forget_job_events_of_partition",
  "forget_job_logs_of_partition",
  "forget_job_replays_of_partition",
  "forget_jobs",
  "forget_schedule_fires",
  "forget_workflow_runs",
  "hold_job_ledger_partition",
  "hold_retired_jobs",
  "remove_schedules",
];

/** What is no query: it has no plan. */
const unplanned = /^\/\*.*?\*\/ *(savepoint|rollback|release)/;
const statements = [...allStatements()]
  .map(([name, statement]) => [name, statement.compile("runledger").sql] as const)
  .filter(([, text]) => !unplanned.test(text));

beforeAll(async () => {
  await database.pool.query(`
    insert into runledger.job_queue (id, type, organization_id, priority, run_at, max_attempts, timeout_seconds, payload)
      select gen_random_uuid(), 't' || n % 500, case n % 3 when 0 then '${A}'::uuid when 1 then gen_random_uuid() end,
        100, now(), 8, 900, '{}' from generate_series(1, 20000) n;
    insert into runledger.job_queue (id, type, organization_id, priority, run_at, max_attempts, timeout_seconds, payload,
        limit_key, limit_concurrency, status, attempt, worker_id, leased_at, lease_expires_at)
      select gen_random_uuid(), 'l' || n % 5, case n % 3 when 0 then '${A}'::uuid when 1 then gen_random_uuid() end,
        100, now(), 8, 900, '{}', 'k' || n % 3000, 1, 'LEASED', 1, 'w', now(), now() + interval '1 hour'
      from generate_series(1, 3000) n;
    insert into runledger.job_queue (id, type, organization_id, priority, run_at, max_attempts, timeout_seconds, payload,
        limit_key, limit_concurrency)
      select gen_random_uuid(), 'l' || n % 5, case n % 3 when 0 then '${A}'::uuid when 1 then gen_random_uuid() end,
        100, now(), 8, 900, '{}', 'k' || n % 3000, 1 from generate_series(1, 10000) n;
    insert into runledger.job_limits (tenant, key)
      select distinct coalesce(organization_id::text, 'global'), limit_key from runledger.job_queue
      where limit_key is not null;
    insert into runledger.job_ledger (id, run_number, status, type, organization_id, priority, run_at, attempt, max_attempts,
        timeout_seconds, enqueued_at, ended_at, payload)
      select gen_random_uuid(), 1, 'SUCCEEDED', 't' || n % 500, case n % 3 when 0 then '${A}'::uuid when 1 then gen_random_uuid() end,
        100, now(), 1, 8, 900, now(), now(), '{}' from generate_series(1, 20000) n;
    insert into runledger.job_attempts (job_id, run_number, attempt, started_at, ended_at, failure_kind, error_code, error_message)
      select id, 1, 1, now(), now(), 'RETRYABLE', 'x', 'x' from runledger.job_ledger;
    insert into runledger.job_idempotency_keys (type, organization_id, key, job_id, requested)
      select type, organization_id, id::text, id, '{}' from runledger.job_queue;
    insert into runledger.workflow_runs (id, type, organization_id, status, step_count, open_count, waiting_count, errored_count)
      select gen_random_uuid(), 'w' || n % 3, case n % 3 when 0 then '${A}'::uuid when 1 then gen_random_uuid() end,
        'WAITING_FOR_EXTERNAL', 2, 0, 2, 0 from generate_series(1, 25000) n;
    insert into runledger.workflow_steps (run_id, id, step_key, kind, status, organization_id, pending_count,
        unsatisfied_count, dependent_count, open_since, ended_at)
      select r.id, gen_random_uuid(), 's' || n, 'EXTERNAL', (case when open then 'WAITING_FOR_EXTERNAL' else 'SUCCEEDED' end)::runledger.step_status,
        r.organization_id, 0, 0, 0, case when open then now() end, case when not open then now() end
      from runledger.workflow_runs r, generate_series(1, 2) n, lateral (select get_byte(uuid_send(r.id), 15) < 13 as open) o;
    insert into runledger.workflow_runs (id, type, organization_id, status, step_count, open_count, waiting_count, errored_count,
        ended_at)
      select gen_random_uuid(), 'w' || n % 3, case n % 3 when 0 then '${A}'::uuid when 1 then gen_random_uuid() end,
        'COMPLETED_WITH_ERRORS', 1, 0, 0, 1, now() from generate_series(1, 500) n;
    insert into runledger.workflow_step_dependencies (run_id, prerequisite_id, step_id, kind)
      select a.run_id, a.id, b.id, 'ON_SUCCESS' from runledger.workflow_steps a join runledger.workflow_steps b using (run_id)
      where a.step_key = 's1' and b.step_key = 's2';
    insert into runledger.job_schedules (id, name, organization_id, cron, target, target_type, payload, due_at, intended_at)
      select gen_random_uuid(), 's' || n, case n % 3 when 0 then '${A}'::uuid when 1 then gen_random_uuid() end,
        '0 0 1 1 *', 'JOB', 't', '{}', now() + interval '1 year', now() + interval '1 year' from generate_series(1, 20000) n;
    insert into runledger.job_schedule_fires (schedule_id, intended_at) select id, now() from runledger.job_schedules`);
  await database.pool.query("vacuum (analyze)");
}, 600_000);

/** The plan for any values, without what it is thought to cost; null when the role may not run the statement. */
async function planOf(client: pg.ClientBase, text: string): Promise<PlanNode | null> {
  await client.query(`prepare explained as ${text}`);
  try {
    const { rows } = await client.query("select parameter_types::text[] as types from pg_prepared_statements");
    const nulls = rows[0].types.map(() => "null").join(", ");
    const call = nulls === "" ? "explained" : `explained(${nulls})`;
    const explained = await client.query(`explain (costs off, format json) execute ${call}`);
    return explained.rows[0]["QUERY PLAN"][0].Plan;
  } catch (error) {
    if ((error as { code?: string }).code === "42501") return null;
    throw error;
  } finally {
    await client.query("deallocate explained");
  }
}

async function plansOf(pool: pg.Pool): Promise<Map<string, PlanNode | null>> {
  const client = await pool.connect();
  try {
    await client.query(`set plan_cache_mode = force_generic_plan; set runledger.organization_id = '${A}'`);
    const plans = new Map<string, PlanNode | null>();
    for (const [name, text] of statements) plans.set(name, await planOf(client, text));
    return plans;
  } finally {
    client.release(true);
  }
}

/**
 * How each table is read, in the alphabet's order: joins of CTEs that cost the same may be either way round, and an index
 * may be read by way of a bitmap.
 */
function scansOf(plan: PlanNode | null | undefined): string[] {
  if (plan === null || plan === undefined) return ["refused"];
  const kind = plan["Node Type"].replace("Bitmap Index", "Index");
  const own = `${kind} ${plan["Index Name"] ?? plan["Relation Name"] ?? ""} ${plan["Index Cond"] ?? ""}`;
  const below = (plan.Plans ?? []).flatMap(scansOf);
  return [...(own.endsWith("  ") || kind === "Bitmap Heap Scan" ? [] : [own]), ...below].sort();
}

/** Those with rows enough that it matters how they are read. */
const filled = [
  "job_queue",
  "job_ledger_default",
  "job_attempts",
  "job_idempotency_keys",
  "workflow_runs",
  "workflow_steps",
  "workflow_step_dependencies",
];

/** Of these, the ones that are read from end to end. */
function scannedWhole(plan: PlanNode | null | undefined): string[] {
  if (plan === null || plan === undefined) return [];
  const below = (plan.Plans ?? []).flatMap(scannedWhole);
  const table = plan["Node Type"] === "Seq Scan" ? (plan["Relation Name"] ?? "") : "";
  return [...(filled.includes(table) ? [table] : []), ...below].sort();
}

test("the worker may run every statement, by the plan that the owner has", async () => {
  const owners = await plansOf(database.pool);
  const workers = await plansOf(logins.as("worker").pool);

  const refused = statements.flatMap(([name]) => (workers.get(name) === null ? [name] : []));
  expect(refused.sort()).toEqual(operators);
  for (const [name] of statements.filter(([name]) => !operators.includes(name))) {
    expect([name, scansOf(workers.get(name))]).toEqual([name, scansOf(owners.get(name))]);
  }
});

test("no statement reads a whole table, by a plan for any values, as a named statement may get it", async () => {
  const owners = await plansOf(database.pool);
  expect(
    [...owners].flatMap(([name, plan]) => scannedWhole(plan).map((table) => `${name} reads all of ${table}`)),
  ).toEqual([]);
});

test.each(["enqueuer", "reader", "admin"] as const)(
  "no statement of the %s reads a whole table that the owner's does not",
  async (kind) => {
    const owners = await plansOf(database.pool);
    const others = await plansOf(logins.as(kind).pool);
    const planned = [...others].filter(([, plan]) => plan !== null);

    expect(planned.length).toBeGreaterThan(10);
    const worse = planned.flatMap(([name, plan]) => {
      const [own, owned] = [scannedWhole(plan), scannedWhole(owners.get(name))];
      return own.filter((table) => !owned.includes(table)).map((table) => `${name} reads all of ${table}`);
    });
    expect(worse).toEqual([]);
  },
);

test("a tenant's look-ups and lists go by the index that is made for them", async () => {
  const plans = await plansOf(logins.as("enqueuer").pool);
  const expected = {
    find_keyed_jobs: /job_idempotency_keys_pkey \(.*\(tenant = /,
    find_live_jobs: /job_queue_active_key \(.*organization_id IS NULL\) = .*CASE .*active_key = /s,
    find_active_workflow_runs: /workflow_runs_active_key \(.*organization_id IS NULL\) = .*CASE .*active_key = /s,
    enqueue_jobs_with_live_keys: /job_queue_active_key \(.*job_queue_debounce_key \(.*job_queue_pkey \(/s,
    list_open_gates: /workflow_steps_open_gates \(.*ROW\(run_id, id\) > /,
    get_job: /job_queue_pkey \(id = /,
  };
  for (const [name, index] of Object.entries(expected)) {
    expect([name, scansOf(plans.get(name)).join("\n")]).toEqual([name, expect.stringMatching(index)]);
  }
});
