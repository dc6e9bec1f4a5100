import { expect, test } from "@jest/globals";
import { defineJob, isLedgerError, type JsonValue, WorkflowBuilder } from "../../src/index.ts";
import { handle, type JobAborted } from "../../src/worker/index.ts";
import { createTestDatabase } from "../support/database.ts";
import { aborted, everywhere, gate, ledgerOn, startWorker } from "./support.ts";

const database = await createTestDatabase();
const ledger = ledgerOn(database);

/** A handler that tells when it runs and with what its signal is aborted. */
function waitingHandler(type: string) {
  const started = gate();
  const reason = gate<JobAborted>();
  const handler = handle(type, ({ signal }) => {
    started.open();
    return aborted(signal).catch((error: JobAborted) => {
      reason.open(error);
      throw error;
    });
  });
  return { handler, started: started.opened, reason: reason.opened };
}

test("cancelling a job aborts its handler's signal", async () => {
  const { id } = await ledger.jobs.enqueue("cancellable", {});
  const { handler, started, reason } = waitingHandler("cancellable");
  const worker = await startWorker({ ledger, leaseSeconds: 1, handlers: [handler] });
  await started;
  await ledger.jobs.cancel(id, { scope: everywhere });

  expect(await reason).toMatchObject({ kind: "cancel", code: "job.canceled" });
  await worker.worker.stop();
  expect(worker.events.map(({ type }) => type)).toEqual(["claimed", "started", "canceled", "stopped"]);
  expect(await ledger.jobs.get(id, everywhere)).toMatchObject({ status: "CANCELED" });
});

test("cancelling a run aborts the signals of its running steps", async () => {
  const graph = new WorkflowBuilder("cancellable-run");
  graph.job("only", "cancellable-step", {});
  const run = await ledger.runs.enqueue(graph.build());
  const { handler, started, reason } = waitingHandler("cancellable-step");
  const worker = await startWorker({ ledger, leaseSeconds: 1, handlers: [handler] });
  await started;
  await ledger.runs.cancel(run.id, { scope: everywhere });

  expect(await reason).toMatchObject({ kind: "cancel" });
  await worker.event("canceled");
});

test("a job that was taken away aborts its handler's signal and leaves the new lease alone", async () => {
  const { id } = await ledger.jobs.enqueue("taken", {});
  const { handler, started, reason } = waitingHandler("taken");
  const worker = await startWorker({ ledger, leaseSeconds: 1, handlers: [handler] });
  await started;
  await database.pool.query(
    `update runledger.job_queue
     set worker_id = 'another', attempt = attempt + 1, lease_expires_at = now() + interval '1 hour' where id = $1`,
    [id],
  );

  expect(await reason).toMatchObject({ kind: "lease_lost", code: "job.lease_lost" });
  expect(await worker.event("lost")).toMatchObject({ error: { code: "job.lease_owner_mismatch" } });
  await worker.worker.stop();
  expect(await ledger.jobs.get(id, everywhere)).toMatchObject({ status: "LEASED", workerId: "another", attempt: 2 });
});

test("heartbeats keep a lease for as long as its handler runs", async () => {
  const { id } = await ledger.jobs.enqueue("long", {});
  const beats = gate();
  let seen = 0;
  let first: Date | null = null;
  const worker = await startWorker({
    ledger,
    leaseSeconds: 1,
    reap: { intervalMs: 50 },
    handlers: [
      handle("long", async () => {
        // Longer than the lease by the database's own account: it is extended past its first end, twice over.
        while (seen < 4) {
          const { leaseExpiresAt } = await ledger.jobs.get(id, everywhere);
          if (first?.getTime() !== leaseExpiresAt?.getTime()) seen += 1;
          first = leaseExpiresAt;
        }
        beats.open();
        return "alive";
      }),
    ],
  });
  await beats.opened;
  await worker.event("succeeded");

  expect(await ledger.jobs.get(id, everywhere)).toMatchObject({ attempt: 1, output: "alive" });
});

test("all leases of a worker are kept by one statement a beat", async () => {
  const jobs = await ledger.jobs.enqueueMany(Array.from({ length: 20 }, (_, n) => ({ type: "kept", payload: n })));
  const finish = gate();
  const began = performance.now();
  const { statements } = await database.record(async () => {
    const worker = await startWorker({
      ledger,
      leaseSeconds: 2,
      concurrency: 20,
      handlers: [handle("kept", () => finish.opened)],
    });
    await worker.count("started", 20);
    // Past the ends of the leases that they were claimed under: each was kept.
    await database.pool.query("select pg_sleep(2.2)");
    finish.open();
    await worker.count("succeeded", 20);
    await worker.worker.stop();
  });
  const beats = (performance.now() - began) / (2000 / 3);
  const heartbeats = statements.filter((text) => text.includes("heartbeat"));

  expect(heartbeats.length).toBeGreaterThan(1);
  expect(heartbeats.length).toBeLessThanOrEqual(beats);
  for (const { id } of jobs) expect(await ledger.jobs.get(id, everywhere)).toMatchObject({ attempt: 1 });
});

/** Holds the job's row until it is let go, as a handler does that completes its job in a long transaction. */
async function lockRow(jobId: string): Promise<{ letGo(): Promise<void> }> {
  const holder = await database.connect();
  await holder.query("begin");
  await holder.query("select from runledger.job_queue where id = $1 for update", [jobId]);
  return {
    letGo: async () => {
      await holder.query("rollback");
    },
  };
}

/** Two jobs under way in one worker that does not wait long for locks. */
async function twoRunning(type: string, run: (which: JsonValue) => Promise<unknown>, leaseSeconds: number) {
  const started = gate();
  let count = 0;
  const handler = handle(type, ({ payload }) => {
    count += 1;
    if (count === 2) started.open();
    return run(payload);
  });
  const jobs = await ledger.jobs.enqueueMany([
    { type, payload: "stuck" },
    { type, payload: "free" },
  ]);
  const impatient = ledgerOn(database, { lockWaitMs: 50 });
  const worker = await startWorker({ ledger: impatient, leaseSeconds, handlers: [handler] });
  await started.opened;
  return { worker, stuck: jobs[0]?.id ?? "", free: jobs[1]?.id ?? "" };
}

test("a locked row delays its own outcome and no other, and none is thrown away", async () => {
  const finish = gate();
  const { worker, stuck, free } = await twoRunning("locked-at-the-end", () => finish.opened, 60);
  const lock = await lockRow(stuck);
  finish.open();

  await worker.event("succeeded", ({ job }) => job.jobId === free);
  await worker.event("error", ({ error }) => isLedgerError(error) && error.code === "db.lock_timeout");
  expect(await ledger.jobs.get(stuck, everywhere)).toMatchObject({ status: "LEASED" });
  await lock.letGo();
  await worker.event("succeeded", ({ job }) => job.jobId === stuck);
});

test("a row that stays locked costs its own attempt the lease and no other", async () => {
  const finish = gate();
  const { worker, stuck, free } = await twoRunning("locked-meanwhile", () => finish.opened, 1);
  const lock = await lockRow(stuck);

  await worker.event("lost", ({ job }) => job.jobId === stuck);
  expect(worker.events.filter(({ type }) => type === "lost")).toHaveLength(1);
  finish.open();
  await worker.event("succeeded", ({ job }) => job.jobId === free);
  await lock.letGo();
});

test("a handler that outlives its lease does not store its outcome", async () => {
  const { id } = await ledger.jobs.enqueue("outlived", {});
  const finish = gate();
  const started = gate();
  const worker = await startWorker({
    ledger,
    handlers: [
      handle("outlived", async () => {
        started.open();
        await finish.opened;
        return "too late";
      }),
    ],
  });
  await started.opened;
  await database.pool.query("update runledger.job_queue set lease_expires_at = now() - interval '1 s' where id = $1", [
    id,
  ]);
  finish.open();

  expect(await worker.event("lost")).toMatchObject({ error: { code: "job.lease_owner_mismatch" } });
  expect(await ledger.jobs.get(id, everywhere)).toMatchObject({ status: "LEASED", output: null });
});

test("a worker that died is replaced: the next one reaps its lease and makes the attempt again", async () => {
  await ledger.jobs.sync([defineJob("orphaned", { backoff: { initialSeconds: 0 } })]);
  const { id } = await ledger.jobs.enqueue("orphaned", {});
  // What a worker leaves behind that dies right after its claim.
  await ledger.jobs.claim({ workerId: "dead", limit: 1, leaseSeconds: 1, types: ["orphaned"] });
  const worker = await startWorker({
    ledger,
    reap: { intervalMs: 20 },
    handlers: [handle("orphaned", ({ attempt }) => attempt)],
  });
  await worker.event("reaped");
  await worker.event("succeeded", ({ job }) => job.jobId === id);

  expect(await ledger.jobs.get(id, everywhere)).toMatchObject({ attempt: 2, output: 2 });
});
