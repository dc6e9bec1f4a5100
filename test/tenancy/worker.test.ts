/** The worker's role is enough for a worker: everything that one does, as a login of that role, over all tenants. */
import { expect, test } from "@jest/globals";
import { sql } from "kysely";
import {
  createLedger,
  defineJob,
  defineSchedule,
  defineWorkflow,
  type Tenant,
  typed,
  WorkflowBuilder,
} from "../../src/index.ts";
import { handle, RetryableError } from "../../src/worker/index.ts";
import { expectInvariants } from "../invariants.ts";
import { createTestDatabase } from "../support/database.ts";
import { startWorker } from "../worker/support.ts";
import { createLogins } from "./logins.ts";

const database = await createTestDatabase();
const owner = createLedger({ db: database.db });
const logins = await createLogins(database);
const worker = logins.as("worker");
const enqueuer = logins.as("enqueuer");
const organizations = ["00000000-0000-7000-8000-00000000000a", "00000000-0000-7000-8000-00000000000b", null];
const everywhere = { admin: true } as const;

const fetchAll = defineJob("fetch", { output: typed<number[]>() });
const double = defineJob("double", { input: typed<number>(), output: typed<number>() });
const flaky = defineJob("flaky", { maxAttempts: 2, backoff: { initialSeconds: 0 }, output: typed<string>() });

const handlers = [
  handle(fetchAll, async ({ progress, saveCheckpoint, log }) => {
    await progress(1, 2);
    await saveCheckpoint({ at: 1 });
    await log("info", "fetching");
    return [1, 2, 3];
  }),
  handle(double, ({ payload }) => payload * 2),
  handle(flaky, ({ attempt }) => {
    if (attempt === 1) throw new RetryableError("flaky.once", "once");
    return "done";
  }),
  handle("grow", ({ append }) => append("grow", (graph) => graph.job("grown", double, 21))),
  handle("effect", async ({ lease, job: { organizationId } }) => {
    await worker.ledger.jobs.complete(lease, { output: 1 }, async (trx) => {
      await worker.ledger.in(trx).jobs.enqueue("flaky", {}, { organizationId });
    });
  }),
];

const below = defineWorkflow("below", {
  build: (graph, _input: object) => graph.job("answer", double, 4),
});

function everything() {
  const graph = new WorkflowBuilder("everything");
  const fetched = graph.job("fetch", fetchAll, {});
  const doubled = graph.map("double", double, { over: fetched });
  const approved = graph.external("approve", { onSuccess: [doubled] });
  const last = graph.job("last", flaky, {}, { onSuccess: [approved] });
  graph.job("grow", "grow", {}, { onSuccess: [last] });
  graph.external("late", { onSuccess: [last], expires: { afterSeconds: 0.01, outcome: "SUCCEEDED" } });
  graph.result(graph.child("below", below, {}, { onSuccess: [last] }));
  return graph.build();
}

function neverApproved() {
  const graph = new WorkflowBuilder("never-approved");
  graph.external("approve");
  return graph.build();
}

test("jobs and runs of every tenant are drained: retries, maps, gates, children, additions, timers, reaping", async () => {
  await worker.ledger.jobs.sync([fetchAll, double, flaky]);
  await abandonOne();
  const everySecond = { cron: "* * * * * *", job: double, payload: 1 } as const;
  await worker.ledger.schedules.upsert(
    defineSchedule("ticks", { ...everySecond, organizationId: organizations[0] ?? null }),
  );
  const runs = await Promise.all(organizations.map(start));
  const schedules = organizations.map((organizationId) =>
    defineSchedule("effects", { cron: "@yearly", job: "effect", payload: {}, organizationId }),
  );
  await worker.ledger.schedules.sync(schedules);
  for (const { scope } of runs) await worker.ledger.schedules.retime("effects", { scope, at: new Date(0) });
  const watched = await startWorker({ ledger: worker.ledger, handlers, reap: { intervalMs: 20 }, schedule: true });

  for (const { run, tooLong, scope } of runs) {
    expect(await owner.runs.getResult(run, { scope, timeoutMs: 20_000 })).toBe(8);
    expect(await owner.steps.openGates({ scope, runId: run })).toMatchObject({ gates: [] });
    await watched.event("deadline_exceeded", ({ runId }) => runId === tooLong);
    expect(await owner.runs.getStatus(tooLong, scope)).toMatchObject({ status: "CANCELED" });
  }
  await watched.event("schedule_fired");
  await owner.schedules.remove("ticks", { scope: everywhere });
  await watched.event("reaped", ({ returned }) => returned === 1);
  for (const own of organizations) await watched.event("schedule_fired", (fired) => fired.organizationId === own);
  await drained();
  await watched.worker.stop();
  const wrong = watched.events.filter(({ type }) => ["error", "lost", "failed", "set_aside"].includes(type));
  expect(wrong).toEqual([]);
  await expectInvariants(database);
}, 60_000);

/** A job whose worker has died. */
async function abandonOne(): Promise<void> {
  await owner.jobs.enqueue("double", 1);
  expect(await worker.ledger.jobs.claim({ workerId: "dead", limit: 1 })).toHaveLength(1);
  await sql`update runledger.job_queue set lease_expires_at = now() - interval '1 second'`.execute(database.db);
}

async function start(organizationId: string | null) {
  const scope: Tenant = organizationId === null ? { global: true } : { organization: organizationId };
  return enqueuer.ledger.inTenant(scope, async (own) => {
    await own.jobs.enqueueMany(["flaky", "effect"].map((type) => ({ type, payload: {}, organizationId })));
    const { id: run } = await own.runs.enqueue(everything(), { organizationId });
    await own.steps.complete(run, "approve", { scope, keep: true });
    const { id: tooLong } = await own.runs.enqueue(neverApproved(), { organizationId, deadlineSeconds: 0.1 });
    const { id: canceled } = await own.runs.enqueue(everything(), { organizationId });
    await own.runs.cancel(canceled, { scope });
    return { run, tooLong, scope };
  });
}

async function drained(): Promise<void> {
  const deadline = Date.now() + 15_000;
  for (;;) {
    const { rows } = await sql<{ left: number }>`select count(*)::int as left from runledger.job_queue`.execute(
      database.db,
    );
    if (rows[0]?.left === 0) return;
    if (Date.now() > deadline) throw new Error(`${rows[0]?.left} jobs are left`);
    await new Promise((wake) => setTimeout(wake, 20));
  }
}

test("the other roles are not enough", async () => {
  await owner.jobs.enqueue("double", 1);
  for (const kind of ["enqueuer", "reader"] as const) {
    const { ledger } = logins.as(kind);
    for (const tenant of [null, { global: true } as const]) {
      const claim = (own: typeof ledger) => own.jobs.claim({ workerId: "w", limit: 1 });
      await expect(tenant === null ? claim(ledger) : ledger.inTenant(tenant, claim)).rejects.toMatchObject({
        code: "db.forbidden",
      });
    }
  }
  const [claimed] = await worker.ledger.jobs.claim({ workerId: "w", limit: 1 });
  if (claimed === undefined) throw new Error("a job is due");
  const { ledger } = enqueuer;
  await expect(
    ledger.inTenant({ global: true }, (own) => own.jobs.complete(claimed.lease, { output: 1 })),
  ).rejects.toMatchObject({ code: "db.forbidden" });
  expect(await owner.jobs.get(claimed.lease.jobId, everywhere)).toMatchObject({ status: "LEASED" });
});
