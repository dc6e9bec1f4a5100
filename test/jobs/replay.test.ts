/** Replay of succeeded jobs as new ones (FEATURES F-J9), once for a key. */
import { afterEach, expect, test } from "@jest/globals";
import { v7 } from "uuid";
import { createLedger, type ReplayOptions, WorkflowBuilder } from "../../src/index.ts";
import { expectInvariants } from "../invariants.ts";
import { createTestDatabase } from "../support/database.ts";
import { waitForBackend } from "../support/waiting.ts";
import { codec, ledgerWith } from "../values/support.ts";
import { claimedOne, codeOf, everythingOf, globally, leased, unknownId } from "./fixtures.ts";

const database = await createTestDatabase();
const ledger = createLedger({ db: database.db });
const scope = globally;

afterEach(() => expectInvariants(database));

test("a replay is a new job that does the same, and knows where it comes from", async () => {
  const source = await succeeded("same", { payload: { in: 1 }, maxAttempts: 3, tags: ["t"] });

  const replayed = await ledger.jobs.replay(source, { scope, key: "k", replayedBy: "ana", reason: "lost mail" });

  expect(replayed).toEqual({ id: expect.any(String), status: "PENDING", runNumber: 1, disposition: "inserted" });
  expect(replayed.id).not.toBe(source);
  expect(await ledger.jobs.get(source, scope)).toMatchObject({ status: "SUCCEEDED", runNumber: 1, output: 1 });
  expect(await ledger.jobs.get(replayed.id, scope)).toMatchObject({
    type: "same",
    status: "PENDING",
    attempt: 0,
    maxAttempts: 3,
    payload: { in: 1 },
    checkpoint: null,
    progress: null,
    tags: ["t"],
  });
  const { rows: events } = await database.pool.query(
    "select event, run_number, actor, details from runledger.job_events where job_id = $1",
    [source],
  );
  expect(events).toEqual([
    {
      event: "replayed",
      run_number: 1,
      actor: "ana",
      details: { job_id: replayed.id, reason: "lost mail" },
    },
  ]);
  await ledger.jobs.complete((await claimedOne(ledger, "same")).lease, { output: 2 });
  const { rows } = await database.pool.query(
    "select source_job_id, source_run_number, output from runledger.job_ledger where id = $1",
    [replayed.id],
  );
  expect(rows).toEqual([{ source_job_id: source, source_run_number: 1, output: 2 }]);
});

test("the same key gives the same replay, whatever has become of it; another key another one", async () => {
  const source = await succeeded("keyed");
  const first = await ledger.jobs.replay(source, { scope, key: "k" });
  expect(await ledger.jobs.replay(source, { scope, key: "k" })).toEqual({ ...first, disposition: "existing" });
  await ledger.jobs.complete((await claimedOne(ledger, "keyed")).lease);

  expect(await ledger.jobs.replay(source, { scope, key: "k" })).toEqual({
    ...first,
    status: "SUCCEEDED",
    disposition: "existing",
  });
  const second = await ledger.jobs.replay(source, { scope, key: "other" });
  expect(second.id).not.toBe(first.id);
});

test("a key belongs to a job: the same one replays another job", async () => {
  const [one, two] = [await succeeded("shared-key"), await succeeded("shared-key")];

  expect(await ledger.jobs.replay(one, { scope, key: "k" })).toMatchObject({ disposition: "inserted" });
  expect(await ledger.jobs.replay(two, { scope, key: "k" })).toMatchObject({ disposition: "inserted" });
});

test("the payload may be another one, and is part of what the key remembers, as jsonb compares it", async () => {
  const source = await succeeded("payload", { payload: { a: 1 } });
  const replay = (options: Partial<ReplayOptions>) =>
    codeOf(() => ledger.jobs.replay(source, { scope, key: "k", ...options }));
  const { id } = await ledger.jobs.replay(source, { scope, key: "k", payload: { b: 1, c: 2 } });

  expect((await ledger.jobs.get(id, scope)).payload).toEqual({ b: 1, c: 2 });
  expect(await replay({ payload: { c: 2.0, b: 1 } })).toMatchObject({ resolved: { id, disposition: "existing" } });
  expect(await replay({ payload: { b: 1, c: 3 } })).toBe("job.replay_conflicting_key");
  expect(await replay({})).toBe("job.replay_conflicting_key");
});

test("a job that continued is replayed by its last run", async () => {
  const first = await leased(ledger, "sliced", { payload: 1 });
  await ledger.jobs.continue(first.lease);
  expect(await codeOf(() => ledger.jobs.replay(first.lease.jobId, { scope, key: "k" }))).toBe(
    "job.replay_not_succeeded",
  );
  await ledger.jobs.complete((await claimedOne(ledger, "sliced")).lease);
  const { id } = await ledger.jobs.replay(first.lease.jobId, { scope, key: "k" });

  const { rows } = await database.pool.query("select source_run_number from runledger.job_queue where id = $1", [id]);
  expect(rows).toEqual([{ source_run_number: 2 }]);
});

test.each<[string, () => Promise<string>, string]>([
  ["pending", async () => (await ledger.jobs.enqueue("not-pending", {})).id, "job.replay_not_succeeded"],
  ["leased", async () => (await leased(ledger, "not-leased")).lease.jobId, "job.replay_not_succeeded"],
  ["dead", dead, "job.replay_not_succeeded"],
  ["of a run", ofRun, "job.workflow_requeue_not_supported"],
  ["unknown", async () => unknownId, "job.not_found"],
  ["another tenant's", () => succeeded("tenant", { organizationId: v7() }), "job.not_found"],
])("a job that is %s is not replayed", async (_what, make, code) => {
  const id = await make();
  const before = await everythingOf(database, id);

  expect(await codeOf(() => ledger.jobs.replay(id, { scope, key: "k" }))).toBe(code);
  expect(await everythingOf(database, id)).toEqual(before);
  expect(await guards(id)).toBe(0);
});

test("a tenant's job is replayed as its own", async () => {
  const organizationId = v7();
  const source = await succeeded("of-tenant", { organizationId });
  const { id } = await ledger.jobs.replay(source, { scope: { organization: organizationId }, key: "k" });

  expect((await ledger.jobs.get(id, { organization: organizationId })).organizationId).toBe(organizationId);
});

test("of two replays with one key at once one inserts, and the other gets its job", async () => {
  const source = await succeeded("race");
  const trx = await database.db.startTransaction().execute();
  const first = await ledger.in(trx).jobs.replay(source, { scope, key: "k" });
  const second = ledger.jobs.replay(source, { scope, key: "k" });
  await waitForBackend({ client: database.pool, marker: "runledger:replay_jobs" });
  await trx.commit().execute();

  expect(await second).toEqual({ ...first, disposition: "existing" });
  expect(await guards(source)).toBe(1);
});

test("a replay that waited for one that rolled back inserts its own", async () => {
  const source = await succeeded("race-rolled-back");
  const trx = await database.db.startTransaction().execute();
  const first = await ledger.in(trx).jobs.replay(source, { scope, key: "k" });
  const second = ledger.jobs.replay(source, { scope, key: "k" });
  await waitForBackend({ client: database.pool, marker: "runledger:replay_jobs" });
  await trx.rollback().execute();

  expect(await second).toMatchObject({ disposition: "inserted" });
  expect((await second).id).not.toBe(first.id);
});

test("in a caller's transaction only READ COMMITTED will do", async () => {
  const source = await succeeded("isolation");
  const trx = await database.db.startTransaction().setIsolationLevel("repeatable read").execute();

  expect(await codeOf(() => ledger.in(trx).jobs.replay(source, { scope, key: "k" }))).toBe(
    "job.replay_unsupported_isolation",
  );
  await trx.rollback().execute();
});

test("under a codec a key knows its payload again, and the replay has it encoded", async () => {
  const encoding = ledgerWith(database, { codec });
  const source = await succeeded("encoded");
  const replay = (payload: unknown) => codeOf(() => encoding.jobs.replay(source, { scope, key: "k", payload }));
  const { id } = await encoding.jobs.replay(source, { scope, key: "k", payload: { card: 4711 } });

  expect(await replay({ card: 4711 })).toMatchObject({ resolved: { id, disposition: "existing" } });
  expect(await replay({ card: 4712 })).toBe("job.replay_conflicting_key");
  expect((await encoding.jobs.get(id, scope)).payload).toEqual({ card: 4711 });
  const { rows } = await database.pool.query<{ payload: string; requested: string }>(
    `select q.payload::text, r.requested::text from runledger.job_replays r
     join runledger.job_queue q on q.id = r.job_id where r.source_job_id = $1`,
    [source],
  );
  for (const text of Object.values(rows[0] ?? {})) expect(text).toContain("$runledger");
});

async function succeeded(type: string, options: Parameters<typeof leased>[2] = {}): Promise<string> {
  const { lease } = await leased(ledger, type, options);
  await ledger.jobs.progress(lease, { done: 1 });
  await ledger.jobs.checkpoint(lease, 1);
  await ledger.jobs.complete(lease, { output: 1 });
  return lease.jobId;
}

async function dead(): Promise<string> {
  const { lease } = await leased(ledger, "not-dead");
  await ledger.jobs.fail(lease, { kind: "TERMINAL", code: "c", message: "m" });
  return lease.jobId;
}

async function ofRun(): Promise<string> {
  const graph = new WorkflowBuilder("replay-step");
  graph.job("work", "replay-step", {});
  await ledger.runs.enqueue(graph.build());
  const { lease } = await claimedOne(ledger, "replay-step");
  await ledger.jobs.complete(lease);
  return lease.jobId;
}

async function guards(jobId: string): Promise<number> {
  const { rowCount } = await database.pool.query("select from runledger.job_replays where source_job_id = $1", [jobId]);
  return rowCount ?? 0;
}
