/** Graphs in a few characters, their steps by key, and transactions that a test holds open. */
import { CompiledQuery, type ControlledTransaction, type Kysely } from "kysely";
import type pg from "pg";
import type { RunledgerDatabase } from "../../src/database/tables.ts";
import {
  type ClaimedJob,
  createLedger,
  type GraphSpec,
  isLedgerError,
  type Ledger,
  type LedgerError,
  type LedgerOptions,
  type RunOptions,
  type SettledJob,
  type StepSpec,
} from "../../src/index.ts";
import type { TestDatabase } from "../support/database.ts";

export const globally = { scope: { global: true } } as const;
export const unknownId = "0190a5f0-7b1c-7e3a-9f00-0123456789ab";
export const someOrganization = "0190a5f0-0000-7000-8000-000000000001";
export const otherOrganization = "0190a5f0-0000-7000-8000-000000000002";

export function ledgerOf(database: TestDatabase, options: Partial<LedgerOptions> = {}): Ledger {
  return createLedger({ db: database.db, ...options });
}

/**
 * `{ a: [], b: ["a"], c: ["a?"] }`: b needs a's success, c only its end. Keys that start with "gate"
 * are EXTERNAL. Each step's job has a type of its own, `<type>.<key>`, so that it can be claimed alone.
 */
export function graphOf(type: string, steps: Readonly<Record<string, readonly string[]>>, result?: string): GraphSpec {
  return {
    type,
    steps: Object.entries(steps).map(([key, needs]) => stepOf(type, key, needs)),
    resultStep: result ?? null,
  };
}

function stepOf(type: string, key: string, needs: readonly string[]): StepSpec {
  const dependencies = needs.map((need) =>
    need.endsWith("?")
      ? ({ key: need.slice(0, -1), kind: "ON_TERMINAL" } as const)
      : ({ key: need, kind: "ON_SUCCESS" } as const),
  );
  if (key.startsWith("gate")) return { key, dependencies };
  return { key, dependencies, job: { type: `${type}.${key}`, payload: { key }, maxAttempts: 1 } };
}

let workflows = 0;

/** A run of a graph, with its steps within reach. */
export class TestRun {
  readonly id: string;
  readonly type: string;
  readonly #database: TestDatabase;
  readonly #ledger: Ledger;

  static async start(
    database: TestDatabase,
    ledger: Ledger,
    steps: Readonly<Record<string, readonly string[]>>,
    options: RunOptions & { result?: string } = {},
  ): Promise<TestRun> {
    const { result, ...rest } = options;
    workflows += 1;
    const type = `workflow-${workflows}`;
    const { id } = await ledger.runs.enqueue(graphOf(type, steps, result), rest);
    return new TestRun(database, ledger, id, type);
  }

  constructor(database: TestDatabase, ledger: Ledger, id: string, type: string) {
    this.#database = database;
    this.#ledger = ledger;
    this.id = id;
    this.type = type;
  }

  /** Claims the job of one step. */
  async claim(key: string, leaseSeconds = 60): Promise<ClaimedJob> {
    const types = [`${this.type}.${key}`];
    const [job] = await this.#ledger.jobs.claim({ workerId: `worker of ${key}`, limit: 1, types, leaseSeconds });
    if (job === undefined) throw new Error(`step ${key} has no job to claim`);
    return job;
  }

  async claimAll<K extends readonly string[]>(...keys: K): Promise<{ [I in keyof K]: ClaimedJob }> {
    const jobs: ClaimedJob[] = [];
    for (const key of keys) jobs.push(await this.claim(key));
    return jobs as { [I in keyof K]: ClaimedJob };
  }

  async succeed(key: string, output?: unknown): Promise<SettledJob> {
    const { lease } = await this.claim(key);
    return this.#ledger.jobs.complete(lease, output === undefined ? {} : { output });
  }

  async fail(key: string): Promise<SettledJob> {
    const { lease } = await this.claim(key);
    return this.#ledger.jobs.fail(lease, failure);
  }

  /** What is stored of the run: its status and counters, and each step's status. */
  async state(): Promise<{ run: string; steps: Record<string, string> }> {
    const { rows } = await this.#database.pool.query<{ status: string; steps: Record<string, string> }>(
      `select r.status, jsonb_object_agg(s.step_key, s.status) as steps
       from runledger.workflow_runs as r join runledger.workflow_steps as s on s.run_id = r.id
       where r.id = $1 group by r.id`,
      [this.id],
    );
    const [row] = rows;
    if (row === undefined) throw new Error("the run is gone");
    return { run: row.status, steps: row.steps };
  }

  async statuses(): Promise<Record<string, string>> {
    return (await this.state()).steps;
  }

  async row(key: string): Promise<StepRow> {
    const { rows } = await this.#database.pool.query<StepRow>(
      "select * from runledger.workflow_steps where run_id = $1 and step_key = $2",
      [this.id, key],
    );
    const [row] = rows;
    if (row === undefined) throw new Error(`step ${key} does not exist`);
    return row;
  }

  /** The types of the jobs in the queue, without the run's own part. */
  async liveJobs(): Promise<string[]> {
    const { rows } = await this.#database.pool.query<{ type: string }>(
      "select type from runledger.job_queue where workflow_run_id = $1 order by type",
      [this.id],
    );
    return rows.map(({ type }) => type.slice(this.type.length + 1));
  }
}

export interface StepRow {
  readonly id: string;
  readonly status: string;
  readonly job_id: string;
  readonly pending_count: number;
  readonly unsatisfied_count: number;
  readonly error_code: string | null;
  readonly error_message: string | null;
  readonly completed_by: string | null;
  readonly reason: string | null;
  readonly output: unknown;
  readonly organization_id: string | null;
  readonly started_at: Date | null;
}

export const failure = { kind: "TERMINAL", code: "test.failed", message: "It failed." } as const;

/** A caller's transaction that the test ends itself; given back to the pool with the database at the latest. */
export async function openTransaction(database: TestDatabase): Promise<ControlledTransaction<RunledgerDatabase>> {
  const trx = await database.db.startTransaction().execute();
  database.defer(async () => {
    if (!trx.isCommitted && !trx.isRolledBack) await trx.rollback().execute();
  });
  return trx;
}

/** Sends one statement of the service's own through a transaction. */
export async function raw(trx: Pick<Kysely<RunledgerDatabase>, "executeQuery">, text: string): Promise<unknown[]> {
  return (await trx.executeQuery(CompiledQuery.raw(text))).rows;
}

/** A raw session that has begun a transaction and run these statements. */
export async function holding(
  database: TestDatabase,
  ...statements: readonly (readonly [string, unknown[]?])[]
): Promise<pg.Client> {
  const session = await database.connect();
  await session.query("begin");
  for (const [text, values] of statements) await session.query(text, values ?? []);
  return session;
}

/** The LedgerError that the call ends in. */
export async function errorOf(call: Promise<unknown>): Promise<LedgerError> {
  const outcome = await call.then(
    (value) => ({ value }),
    (error: unknown) => ({ error }),
  );
  if ("error" in outcome && isLedgerError(outcome.error)) return outcome.error;
  throw new Error("the call did not end in a LedgerError", { cause: outcome });
}

export async function codeOf(call: Promise<unknown>): Promise<string> {
  return (await errorOf(call)).code;
}

export async function countOf(database: TestDatabase, query: string, values: unknown[] = []): Promise<number> {
  const { rows } = await database.pool.query<{ count: string }>(`select count(*) as count from ${query}`, values);
  return Number(rows[0]?.count);
}
