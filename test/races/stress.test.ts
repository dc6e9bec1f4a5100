/** Everything that may happen to a run, at random and at the same time; afterwards the invariants hold and every run ends. */
import { expect, test } from "@jest/globals";
import { Kysely, PostgresDialect } from "kysely";
import pg from "pg";
import type { RunledgerDatabase } from "../../src/database/tables.ts";
import {
  createLedger,
  type GraphSpec,
  isLedgerError,
  type Lease,
  type Ledger,
  type StepSpec,
} from "../../src/index.ts";
import { expectInvariants, watchForDeadlocks } from "../invariants.ts";
import { createTestDatabase } from "../support/database.ts";

/** RUNLEDGER_STRESS_SEEDS=500 looks longer; RUNLEDGER_STRESS_SEED=17 repeats one. */
const SEEDS = Number(process.env.RUNLEDGER_STRESS_SEEDS ?? 12);
const ONLY = process.env.RUNLEDGER_STRESS_SEED;
const SESSIONS = 8;
const OPERATIONS = 60;
const RUNS = 3;

const database = await createTestDatabase({ max: 4 });
const admin = { admin: true } as const;

const seeds = ONLY === undefined ? Array.from({ length: SEEDS }, (_, n) => n + 1) : [Number(ONLY)];

test.each(seeds)("seed %i", async (seed) => {
  const pool = new pg.Pool({ connectionString: database.url, max: SESSIONS + 2 });
  pool.on("error", () => {});
  const expectNoDeadlocks = watchForDeadlocks({ pool });
  const db = new Kysely<RunledgerDatabase>({ dialect: new PostgresDialect({ pool }) });
  try {
    const world = await World.create(db, seed);
    await Promise.all(Array.from({ length: SESSIONS }, (_, session) => world.act(session, seed * 1000 + session)));

    expect(world.unexpected).toEqual([]);
    expectNoDeadlocks();
    await expectInvariants(database);
    await world.drain();
    await expectInvariants(database);
    expect(await world.openRuns()).toEqual([]);
  } finally {
    await db.destroy();
  }
  const { rows } = await database.pool.query(
    "select deadlocks::int as deadlocks from pg_stat_database where datname = current_database()",
  );
  expect(rows).toEqual([{ deadlocks: 0 }]);
});

/** What may come of an operation whose job, gate or run somebody else was faster to change. */
const expectedCodes = new Set([
  "job.lease_owner_mismatch",
  "workflow.release_conflict",
  "workflow.external_step_not_waiting",
  "workflow.external_step_conflicting_completion_retry",
  "workflow.external_step_conflicting_output_retry",
]);

const rolledBack = new Error("rolled back on purpose");

class World {
  readonly unexpected: unknown[] = [];
  readonly #db: Kysely<RunledgerDatabase>;
  readonly #ledger: Ledger;
  readonly #type: string;
  readonly #runs: { id: string; gates: string[] }[] = [];
  /** Leases that any session may settle, some of them twice. */
  #leases: Lease[] = [];

  static async create(db: Kysely<RunledgerDatabase>, seed: number): Promise<World> {
    const world = new World(db, `stress-${seed}`);
    const random = randomness(seed);
    for (let n = 0; n < RUNS; n += 1) world.#runs.push(await world.#start(random));
    return world;
  }

  async #start(random: () => number): Promise<{ id: string; gates: string[] }> {
    const graph = randomGraph(this.#type, random);
    const { id } = await this.#ledger.runs.enqueue(graph);
    return { id, gates: graph.steps.filter(({ job }) => job === undefined).map(({ key }) => key) };
  }

  private constructor(db: Kysely<RunledgerDatabase>, type: string) {
    this.#db = db;
    this.#ledger = createLedger({ db });
    this.#type = type;
  }

  async act(session: number, seed: number): Promise<void> {
    const random = randomness(seed);
    for (let n = 0; n < OPERATIONS; n += 1) {
      const operation = pick(random, this.#operations(random, `worker-${session}`));
      try {
        await this.#somehow(random, operation);
      } catch (error) {
        if (error !== rolledBack && !(isLedgerError(error) && expectedCodes.has(error.code)))
          this.unexpected.push(error);
      }
    }
  }

  /** In the operation's own transaction, or in a caller's that commits or rolls back. */
  #somehow(random: () => number, operation: (ledger: Ledger) => Promise<unknown>): Promise<unknown> {
    const way = random();
    if (way < 0.6) return operation(this.#ledger);
    return this.#db
      .transaction()
      .setIsolationLevel("read committed")
      .execute(async (trx) => {
        await operation(this.#ledger.in(trx));
        if (way > 0.9) throw rolledBack;
      });
  }

  #operations(random: () => number, workerId: string): ((ledger: Ledger) => Promise<unknown>)[] {
    const claim = async (ledger: Ledger) => {
      const limit = 1 + Math.floor(random() * 4);
      const claimed = await ledger.jobs.claim({ workerId, limit, types: [this.#type] });
      this.#leases.push(...claimed.map(({ lease }) => lease));
    };
    const settle = (ledger: Ledger) => {
      const batch = shuffled(random, this.#leases).slice(0, 1 + Math.floor(random() * 4));
      if (random() < 0.8) this.#leases = this.#leases.filter((lease) => !batch.includes(lease));
      return ledger.jobs.settle(batch.map((lease) => ({ lease, ...randomOutcome(random) })));
    };
    const gate = (ledger: Ledger) => {
      const { id, gates } = pick(random, this.#runs);
      const key = gates[Math.floor(random() * gates.length)];
      if (key === undefined) return Promise.resolve();
      const outcome = random() < 0.7 ? "SUCCEEDED" : "FAILED";
      return ledger.steps.complete(id, key, { scope: admin, outcome });
    };
    const expire = () =>
      this.#db
        .updateTable("runledger.job_queue")
        .set({ lease_expires_at: new Date(0) })
        .where("id", "in", (eb) =>
          eb
            .selectFrom("runledger.job_queue")
            .where("status", "=", "LEASED")
            .where("type", "=", this.#type)
            .select("id")
            .orderBy("id")
            .limit(1)
            .forUpdate()
            .skipLocked(),
        )
        .execute();
    const reap = (ledger: Ledger) => ledger.jobs.reap();
    const beat = (ledger: Ledger) => ledger.jobs.heartbeat(this.#leases.slice(0, 5));
    const cancel = (ledger: Ledger) => ledger.runs.cancel(pick(random, this.#runs).id, { scope: admin });
    // A cancel ends all: it comes late and seldom.
    return [
      claim,
      claim,
      claim,
      settle,
      settle,
      settle,
      settle,
      gate,
      expire,
      reap,
      beat,
      random() < 0.15 ? cancel : claim,
    ];
  }

  /** Goes on until nothing is left to do: no run is stuck. */
  async drain(): Promise<void> {
    for (let round = 0; round < 100 && (await this.openRuns()).length > 0; round += 1) {
      await this.#db
        .updateTable("runledger.job_queue")
        .set({ lease_expires_at: new Date(0) })
        .where("status", "=", "LEASED")
        .execute();
      await this.#ledger.jobs.reap();
      await this.#db
        .updateTable("runledger.job_queue")
        .set({ run_at: new Date(0) })
        .where("status", "=", "PENDING")
        .execute();
      const jobs = await this.#ledger.jobs.claim({ workerId: "last", limit: 1000, types: [this.#type] });
      await this.#ledger.jobs.settle(jobs.map(({ lease }) => ({ lease, success: {} })));
      for (const { id } of this.#runs) {
        const { steps } = await this.#ledger.runs.get(id, admin);
        for (const { key, status } of steps) {
          if (status === "WAITING_FOR_EXTERNAL") await this.#ledger.steps.complete(id, key, { scope: admin });
        }
      }
    }
  }

  async openRuns(): Promise<unknown[]> {
    return this.#db
      .selectFrom("runledger.workflow_runs")
      .select(["id", "status"])
      .where("type", "=", this.#type)
      .where("ended_at", "is", null)
      .execute();
  }
}

/** Up to sixteen steps, each with up to three prerequisites before it. */
function randomGraph(type: string, random: () => number): GraphSpec {
  const size = 6 + Math.floor(random() * 11);
  const steps = Array.from({ length: size }, (_, n): StepSpec => {
    const earlier = shuffled(
      random,
      Array.from({ length: n }, (_, m) => m),
    ).slice(0, Math.floor(random() * 4));
    const dependencies = earlier.map((m) => ({
      key: `s${m}`,
      kind: random() < 0.7 ? ("ON_SUCCESS" as const) : ("ON_TERMINAL" as const),
    }));
    if (random() < 0.2) return { key: `s${n}`, dependencies };
    return { key: `s${n}`, dependencies, job: { type, payload: n, maxAttempts: 1 + Math.floor(random() * 2) } };
  });
  return { type, steps, resultStep: null };
}

function randomOutcome(random: () => number) {
  const kind = random();
  if (kind < 0.7) return { success: { output: kind } };
  const failure = { code: "stress", message: "stress" };
  return { failure: kind < 0.9 ? ({ ...failure, kind: "TERMINAL" } as const) : failure };
}

function pick<T>(random: () => number, items: readonly T[]): T {
  const item = items[Math.floor(random() * items.length)];
  if (item === undefined) throw new Error("nothing to pick from");
  return item;
}

function shuffled<T>(random: () => number, items: readonly T[]): T[] {
  return items
    .map((item) => ({ item, at: random() }))
    .sort((a, b) => a.at - b.at)
    .map(({ item }) => item);
}

/** mulberry32: the same numbers for the same seed. The interleaving of the sessions stays the server's own. */
function randomness(seed: number): () => number {
  let state = seed * 0x9e3779b1;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}
