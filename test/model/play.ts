/** Plays a sequence of operations on the ledger and on the model, and compares all that can be seen after each. */
import { isDeepStrictEqual } from "node:util";
import { expect } from "@jest/globals";
import fc from "fast-check";
import { type Kysely, sql } from "kysely";
import { createLedger, defineJob, isLedgerError, type Ledger, type RunledgerDatabase } from "../../src/index.ts";
import { readRun, readTables, viewOfTables } from "./actual.ts";
import { expectedRead, expectedView } from "./expected.ts";
import { Model, Refused } from "./model.ts";
import { type Action, anyOperation, type Memory, type Operation } from "./operations.ts";
import { jobTypes } from "./plans.ts";

/** Several operations in a transaction of the caller's, or one by itself. */
export interface Turn {
  readonly operations: readonly Operation[];
  readonly transaction: "none" | "commit" | "rollback";
  toString(): string;
}

const alone = anyOperation.map(
  (operation): Turn => ({ operations: [operation], transaction: "none", toString: () => String(operation) }),
);

const together = fc
  .record({
    operations: fc.array(anyOperation, { minLength: 1, maxLength: 4 }),
    transaction: fc.constantFrom("commit" as const, "rollback" as const),
  })
  .map((turn): Turn => ({ ...turn, toString: () => `${turn.transaction} [${turn.operations.join("; ")}]` }));

export const anyTurn: fc.Arbitrary<Turn> = fc.oneof(
  { weight: 5, arbitrary: alone },
  { weight: 1, arbitrary: together },
);

const noBackoff = { initialSeconds: 0, factor: 1, maxSeconds: 0, jitter: 0 } as const;
const tables = [
  "job_queue",
  "job_ledger",
  "job_attempts",
  "job_events",
  "job_idempotency_keys",
  "workflow_runs",
  "workflow_idempotency_keys",
  // What the deletes before have counted.
  "status_counts",
  "status_count_deltas",
];

const PLAYS_PER_TRUNCATE = 25;
let plays = 0;

export class Play {
  readonly #db: Kysely<RunledgerDatabase>;
  readonly #ledger: Ledger;
  readonly #model = new Model();
  readonly #memory: Memory = { leases: [], runs: [], jobs: [], additions: [] };
  /** What was there at the last look: only runs that changed are read anew through the public functions. */
  #seen: Record<string, unknown> = {};
  /** What was done, in words: the part of a counterexample that says most. */
  readonly #trace: string[] = [];

  constructor(db: Kysely<RunledgerDatabase>) {
    this.#db = db;
    this.#ledger = createLedger({ db });
  }

  /** Nothing is left of an earlier play, and retries are due at once. */
  async prepare(): Promise<void> {
    await this.#emptyTables();
    await this.#ledger.jobs.sync(jobTypes.map((type) => defineJob(type, { backoff: noBackoff })));
    await this.#ledger.jobs.resume(jobTypes);
  }

  /** A delete is quicker than a truncate, but leaves dead rows for the next plays to read over. */
  async #emptyTables(): Promise<void> {
    plays += 1;
    const names = tables.map((table) => sql.table(`runledger.${table}`));
    if (plays % PLAYS_PER_TRUNCATE === 0) await sql`truncate ${sql.join(names)} cascade`.execute(this.#db);
    else for (const name of names) await sql`delete from ${name}`.execute(this.#db);
  }

  async turns(turns: readonly Turn[]): Promise<void> {
    try {
      for (const turn of turns) await this.#turn(turn);
    } catch (error) {
      const steps = this.#trace.map((line, place) => `  ${place + 1}. ${line}`).join("\n");
      throw new Error(`After\n${steps}\n${error instanceof Error ? error.message : String(error)}`, { cause: error });
    }
  }

  async #turn({ operations, transaction }: Turn): Promise<void> {
    if (transaction === "none") return this.#operations(operations, this.#ledger, this.#db);
    const before = this.#model.saved();
    const trx = await this.#db.startTransaction().setIsolationLevel("read committed").execute();
    this.#trace.push("begin");
    try {
      await this.#operations(operations, this.#ledger.in(trx), trx);
      this.#trace.push(transaction);
      if (transaction === "commit") await trx.commit().execute();
    } finally {
      if (!trx.isCommitted) await trx.rollback().execute();
    }
    if (transaction === "rollback") this.#model.restore(before);
    await this.#compare(this.#ledger, this.#db);
  }

  async #operations(operations: readonly Operation[], ledger: Ledger, db: Kysely<RunledgerDatabase>): Promise<void> {
    for (const operation of operations) {
      const action = operation.aim(this.#model, this.#memory, db.isTransaction);
      if (action !== null) await this.#perform(action, ledger, db);
    }
  }

  async #perform(action: Action, ledger: Ledger, db: Kysely<RunledgerDatabase>): Promise<void> {
    this.#trace.push(action.text);
    const actual = await outcomeOf(() => action.act(ledger, db));
    const answer = "answer" in actual ? actual.answer : undefined;
    expect(actual).toEqual(await outcomeOf(() => action.expected(this.#model, answer)));
    await this.#learnIds(ledger);
    await this.#compare(ledger, db);
  }

  /** The ids of steps and of their jobs, which the model cannot know. */
  async #learnIds(ledger: Ledger): Promise<void> {
    for (const run of this.#model.runs) {
      if (run.steps.every(({ id }) => id !== "")) continue;
      const { steps } = await ledger.runs.get(run.id, { admin: true });
      for (const { key, id, jobId } of steps) {
        const step = run.steps.find((candidate) => candidate.key === key);
        if (step === undefined) throw new Error(`${run.name} has a step ${key} that the model does not know`);
        step.id = id;
        if (step.job !== null) step.job.id = jobId ?? "";
      }
    }
  }

  async #compare(ledger: Ledger, db: Kysely<RunledgerDatabase>): Promise<void> {
    const expected = expectedView(this.#model);
    const changed = this.#model.runs.filter(({ name }) => !isDeepStrictEqual(expected.runs[name], this.#seen[name]));
    const tables = await readTables(db);
    expect(viewOfTables(tables, this.#model)).toEqual(expected);
    for (const run of changed) expect(await readRun(ledger, run.id)).toEqual(expectedRead(this.#model, run));
    this.#seen = expected.runs;
    const times = new Map(tables.queue.map(({ id, runAt, due }) => [id, { runAt, due }]));
    for (const job of this.#model.jobs) {
      const time = times.get(job.id);
      if (time === undefined) continue;
      job.runAt = time.runAt;
      job.due = time.due;
      if (!db.isTransaction) expect([job.name, time.due]).toEqual([job.name, true]);
    }
  }
}

/** The answer, or the code of the refusal. */
async function outcomeOf(call: () => unknown): Promise<{ answer: unknown } | { error: string }> {
  try {
    return { answer: await call() };
  } catch (error) {
    if (isLedgerError(error) || error instanceof Refused) return { error: error.code };
    throw error;
  }
}
