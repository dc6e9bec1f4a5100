/** What a handler is called with. */
import {
  type AppendRequest,
  type ClaimedJob,
  type Lease,
  type Ledger,
  LedgerError,
  type PrerequisiteFailures,
  WorkflowAddition,
} from "../index.ts";
import type { JobContext } from "./handlers.ts";

/** What a context needs of its attempt. */
export interface ContextHost {
  readonly ledger: Ledger;
  readonly job: ClaimedJob;
  readonly failures: PrerequisiteFailures;
  signal(): AbortSignal;
  /** Text of the handler's, without what the ledger's rules take out of it. */
  redact(text: string): string;
  add(addition: AppendRequest): void;
}

/** All of it are properties of its own, so that it can be taken apart and spread. */
export class Context<Payload, Prerequisites> implements JobContext<Payload, Prerequisites> {
  readonly payload: Payload;
  readonly prerequisites: Prerequisites;
  readonly failures: PrerequisiteFailures;
  declare readonly signal: AbortSignal;
  readonly attempt: number;
  readonly checkpoint: ClaimedJob["checkpoint"];
  readonly lease: Lease;
  readonly schedule: ClaimedJob["schedule"];
  readonly job: ClaimedJob;
  readonly #host: ContextHost;

  constructor(host: ContextHost, payload: Payload, prerequisites: Prerequisites) {
    const { job, failures } = host;
    this.payload = payload;
    this.prerequisites = prerequisites;
    this.failures = failures;
    this.attempt = job.lease.attempt;
    this.checkpoint = job.checkpoint;
    this.lease = job.lease;
    this.schedule = job.schedule;
    this.job = job;
    this.#host = host;
    Object.defineProperty(this, "signal", Context.#signal);
  }

  /**
   * Made when it is asked for: few handlers need one. One getter for all contexts: each of its own would give its object a
   * hidden class of its own, which keeps all that the getter sees until a full garbage collection.
   */
  static readonly #signal = {
    enumerable: true,
    get(this: Context<unknown, unknown>): AbortSignal {
      return this.#host.signal();
    },
  };

  readonly progress: JobContext["progress"] = (done, total) =>
    this.#host.ledger.jobs.progress(this.lease, total === undefined ? { done } : { done, total });

  readonly saveCheckpoint: JobContext["saveCheckpoint"] = (checkpoint) =>
    this.#host.ledger.jobs.checkpoint(this.lease, checkpoint);

  readonly append: JobContext["append"] = (key, build) => {
    if (this.lease.workflowRunId === null) throw new LedgerError("workflow.append_not_a_step");
    const graph = new WorkflowAddition();
    build(graph);
    this.#host.add({ key, graph: graph.build() });
  };

  readonly log: JobContext["log"] = (level, message, fields) => {
    const { ledger, redact } = this.#host;
    return ledger.jobs.log(this.lease, [{ level, message: redact(message), fields }]);
  };
}
