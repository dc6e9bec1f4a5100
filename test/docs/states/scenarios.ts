/** Everything that a caller can do to jobs, steps and runs, each in every situation that makes a difference. */
import {
  type AdditionSpec,
  type ClaimedJob,
  defineJob,
  defineSchedule,
  defineWorkflow,
  type Ledger,
  type StepSettlement,
  WorkflowAddition,
} from "../../../src/index.ts";
import { type TerminalStatus, terminalOutcomes } from "../../../src/steps/resolve.ts";
import { failure, globally, type TestRun } from "../../runs/fixtures.ts";
import { deadlineIsPast, gatesAreDue } from "../../runs/timed.ts";
import type { Stage } from "./stage.ts";

type Scenario = (stage: Stage) => Promise<void>;

export const scenarios: Readonly<Record<string, Scenario>> = {
  jobs: playJobs,
  "jobs done again": playJobsAgain,
  "what changes no status": playQuietCalls,
  endings: async (stage) => {
    for (const ender of enders(stage)) await playEnder(stage, ender);
  },
  "batches and transactions": playBatches,
  "child runs": playChildren,
  maps: playMaps,
  additions: playAdditions,
  cancels: playCancels,
  retries: playRetries,
  "new runs from ended ones": playCopies,
  schedules: playSchedules,
};

async function playJobs({ ledger, database }: Stage): Promise<void> {
  await ledger.jobs.enqueue("handed-back", {});
  const all = await ledger.jobs.claim({ workerId: "w", limit: 10 });
  await ledger.jobs.handBack(all.map(({ lease }) => lease));
  await ledger.jobs.enqueueMany([
    { type: "succeeds", payload: {}, idempotencyKey: "1" },
    { type: "succeeds-with-body", payload: {} },
    { type: "fails", payload: {}, maxAttempts: 2 },
    { type: "reaped", payload: {}, maxAttempts: 2 },
    { type: "reaped-at-once", payload: {}, maxAttempts: 1 },
    { type: "canceled", payload: {} },
    { type: "snoozed", payload: {} },
    { type: "continued", payload: {} },
  ]);
  const { id } = await ledger.jobs.enqueue("canceled-pending", {}, { idempotencyKey: "2" });
  const active = { key: "1", replace: true };
  await ledger.jobs.enqueue("active", 1, { active, runAt: "2030-01-01T00:00:00Z" });
  const debounce = { key: "1", seconds: 3600 };
  await ledger.jobs.enqueueMany([1, 2].map((payload) => ({ type: "debounced", payload, debounce })));
  await ledger.jobs.cancel(id, globally);
  const claim = async (type: string) => {
    const [job] = await ledger.jobs.claim({ workerId: "w", limit: 1, types: [type] });
    if (job === undefined) throw new Error(`no job of type ${type}`);
    return job;
  };
  await ledger.jobs.complete((await claim("succeeds")).lease);
  await ledger.jobs.complete((await claim("succeeds-with-body")).lease, {}, async () => {});
  await ledger.jobs.fail((await claim("fails")).lease, { ...failure, kind: "RETRYABLE" });
  await database.pool.query("update runledger.job_queue set run_at = now() where type = 'fails'");
  await ledger.jobs.fail((await claim("fails")).lease, failure);
  await ledger.jobs.cancel((await claim("canceled")).lease.jobId, globally);
  await ledger.jobs.snooze((await claim("snoozed")).lease, { seconds: 0 });
  await ledger.jobs.continue((await claim("continued")).lease, { checkpoint: 1 });
  await ledger.jobs.settle([
    { lease: (await claim("snoozed")).lease, snooze: { seconds: 60 } },
    { lease: (await claim("continued")).lease, continuation: { delaySeconds: 60 } },
  ]);
  const reaped = [await claim("reaped"), await claim("reaped-at-once")].map(({ lease }) => lease.jobId);
  await database.pool.query(
    "update runledger.job_queue set lease_expires_at = now() - interval '1 second' where id = any($1)",
    [reaped],
  );
  await ledger.jobs.reap();
  const limit = { key: "limited", concurrency: 5 };
  await ledger.jobs.enqueueMany(["limited", "limited"].map((type) => ({ type, payload: {}, limit })));
  await claim("limited");
  await ledger.jobs.claim({ workerId: "w", limit: 10 });
}

async function playJobsAgain({ ledger }: Stage): Promise<void> {
  const { scope } = globally;
  const tags = ["again"];
  const claimed = async (type: string) => {
    const { id } = await ledger.jobs.enqueue(type, {}, { tags });
    const [job] = await ledger.jobs.claim({ workerId: "w", limit: 1, types: [type] });
    if (job?.lease.jobId !== id) throw new Error("the job is not there");
    return job;
  };
  const dead = async (type: string) => {
    const { lease } = await claimed(type);
    await ledger.jobs.fail(lease, failure);
    return lease.jobId;
  };
  await ledger.jobs.requeue(await dead("dead-1"), { scope, expected: { status: "DEAD_LETTERED", runNumber: 1 } });
  const { id } = await ledger.jobs.enqueue("canceled-again", {}, { tags });
  await ledger.jobs.cancel(id, { scope });
  await ledger.jobs.requeue(id, { scope, expected: { status: "CANCELED", runNumber: 1 } });
  const { lease } = await claimed("succeeded-once");
  await ledger.jobs.complete(lease);
  await ledger.jobs.replay(lease.jobId, { scope, key: "once" });

  await claimed("leased-again");
  await ledger.jobs.cancelMany({ scope, filter: { tags } });
  await dead("dead-2");
  for (const status of ["DEAD_LETTERED", "CANCELED"] as const) {
    await ledger.jobs.requeueMany({ scope, filter: { tags, status } });
  }
  await ledger.jobs.replayMany({ scope, filter: { tags }, key: "twice" });
  await ledger.jobs.cancelMany({ scope, filter: { tags } });
}

async function playQuietCalls(stage: Stage): Promise<void> {
  const { ledger } = stage;
  await ledger.jobs.sync([defineJob("quiet")]);
  await ledger.jobs.pause(["quiet"]);
  await ledger.jobs.resume(["quiet"]);
  const { id } = await ledger.jobs.enqueue("quiet", {});
  await ledger.jobs.get(id, globally.scope);
  const [job] = await ledger.jobs.claim({ workerId: "w", limit: 1, types: ["quiet"] });
  if (job === undefined) throw new Error("the job is not there");
  await ledger.jobs.heartbeat([job.lease]);
  await ledger.jobs.progress(job.lease, { done: 1 });
  await ledger.jobs.checkpoint(job.lease, { page: 1 });
  await ledger.jobs.log(job.lease, [{ level: "info", message: "still here" }]);
  await ledger.jobs.cancel(id, globally);
  await ledger.jobs.cancel(id, globally);
}

/** A way of ending one step of a run. */
interface Ender {
  /** The step's key. */
  readonly key: string;
  readonly expires?: TerminalStatus;
  end(run: TestRun): Promise<unknown>;
}

function enders(stage: Stage): Ender[] {
  const { ledger, database } = stage;
  const expired = async (run: TestRun) => {
    await gatesAreDue(database, run);
    await ledger.runs.fireTimers();
  };
  const ended = async (run: TestRun, endOnly: (child: TestRun) => Promise<unknown>) => {
    await endOnly(await stage.startChild(run));
    await ledger.runs.advanceChild(await stage.claimChild(run));
  };
  return [
    { key: "a", end: (run) => run.succeed("a") },
    { key: "a", end: (run) => run.fail("a") },
    { key: "a", end: async (run) => stage.reap(await run.claim("a")) },
    { key: "child", end: (run) => ended(run, (child) => child.succeed("only")) },
    { key: "child", end: (run) => ended(run, (child) => child.fail("only")) },
    ...terminalOutcomes.map((outcome) => ({
      key: "gate",
      end: (run: TestRun) => stage.complete(run, "gate", outcome),
    })),
    ...terminalOutcomes.map((outcome) => ({ key: "gate", expires: outcome, end: expired })),
  ];
}

async function playEnder(stage: Stage, { key, expires, end }: Ender): Promise<void> {
  const options = expires === undefined ? {} : { expires };
  const after = [`${key}?`];
  const kept = (outcome: TerminalStatus) => [`gate kept ${outcome}`, after] as const;

  const wide = await stage.start(
    {
      [key]: [],
      source: [],
      next: after,
      "gate next": after,
      ...Object.fromEntries(terminalOutcomes.map(kept)),
      map: ["source", ...after],
    },
    options,
  );
  await wide.succeed("source", [1, 2]);
  await stage.keep(wide, "gate kept");
  await end(wide);

  await end(await stage.start({ [key]: [] }, options));
  await end(await stage.start({ [key]: [], "gate next": after }, options));
  for (const outcome of ["SUCCEEDED", "FAILED"] as const) {
    const run = await stage.start(Object.fromEntries([[key, []], kept(outcome)]), options);
    await stage.keep(run, "gate kept", [outcome]);
    await end(run);
  }
  const parent = await stage.start({ child: [] }, { ...options, child: { [key]: [] } });
  await end(await stage.startChild(parent));
}

async function playBatches(stage: Stage): Promise<void> {
  const { ledger, database } = stage;
  await ledger.runs.enqueueMany([
    { graph: stage.graph({ a: [], b: ["a"], gate: [] }) },
    { graph: stage.graph({ gate: [] }) },
  ]);
  await stage.start({ a: [], b: ["a"] }, { active: { key: "1" } });
  const expiring = { idempotencyKey: "expiring", idempotencyTtlSeconds: 60 };
  for (const graph of Array(2).fill(stage.graph({ gate: [] }))) {
    await ledger.runs.enqueue(graph, expiring);
    await ledger.jobs.enqueue("expiring", {}, { ...expiring, runAt: "2030-01-01T00:00:00Z" });
    for (const keys of ["job_idempotency_keys", "workflow_idempotency_keys"])
      await database.pool.query(`update runledger.${keys} set expires_at = now() where key = 'expiring'`);
  }
  const claim = { workerId: "w", limit: 10, types: ["none"] };
  for (const settle of [
    (settlements: readonly StepSettlement[]) => ledger.jobs.settle(settlements),
    (settlements: readonly StepSettlement[]) => ledger.jobs.settleAndClaim(settlements, claim),
  ]) {
    await playBatch(stage, settle);
    await playMixedBatch(stage, settle);
  }
  await playEagerClaims(stage);
}

/** Steps that go the short way, each with a claim of what it releases. */
async function playEagerClaims(stage: Stage): Promise<void> {
  for (const steps of [
    { a: [], b: ["a"], c: ["a"] },
    { a: [], b: ["a"] },
    { a: [], b: ["a"], gate: ["b"] },
    { bad: [], a: ["bad?"], b: ["a"] },
  ]) {
    const run = await stage.start(steps);
    if ("bad" in steps) await run.fail("bad");
    const claim = { workerId: "w", limit: 10, types: [`${run.type}.b`] };
    let next: Pick<ClaimedJob, "lease">[] = [await run.claim("a")];
    while (next.length > 0) {
      const settlements = next.map(({ lease }) => ({ lease, success: {} }));
      next = [...(await stage.ledger.jobs.settleAndClaim(settlements, claim)).claimed];
    }
  }
}

type Settle = (settlements: readonly StepSettlement[]) => Promise<unknown>;

async function playBatch(stage: Stage, settle: Settle): Promise<void> {
  const { ledger } = stage;
  const types = ["batch-1", "batch-2", "batch-3"];
  await ledger.jobs.enqueueMany(types.map((type) => ({ type, payload: {} })));
  const [won, lost, again] = await ledger.jobs.claim({ workerId: "w", limit: 3, types });
  const run = await stage.start({ a: [], b: [], c: [], d: ["c"] });
  const [a, b, c] = await run.claimAll("a", "b", "c");
  if (won === undefined || lost === undefined || again === undefined) throw new Error("the jobs are not there");
  await settle([
    { lease: won.lease, success: {} },
    { lease: lost.lease, failure },
    { lease: again.lease, failure: { ...failure, kind: "RETRYABLE" } },
    { lease: a.lease, success: {} },
    { lease: b.lease, failure },
  ]);
  await ledger.jobs.complete(c.lease, {}, async () => {});
}

/** All outcomes of jobs without a run in one statement. */
async function playMixedBatch({ ledger }: Stage, settle: Settle): Promise<void> {
  const types = ["mixed-1", "mixed-2", "mixed-3", "mixed-4"];
  await ledger.jobs.enqueueMany(types.map((type) => ({ type, payload: {} })));
  const [won, lost, snoozed, continued] = await ledger.jobs.claim({ workerId: "w", limit: 4, types });
  if (!won || !lost || !snoozed || !continued) throw new Error("the jobs are not there");
  await settle([
    { lease: won.lease, success: {} },
    { lease: lost.lease, failure },
    { lease: snoozed.lease, snooze: { until: "2999-01-01T00:00:00Z" } },
    { lease: continued.lease, continuation: { delaySeconds: 3600 } },
  ]);
}

async function playChildren(stage: Stage): Promise<void> {
  const { ledger } = stage;
  const gates = await stage.start({ child: [] }, { child: { gate: [] } });
  await stage.startChild(gates);
  const several = await stage.start({ child: [] }, { child: { a: [], b: ["a"], gate: [] } });
  await stage.startChild(several);
  // What a worker of the service's own may do with the job that comes back.
  const back = async () => {
    const parent = await stage.start({ child: [] });
    await (await stage.startChild(parent)).succeed("only");
    return stage.claimChild(parent);
  };
  await ledger.jobs.complete((await back()).lease);
  await ledger.jobs.fail((await back()).lease, failure);
  const parent = await stage.start({ child: [] });
  await (await stage.startChild(parent)).succeed("only");
  const job = await stage.claimChild(parent);
  for (let attempt = job.lease.attempt; attempt < job.maxAttempts; attempt += 1) {
    await stage.reap(job);
    await stage.database.pool.query("update runledger.job_queue set run_at = now() where id = $1", [job.lease.jobId]);
    await stage.claimChild(parent);
  }
  await stage.reap(job);
}

async function playMaps(stage: Stage): Promise<void> {
  for (const output of [[1, 2], [], "no array"]) {
    const run = await stage.start({ source: [], map: ["source"], end: ["map"] });
    await run.succeed("source", output);
    const items = await stage.ledger.jobs.claim({ workerId: "w", limit: 10, types: [`${run.type}.item`] });
    for (const { lease } of items) await stage.ledger.jobs.complete(lease, { output: 1 });
  }
}

async function playAdditions(stage: Stage): Promise<void> {
  const { ledger } = stage;
  const ready = async () => {
    const run = await stage.start({ list: [], none: [], text: [], bad: [], a: [], gate: [] });
    await run.succeed("list", [1, 2]);
    await run.succeed("none", []);
    await run.succeed("text", "no array");
    await run.fail("bad");
    return run;
  };
  await ledger.runs.append((await ready()).id, { ...globally, key: "all", graph: everyAddition() });
  const { lease } = await (await ready()).claim("a");
  await ledger.jobs.complete(lease, { append: { key: "all", graph: everyAddition() } });
  const waiting = await stage.start({ gate: [] });
  await ledger.runs.append(waiting.id, { ...globally, key: "more", graph: oneAddition() });
  await ledger.runs.append(waiting.id, { ...globally, key: "more", graph: oneAddition() });
}

/** Steps that begin in every status there is. */
function everyAddition(): AdditionSpec {
  const graph = new WorkflowAddition();
  const first = graph.job("first", "added", {});
  graph.job("second", "added", {}, { onSuccess: [first] });
  graph.external("gate added");
  for (const source of ["list", "none", "text"]) {
    graph.map(`each of ${source}`, "added", { over: graph.existing<unknown[]>(source) });
  }
  graph.job("unsatisfied", "added", {}, { onSuccess: [graph.existing("bad")] });
  return graph.build();
}

function oneAddition(): AdditionSpec {
  const graph = new WorkflowAddition();
  graph.job("only", "added", {});
  return graph.build();
}

async function playCancels(stage: Stage): Promise<void> {
  const { ledger, database } = stage;
  const byCancel = async (run: TestRun) => ledger.runs.cancel(run.id, globally);
  const byDeadline = async (run: TestRun) => {
    await deadlineIsPast(database, run);
    await ledger.runs.fireTimers();
  };
  const inBulk = async ({ id }: TestRun) => ledger.runs.cancelMany({ ...globally, filter: { ids: [id] } });
  for (const cancel of [byCancel, byDeadline, inBulk]) {
    const wide = await stage.start({ a: [], b: ["a"], leased: [], gate: [], child: [] });
    await wide.claim("leased");
    await stage.startChild(wide);
    await cancel(wide);
    await cancel(await stage.start({ gate: [] }));
    await cancel(await stage.startChild(await stage.start({ child: [] })));
  }
}

async function playRetries(stage: Stage): Promise<void> {
  const { ledger } = stage;
  const run = await stage.start({ a: [], b: ["a?"], c: ["b"], gate: [], "gate canceled": [], ok: [] });
  await run.fail("a");
  await run.fail("b");
  await run.succeed("ok");
  await stage.complete(run, "gate", "FAILED");
  await stage.complete(run, "gate canceled", "CANCELED");
  await ledger.runs.retry(run.id, { ...globally, steps: ["a", "b", "gate", "gate canceled"] });

  const gates = await stage.start({ gate: [] });
  await stage.complete(gates, "gate", "FAILED");
  await ledger.runs.retry(gates.id, globally);

  // The only way to a job step that was cancelled in a run that was not.
  const canceled = await stage.start({ a: [], b: [] });
  await ledger.runs.cancel(canceled.id, globally);
  const { id } = await ledger.runs.rerun(canceled.id, { ...globally, from: "b", key: "again" });
  await settleAll(ledger, `${canceled.type}.b`);
  await ledger.runs.retry(id, { ...globally, steps: ["a"] });
}

async function settleAll(ledger: Ledger, type: string): Promise<void> {
  for (const { lease } of await ledger.jobs.claim({ workerId: "w", limit: 10, types: [type] })) {
    await ledger.jobs.complete(lease);
  }
}

async function playCopies(stage: Stage): Promise<void> {
  const { ledger } = stage;
  const run = await stage.start({ ok: [], after: ["ok"], other: [], a: [], b: ["a"], gate: [], "gate ok": [] });
  await run.succeed("ok");
  await run.succeed("other");
  await run.succeed("after");
  await run.fail("a");
  await stage.complete(run, "gate", "FAILED");
  await stage.complete(run, "gate ok", "SUCCEEDED");
  await ledger.runs.recover(run.id, { ...globally, key: "recovered" });
  await ledger.runs.recover(run.id, { ...globally, key: "recovered" });
  await ledger.runs.rerun(run.id, { ...globally, key: "rerun", from: ["ok", "gate ok"] });

  const gates = await stage.start({ gate: [] });
  await stage.complete(gates, "gate", "FAILED");
  await ledger.runs.recover(gates.id, { ...globally, key: "recovered" });
  await ledger.runs.rerun(gates.id, { ...globally, key: "rerun", from: "gate" });
}

async function playSchedules({ ledger, database }: Stage): Promise<void> {
  const workflow = defineWorkflow("scheduled", {
    build(graph) {
      graph.job("first", "scheduled.first", {});
      return graph.job("second", "scheduled.second", {}, { onSuccess: [{ key: "first" }] });
    },
  });
  const gated = defineWorkflow("scheduled gate", {
    build(graph) {
      graph.external("gate");
      return undefined;
    },
  });
  const cron = "0 * * * *";
  const definitions = [
    defineSchedule("of a job", { cron, job: "scheduled", payload: {} }),
    defineSchedule("of a run", { cron, workflow, input: null }),
    defineSchedule("of a gate", { cron, workflow: gated, input: null }),
  ];
  const names = definitions.map(({ name }) => name);
  const workflows = [workflow, gated];
  await ledger.schedules.sync(definitions);
  await database.pool.query("update runledger.job_schedules set due_at = now(), intended_at = now()");
  await ledger.schedules.fireDue({ workflows });
  for (const name of names) await ledger.schedules.triggerNow(name, { ...globally, workflows });
  await ledger.schedules.pause(names, globally);
  await ledger.schedules.resume(names, globally);
  for (const definition of definitions) {
    await ledger.schedules.upsert(definition);
    await ledger.schedules.retime(definition.name, globally);
    await ledger.schedules.remove(definition.name, globally);
  }
}
