/** Reap (FEATURES F-J10): expired leases only, each once, whoever else is at it. */
import { beforeEach, expect, test } from "@jest/globals";
import { createLedger, WorkflowBuilder } from "../../src/index.ts";
import { lockRunReleaseExclusiveAfterJobs } from "../../src/locks/release.ts";
import { createTestDatabase } from "../support/database.ts";
import { claimedOne, codeOf, executorOf, expire, globally, leased, makeDue } from "./fixtures.ts";

const database = await createTestDatabase();
const ledger = createLedger({ db: database.db });

await database.pool.query(`
  create table public.poisoned (job_id uuid primary key);
  create function public.refuse_poisoned() returns trigger language plpgsql as $$
  begin
    if exists (select from public.poisoned where job_id = old.id) and new.status = 'PENDING' then
      raise exception 'poisoned';
    end if;
    return new;
  end $$;
  create trigger poisoned before update on runledger.job_queue for each row execute function public.refuse_poisoned()`);

beforeEach(() => database.pool.query("truncate runledger.job_queue, runledger.job_attempts, public.poisoned"));

test("an expired lease goes back to the queue as a failure of kind LEASE_EXPIRED, with backoff", async () => {
  const { lease } = await leased(ledger, "expires");
  await expire(database, [lease.jobId]);

  expect(await ledger.jobs.reap()).toEqual({ returned: 1, deadLettered: 0, setAside: [] });

  const { rows } = await database.pool.query(
    `select q.status, q.attempt, q.run_at > now() as later, a.failure_kind, a.error_code, a.worker_id
     from runledger.job_queue q join runledger.job_attempts a on a.job_id = q.id where q.id = $1`,
    [lease.jobId],
  );
  expect(rows).toEqual([
    {
      status: "PENDING",
      attempt: 1,
      later: true,
      failure_kind: "LEASE_EXPIRED",
      error_code: "job.lease_expired",
      worker_id: "worker",
    },
  ]);
});

test("the last attempt's expired lease is dead-lettered", async () => {
  const { lease } = await leased(ledger, "last", { maxAttempts: 1 });
  await expire(database, [lease.jobId]);

  expect(await ledger.jobs.reap()).toEqual({ returned: 0, deadLettered: 1, setAside: [] });
  expect(await ledger.jobs.get(lease.jobId, globally)).toMatchObject({
    status: "DEAD_LETTERED",
    failureKind: "LEASE_EXPIRED",
  });
});

test("a lease that lives and a job that waits are left alone", async () => {
  const { lease } = await leased(ledger, "lives");
  const { id } = await ledger.jobs.enqueue("waits", {});

  expect(await ledger.jobs.reap()).toEqual({ returned: 0, deadLettered: 0, setAside: [] });
  expect(
    [await ledger.jobs.get(lease.jobId, globally), await ledger.jobs.get(id, globally)].map(({ status }) => status),
  ).toEqual(["LEASED", "PENDING"]);
});

test("a row that another session holds is passed over, the others are not", async () => {
  const ids = await expiredJobs(5);
  const holder = await database.connect();
  await holder.query("begin");
  await holder.query("select from runledger.job_queue where id = $1 for update", [ids[2]]);

  expect(await ledger.jobs.reap()).toMatchObject({ returned: 4 });

  await holder.query("rollback");
  expect(await ledger.jobs.reap()).toMatchObject({ returned: 1 });
});

test("a lease that is extended while it is reaped stays", async () => {
  const [id] = await expiredJobs(1);
  const holder = await database.connect();
  await holder.query("begin");
  await holder.query("update runledger.job_queue set lease_expires_at = now() + interval '1 hour' where id = $1", [id]);
  expect(await ledger.jobs.reap()).toMatchObject({ returned: 0 });
  await holder.query("commit");

  expect(await ledger.jobs.reap()).toMatchObject({ returned: 0 });
});

test("many reapers at once settle each lease once", async () => {
  await expiredJobs(300);

  const reaped = await Promise.all(Array.from({ length: 12 }, () => ledger.jobs.reap()));

  expect(reaped.reduce((sum, { returned }) => sum + returned, 0)).toBe(300);
  expect(reaped.flatMap(({ setAside }) => setAside)).toEqual([]);
  const { rows } = await database.pool.query("select count(*)::int as n from runledger.job_attempts");
  expect(rows).toEqual([{ n: 300 }]);
});

test("a batch is as large as was asked for", async () => {
  await expiredJobs(7);

  expect(
    [
      await ledger.jobs.reap({ limit: 3 }),
      await ledger.jobs.reap({ limit: 3 }),
      await ledger.jobs.reap({ limit: 3 }),
    ].map(({ returned }) => returned),
  ).toEqual([3, 3, 1]);
});

test.each([1, 3])("%i poisoned rows are set aside, and stop neither the batch nor the next one", async (count) => {
  const ids = await expiredJobs(20);
  const poisoned = [...ids]
    .sort(() => Math.random() - 0.5)
    .slice(0, count)
    .sort();
  await database.pool.query("insert into public.poisoned select unnest($1::uuid[])", [poisoned]);

  const { returned, deadLettered, setAside } = await ledger.jobs.reap();

  expect({ returned, deadLettered }).toEqual({ returned: 20 - count, deadLettered: 0 });
  expect(setAside.map(({ jobId }) => jobId)).toEqual(poisoned);
  expect(setAside.every(({ error }) => error.code === "db.error" && error.sqlstate === "P0001")).toBe(true);
  const { rows } = await database.pool.query(
    "select count(*)::int as n from runledger.job_queue where status = 'LEASED' and lease_expires_at > now() + interval '4 minutes'",
  );
  expect(rows).toEqual([{ n: count }]);
  // The reaper's first rows are no longer the poisoned ones.
  expect(await ledger.jobs.reap({ limit: 1 })).toEqual({ returned: 0, deadLettered: 0, setAside: [] });
});

test("in the caller's transaction a poisoned row is thrown: the caller must roll back", async () => {
  const ids = await expiredJobs(2);
  await database.pool.query("insert into public.poisoned values ($1)", [ids[0]]);
  const trx = await database.db.startTransaction().execute();

  expect(await codeOf(() => ledger.in(trx).jobs.reap())).toBe("db.error");
  await trx.rollback().execute();
});

test("an expired step goes back to the queue, and at its last attempt fails with all that follows", async () => {
  const graph = new WorkflowBuilder("reaped");
  const work = graph.job("work", "reaped-step", {}, { maxAttempts: 2 });
  graph.job("needs-it", "reaped-after", {}, { onSuccess: [work] });
  graph.job("always", "reaped-always", {}, { onTerminal: [work] });
  const { id } = await ledger.runs.enqueue(graph.build());
  const first = await claimedOne(ledger, "reaped-step");
  await expire(database, [first.lease.jobId]);
  expect(await ledger.jobs.reap()).toEqual({ returned: 1, deadLettered: 0, setAside: [] });
  await makeDue(database, [first.lease.jobId]);
  await claimedOne(ledger, "reaped-step");
  await expire(database, [first.lease.jobId]);

  expect(await ledger.jobs.reap()).toEqual({ returned: 0, deadLettered: 1, setAside: [] });

  const { steps } = await ledger.runs.get(id, globally);
  expect(Object.fromEntries(steps.map(({ key, status }) => [key, status]))).toEqual({
    work: "FAILED",
    "needs-it": "CANCELED",
    always: "ENQUEUED",
  });
});

test("many reapers at once end each step once", async () => {
  const graph = new WorkflowBuilder("reaped-crowd");
  const steps = Array.from({ length: 20 }, (_, n) => graph.job(`s${n}`, "reaped-crowd", {}, { maxAttempts: 1 }));
  graph.job("join", "reaped-join", {}, { onTerminal: steps });
  const runs = await ledger.runs.enqueueMany(Array.from({ length: 3 }, () => ({ graph: graph.build() })));
  const jobs = await ledger.jobs.claim({ workerId: "w", limit: 100, types: ["reaped-crowd"] });
  await expire(
    database,
    jobs.map(({ lease }) => lease.jobId),
  );

  const reaped = await Promise.all(Array.from({ length: 8 }, () => ledger.jobs.reap({ limit: 25 })));
  for (let last = reaped; last.some(({ deadLettered }) => deadLettered > 0); reaped.push(...last))
    last = [await ledger.jobs.reap()];

  expect(reaped.reduce((sum, { deadLettered }) => sum + deadLettered, 0)).toBe(60);
  expect(reaped.flatMap(({ setAside }) => setAside)).toEqual([]);
  const statuses = await Promise.all(runs.map(({ id }) => ledger.runs.getStatus(id, globally)));
  expect(statuses.map(({ status }) => status)).toEqual(["RUNNING", "RUNNING", "RUNNING"]);
  expect(await ledger.jobs.claim({ workerId: "w", limit: 10, types: ["reaped-join"] })).toHaveLength(3);
});

test("a step whose run is being cancelled does not stop the others of the batch", async () => {
  const impatient = createLedger({ db: database.db, lockWaitMs: 20 });
  const graph = new WorkflowBuilder("reaped-canceling");
  graph.job("work", "reaped-canceling", {}, { maxAttempts: 1 });
  const [one, two] = await ledger.runs.enqueueMany([{ graph: graph.build() }, { graph: graph.build() }]);
  const jobs = await ledger.jobs.claim({ workerId: "w", limit: 2, types: ["reaped-canceling"] });
  await expire(
    database,
    jobs.map(({ lease }) => lease.jobId),
  );
  const trx = await database.db.startTransaction().execute();
  await lockRunReleaseExclusiveAfterJobs(executorOf(trx), [one?.id ?? ""]);

  const { deadLettered, setAside } = await impatient.jobs.reap();

  expect(deadLettered).toBe(1);
  expect(setAside.map(({ error }) => error.code)).toEqual(["workflow.release_conflict"]);
  expect((await ledger.runs.getStatus(two?.id ?? "", globally)).status).toBe("COMPLETED_WITH_ERRORS");
  await trx.rollback().execute();
});

async function expiredJobs(count: number): Promise<string[]> {
  await ledger.jobs.enqueueMany(Array.from({ length: count }, (_, n) => ({ type: "expired", payload: n })));
  const jobs = await ledger.jobs.claim({ workerId: "w", limit: count, types: ["expired"] });
  const ids = jobs.map(({ lease }) => lease.jobId);
  await expire(database, ids);
  return ids;
}
