/** What the schedules start from, and the operations that meet there. */
import type { GraphSpec, Lease, Settlement } from "../../src/index.ts";
import { expire } from "../jobs/fixtures.ts";
import { failure, graphOf } from "../runs/fixtures.ts";
import * as acts from "./acts.ts";
import { type Operation, settling } from "./operations.ts";
import type { Reset, Stage } from "./stage.ts";

export interface World {
  readonly reset: Reset;
  readonly operations: Readonly<Record<string, Operation>>;
}

/**
 * One run: two running roots with a dependent in common and a chain below it, a step for whatever
 * becomes of the second root, an open gate and one that opens, a step whose worker is gone, and one
 * that nobody has claimed; beside it a job without a run, and one whose lease has expired.
 */
export async function oneRun(stage: Stage): Promise<World & { readonly runId: string }> {
  const { ledger } = stage;
  const graph = graphOf("one", {
    a: [],
    b: [],
    gone: [],
    free: [],
    gate: [],
    freed: ["gate"],
    both: ["a", "b"],
    after: ["both"],
    any: ["b?"],
    opened: ["gate", "a"],
    gateLater: ["a", "gone?"],
  });
  const { id } = await ledger.runs.enqueue(withAttempts(graph, "a"));
  await ledger.jobs.enqueue("lone", null);
  await ledger.jobs.enqueue("lone.gone", null);
  const [a, b, gone] = [
    await acts.leaseOf(ledger, "one.a"),
    await acts.leaseOf(ledger, "one.b"),
    await acts.leaseOf(ledger, "one.gone"),
  ];
  const [lone, loneGone] = [await acts.leaseOf(ledger, "lone"), await acts.leaseOf(ledger, "lone.gone")];
  await expire(stage.database, [gone.jobId, loneGone.jobId]);
  const reset = await stage.keep();
  return {
    reset,
    runId: id,
    operations: acts.byName([
      acts.claim("one.free"),
      acts.claim("one.any"),
      acts.completes("a", a),
      acts.completes("b", b),
      acts.fails("b", b),
      acts.retries("a", a),
      acts.cancelsRun("the run", id),
      acts.cancelsJob("the lone job", lone.jobId),
      { ...acts.cancelsJob("the job of a", a.jobId), codes: ["job.workflow_requeue_not_supported"] },
      acts.completes("the lone job", lone),
      acts.completesGate("one", id),
      acts.completesGate("one", id, "FAILED"),
      acts.appends("one", id, ["a", "both"]),
      acts.works("one.freed"),
      acts.reaps(),
      acts.enqueuesRun(),
      acts.enqueuesJob(),
    ]),
  };
}

function withAttempts({ steps, ...graph }: GraphSpec, key: string): GraphSpec {
  return {
    ...graph,
    steps: steps.map((step) =>
      step.key === key && step.job ? { ...step, job: { ...step.job, maxAttempts: 3 } } : step,
    ),
  };
}

/** Two runs with two running roots each, a dependent of both and one of each, a gate, and a step whose worker is gone. */
export async function twoRuns(stage: Stage): Promise<World> {
  const { ledger } = stage;
  const [a, b] = [await halfDone(stage, "a"), await halfDone(stage, "b")];
  const reset = await stage.keep();
  const batch = (name: string, ...settlements: Settlement[]) => settling(name, settlements);
  const ok = (lease: Lease) => ({ lease, success: { output: 1 } });
  const bad = (lease: Lease) => ({ lease, failure });
  return {
    reset,
    operations: acts.byName([
      batch("complete a1 b1", ok(a.r1), ok(b.r1)),
      batch("complete b2 a2", ok(b.r2), ok(a.r2)),
      batch("fail a1 b1", bad(a.r1), bad(b.r1)),
      batch("fail b2, complete a2", bad(b.r2), ok(a.r2)),
      acts.cancelsRun("a", a.id),
      acts.completesGate("a", a.id),
      acts.reaps(),
    ]),
  };

  async function halfDone({ database }: Stage, type: string) {
    const { id } = await ledger.runs.enqueue(
      graphOf(type, {
        r1: [],
        r2: [],
        gone: [],
        gate: [],
        both: ["r1", "r2"],
        d1: ["r1", "gate"],
        d2: ["r2?"],
        sad: ["gone?", "r2"],
      }),
    );
    const [r1, r2] = [await acts.leaseOf(ledger, `${type}.r1`), await acts.leaseOf(ledger, `${type}.r2`)];
    await expire(database, [(await acts.leaseOf(ledger, `${type}.gone`)).jobId]);
    return { id, r1, r2 };
  }
}

/** One step of three runs that all can be reached from two roots each; and what may stand in the way. */
export interface WideWorld extends World {
  /** Statements that each take one row, by a name for it. */
  readonly rows: Readonly<Record<string, string>>;
}

/** Three runs of six steps below two running roots: rows enough that two ways through them can differ. */
export async function wide(stage: Stage): Promise<WideWorld> {
  const { ledger } = stage;
  const runs = [];
  for (const type of ["u", "v", "w"]) {
    const steps = { r1: [], r2: [], d0: ["r1", "r2"], d1: ["r1", "r2"], d2: ["r1", "r2"], d3: ["r1", "r2"] };
    const { id } = await ledger.runs.enqueue(graphOf(type, steps));
    runs.push({ id, type, r1: await acts.leaseOf(ledger, `${type}.r1`), r2: await acts.leaseOf(ledger, `${type}.r2`) });
  }
  // Those of the run in the middle: there are rows before and after each.
  const rows = Object.fromEntries(
    runs
      .slice(1, 2)
      .flatMap(({ id, type }) => [
        [`run ${type}`, `select from runledger.workflow_runs where id = '${id}' for update`],
        ...["r1", "r2"].map((key) => [
          `job ${type}.${key}`,
          `select from runledger.job_queue where type = '${type}.${key}' for update`,
        ]),
        ...["d0", "d1", "d2", "d3"].map((key) => [
          `step ${type}.${key}`,
          `select from runledger.workflow_steps where run_id = '${id}' and step_key = '${key}' for update`,
        ]),
      ]),
  );
  const reset = await stage.keep();
  const batch = (name: string, leases: Lease[], outcome: object) =>
    settling(
      name,
      leases.map((lease) => ({ lease, ...outcome }) as Settlement),
    );
  const [firsts, seconds] = [runs.map(({ r1 }) => r1), runs.map(({ r2 }) => r2).reverse()];
  const all = runs.flatMap(({ r1, r2 }) => [r1, r2]);
  return {
    reset,
    rows,
    operations: acts.byName([
      batch("complete the first roots", firsts, { success: {} }),
      batch("complete the second roots", seconds, { success: {} }),
      batch("fail the first roots", firsts, { failure }),
      batch("fail the second roots", seconds, { failure }),
      batch("complete all", all, { success: {} }),
      batch("complete all, last first", [...all].reverse(), { success: {} }),
      batch("fail all", all, { failure }),
      batch("fail all, last first", [...all].reverse(), { failure }),
      ...runs.map(({ id, type }) => acts.cancelsRun(type, id)),
    ]),
  };
}

/** A run with an open gate whose time is over, another that is not open yet, and a running step; it is past its deadline too. */
export async function growing(stage: Stage): Promise<World> {
  const { ledger, database } = stage;
  const graph = graphOf("live", { k: [], gate: [], next: ["gate?"], gateLater: ["k"], end: ["gateLater"] });
  const expires = { afterSeconds: 1, outcome: "FAILED" } as const;
  const steps = graph.steps.map((step) => (step.key === "gate" ? { ...step, expires } : step));
  const { id } = await ledger.runs.enqueue({ ...graph, steps });
  const k = await acts.leaseOf(ledger, "live.k");
  await database.pool.query(
    "update runledger.workflow_steps set expires_at = now() - interval '1 second' where step_key = 'gate'",
  );
  return {
    reset: await stage.keep(),
    operations: acts.byName([
      acts.firesTimers(),
      acts.completesGate("live", id),
      acts.keepsGate("gateLater", id, "gateLater"),
      acts.appends("live", id, ["k", "next"]),
      acts.completesAndAppends("live", k, ["k", "next"]),
      acts.fails("k", k),
      acts.cancelsRun("live", id),
    ]),
  };
}

/** A run that has ended with errors: it can live again. */
export async function ended(stage: Stage): Promise<World> {
  const { ledger } = stage;
  const { id } = await ledger.runs.enqueue(
    graphOf("over", { bad: [], worse: [], good: [], both: ["bad", "worse"], any: ["bad?"] }),
  );
  for (const key of ["good", "bad", "worse", "any"]) {
    const lease = await acts.leaseOf(ledger, `over.${key}`);
    await ledger.jobs.settle([key === "good" || key === "any" ? { lease, success: {} } : { lease, failure }]);
  }
  return {
    reset: await stage.keep(),
    operations: acts.byName([
      acts.retriesRun("over", id),
      acts.startsAgain("over", id),
      acts.works("over.bad"),
      acts.claim("over.worse"),
      acts.cancelsRun("over", id),
    ]),
  };
}

/** A run one step of which is a child run, which is about to end, and one that is a child that nobody has started. */
export async function family(stage: Stage): Promise<World> {
  const { ledger } = stage;
  const child = graphOf("kid", { k1: [], k2: [] });
  const parent = graphOf("parent", { own: [], after: [] });
  const { id } = await ledger.runs.enqueue({
    ...parent,
    steps: [
      ...parent.steps.filter(({ key }) => key === "own"),
      { key: "child", child: { graph: child }, dependencies: [] },
      { key: "other", child: { graph: graphOf("other", { o: [] }) }, dependencies: [] },
      ...graphOf("parent", { after: ["child", "own"], any: ["child?"] }).steps,
    ],
  });
  const [job] = await ledger.jobs.claim({ workerId: "worker", limit: 1, types: ["runledger.child_run"] });
  if (job === undefined) throw new Error("there is no child run to start");
  const { childRunId } = await ledger.runs.advanceChild(job);
  const first = (await ledger.jobs.claim({ workerId: "worker", limit: 1, types: ["kid.k1"] }))[0];
  if (first !== undefined) await ledger.jobs.complete(first.lease);
  const [k2, own] = [await acts.leaseOf(ledger, "kid.k2"), await acts.leaseOf(ledger, "parent.own")];
  return {
    reset: await stage.keep(),
    operations: acts.byName([
      acts.completes("the child's last step", k2),
      acts.fails("the child's last step", k2),
      acts.fails("a step of the parent", own),
      acts.worksOnChild(),
      acts.cancelsRun("the parent", id),
      acts.cancelsRun("the child", childRunId),
    ]),
  };
}

/** A run whose map step is about to fan out, and one whose map step waits for its last two items. */
export async function maps(stage: Stage): Promise<World> {
  const { ledger } = stage;
  const [out, back] = [mapped("out"), mapped("back")];
  const [{ id: outId }, { id: backId }] = [await ledger.runs.enqueue(out), await ledger.runs.enqueue(back)];
  const list = await acts.leaseOf(ledger, "out.list");
  await ledger.jobs.complete(await acts.leaseOf(ledger, "back.list"), { output: [1, 2] });
  const [one, two] = [await acts.leaseOf(ledger, "back.each"), await acts.leaseOf(ledger, "back.each")];
  return {
    reset: await stage.keep(),
    operations: acts.byName([
      settling("complete the list", [{ lease: list, success: { output: [1, 2] } }]),
      acts.fails("the list", list),
      acts.completes("one item", one),
      acts.completes("the other item", two),
      acts.fails("the other item", two),
      acts.cancelsRun("what fans out", outId),
      acts.cancelsRun("what comes back", backId),
    ]),
  };
}

function mapped(type: string): GraphSpec {
  const { steps, ...graph } = graphOf(type, { list: [], after: ["each"] });
  const each = {
    key: "each",
    job: { type: `${type}.each`, maxAttempts: 1 },
    map: { over: "list" },
    dependencies: [{ key: "list", kind: "ON_SUCCESS" as const }],
  };
  return { ...graph, steps: [...steps, each] };
}
