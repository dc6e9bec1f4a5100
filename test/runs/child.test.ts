/** A step may be a run of its own: its result is the step's output, its end the step's end (FEATURES F-W12). */
import { afterEach, describe, expect, test } from "@jest/globals";
import {
  CHILD_RUN_JOB,
  type ClaimedJob,
  defineJob,
  defineWorkflow,
  typed,
  WorkflowAddition,
  WorkflowBuilder,
} from "../../src/index.ts";
import { expectInvariants } from "../invariants.ts";
import { createTestDatabase } from "../support/database.ts";
import { waitForBackend } from "../support/waiting.ts";
import { codeOf, failure, globally, ledgerOf, openTransaction, someOrganization, TestRun } from "./fixtures.ts";

const database = await createTestDatabase();
const ledger = ledgerOf(database);

afterEach(() => expectInvariants(database));

const pack = defineJob("pack", {
  input: typed<{ orderId: string }>(),
  output: typed<{ box: number }>(),
  maxAttempts: 1,
});
const shipping = defineWorkflow("shipping", {
  input: typed<{ orderId: string }>(),
  build: (graph, { orderId }) => graph.job("pack", pack, { orderId }),
});

let orders = 0;

async function order(options: { organizationId?: string; delaySeconds?: number; deadlineSeconds?: number } = {}) {
  orders += 1;
  const type = `order-${orders}`;
  const { organizationId, ...child } = options;
  const graph = new WorkflowBuilder(type);
  const paid = graph.job("pay", `${type}.pay`, {});
  const shipped = graph.child("ship", shipping, { orderId: "o-1" }, { onSuccess: [paid], ...child });
  graph.result(graph.job("thank", `${type}.thank`, {}, { onSuccess: [shipped] }));
  const { id } = await ledger.runs.enqueue(graph.build(), organizationId === undefined ? {} : { organizationId });
  return new TestRun(database, ledger, id, type);
}

async function claimChildJob(): Promise<ClaimedJob> {
  const [job] = await ledger.jobs.claim({ workerId: "children", limit: 1, types: [CHILD_RUN_JOB] });
  if (job === undefined) throw new Error("no child job is due");
  return job;
}

/** The parent's step, started: the child is a run of its own. */
async function started(options: Parameters<typeof order>[0] = {}) {
  const parent = await order(options);
  await parent.succeed("pay");
  const { childRunId } = await ledger.runs.advanceChild(await claimChildJob());
  const child = new TestRun(database, ledger, childRunId, "shipping");
  return { parent, child };
}

async function packJob(): Promise<ClaimedJob> {
  const [job] = await ledger.jobs.claim({ workerId: "packer", limit: 1, types: ["pack"] });
  if (job === undefined) throw new Error("nothing to pack");
  return job;
}

describe("a child run", () => {
  test("is started by the step's job; the step runs without a live job while the child does", async () => {
    const { parent, child } = await started();

    expect(await parent.row("ship")).toMatchObject({ status: "RUNNING", child_run_id: child.id });
    expect(await parent.liveJobs()).toEqual([]);
    expect(await child.statuses()).toEqual({ pack: "ENQUEUED" });
    expect((await packJob()).payload).toEqual({ orderId: "o-1" });
  });

  test("that succeeds hands its result to the step, and the parent goes on", async () => {
    const { parent } = await started();
    await ledger.jobs.complete((await packJob()).lease, { output: { box: 7 } });
    const job = await claimChildJob();
    expect(job.lease.runNumber).toBe(2);
    expect(await ledger.runs.advanceChild(job)).toMatchObject({ state: "ended" });

    expect(await parent.row("ship")).toMatchObject({ status: "SUCCEEDED", output: { box: 7 } });
    await parent.succeed("thank", "thanks");
    expect(await ledger.runs.getResult(parent.id, globally)).toBe("thanks");
  });

  test("that completes with errors fails the step", async () => {
    const { parent } = await started();
    await ledger.jobs.fail((await packJob()).lease, failure);
    await ledger.runs.advanceChild(await claimChildJob());

    expect(await parent.row("ship")).toMatchObject({ status: "FAILED", error_code: "workflow.child_run_failed" });
    expect(await parent.statuses()).toMatchObject({ thank: "CANCELED" });
  });

  test("of an organization belongs to it too", async () => {
    const { child } = await started({ organizationId: someOrganization });

    expect(await ledger.runs.getStatus(child.id, { organization: someOrganization })).toMatchObject({
      status: "RUNNING",
    });
    expect(await codeOf(ledger.runs.getStatus(child.id, { global: true }))).toBe("workflow.run_not_found");
  });

  test("has the deadline that the graph gives it", async () => {
    const { child } = await started({ deadlineSeconds: 60 });
    const { rows } = await database.pool.query<{ seconds: number }>(
      "select round(extract(epoch from deadline_at - created_at))::int as seconds from runledger.workflow_runs where id = $1",
      [child.id],
    );

    expect(rows).toEqual([{ seconds: 60 }]);
  });

  test("may have children itself, and may be appended", async () => {
    const inner = defineWorkflow("inner", { build: (graph) => graph.job("leaf", "leaf", {}) });
    const outer = defineWorkflow("outer", { build: (graph) => graph.child("inner", inner, undefined) });
    const parent = await TestRun.start(database, ledger, { gate: [] });
    const addition = new WorkflowAddition();
    addition.child("outer", outer, undefined);
    await ledger.runs.append(parent.id, { key: "k", graph: addition.build(), ...globally });
    await ledger.runs.advanceChild(await claimChildJob());
    await ledger.runs.advanceChild(await claimChildJob());
    const [leaf] = await ledger.jobs.claim({ workerId: "w", limit: 1, types: ["leaf"] });
    await ledger.jobs.complete(leaf?.lease as never, { output: "from the bottom" });
    await ledger.runs.advanceChild(await claimChildJob());
    await ledger.runs.advanceChild(await claimChildJob());

    expect(await parent.row("outer")).toMatchObject({ status: "SUCCEEDED", output: "from the bottom" });
  });

  test("is not started twice by a job whose lease is lost", async () => {
    const parent = await order();
    await parent.succeed("pay");
    const job = await claimChildJob();
    await ledger.jobs.handBack([job.lease]);
    expect(await codeOf(ledger.runs.advanceChild(job))).toBe("job.lease_owner_mismatch");
    const again = await claimChildJob();
    await ledger.runs.advanceChild(again);
    expect(await codeOf(ledger.runs.advanceChild(again))).toBe("job.lease_owner_mismatch");

    const { rows } = await database.pool.query("select id from runledger.workflow_runs where parent_run_id = $1", [
      parent.id,
    ]);
    expect(rows).toHaveLength(1);
    expect((await ledger.runs.cancel(parent.id, globally)).canceled).toBe(true);
  });

  test("is not started while the parent is being cancelled, and not afterwards", async () => {
    const parent = await order();
    await parent.succeed("pay");
    const job = await claimChildJob();
    const trx = await openTransaction(database);
    await ledger.in(trx).runs.cancel(parent.id, globally);
    const starting = codeOf(ledger.runs.advanceChild(job));
    await waitForBackend({ client: database.pool, marker: "lock_step_jobs_of_leases_for_update" });
    await trx.commit().execute();

    expect(await starting).toBe("job.lease_owner_mismatch");
    const { rows } = await database.pool.query("select id from runledger.workflow_runs where parent_run_id = $1", [
      parent.id,
    ]);
    expect(rows).toEqual([]);
  });

  test.each<[string, (job: ClaimedJob) => ClaimedJob]>([
    ["another type", (job) => ({ ...job, type: "pack" })],
    ["a payload without a graph", (job) => ({ ...job, payload: { graph: 1 } })],
    ["no step", (job) => ({ ...job, workflowStepId: null })],
    ["a child that is not the step's", (job) => ({ ...job, payload: { childRunId: job.lease.jobId } })],
  ])("a job with %s is refused with its code", async (_, wrong) => {
    const parent = await order();
    await parent.succeed("pay");
    const job = await claimChildJob();

    expect(await codeOf(ledger.runs.advanceChild(wrong(job)))).toBe("workflow.child_run_invalid");
    await ledger.runs.cancel(parent.id, globally);
  });

  test("a graph of which the child is invalid is refused when the parent is enqueued", async () => {
    const empty = defineWorkflow("empty", { build: () => undefined });
    const graph = new WorkflowBuilder("parent");
    graph.child("child", empty, undefined);

    expect(await codeOf(ledger.runs.enqueue(graph.build()))).toBe("workflow.invalid_dag_no_steps");
  });
});
