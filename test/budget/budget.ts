/**
 * What one job or one step may cost. Statements are those of one call; everything else is for one unit. What is not
 * named costs nothing. To set it anew, after looking at why it changed:
 *
 *   RUNLEDGER_TEST_BUDGET_FIGURES=1 npm test -- test/budget
 */
import type { Figures } from "./count.ts";
import type { works } from "./works.ts";

export const budget: Readonly<Record<keyof typeof works, Figures>> = {
  "enqueue, 1000 at once": {
    "statements for each enqueueMany of 1000": 1,
    "WAL bytes": 350,
    "job_queue inserted": 1,
    "status_count_deltas inserted": 0.001,
  },
  "enqueue, one at a time": {
    "statements for each enqueue": 1,
    "WAL bytes": 490,
    "job_queue inserted": 1,
    "status_count_deltas inserted": 1,
  },
  "from claim to ledger": {
    "statements for each claim": 1,
    "statements for each settle": 1,
    "WAL bytes": 1000,
    "job_ledger inserted": 1,
    "job_queue updated": 1,
    "job_queue updated, not HOT": 1,
    "job_queue deleted": 1,
    "status_count_deltas inserted": 0.004,
    "dead row versions": 2,
  },
  "from enqueue to ledger, 500 bytes of payload": {
    "statements for each enqueueMany of 1000": 1,
    "statements for each claim": 1,
    "statements for each settle": 1,
    "WAL bytes": 2780,
    "job_ledger inserted": 1,
    "job_queue inserted": 1,
    "job_queue updated": 1,
    "job_queue updated, not HOT": 1,
    "job_queue deleted": 1,
    "status_count_deltas inserted": 0.005,
    "dead row versions": 2,
  },
  heartbeat: {
    "statements for each heartbeat of 500": 1,
    "WAL bytes": 220,
    "job_queue updated": 1,
    "job_queue updated, not HOT": 0.2,
    "dead row versions": 1,
  },
  "runs of 5 steps in a chain": {
    "statements for each runs.enqueueMany of 500": 1,
    "statements for each claim": 1,
    "statements for each settle": 1,
    "WAL bytes": 2940,
    "job_ledger inserted": 1,
    "job_queue inserted": 1,
    "job_queue updated": 1,
    "job_queue updated, not HOT": 1,
    "job_queue deleted": 1,
    "status_count_deltas inserted": 0.407,
    "workflow_runs inserted": 0.2,
    "workflow_runs updated": 1,
    "workflow_runs updated, not HOT": 0.208,
    "workflow_step_dependencies inserted": 0.8,
    "workflow_steps inserted": 1,
    "workflow_steps updated": 1.8,
    "workflow_steps updated, not HOT": 0.15,
    "dead row versions": 4.8,
  },
  "runs of 1 step, 1000 after it, 1 after those": {
    "statements for each runs.enqueue": 1,
    "statements for each claim": 1,
    "statements for each settle": 1,
    "WAL bytes": 3280,
    "job_ledger inserted": 1,
    "job_queue inserted": 1,
    "job_queue updated": 1,
    "job_queue updated, not HOT": 1,
    "job_queue deleted": 1,
    "status_count_deltas inserted": 0.014,
    "workflow_runs inserted": 0.000999,
    "workflow_runs updated": 0.004,
    "workflow_runs updated, not HOT": 0.000999,
    "workflow_step_dependencies inserted": 2,
    "workflow_steps inserted": 1,
    "workflow_steps updated": 2,
    "workflow_steps updated, not HOT": 0.97,
    "dead row versions": 4.01,
  },
};
