/** Everything that can be seen, by the names that the model gives: as the model has it, and as the ledger and its tables do. */
import { type Kysely, sql } from "kysely";
import {
  type FailureKind,
  isLedgerError,
  type JsonValue,
  type Ledger,
  type RunledgerDatabase,
  type Step as StepRead,
} from "../../src/index.ts";
import { dependentsOf, isEnded, pendingOf, runStatusOf, statusesOf, unsatisfiedOf, wasReleased } from "./derive.ts";
import { type Model, Refused } from "./model.ts";
import type { Job, Output, Run, Step } from "./state.ts";

const admin = { admin: true } as const;
const unsatisfied = "workflow.dependency_unsatisfied";

// --- What the model says

export function expectedView(model: Model) {
  return {
    runs: Object.fromEntries(model.runs.map((run) => [run.name, expectedRun(model, run)])),
    queue: byName(model.liveJobs, expectedQueueRow),
    ledger: byName(model.jobs, ({ ended }) => ended.map(({ output, ...row }) => ({ ...row, output: stored(output) }))),
    attempts: byName(model.jobs, ({ failed }) => failed),
  };
}

function expectedRun(model: Model, run: Run) {
  const statuses = [...statusesOf(run).values()];
  const count = (...wanted: string[]) => statuses.filter((status) => wanted.includes(status)).length;
  return {
    status: runStatusOf(run),
    stepCount: run.steps.length,
    openCount: count("BLOCKED", "ENQUEUED", "RUNNING"),
    waitingCount: count("WAITING_FOR_EXTERNAL"),
    erroredCount: count("FAILED", "CANCELED"),
    organizationId: run.plan.organization,
    resultStep: run.plan.result,
    canceledReason: run.canceled?.reason ?? null,
    ended: statuses.every(isEnded),
    result: expectedResult(model, run),
    steps: Object.fromEntries(run.steps.map((step) => [step.key, expectedStep(run, step)])),
  };
}

function expectedResult(model: Model, run: Run) {
  try {
    return { value: model.result(run.name) };
  } catch (error) {
    if (error instanceof Refused) return { error: error.code };
    throw error;
  }
}

function expectedStep(run: Run, step: Step) {
  const status = statusesOf(run).get(step.key);
  const { end, job } = step;
  return {
    kind: job === null ? "EXTERNAL" : "JOB",
    status,
    jobType: job?.plan.type ?? null,
    pendingCount: pendingOf(run, step),
    unsatisfiedCount: unsatisfiedOf(run, step),
    dependentCount: dependentsOf(run, step),
    released: wasReleased(run, step),
    started: status === "RUNNING" || (end?.started ?? false),
    ended: end !== null || status === "CANCELED",
    errorCode: end === null && status === "CANCELED" ? unsatisfied : (end?.errorCode ?? null),
    errorMessage: end?.errorMessage ?? null,
    completedBy: end?.completedBy ?? null,
    reason: end?.reason ?? null,
    output: stored(end?.output),
  };
}

function expectedQueueRow({ plan, runNumber, attempt, lease, organization }: Job): Omit<QueueRow, "id" | "run_at"> {
  return {
    run_number: runNumber,
    status: lease === null ? "PENDING" : "LEASED",
    type: plan.type,
    organization_id: organization,
    priority: plan.priority,
    attempt,
    max_attempts: plan.maxAttempts,
    worker_id: lease?.workerId ?? null,
    leased: lease !== null,
    expired: lease?.expired ?? false,
    payload: plan.payload,
  };
}

/** No output, or one that may be null. */
function stored(output: Output): JsonValue[] {
  return output === undefined ? [] : [output];
}

function byName<T>(jobs: readonly Job[], view: (job: Job) => T): Record<string, T> {
  const entries = jobs.map((job) => [job.name, view(job)] as const);
  return Object.fromEntries(entries.filter(([, row]) => !Array.isArray(row) || row.length > 0));
}

// --- What the ledger and its tables say

export interface Sight {
  readonly view: unknown;
  /** What the model cannot know: when each pending job is due. */
  readonly times: ReadonlyMap<string, { readonly runAt: string; readonly due: boolean }>;
}

/** Reads runs through the public functions, and what these leave out from the tables. */
export async function actualView(db: Kysely<RunledgerDatabase>, ledger: Ledger, model: Model): Promise<Sight> {
  const tables = await readTables(db);
  const names = new Map(model.jobs.map(({ id, name }) => [id, name]));
  const nameOf = (id: string) => names.get(id) ?? `unknown job ${id}`;
  const extras = new Map(tables.steps.map((row) => [row.id, row]));
  const runs: [string, unknown][] = [];
  for (const { id, name } of model.runs) runs.push([name, await actualRun(ledger, id, extras)]);
  const view = {
    runs: Object.fromEntries(runs),
    queue: Object.fromEntries(tables.queue.map(({ id, run_at, due, ...row }) => [nameOf(id), row])),
    ledger: grouped(tables.ledger, ({ id, ...row }) => [nameOf(id), row]),
    attempts: grouped(tables.attempts, ({ id, ...row }) => [nameOf(id), row]),
  };
  const times = new Map(tables.queue.map(({ id, run_at, due }) => [id, { runAt: run_at, due }]));
  return { view, times };
}

async function actualRun(ledger: Ledger, id: string, extras: ReadonlyMap<string, StepExtras>) {
  const { type, createdAt, endedAt, steps, id: _, ...run } = await ledger.runs.get(id, admin);
  return {
    ...run,
    ended: endedAt !== null,
    result: await actualResult(ledger, id),
    steps: Object.fromEntries(steps.map((step) => [step.key, actualStep(step, extras)])),
  };
}

async function actualResult(ledger: Ledger, id: string) {
  try {
    return { value: await ledger.runs.getResult(id, { scope: admin }) };
  } catch (error) {
    if (isLedgerError(error)) return { error: error.code };
    throw error;
  }
}

function actualStep(step: StepRead, extras: ReadonlyMap<string, StepExtras>) {
  const { id, key, jobId, releasedAt, startedAt, endedAt, output: _, ...rest } = step;
  const extra = extras.get(id);
  return {
    ...rest,
    unsatisfiedCount: extra?.unsatisfied_count,
    dependentCount: extra?.dependent_count,
    released: releasedAt !== null,
    started: startedAt !== null,
    ended: endedAt !== null,
    output: extra?.output,
  };
}

interface StepExtras {
  readonly id: string;
  readonly unsatisfied_count: number;
  readonly dependent_count: number;
  readonly output: JsonValue[];
}

interface QueueRow {
  readonly id: string;
  readonly run_number: number;
  readonly status: string;
  readonly type: string;
  readonly organization_id: string | null;
  readonly priority: number;
  readonly run_at: string;
  readonly attempt: number;
  readonly max_attempts: number;
  readonly worker_id: string | null;
  readonly leased: boolean;
  readonly expired: boolean;
  readonly payload: JsonValue;
}

interface Tables {
  readonly steps: readonly StepExtras[];
  readonly queue: readonly (QueueRow & { readonly due: boolean })[];
  readonly ledger: readonly (Omit<Job["ended"][number], "output"> & { id: string; output: JsonValue[] })[];
  readonly attempts: readonly { id: string; runNumber: number; attempt: number; failureKind: FailureKind }[];
}

// An array of nothing or one value tells SQL's null from JSON's.
const output = sql`case when output is null then '[]' else jsonb_build_array(output) end`;

async function readTables(db: Kysely<RunledgerDatabase>): Promise<Tables> {
  const { rows } = await sql<{ tables: Tables }>`
    select jsonb_build_object(
      'steps', (select coalesce(jsonb_agg(s), '[]') from (
        select id, unsatisfied_count, dependent_count, ${output} as output from runledger.workflow_steps
      ) as s),
      'queue', (select coalesce(jsonb_agg(q), '[]') from (
        select id, run_number, status, type, organization_id, priority, attempt, max_attempts, worker_id, payload,
          leased_at is not null as leased, coalesce(lease_expires_at <= now(), false) as expired,
          to_char(run_at, 'YYYY-MM-DD HH24:MI:SS.US') as run_at, run_at <= now() as due
        from runledger.job_queue
      ) as q),
      'ledger', (select coalesce(jsonb_agg(l), '[]') from (
        select id, run_number as "runNumber", status, attempt, worker_id as "workerId", failure_kind as "failureKind",
          error_code as "errorCode", error_message as "errorMessage", canceled_reason as "canceledReason",
          ${output} as output
        from runledger.job_ledger order by id, run_number
      ) as l),
      'attempts', (select coalesce(jsonb_agg(a), '[]') from (
        select job_id as id, run_number as "runNumber", attempt, worker_id as "workerId",
          failure_kind as "failureKind", error_code as "errorCode", error_message as "errorMessage"
        from runledger.job_attempts order by job_id, run_number, attempt
      ) as a)
    ) as tables`.execute(db);
  const [row] = rows;
  if (row === undefined) throw new Error("the tables could not be read");
  return row.tables;
}

function grouped<T>(rows: readonly T[], named: (row: T) => [string, unknown]): Record<string, unknown[]> {
  const groups: Record<string, unknown[]> = {};
  for (const row of rows) {
    const [name, value] = named(row);
    groups[name] = [...(groups[name] ?? []), value];
  }
  return groups;
}
