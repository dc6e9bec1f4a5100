/**
 * One call settles jobs of many runs: each item has its own outcome, each row is written once, and the
 * number of statements does not depend on how many there are (LOCKS.md §3).
 */
import { afterEach, beforeEach, describe, expect, test } from "@jest/globals";
import { type ClaimedJob, type Settlement, type SettleResult, WorkflowBuilder } from "../../src/index.ts";
import { runReleaseKey } from "../../src/locks/key.ts";
import { expectInvariants } from "../invariants.ts";
import { failure, ledgerOf } from "../runs/fixtures.ts";
import { createTestDatabase } from "../support/database.ts";
import { waitForBackend } from "../support/waiting.ts";

const database = await createTestDatabase();
const ledger = ledgerOf(database);

await database.pool.query(`
  create table public.touches (statement boolean not null, "table" text not null, op text not null, id text);
  create function public.touch() returns trigger language plpgsql as $$
  begin
    insert into public.touches values (tg_level = 'STATEMENT', tg_argv[0], lower(tg_op),
      case when tg_level = 'ROW' then to_jsonb(coalesce(new, old)) ->> tg_argv[1] end);
    return null;
  end $$`);
const written = {
  job_queue: "id",
  job_ledger: "id",
  job_attempts: "job_id",
  workflow_steps: "id",
  workflow_runs: "id",
};
for (const [table, id] of Object.entries(written)) {
  for (const level of ["row", "statement"]) {
    await database.pool.query(`create trigger touch_${level} after insert or update or delete on runledger.${table}
      for each ${level} execute function public.touch('${table}', '${id}')`);
  }
}

beforeEach(() => database.pool.query("truncate public.touches"));
afterEach(() => expectInvariants(database));

/** What happens to the steps `a`, `b` and `c` of a run, and what comes of its steps in the end. */
interface Plan {
  readonly fates: Readonly<Partial<Record<"a" | "b" | "c", Fate>>>;
  readonly steps: Readonly<Record<string, string>>;
}
type Fate = "succeeds" | "fails" | "is retried" | "has another lease" | "has expired";

const blocked = { onA: "BLOCKED", both: "BLOCKED", deep: "BLOCKED", anyB: "BLOCKED", gate: "BLOCKED" };
const plans: Readonly<Record<string, Plan>> = {
  released: {
    fates: { a: "succeeds", b: "succeeds" },
    steps: { ...blocked, onA: "ENQUEUED", both: "ENQUEUED", anyB: "ENQUEUED" },
  },
  cascading: {
    fates: { a: "succeeds", b: "fails", c: "succeeds" },
    steps: { onA: "ENQUEUED", both: "CANCELED", deep: "CANCELED", anyB: "ENQUEUED", gate: "WAITING_FOR_EXTERNAL" },
  },
  failing: {
    fates: { a: "fails", b: "fails", c: "fails" },
    steps: { onA: "CANCELED", both: "CANCELED", deep: "CANCELED", anyB: "ENQUEUED", gate: "CANCELED" },
  },
  lost: { fates: { a: "has another lease", c: "has expired" }, steps: blocked },
  mixed: {
    fates: { a: "has expired", b: "is retried", c: "succeeds" },
    steps: { ...blocked, gate: "WAITING_FOR_EXTERNAL" },
  },
};
const answers: Readonly<Record<Fate, string>> = {
  succeeds: "SUCCEEDED",
  fails: "DEAD_LETTERED",
  "is retried": "PENDING",
  "has another lease": "job.lease_owner_mismatch",
  "has expired": "job.lease_owner_mismatch",
};

interface Item {
  readonly runId: string;
  readonly plan: string;
  readonly fate: Fate;
  readonly settlement: Settlement;
}

test("fifty jobs of twenty runs, lost, failed, retried and done among each other: each has its own outcome", async () => {
  const items = await itemsOf(4, Object.keys(plans));
  const results = await ledger.jobs.settle(items.map(({ settlement }) => settlement));

  expect([items.length, new Set(items.map(({ runId }) => runId)).size]).toEqual([52, 20]);
  expect(results.map(shown)).toEqual(items.map(({ fate }) => answers[fate]));
  const statuses = await statusesOf(items);
  for (const { runId, plan } of items)
    expect({ plan, ...statuses.get(runId) }).toMatchObject({ plan, ...stepsOf(plan) });
});

test("in the caller's transaction the outcomes are the same", async () => {
  const items = await itemsOf(4, Object.keys(plans));
  const results = await database.db
    .transaction()
    .execute((trx) => ledger.in(trx).jobs.settle(items.map(({ settlement }) => settlement)));

  expect(results.map(shown)).toEqual(items.map(({ fate }) => answers[fate]));
  const statuses = await statusesOf(items);
  for (const { runId, plan } of items)
    expect({ plan, ...statuses.get(runId) }).toMatchObject({ plan, ...stepsOf(plan) });
});

describe.each([
  ["of all kinds", Object.keys(plans)],
  ["of successes only", ["released"]],
  ["of failures only", ["failing"]],
] as const)("a batch %s", (_, kinds) => {
  test("takes as many statements for a hundred runs as for a few, and so in the caller's transaction", async () => {
    const sent: string[][] = [];
    for (const runs of [2, 5, 100 / kinds.length]) {
      const [alone, inside] = [await itemsOf(runs, kinds), await itemsOf(runs, kinds)];
      const settlements = (items: readonly Item[]) => items.map(({ settlement }) => settlement);
      const first = await database.record(() => ledger.jobs.settle(settlements(alone)));
      const second = await database.record(() =>
        database.db.transaction().execute((trx) => ledger.in(trx).jobs.settle(settlements(inside))),
      );
      sent.push([...first.statements, ...second.statements].map(named));
    }

    expect(sent[1]).toEqual(sent[0]);
    expect(sent[2]).toEqual(sent[0]);
  });

  test.each(["alone", "in the caller's transaction"])("writes each row once, %s", async (where) => {
    const items = await itemsOf(5, kinds);
    await database.pool.query("truncate public.touches");
    const settlements = items.map(({ settlement }) => settlement);
    if (where === "alone") await ledger.jobs.settle(settlements);
    else await database.db.transaction().execute((trx) => ledger.in(trx).jobs.settle(settlements));

    const { rows } = await database.pool.query(
      `select "table", op, id, count(*)::int as times from public.touches where not statement
       group by 1, 2, 3 having count(*) > 1`,
    );
    expect(rows).toEqual([]);
    expect(await touchesOf("row")).not.toEqual({});
  });
});

test("successes in many runs are one statement, in which each table is written once", async () => {
  const items = await itemsOf(20, ["released"]);
  await database.pool.query("truncate public.touches");
  const { statements } = await database.record(() => ledger.jobs.settle(items.map(({ settlement }) => settlement)));

  expect(statements.map(named)).toEqual(["complete_step_jobs"]);
  // Postgres counts a table that a statement names for writing, whether or not a row is written.
  expect(await touchesOf("statement")).toEqual({
    "job_queue delete": 1,
    "job_queue insert": 1,
    "job_ledger insert": 1,
    "workflow_steps update": 1,
    "workflow_runs update": 1,
  });
  expect(await touchesOf("row")).toEqual({
    "job_queue delete": 40,
    "job_queue insert": 60,
    "job_ledger insert": 40,
    "workflow_steps update": 100,
    "workflow_runs update": 20,
  });
});

describe("all rows of a kind are locked before any of the next: job rows, release locks, step rows, run rows", () => {
  const kinds = ["job rows", "release locks", "step rows", "run rows"] as const;
  const batches = { successes: ["released"], failures: ["failing"] } as const;
  const tables = { "job rows": "job_queue", "step rows": "workflow_steps", "run rows": "workflow_runs" } as const;

  for (const [name, plansOf] of Object.entries(batches)) {
    test.each(["job rows", "step rows", "run rows"] as const)(`${name} that wait for one of the %s`, async (kind) => {
      const items = await itemsOf(5, plansOf);
      const own = ownRowsOf(items);
      const holder = await database.connect();
      await holder.query("begin");
      // The middle one: of those before it some are held by the batch, of the kinds after it none.
      const ids = [...own[kind]].sort();
      await holder.query(`select from runledger.${tables[kind]} where id = $1 for update`, [ids[ids.length >> 1]]);

      const settling = ledger.jobs.settle(items.map(({ settlement }) => settlement));
      const { pid } = await waitForBackend({ client: database.pool });
      const locked: Record<string, string> = {};
      for (const other of kinds) locked[other] = await sharedOf(other, own, pid);
      await holder.query("rollback");
      expect((await settling).every(({ ok }) => ok)).toBe(true);

      const place = kinds.indexOf(kind);
      expect(locked).toEqual({
        ...Object.fromEntries(kinds.map((other, n) => [other, n < place ? "all" : "none"])),
        [kind]: "some",
      });
    });
  }

  type Own = Readonly<Record<(typeof kinds)[number], readonly string[]>>;

  function ownRowsOf(items: readonly Item[]): Own {
    const runIds = [...new Set(items.map(({ runId }) => runId))];
    return {
      "job rows": items.map(({ settlement }) => settlement.lease.jobId),
      "release locks": runIds,
      "step rows": items.map((item) => stepIds.get(item.settlement.lease.jobId) ?? ""),
      "run rows": runIds,
    };
  }

  async function sharedOf(kind: (typeof kinds)[number], own: Own, pid: number): Promise<"all" | "some" | "none"> {
    const free = kind === "release locks" ? await freeKeys(own[kind], pid) : await freeRows(tables[kind], own[kind]);
    if (free === own[kind].length) return "none";
    return free === 0 ? "all" : "some";
  }

  async function freeRows(table: string, ids: readonly string[]): Promise<number> {
    const { rowCount } = await database.pool.query(
      `select from runledger.${table} where id = any($1) for update skip locked`,
      [ids],
    );
    return rowCount ?? 0;
  }

  async function freeKeys(runIds: readonly string[], pid: number): Promise<number> {
    const { rows } = await database.pool.query<{ key: string }>(
      `select ((classid::bigint << 32) | objid::bigint)::text as key from pg_locks
       where locktype = 'advisory' and pid = $1 and mode = 'ShareLock' and granted`,
      [pid],
    );
    const held = new Set(rows.map(({ key }) => key));
    return runIds.filter((runId) => !held.has(String(runReleaseKey(runId)))).length;
  }
});

const stepIds = new Map<string, string>();
let batches = 0;

/** Starts so many runs of each plan, claims their jobs, and gives what is to be settled, run after run of each plan in turn. */
async function itemsOf(runs: number, kinds: readonly string[]): Promise<Item[]> {
  batches += 1;
  const planOf = new Map<string, string>();
  for (const plan of kinds) {
    const graph = graphOf(`batch-${batches}`);
    const enqueued = await ledger.runs.enqueueMany(Array.from({ length: runs }, () => ({ graph })));
    for (const { id } of enqueued) planOf.set(id, plan);
  }
  const types = ["a", "b", "c"].map((key) => `batch-${batches}.${key}`);
  const claimed = await ledger.jobs.claim({ workerId: "worker", limit: 10_000, types });
  const items = claimed.flatMap((job) => itemOf(job, planOf.get(String(job.lease.workflowRunId)) ?? ""));
  const expired = items.filter(({ fate }) => fate === "has expired").map(({ settlement }) => settlement.lease.jobId);
  await database.pool.query("update runledger.job_queue set lease_expires_at = '-infinity' where id = any($1)", [
    expired,
  ]);
  return items;
}

function graphOf(type: string) {
  const graph = new WorkflowBuilder(type);
  const [a, b, c] = ["a", "b", "c"].map((key) => graph.job(key, `${type}.${key}`, {}, { maxAttempts: 2 }));
  if (a === undefined || b === undefined || c === undefined) throw new Error("three steps were made");
  graph.job("onA", `${type}.onA`, {}, { onSuccess: [a] });
  const both = graph.job("both", `${type}.both`, {}, { onSuccess: [a, b] });
  graph.job("deep", `${type}.deep`, {}, { onSuccess: [both] });
  graph.job("anyB", `${type}.anyB`, {}, { onTerminal: [b] });
  graph.external("gate", { onSuccess: [c] });
  return graph.build();
}

function itemOf({ lease, type, workflowStepId }: ClaimedJob, plan: string): Item[] {
  const fate = plans[plan]?.fates[type.slice(-1) as "a" | "b" | "c"];
  if (fate === undefined) return [];
  stepIds.set(lease.jobId, String(workflowStepId));
  return [{ runId: String(lease.workflowRunId), plan, fate, settlement: settlementOf(fate, lease) }];
}

function settlementOf(fate: Fate, lease: ClaimedJob["lease"]): Settlement {
  if (fate === "fails") return { lease, failure };
  if (fate === "is retried") return { lease, failure: { ...failure, kind: "RETRYABLE" } };
  return { lease: fate === "has another lease" ? { ...lease, attempt: 2 } : lease, success: {} };
}

function stepsOf(plan: string): Readonly<Record<string, string>> {
  return plans[plan]?.steps ?? {};
}

async function statusesOf(items: readonly Item[]): Promise<Map<string, Record<string, string>>> {
  const { rows } = await database.pool.query<{ run_id: string; steps: Record<string, string> }>(
    `select run_id, jsonb_object_agg(step_key, status) as steps from runledger.workflow_steps
     where run_id = any($1) group by run_id`,
    [items.map(({ runId }) => runId)],
  );
  return new Map(rows.map(({ run_id, steps }) => [run_id, steps]));
}

/** How often each table was written, by statements or rows. */
async function touchesOf(level: "row" | "statement"): Promise<Record<string, number>> {
  const { rows } = await database.pool.query<{ what: string; times: number }>(
    `select "table" || ' ' || op as what, count(*)::int as times from public.touches where statement = $1 group by 1`,
    [level === "statement"],
  );
  return Object.fromEntries(rows.map(({ what, times }) => [what, times]));
}

function shown(result: SettleResult): string {
  return result.ok ? result.status : result.error.code;
}

function named(text: string): string {
  return /runledger:(\w+)/.exec(text)?.[1] ?? text;
}
