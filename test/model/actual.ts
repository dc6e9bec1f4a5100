/** Everything that can be seen of what the ledger has: its tables by the names of the model, and its public reads. */
import { type Kysely, sql } from "kysely";
import { isLedgerError, type JsonValue, type Ledger, type RunledgerDatabase } from "../../src/index.ts";
import type { Model } from "./model.ts";

const admin = { admin: true } as const;
type Row = Record<string, JsonValue>;

export interface Tables {
  readonly runs: readonly (Row & { readonly id: string })[];
  readonly steps: readonly (Row & { readonly runId: string; readonly key: string })[];
  readonly edges: readonly { readonly runId: string; key: string; before: string; kind: string }[];
  readonly queue: readonly (Row & { readonly id: string; readonly runAt: string; readonly due: boolean })[];
  readonly ledger: readonly (Row & { readonly id: string })[];
  readonly attempts: readonly (Row & { readonly id: string })[];
}

// An array of nothing or one value tells SQL's null from JSON's.
const output = sql`case when output is null then '[]' else jsonb_build_array(output) end as output`;

/** One statement, so that it is one moment. */
export async function readTables(db: Kysely<RunledgerDatabase>): Promise<Tables> {
  const { rows } = await sql<{ tables: Tables }>`
    select jsonb_build_object(
      'runs', (select coalesce(jsonb_agg(r), '[]') from (
        select id, status, step_count as "stepCount", open_count as "openCount", waiting_count as "waitingCount",
          errored_count as "erroredCount", organization_id as "organizationId", canceled_reason as "canceledReason",
          ended_at is not null as ended
        from runledger.workflow_runs
      ) as r),
      'steps', (select coalesce(jsonb_agg(s), '[]') from (
        select run_id as "runId", step_key as key, kind, status, job_type as "jobType", pending_count as "pendingCount",
          unsatisfied_count as "unsatisfiedCount", dependent_count as "dependentCount",
          released_at is not null as released, started_at is not null as started, ended_at is not null as ended,
          error_code as "errorCode", error_message as "errorMessage", completed_by as "completedBy", reason,
          item_count as "itemCount", kept_outcome as "keptOutcome", ${output}
        from runledger.workflow_steps
      ) as s),
      'edges', (select coalesce(jsonb_agg(d), '[]') from (
        select d.run_id as "runId", s.step_key as key, p.step_key as before, d.kind
        from runledger.workflow_step_dependencies as d
        join runledger.workflow_steps as s on s.run_id = d.run_id and s.id = d.step_id
        join runledger.workflow_steps as p on p.run_id = d.run_id and p.id = d.prerequisite_id
      ) as d),
      'queue', (select coalesce(jsonb_agg(q), '[]') from (
        select id, run_number as "runNumber", status, type, organization_id as "organizationId", priority, attempt,
          max_attempts as "maxAttempts", worker_id as "workerId", payload, leased_at is not null as leased,
          coalesce(lease_expires_at <= now(), false) as expired,
          to_char(run_at, 'YYYY-MM-DD HH24:MI:SS.US') as "runAt", run_at <= now() as due
        from runledger.job_queue
      ) as q),
      'ledger', (select coalesce(jsonb_agg(l), '[]') from (
        select id, run_number as "runNumber", status, attempt, worker_id as "workerId", failure_kind as "failureKind",
          error_code as "errorCode", error_message as "errorMessage", canceled_reason as "canceledReason", ${output}
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

export function viewOfTables(tables: Tables, model: Model) {
  const jobs = new Map(model.jobs.map(({ id, name }) => [id, name]));
  const runs = new Map(model.runs.map(({ id, name }) => [id, name]));
  const jobOf = (id: string) => jobs.get(id) ?? `unknown job ${id}`;
  const runOf = (id: string) => runs.get(id) ?? `unknown run ${id}`;
  return {
    runs: Object.fromEntries(tables.runs.map(({ id, ...run }) => [runOf(id), { ...run, steps: stepsOf(tables, id) }])),
    queue: Object.fromEntries(tables.queue.map(({ id, runAt, due, ...row }) => [jobOf(id), row])),
    ledger: grouped(tables.ledger, jobOf),
    attempts: grouped(tables.attempts, jobOf),
  };
}

function stepsOf({ steps, edges }: Tables, run: string): Record<string, unknown> {
  const needsOf = (step: string) =>
    Object.fromEntries(
      edges.filter(({ runId, key }) => runId === run && key === step).map(({ before, kind }) => [before, kind]),
    );
  return Object.fromEntries(
    steps
      .filter(({ runId }) => runId === run)
      .map(({ runId, key, ...step }) => [key, { ...step, needs: needsOf(key) }]),
  );
}

function grouped(rows: readonly (Row & { readonly id: string })[], nameOf: (id: string) => string) {
  const groups: Record<string, unknown[]> = {};
  for (const { id, ...row } of rows) groups[nameOf(id)] = [...(groups[nameOf(id)] ?? []), row];
  return groups;
}

/** What the public functions answer about a run. */
export async function readRun(ledger: Ledger, id: string) {
  const { createdAt, endedAt, steps, ...run } = await ledger.runs.get(id, admin);
  return {
    run: { ...run, ended: endedAt !== null },
    steps: Object.fromEntries(
      steps.map(({ key, releasedAt, startedAt, endedAt: end, ...step }) => [
        key,
        { ...step, released: releasedAt !== null, started: startedAt !== null, ended: end !== null },
      ]),
    ),
    result: await resultOf(ledger, id),
  };
}

async function resultOf(ledger: Ledger, id: string) {
  try {
    return { value: await ledger.runs.getResult(id, { scope: admin }) };
  } catch (error) {
    if (isLedgerError(error)) return { error: error.code };
    throw error;
  }
}
