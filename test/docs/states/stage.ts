/** Runs and jobs in whatever state a scenario needs them, all made through the watched ledger. */
import { CHILD_RUN_JOB, type ClaimedJob, type GraphSpec, type Ledger, type RunOptions } from "../../../src/index.ts";
import { type TerminalStatus, terminalOutcomes } from "../../../src/steps/resolve.ts";
import { globally, graphOf, TestRun } from "../../runs/fixtures.ts";
import type { TestDatabase } from "../../support/database.ts";

/** As in `graphOf`; besides, keys that start with "map" are maps over "source", and those with "child" child runs. */
type Steps = Readonly<Record<string, readonly string[]>>;

interface StartOptions extends RunOptions {
  /** How all gates of the run, and of its child runs, expire. Default FAILED. */
  readonly expires?: TerminalStatus;
  /** The steps of its child runs. Default: one job, "only". */
  readonly child?: Steps;
}

let graphs = 0;

export class Stage {
  readonly database: TestDatabase;
  readonly ledger: Ledger;
  readonly #childJobs = new Map<string | null, ClaimedJob>();

  constructor(database: TestDatabase, ledger: Ledger) {
    this.database = database;
    this.ledger = ledger;
  }

  async start(steps: Steps, { expires, child, ...options }: StartOptions = {}): Promise<TestRun> {
    const graph = this.graph(steps, { expires, child });
    const { id } = await this.ledger.runs.enqueue(graph, options);
    return new TestRun(this.database, this.ledger, id, graph.type);
  }

  graph(
    steps: Steps,
    {
      expires = "FAILED",
      child = { only: [] },
    }: { expires?: TerminalStatus | undefined; child?: Steps | undefined } = {},
  ): GraphSpec {
    graphs += 1;
    const graph = graphOf(`graph-${graphs}`, steps);
    return {
      ...graph,
      steps: graph.steps.map(({ job, ...step }) => {
        if (step.key.startsWith("gate")) return { ...step, expires: { afterSeconds: 3600, outcome: expires } };
        if (step.key.startsWith("child")) return { ...step, child: { graph: this.graph(child, { expires }) } };
        if (!step.key.startsWith("map")) return job === undefined ? step : { ...step, job };
        return { ...step, job: { type: `${graph.type}.item` }, map: { over: "source" } };
      }),
    };
  }

  /** Completes a gate, before it opens or after. */
  async complete(run: TestRun, key: string, outcome: TerminalStatus): Promise<void> {
    await this.ledger.steps.complete(run.id, key, { ...globally, outcome, keep: true });
  }

  /** Each of the gates named `<prefix> SUCCEEDED` and so on keeps that outcome. */
  async keep(run: TestRun, prefix: string, outcomes: readonly TerminalStatus[] = terminalOutcomes): Promise<void> {
    for (const outcome of outcomes) await this.complete(run, `${prefix} ${outcome}`, outcome);
  }

  /** Starts the child run of the run's one child step. */
  async startChild(parent: TestRun): Promise<TestRun> {
    const job = await this.claimChild(parent);
    const { childRunId } = await this.ledger.runs.advanceChild(job);
    return new TestRun(this.database, this.ledger, childRunId, await this.#typeOf(childRunId));
  }

  async claimChild(parent: TestRun): Promise<ClaimedJob> {
    const claimed = await this.ledger.jobs.claim({ workerId: "children", limit: 100, types: [CHILD_RUN_JOB] });
    for (const job of claimed) this.#childJobs.set(job.lease.workflowRunId, job);
    const job = this.#childJobs.get(parent.id);
    if (job === undefined) throw new Error("the run has no child job to claim");
    return job;
  }

  /** The lease of the job has expired, and somebody reaps. */
  async reap(job: ClaimedJob): Promise<void> {
    await this.database.pool.query(
      "update runledger.job_queue set lease_expires_at = now() - interval '1 second' where id = $1",
      [job.lease.jobId],
    );
    await this.ledger.jobs.reap();
  }

  async #typeOf(runId: string): Promise<string> {
    const { rows } = await this.database.pool.query<{ type: string }>(
      "select type from runledger.workflow_runs where id = $1",
      [runId],
    );
    return rows[0]?.type ?? "";
  }
}
