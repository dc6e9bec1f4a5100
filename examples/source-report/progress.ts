/** Watches a run until somebody has to act: it waits at its gate, or has ended. */
import { setTimeout as sleep } from "node:timers/promises";
import { type Kysely, sql } from "kysely";
import type { Ledger, RunledgerDatabase, RunStatus, StepStatus } from "../../src/index.ts";
import { isTerminal } from "../support/program.ts";
import type { Terminal } from "./terminal.ts";

export interface WatchOptions {
  readonly db: Kysely<RunledgerDatabase>;
  readonly ledger: Ledger;
  readonly terminal: Terminal;
  readonly runId: string;
  readonly signal: AbortSignal;
}

const LOOK_MS = 100;

/**
 * Throws when the signal aborts. A run with steps behind its gate is RUNNING, for they are still to come: that
 * somebody is waited for is in `waitingCount`.
 */
export async function watchRun(options: WatchOptions): Promise<"gate" | "ended"> {
  const { db, ledger, terminal, runId, signal } = options;
  const started = performance.now();
  let endedBefore: number | undefined;
  for (;;) {
    const { status, waitingCount } = await ledger.runs.getStatus(runId, { global: true });
    const counts = await stepCounts(db, runId);
    const ended = counts.SUCCEEDED + counts.FAILED + counts.CANCELED;
    endedBefore ??= ended;
    const seconds = (performance.now() - started) / 1000;
    terminal.update(progressLine(status, counts, (ended - endedBefore) / Math.max(seconds, LOOK_MS / 1000)));
    if (isTerminal(status)) return "ended";
    if (waitingCount > 0) return "gate";
    await sleep(LOOK_MS, undefined, { signal });
  }
}

type StepCounts = Readonly<Record<StepStatus, number>>;

/** A step is RUNNING while its job is leased; the row itself still says ENQUEUED. */
async function stepCounts(db: Kysely<RunledgerDatabase>, runId: string): Promise<StepCounts> {
  const rows = await db
    .selectFrom("runledger.workflow_steps as s")
    .leftJoin("runledger.job_queue as q", (join) => join.onRef("q.id", "=", "s.job_id").on("q.status", "=", "LEASED"))
    .where("s.run_id", "=", runId)
    .select([
      sql<StepStatus>`case when q.id is null then s.status::text else 'RUNNING' end`.as("now"),
      sql<number>`count(*)::int`.as("steps"),
    ])
    .groupBy("now")
    .execute();
  const none = {
    BLOCKED: 0,
    WAITING_FOR_EXTERNAL: 0,
    ENQUEUED: 0,
    RUNNING: 0,
    SUCCEEDED: 0,
    FAILED: 0,
    CANCELED: 0,
  };
  return { ...none, ...Object.fromEntries(rows.map(({ now, steps }) => [now, steps])) };
}

function progressLine(status: RunStatus, counts: StepCounts, rate: number): string {
  const total = Object.values(counts).reduce((sum, count) => sum + count, 0);
  const shown = (["SUCCEEDED", "FAILED", "CANCELED", "RUNNING", "ENQUEUED", "BLOCKED"] as const)
    .filter((name) => counts[name] > 0 || name === "FAILED")
    .map((name) => `${counts[name]} ${name.toLowerCase()}`);
  return `${status}: ${total} steps, ${shown.join(", ")}; ${rate.toFixed(0)} steps/s`;
}
