/** The cold ledger: its partitions, and the views over queue and ledger (DESIGN §4). */
import { expect, test } from "@jest/globals";
import { createLedger, WorkflowBuilder } from "../../src/index.ts";
import { createTestDatabase } from "../support/database.ts";
import { waitForBackend } from "../support/waiting.ts";
import { claimedOne, codeOf, errorOf, expire, globally, leased, makeDue } from "./fixtures.ts";

const database = await createTestDatabase();
const ledger = createLedger({ db: database.db });

const WEEK = 7 * 24 * 3600 * 1000;

test("the migration made this week's partition and eight ahead, without a gap between them", async () => {
  const bounds = await partitionBounds();

  expect(bounds).toHaveLength(9);
  expect(bounds.slice(1).map(({ from }) => from)).toEqual(bounds.slice(0, -1).map(({ to }) => to));
  const [first] = bounds;
  const now = Date.now().toString(16).padStart(12, "0");
  expect(first && first.from.replaceAll("-", "") <= now && now < (bounds[0]?.to.replaceAll("-", "") ?? "")).toBe(true);
});

test("making partitions again makes none; asking for more makes only those", async () => {
  expect(await ensure(8)).toEqual([]);
  expect(await ensure(10)).toHaveLength(2);
  expect(await ensure(10)).toEqual([]);
});

test("partitions that many make at once are made once", async () => {
  const made = await Promise.all(Array.from({ length: 8 }, () => ensure(14)));

  expect(made.flat()).toHaveLength(4);
  expect(new Set(made.flat()).size).toBe(4);
});

test("an ended job lies in the partition of its id's week", async () => {
  const { lease } = await leased(ledger, "this-week");
  await ledger.jobs.complete(lease);

  expect(await partitionOf(lease.jobId)).toMatch(/^job_ledger_\d{8}$/);
});

test.each([
  "00000000-0000-7000-8000-000000000000",
  "ffffffff-ffff-7fff-bfff-ffffffffffff",
  "6ba7b810-9dad-41d1-80b4-00c04fd430c8",
])("the job %s, outside of every partition, ends in the default one and is found", async (id) => {
  await enqueueAs(id);
  const { lease } = await claimedOne(ledger, "given-id");
  await ledger.jobs.complete(lease, { output: 1 });

  expect(await partitionOf(id)).toBe("job_ledger_default");
  expect(await ledger.jobs.get(id, globally)).toMatchObject({ status: "SUCCEEDED", output: 1 });
});

test("rows of the default partition move into the one that is made for their week", async () => {
  const id = idAt(Date.now() + 20 * WEEK);
  await enqueueAs(id);
  await ledger.jobs.complete((await claimedOne(ledger, "given-id")).lease, { output: "moved" });
  expect(await partitionOf(id)).toBe("job_ledger_default");

  await ensure(21);

  expect(await partitionOf(id)).toMatch(/^job_ledger_\d{8}$/);
  expect(await ledger.jobs.get(id, globally)).toMatchObject({ status: "SUCCEEDED", output: "moved" });
  const { rows } = await database.pool.query("select count(*)::int as n from runledger.job_ledger where id = $1", [id]);
  expect(rows).toEqual([{ n: 1 }]);
});

test("a partition is made for a week in which jobs are just ending", async () => {
  const id = idAt(Date.now() + 22 * WEEK);
  await enqueueAs(id);
  const { lease } = await claimedOne(ledger, "given-id");
  const trx = await database.db.startTransaction().execute();
  await ledger.in(trx).jobs.complete(lease);

  const making = ensure(22);
  await waitForBackend({ client: database.pool, marker: "ensure_job_ledger_partitions" });
  await trx.commit().execute();

  expect(await making).toHaveLength(1);
  expect(await partitionOf(id)).toMatch(/^job_ledger_\d{8}$/);
});

test("a partition that is detached takes its rows along and nothing else", async () => {
  const { lease } = await leased(ledger, "detached");
  await ledger.jobs.complete(lease);
  const partition = await partitionOf(lease.jobId);

  await database.pool.query(`alter table runledger.job_ledger detach partition runledger.${partition}`);

  expect(await codeOf(() => ledger.jobs.get(lease.jobId, globally))).toBe("job.not_found");
  await database.pool.query(`drop table runledger.${partition}`);
  expect(await ensure(22)).toEqual([partition]);
});

test("a row of the ledger is one run of a job, and no run is written twice", async () => {
  const { lease } = await leased(ledger, "once");
  await ledger.jobs.complete(lease);

  const again = database.pool.query(
    "insert into runledger.job_ledger select * from runledger.job_ledger where id = $1",
    [lease.jobId],
  );

  expect(await errorOf(again)).toMatchObject({ code: "23505" });
});

test("the view jobs shows each job once: its live row, else its latest run", async () => {
  const { lease } = await leased(ledger, "viewed");
  const statuses = async () => {
    const { rows } = await database.pool.query("select run_number, status from runledger.jobs where id = $1", [
      lease.jobId,
    ]);
    return rows;
  };
  expect(await statuses()).toEqual([{ run_number: 1, status: "LEASED" }]);
  await ledger.jobs.fail(lease, { kind: "TERMINAL", code: "c", message: "m" });
  expect(await statuses()).toEqual([{ run_number: 1, status: "DEAD_LETTERED" }]);

  await requeue(lease.jobId);
  expect(await statuses()).toEqual([{ run_number: 2, status: "PENDING" }]);
  await ledger.jobs.complete((await claimedOne(ledger, "viewed")).lease);
  expect(await statuses()).toEqual([{ run_number: 2, status: "SUCCEEDED" }]);
  const { rows } = await database.pool.query(
    "select run_number, status from runledger.job_ledger where id = $1 order by 1",
    [lease.jobId],
  );
  expect(rows).toEqual([
    { run_number: 1, status: "DEAD_LETTERED" },
    { run_number: 2, status: "SUCCEEDED" },
  ]);
});

test("the view job_timeline tells the whole story of a job", async () => {
  const { lease } = await leased(ledger, "story", { maxAttempts: 3 });
  await ledger.jobs.fail(lease, { code: "first", message: "m1" });
  await makeDue(database, [lease.jobId]);
  await claimedOne(ledger, "story", "second-worker");
  await expire(database, [lease.jobId]);
  await ledger.jobs.reap();
  await makeDue(database, [lease.jobId]);
  const third = await claimedOne(ledger, "story", "third-worker");
  expect(await storyOf(lease.jobId)).toEqual([
    ["enqueued", 1, null, null, null],
    ["leased", 1, 1, "worker", null],
    ["attempt_failed", 1, 1, "worker", "first"],
    ["leased", 1, 2, "second-worker", null],
    ["attempt_failed", 1, 2, "second-worker", "job.lease_expired"],
    ["leased", 1, 3, "third-worker", null],
  ]);

  await ledger.jobs.complete(third.lease);

  expect(await storyOf(lease.jobId)).toEqual([
    ["enqueued", 1, null, null, null],
    ["leased", 1, 1, "worker", null],
    ["attempt_failed", 1, 1, "worker", "first"],
    ["leased", 1, 2, "second-worker", null],
    ["attempt_failed", 1, 2, "second-worker", "job.lease_expired"],
    ["leased", 1, 3, "third-worker", null],
    ["succeeded", 1, 3, "third-worker", null],
  ]);
});

test("the timeline of a cancelled and of a step's job ends as they did", async () => {
  const { id } = await ledger.jobs.enqueue("story-cancelled", {});
  await ledger.jobs.cancel(id, { scope: globally, reason: "why" });
  const graph = new WorkflowBuilder("story-step");
  graph.job("work", "story-step", {});
  await ledger.runs.enqueue(graph.build());
  const step = await claimedOne(ledger, "story-step");
  await ledger.jobs.fail(step.lease, { kind: "TERMINAL", code: "c", message: "m" });

  expect((await storyOf(id)).map(([event]) => event)).toEqual(["enqueued", "canceled"]);
  expect((await storyOf(step.lease.jobId)).map(([event]) => event)).toEqual([
    "enqueued",
    "leased",
    "attempt_failed",
    "dead_lettered",
  ]);
});

async function ensure(weeks: number): Promise<string[]> {
  const { rows } = await database.pool.query<{ name: string }>(
    "select runledger.ensure_job_ledger_partitions($1) as name",
    [weeks],
  );
  return rows.map(({ name }) => name);
}

async function partitionOf(id: string): Promise<string> {
  const { rows } = await database.pool.query<{ name: string }>(
    "select c.relname as name from runledger.job_ledger l join pg_class c on c.oid = l.tableoid where l.id = $1",
    [id],
  );
  return rows[0]?.name ?? "none";
}

async function partitionBounds(): Promise<{ from: string; to: string }[]> {
  const { rows } = await database.pool.query<{ bound: string }>(
    `select pg_get_expr(relpartbound, oid) as bound from pg_class
     where relispartition and relkind = 'r' and relname ~ '^job_ledger_[0-9]+$' order by relname`,
  );
  return rows.map(({ bound }) => {
    const [, from = "", to = ""] = /FROM \('([^']+)'\) TO \('([^']+)'\)/.exec(bound) ?? [];
    return { from, to };
  });
}

/** A UUIDv7 of that time. */
function idAt(ms: number): string {
  const hex = Math.floor(ms).toString(16).padStart(12, "0");
  return `${hex.slice(0, 8)}-${hex.slice(8)}-7000-8000-000000000001`;
}

async function enqueueAs(id: string): Promise<void> {
  await database.pool.query(
    `insert into runledger.job_queue (id, type, priority, run_at, max_attempts, timeout_seconds, payload)
     values ($1, 'given-id', 100, now(), 3, 60, '{}')`,
    [id],
  );
}

/** As a requeue does: the next run number, the ledger's row as it is. */
async function requeue(id: string): Promise<void> {
  await database.pool.query(
    `insert into runledger.job_queue (id, run_number, type, priority, run_at, max_attempts, timeout_seconds, payload)
     select id, run_number + 1, type, priority, now(), max_attempts, timeout_seconds, payload
     from runledger.job_ledger where id = $1`,
    [id],
  );
}

async function storyOf(id: string) {
  const { rows } = await database.pool.query(
    "select event, run_number, attempt, actor, code from runledger.job_timeline where job_id = $1 order by run_number, at, place",
    [id],
  );
  return rows.map(({ event, run_number, attempt, actor, code }) => [event, run_number, attempt, actor, code]);
}
