/** Row locks of runs (LOCKS.md §2): which rows, in which order, for whose scope, under which marker. */
import { expect, test } from "@jest/globals";
import { sql } from "kysely";
import { v7 } from "uuid";
import type { Executor } from "../../src/database/executor.ts";
import type { Scope } from "../../src/database/scope.ts";
import { allStatements } from "../../src/database/statement.ts";
import { createLedger, WorkflowBuilder } from "../../src/index.ts";
import {
  lockRunsForUpdate,
  lockStepJobsForUpdate,
  lockStepJobsForUpdateNoWait,
  lockStepRowsForUpdate,
  lockStepsForUpdate,
} from "../../src/locks/rows.ts";
import { codeOf, errorOf, executorOf, globally } from "../jobs/fixtures.ts";
import { createTestDatabase } from "../support/database.ts";
import { backendPid, blockingPids, waitForBackend } from "../support/waiting.ts";

const database = await createTestDatabase();
const ledger = createLedger({ db: database.db });
const organization = v7();

type Lock = (executor: Executor, runIds: readonly string[], scope: Scope) => Promise<unknown>;
type Table = "job_queue" | "workflow_steps" | "workflow_runs";

const locks: readonly [string, Table, Lock][] = [
  ["lock_workflow_step_jobs_for_update", "job_queue", lockStepJobsForUpdate],
  ["lock_workflow_step_rows_for_update", "workflow_steps", lockStepRowsForUpdate],
  ["lock_workflow_steps_for_update", "workflow_steps", lockStepsForUpdate],
  ["lock_workflow_run_for_update", "workflow_runs", lockRunsForUpdate],
];

test.each(locks)("%s is what pg_stat_activity shows while it waits for a row", async (name, table, lock) => {
  const runId = await runOf(3);
  const holder = await database.connect();
  await holder.query("begin");
  await holder.query(`select from runledger.${table} where id = any($1) for update`, [await idsOf(table, runId)]);
  const trx = await database.db.startTransaction().execute();

  const locking = lock(executorOf(trx), [runId], globally);
  const { pid } = await waitForBackend({ client: database.pool, marker: `/* runledger:${name} */` });

  expect(await blockingPids(database.pool, pid)).toEqual([await backendPid(holder)]);
  await holder.query("rollback");
  await locking;
  await trx.rollback().execute();
});

test.each(locks.filter(([, table]) => table !== "workflow_runs"))(
  "%s takes its rows in id order: who waits for one holds those before it and none after it",
  async (name, table, lock) => {
    const runId = await runOf(5);
    const ids = await idsOf(table, runId);
    // The newest version of the first row lies last in the heap, so neither scan nor heap order helps.
    for (const id of [...ids].reverse()) {
      await database.pool.query(`update runledger.${table} set organization_id = organization_id where id = $1`, [id]);
    }
    for (const [place, held] of ids.entries()) {
      const holder = await database.connect();
      await holder.query("begin");
      await holder.query(`select from runledger.${table} where id = $1 for update`, [held]);
      const trx = await database.db.startTransaction().execute();
      await sql`set local enable_indexscan = off; set local enable_bitmapscan = off`.execute(trx);

      const locking = lock(executorOf(trx), [runId], globally);
      await waitForBackend({ client: database.pool, marker: name });

      expect(await unlocked(table, ids)).toEqual(ids.slice(place + 1));
      await holder.query("rollback");
      await locking;
      expect(await unlocked(table, ids)).toEqual([]);
      await trx.rollback().execute();
      await holder.end();
    }
  },
);

test.each(locks)(
  "%s takes the rows of several runs in one id order, whatever the order of the runs",
  async (name, table, lock) => {
    const runIds = await interleavedRuns();
    const ids = (await Promise.all(runIds.map((runId) => idsOf(table, runId)))).flat().sort();
    for (const [place, held] of ids.entries()) {
      const holder = await database.connect();
      await holder.query("begin");
      await holder.query(`select from runledger.${table} where id = $1 for update`, [held]);
      const trx = await database.db.startTransaction().execute();

      const locking = lock(executorOf(trx), [...runIds].reverse(), globally);
      await waitForBackend({ client: database.pool, marker: name });

      expect(await unlocked(table, ids)).toEqual(ids.slice(place + 1));
      await holder.query("rollback");
      await locking;
      expect(await unlocked(table, ids)).toEqual([]);
      await trx.rollback().execute();
      await holder.end();
    }
  },
);

test.each(locks)("%s locks rows of one table only", async (_name, table, lock) => {
  const runId = await runOf(2);
  const trx = await database.db.startTransaction().execute();

  await lock(executorOf(trx), [runId], globally);

  for (const other of ["job_queue", "workflow_steps", "workflow_runs"] as const) {
    const ids = await idsOf(other, runId);
    expect([other, await unlocked(other, ids)]).toEqual([other, other === table ? [] : ids]);
  }
  await trx.rollback().execute();
});

test.each(locks)("%s takes nothing of other runs", async (_name, table, lock) => {
  const [runId, otherId] = [await runOf(2), await runOf(2)];
  const trx = await database.db.startTransaction().execute();

  await lock(executorOf(trx), [runId], globally);

  const ids = await idsOf(table, otherId);
  expect(await unlocked(table, ids)).toEqual(ids);
  await trx.rollback().execute();
});

test.each(locks)("%s goes by the run's organization", async (_name, table, lock) => {
  const runId = await runOf(2, organization);
  // What stands on steps and jobs does not count.
  await database.pool.query("update runledger.workflow_steps set organization_id = null where run_id = $1", [runId]);
  await database.pool.query("update runledger.job_queue set organization_id = null where workflow_run_id = $1", [
    runId,
  ]);
  const ids = await idsOf(table, runId);
  const lockedBy = async (scope: Scope) => {
    const trx = await database.db.startTransaction().execute();
    await codeOf(() => lock(executorOf(trx), [runId], scope));
    const free = await unlocked(table, ids);
    await trx.rollback().execute();
    return ids.filter((id) => !free.includes(id));
  };

  expect(await lockedBy({ organization })).toEqual(ids);
  expect(await lockedBy({ organization: organization.toUpperCase() })).toEqual(ids);
  expect(await lockedBy({ admin: true })).toEqual(ids);
  expect(await lockedBy({ organization: v7() })).toEqual([]);
  expect(await lockedBy(globally)).toEqual([]);
});

test("only live jobs are locked: those of ended and of blocked steps have no row", async () => {
  const runId = await runOf(3);
  const jobs = await ledger.jobs.claim({ workerId: "w", limit: 100, types: ["rows"] });
  const [done] = jobs.filter(({ lease }) => lease.workflowRunId === runId);
  if (done === undefined) throw new Error("no job was claimed");
  await ledger.jobs.complete(done.lease);
  const trx = await database.db.startTransaction().execute();

  await lockStepJobsForUpdate(executorOf(trx), [runId], globally);

  const live = await idsOf("job_queue", runId);
  expect(live).toHaveLength(2);
  expect(await unlocked("job_queue", live)).toEqual([]);
  await trx.rollback().execute();
});

test("the pass without waiting is db.lock_timeout at once when another session holds a row", async () => {
  const runId = await runOf(3);
  const holder = await database.connect();
  await holder.query("begin");
  await holder.query("select from runledger.job_queue where id = $1 for update", [
    (await idsOf("job_queue", runId))[1],
  ]);
  const trx = await database.db.startTransaction().execute();

  expect(await errorOf(lockStepJobsForUpdateNoWait(executorOf(trx), [runId], globally))).toMatchObject({
    code: "db.lock_timeout",
    sqlstate: "55P03",
  });

  await trx.rollback().execute();
  await holder.query("rollback");
  await database.db.transaction().execute((free) => lockStepJobsForUpdateNoWait(executorOf(free), [runId], globally));
});

test("locked steps come decoded, in id order", async () => {
  const graph = new WorkflowBuilder("decoded");
  const first = graph.job("first", "decoded", {});
  const gate = graph.external("gate", { onTerminal: [first] });
  graph.job("last", "decoded", {}, { onSuccess: [gate] });
  graph.external("open");
  const { id } = await ledger.runs.enqueue(graph.build(), { organizationId: organization });

  const steps = await database.db
    .transaction()
    .execute((trx) => lockStepsForUpdate(executorOf(trx), [id], { organization }));

  expect(steps.map((step) => step.id)).toEqual([...steps.map((step) => step.id)].sort());
  expect(new Map(steps.map((step) => [step.stepKey, step]))).toEqual(
    new Map([
      ["first", stepLike("first", "JOB", "ENQUEUED")],
      ["gate", stepLike("gate", "EXTERNAL", "BLOCKED")],
      ["last", stepLike("last", "JOB", "BLOCKED")],
      ["open", stepLike("open", "EXTERNAL", "WAITING_FOR_EXTERNAL")],
    ]),
  );
});

test("a locked run comes reloaded", async () => {
  const runId = await runOf(1, organization);

  const [run] = await database.db
    .transaction()
    .execute((trx) => lockRunsForUpdate(executorOf(trx), [runId], { organization }));

  expect(run).toEqual({
    id: runId,
    type: "rows",
    organizationId: organization,
    status: "RUNNING",
    canceledReason: null,
    createdAt: expect.any(Date),
    endedAt: null,
  });
});

test.each<[string, Scope]>([
  ["unknown", { admin: true }],
  ["another organization's", { organization: v7() }],
  ["an organization's, looked for globally", globally],
])("a run that is %s is workflow.run_not_found", async (which, scope) => {
  const runId = which === "unknown" ? v7() : await runOf(1, organization);

  const locking = database.db.transaction().execute((trx) => lockRunsForUpdate(executorOf(trx), [runId], scope));

  await expect(locking).rejects.toMatchObject({ code: "workflow.run_not_found", category: "not_found" });
});

test.each([
  ["has another status", sql`update runledger.workflow_runs set open_count = 0, status = 'CANCELED', ended_at = now()`],
  ["is gone", sql`delete from runledger.workflow_runs`],
])("a run that %s between lock and reload is workflow.internal_state", async (_what, change) => {
  const runId = await runOf(1);
  const trx = await database.db.startTransaction().execute();
  const executor = executorOf(trx);
  let sent = 0;
  const meddling = new Proxy(executor.handle, {
    get: (target, field) => {
      if (field !== "executeQuery") return Reflect.get(target, field);
      return async (...args: Parameters<typeof target.executeQuery>) => {
        sent += 1;
        if (sent === 2) await sql`${change} where id = ${runId}`.execute(trx);
        return target.executeQuery(...args);
      };
    },
  });

  expect(await codeOf(() => lockRunsForUpdate({ ...executor, handle: meddling }, [runId], globally))).toBe(
    "workflow.internal_state",
  );
  await trx.rollback().execute();
});

test("a status or kind outside of the vocabulary is workflow.internal_state, never a guess", async () => {
  await database.pool.query("alter type runledger.run_status add value 'PAUSED'");
  await database.pool.query("alter type runledger.step_status add value 'PAUSED'");
  await database.pool.query("alter type runledger.step_kind add value 'MANUAL'");
  await database.pool.query("alter type runledger.job_status add value 'PAUSED'");
  await database.pool.query(`
    alter table runledger.workflow_runs drop constraint workflow_runs_status_by_counters;
    alter table runledger.workflow_steps drop constraint workflow_steps_job_shape;
    alter table runledger.workflow_steps drop constraint workflow_steps_external_shape;
    alter table runledger.workflow_steps drop constraint workflow_steps_map_shape;
    alter table runledger.workflow_steps drop constraint workflow_steps_enqueued_is_job;
    alter table runledger.job_queue drop constraint job_queue_is_live`);
  const [byStatus, byKind, byRun] = [await runOf(1), await runOf(1), await runOf(1)];
  await database.pool.query("update runledger.workflow_steps set status = 'PAUSED' where run_id = $1", [byStatus]);
  await database.pool.query("update runledger.workflow_steps set kind = 'MANUAL' where run_id = $1", [byKind]);
  await database.pool.query("update runledger.workflow_runs set status = 'PAUSED' where id = $1", [byRun]);
  const { id: jobId } = await ledger.jobs.enqueue("paused-job", {});
  await database.pool.query("update runledger.job_queue set status = 'PAUSED' where id = $1", [jobId]);
  const within = <T>(action: (executor: Executor) => Promise<T>) =>
    codeOf(() => database.db.transaction().execute((trx) => action(executorOf(trx))));

  expect(await within((trx) => lockStepsForUpdate(trx, [byStatus], globally))).toBe("workflow.internal_state");
  expect(await within((trx) => lockStepsForUpdate(trx, [byKind], globally))).toBe("workflow.internal_state");
  expect(await within((trx) => lockRunsForUpdate(trx, [byRun], globally))).toBe("workflow.internal_state");
  expect(await codeOf(() => ledger.runs.getStatus(byRun, globally))).toBe("workflow.internal_state");
  expect(await codeOf(() => ledger.jobs.get(jobId, globally))).toBe("workflow.internal_state");
});

test("every statement of the ledger carries its name as a comment in front", () => {
  const texts = [...allStatements()].map(([name, statement]) => [name, statement.compile("runledger").sql] as const);

  expect(texts.filter(([name, text]) => !text.startsWith(`/* runledger:${name} */ `))).toEqual([]);
  for (const [name] of locks) expect(texts.map(([known]) => known)).toContain(name);
});

function stepLike(stepKey: string, kind: string, status: string) {
  const jobId = kind === "JOB" ? expect.any(String) : null;
  return {
    id: expect.any(String),
    runId: expect.any(String),
    stepKey,
    kind,
    status,
    organizationId: organization,
    jobId,
  };
}

/** A run of independent jobs, all of them enqueued. */
async function runOf(steps: number, organizationId?: string): Promise<string> {
  const graph = new WorkflowBuilder("rows");
  for (let n = 0; n < steps; n += 1) graph.job(`step-${n}`, "rows", {});
  const { id } = await ledger.runs.enqueue(graph.build(), organizationId === undefined ? {} : { organizationId });
  return id;
}

/** Three runs whose steps and jobs alternate in id order: the first of each comes after all others. */
async function interleavedRuns(): Promise<string[]> {
  const runIds = [await runOf(3), await runOf(3), await runOf(3)];
  for (const runId of runIds) {
    const [[stepId], [jobId]] = [await idsOf("workflow_steps", runId), await idsOf("job_queue", runId)];
    const later = { step: v7(), job: v7() };
    await database.pool.query("update runledger.workflow_steps set id = $1, job_id = $2 where id = $3", [
      later.step,
      later.job,
      stepId,
    ]);
    await database.pool.query("update runledger.job_queue set id = $1, workflow_step_id = $2 where id = $3", [
      later.job,
      later.step,
      jobId,
    ]);
  }
  return runIds;
}

async function idsOf(table: Table, runId: string): Promise<string[]> {
  const column = { job_queue: "workflow_run_id", workflow_steps: "run_id", workflow_runs: "id" }[table];
  const { rows } = await database.pool.query<{ id: string }>(
    `select id from runledger.${table} where ${column} = $1 order by id`,
    [runId],
  );
  return rows.map(({ id }) => id);
}

/** Those of the rows that nobody has locked. */
async function unlocked(table: Table, ids: readonly string[]): Promise<string[]> {
  const { rows } = await database.pool.query<{ id: string }>(
    `select id from runledger.${table} where id = any($1) order by id for update skip locked`,
    [ids],
  );
  return rows.map(({ id }) => id);
}
