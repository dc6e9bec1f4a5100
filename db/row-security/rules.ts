/**
 * Who may do what with which table: the one table of rules behind the row-level security of the schema. A relation or
 * function that is not here is nobody's but the owner's; a test wants every one of them here.
 */

/** What a service's logins are members of. */
export type RoleKind = "enqueuer" | "worker" | "reader" | "admin";

export const roleKinds: readonly RoleKind[] = ["enqueuer", "worker", "reader", "admin"];

/**
 * How a row tells whose it is: by its organization, by its tenant where that is a column, or by the row that it hangs
 * on. Null: it is nobody's in particular.
 */
export type Tenancy = "organization" | "tenant" | { readonly through: Parent; readonly column: string } | null;

export type Parent = "job" | "run" | "schedule";

/** A privilege as GRANT names it; an UPDATE of all columns but some is spelled out from the catalog. */
export type Privilege =
  | "select"
  | "insert"
  | "delete"
  | "update"
  | `update (${string})`
  | { readonly updateAllBut: readonly string[] };

export interface TableRule {
  readonly tenancy: Tenancy;
  readonly grants: Readonly<Partial<Record<RoleKind, readonly Privilege[]>>>;
  /** The column that names the workflow run which a new row must share its tenant with. */
  readonly guardedRun?: string;
}

const read = ["select"] as const;
const append = ["select", "insert"] as const;
/** Keys are never changed; but who takes one anew that has expired locks the row that it deletes. */
const expiring = ["select", "insert", "delete", "update (expires_at)"] as const;
const change = ["select", "insert", "update"] as const;
const all = ["select", "insert", "update", "delete"] as const;
const ofJob: Tenancy = { through: "job", column: "job_id" };
const ofRun: Tenancy = { through: "run", column: "run_id" };

/**
 * An enqueuer acts for a tenant: enqueues, reads, cancels, completes gates, appends, retries. It never writes a lease or
 * an attempt of a job that runs. FOR UPDATE needs the right to update some column.
 */
export const tableRules: Readonly<Record<string, TableRule>> = {
  job_definitions: { tenancy: null, grants: { enqueuer: read, worker: change, reader: read, admin: all } },
  job_queue: {
    tenancy: "organization",
    grants: {
      // What an active key lets a request replace of a pending job.
      enqueuer: [
        ...append,
        "delete",
        "update (payload, priority, run_at, tags, max_attempts, timeout_seconds, checkpoint, progress_done, progress_total, limit_key, limit_concurrency, limit_starts, limit_period_seconds)",
      ],
      worker: all,
      reader: read,
      admin: all,
    },
    guardedRun: "workflow_run_id",
  },
  job_ledger: { tenancy: "organization", grants: { enqueuer: append, worker: append, reader: read, admin: all } },
  job_attempts: { tenancy: ofJob, grants: { enqueuer: append, worker: append, reader: read, admin: all } },
  job_events: { tenancy: ofJob, grants: { enqueuer: append, worker: append, reader: read, admin: all } },
  job_logs: { tenancy: ofJob, grants: { enqueuer: read, worker: append, reader: read, admin: all } },
  job_idempotency_keys: { tenancy: "tenant", grants: { enqueuer: expiring, worker: expiring, admin: all } },
  job_limits: { tenancy: "tenant", grants: { worker: all, admin: all } },
  job_limit_wakes: { tenancy: "tenant", grants: { worker: all, admin: all } },
  job_replays: {
    tenancy: { through: "job", column: "source_job_id" },
    grants: { enqueuer: append, worker: append, admin: all },
  },
  job_schedules: { tenancy: "tenant", grants: { worker: change, reader: read, admin: all } },
  job_schedule_fires: {
    tenancy: { through: "schedule", column: "schedule_id" },
    grants: { worker: append, reader: read, admin: all },
  },
  workflow_runs: {
    tenancy: "organization",
    grants: {
      enqueuer: [...append, { updateAllBut: ["id", "type", "organization_id"] }],
      worker: change,
      reader: read,
      admin: all,
    },
  },
  workflow_steps: {
    tenancy: "organization",
    grants: {
      enqueuer: [...append, { updateAllBut: ["run_id", "id", "organization_id"] }],
      worker: change,
      reader: read,
      admin: all,
    },
    guardedRun: "run_id",
  },
  workflow_step_dependencies: {
    tenancy: ofRun,
    grants: { enqueuer: append, worker: append, reader: read, admin: all },
    guardedRun: "run_id",
  },
  workflow_run_mutations: {
    tenancy: ofRun,
    grants: { enqueuer: append, worker: append, reader: read, admin: all },
    guardedRun: "run_id",
  },
  workflow_idempotency_keys: { tenancy: "tenant", grants: { enqueuer: expiring, worker: expiring, admin: all } },
  status_counts: { tenancy: "tenant", grants: { enqueuer: read, worker: change, reader: read, admin: all } },
  status_count_deltas: { tenancy: "organization", grants: { enqueuer: read, worker: all, reader: read, admin: all } },
  schema_migrations: { tenancy: null, grants: {} },
  schema_migrations_lock: { tenancy: null, grants: {} },
};

/** A view reads with the rights of who selects from it, which PostgreSQL 14 cannot: there it is nobody's but the worker's. */
export const viewRules: Readonly<Record<string, readonly RoleKind[]>> = {
  jobs: roleKinds,
  job_dead_letters: roleKinds,
  job_timeline: roleKinds,
  workflow_timeline: roleKinds,
};

export interface FunctionRule {
  /** Whether it does what its caller may not: with the owner's rights, and names that cannot be redirected. */
  readonly definer: boolean;
  readonly execute: readonly RoleKind[];
}

/** Who fires a trigger needs no right to execute its function, nor any on the tables that it writes. */
const trigger: FunctionRule = { definer: true, execute: [] };
const enqueuers = ["enqueuer", "worker", "admin"] as const;

/** By signature, as in the schema of the default name. Who fires a trigger needs no right to execute its function. */
export const functionRules: Readonly<Record<string, FunctionRule>> = {
  "count_changed_run()": trigger,
  "count_deleted_runs()": trigger,
  "count_ended_jobs()": trigger,
  "count_forgotten_jobs()": trigger,
  "count_inserted_jobs()": trigger,
  "count_inserted_runs()": trigger,
  "drop_job_ledger_partition(text)": { definer: true, execute: ["admin"] },
  "ensure_job_ledger_partitions(integer)": { definer: true, execute: ["worker", "admin"] },
  "enqueue_job(text, jsonb, jsonb)": { definer: false, execute: enqueuers },
  "enqueue_jobs(jsonb, boolean)": { definer: false, execute: enqueuers },
  "hold_job_ledger_partition(text)": { definer: true, execute: ["admin"] },
  "job_key_problem(jsonb)": { definer: false, execute: enqueuers },
  "job_limit_problem(jsonb)": { definer: false, execute: enqueuers },
  "job_options_problem(text, jsonb, text[], text[], text[], text[], text[])": { definer: false, execute: enqueuers },
  "job_request_problem(jsonb)": { definer: false, execute: enqueuers },
  "job_requests(jsonb)": { definer: false, execute: enqueuers },
  "recount_jobs()": trigger,
  "recount_runs()": trigger,
  "take_job_end_back()": trigger,
  "take_or_find_jobs(runledger.job_request[])": { definer: false, execute: enqueuers },
  "take_or_join_jobs(runledger.job_request[])": { definer: false, execute: enqueuers },
  "uuid_v7(timestamp with time zone)": { definer: false, execute: enqueuers },
  "wake_job_limit()": trigger,
};
