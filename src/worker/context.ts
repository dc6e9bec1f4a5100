/** What a handler is called with. */
import {
  type AppendRequest,
  type ClaimedJob,
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

/** All of it are properties of its own, so that it can be spread. The signal is made when it is asked for: few handlers need one. */
export function contextOf<Payload, Prerequisites>(
  host: ContextHost,
  payload: Payload,
  prerequisites: Prerequisites,
): JobContext<Payload, Prerequisites> {
  const { job, failures, redact } = host;
  const { lease, checkpoint, schedule } = job;
  const { jobs } = host.ledger;
  return {
    payload,
    prerequisites,
    failures,
    get signal() {
      return host.signal();
    },
    attempt: lease.attempt,
    checkpoint,
    lease,
    schedule,
    job,
    progress: (done, total) => jobs.progress(lease, total === undefined ? { done } : { done, total }),
    saveCheckpoint: (saved) => jobs.checkpoint(lease, saved),
    append: (key, build) => {
      if (lease.workflowRunId === null) throw new LedgerError("workflow.append_not_a_step");
      const graph = new WorkflowAddition();
      build(graph);
      host.add({ key, graph: graph.build() });
    },
    log: (level, message, fields) => jobs.log(lease, [{ level, message: redact(message), fields }]),
  };
}
