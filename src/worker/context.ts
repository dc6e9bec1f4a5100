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

/** Functions are made when they are asked for, and can be taken out by destructuring: most handlers need none. */
export class Context<Payload, Prerequisites> implements JobContext<Payload, Prerequisites> {
  readonly payload: Payload;
  readonly prerequisites: Prerequisites;
  readonly #host: ContextHost;

  constructor(host: ContextHost, payload: Payload, prerequisites: Prerequisites) {
    this.#host = host;
    this.payload = payload;
    this.prerequisites = prerequisites;
  }

  get job(): ClaimedJob {
    return this.#host.job;
  }

  get lease(): Lease {
    return this.job.lease;
  }

  get attempt(): number {
    return this.lease.attempt;
  }

  get checkpoint(): ClaimedJob["checkpoint"] {
    return this.job.checkpoint;
  }

  get schedule(): ClaimedJob["schedule"] {
    return this.job.schedule;
  }

  get failures(): PrerequisiteFailures {
    return this.#host.failures;
  }

  get signal(): AbortSignal {
    return this.#host.signal();
  }

  get progress(): JobContext["progress"] {
    const { jobs } = this.#host.ledger;
    return (done, total) => jobs.progress(this.lease, total === undefined ? { done } : { done, total });
  }

  get saveCheckpoint(): JobContext["saveCheckpoint"] {
    const { jobs } = this.#host.ledger;
    return (checkpoint) => jobs.checkpoint(this.lease, checkpoint);
  }

  get append(): JobContext["append"] {
    return (key, build) => {
      if (this.lease.workflowRunId === null) throw new LedgerError("workflow.append_not_a_step");
      const graph = new WorkflowAddition();
      build(graph);
      this.#host.add({ key, graph: graph.build() });
    };
  }

  get log(): JobContext["log"] {
    const { ledger, redact } = this.#host;
    return (level, message, fields) => ledger.jobs.log(this.lease, [{ level, message: redact(message), fields }]);
  }
}
