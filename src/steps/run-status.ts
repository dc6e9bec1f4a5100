/** The one rule of a run's status: it follows from the run's counters (FEATURES F-W4). */
import { type RawBuilder, sql } from "kysely";
import type { RunStatus, StepStatus } from "../database/statuses.ts";

/** How a run's counters change. */
export interface CounterDeltas {
  /** Steps in all. */
  readonly steps: number;
  /** BLOCKED, ENQUEUED and RUNNING steps. */
  readonly open: number;
  /** WAITING_FOR_EXTERNAL steps. */
  readonly waiting: number;
  /** FAILED and CANCELED steps. */
  readonly errored: number;
}

/** The counter that a step of this status is counted in, or null for SUCCEEDED. */
export function counterOf(status: StepStatus): "open" | "waiting" | "errored" | null {
  switch (status) {
    case "BLOCKED":
    case "ENQUEUED":
    case "RUNNING":
      return "open";
    case "WAITING_FOR_EXTERNAL":
      return "waiting";
    case "FAILED":
    case "CANCELED":
      return "errored";
    case "SUCCEEDED":
      return null;
  }
}

type Count = RawBuilder<number>;

/** The status that the counters make, as SQL. */
export function statusByCounters(schema: string, open: Count, waiting: Count, errored: Count): RawBuilder<RunStatus> {
  return sql<RunStatus>`(case
    when ${open} > 0 then 'RUNNING'
    when ${waiting} > 0 then 'WAITING_FOR_EXTERNAL'
    when ${errored} > 0 then 'COMPLETED_WITH_ERRORS'
    else 'SUCCEEDED'
  end)::${sql.id(schema, "run_status")}`;
}

/** The values of an UPDATE of `workflow_runs as r` by the deltas in the columns of `d`. */
export function countersChanged(schema: string, r: string, d: string) {
  const count = (name: string) => sql<number>`(${sql.ref(`${r}.${name}_count`)} + ${sql.ref(`${d}.${name}_delta`)})`;
  const [open, waiting, errored] = [count("open"), count("waiting"), count("errored")];
  return {
    step_count: count("step"),
    open_count: open,
    waiting_count: waiting,
    errored_count: errored,
    status: statusByCounters(schema, open, waiting, errored),
    ended_at: sql<Date | null>`case when ${open} + ${waiting} = 0 then clock_timestamp() end`,
  };
}
