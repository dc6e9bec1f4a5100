/** One database of the measurement: what it holds beside the jobs that are drained, and the claims made in it. */
import { Kysely, PostgresDialect } from "kysely";
import pg from "pg";
import { createLedger, type Ledger, prepared } from "../../src/index.ts";
import { cloneDatabase } from "../../src/testing/index.ts";
import { type Contents, fill } from "./fill.ts";

export const BATCH = 100;

export interface Scene extends Contents {
  readonly title: string;
  /** Whether a transaction that began before the drain stays open until it ends. */
  readonly held: boolean;
}

/** Milliseconds of a claim of 100 jobs, and of settling them. */
export interface Turn {
  readonly claimMs: number;
  readonly settleMs: number;
}

export class Stage {
  readonly scene: Scene;
  readonly #url: string;
  readonly #pool: pg.Pool;
  readonly #ledger: Ledger;
  #claim: { readonly sql: string; readonly parameters: readonly unknown[] } | undefined;
  #holder: pg.Client | undefined;

  private constructor(scene: Scene, url: string) {
    this.scene = scene;
    this.#url = url;
    this.#pool = prepared(new pg.Pool({ connectionString: url, max: 1 }));
    this.#pool.on("error", () => {});
    const db = new Kysely<unknown>({
      dialect: new PostgresDialect({ pool: this.#pool }),
      log: ({ query: { sql, parameters } }) => {
        if (sql.startsWith("/* runledger:claim_jobs */")) this.#claim = { sql, parameters };
      },
    });
    this.#ledger = createLedger({ db, notify: false });
  }

  static async open(server: string, template: string, scene: Scene): Promise<Stage> {
    const { url } = await cloneDatabase(server, template);
    await fill(url, scene);
    return new Stage(scene, url);
  }

  /** The jobs of one drain; every drain begins on a table without dead rows. */
  async begin(jobs: number): Promise<void> {
    await this.#pool.query("vacuum (analyze) runledger.job_queue");
    for (let from = 0; from < jobs; from += 1000) {
      const count = Math.min(1000, jobs - from);
      await this.#ledger.jobs.enqueueMany(Array.from({ length: count }, (_, n) => ({ type: "noop", payload: { n } })));
    }
    if (this.scene.held) await this.#hold();
  }

  async turn(): Promise<Turn> {
    const began = performance.now();
    const jobs = await this.#ledger.jobs.claim({ workerId: "bench", limit: BATCH, types: ["noop"] });
    const claimed = performance.now();
    if (jobs.length !== BATCH) throw new Error(`${this.scene.title}: ${jobs.length} jobs were claimed`);
    await this.#ledger.jobs.settle(jobs.map(({ lease }) => ({ lease, success: {} })));
    return { claimMs: claimed - began, settleMs: performance.now() - claimed };
  }

  /** How many pages a claim touches now, whether they were in memory or not. It is taken back. */
  async pages(): Promise<number> {
    if (this.#claim === undefined) throw new Error("Nothing was claimed yet.");
    const { sql, parameters } = this.#claim;
    const client = await this.#pool.connect();
    try {
      await client.query("begin");
      const { rows } = await client.query(`explain (analyze, buffers, format json) ${sql}`, [...parameters]);
      await client.query("rollback");
      const [{ Plan: plan }] = rows[0]["QUERY PLAN"];
      return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"];
    } finally {
      client.release();
    }
  }

  /** How often this connection planned a claim for the values at hand, instead of using the plan for any. */
  async customPlans(): Promise<number> {
    const { rows } = await this.#pool.query<{ plans: string }>(
      "select coalesce(sum(custom_plans), 0) as plans from pg_prepared_statements where name like 'claim_jobs:%'",
    );
    return Number(rows[0]?.plans);
  }

  async end(): Promise<void> {
    await this.#holder?.end();
    this.#holder = undefined;
  }

  async close(): Promise<void> {
    await this.end();
    await this.#pool.end();
  }

  async #hold(): Promise<void> {
    this.#holder = new pg.Client({ connectionString: this.#url });
    await this.#holder.connect();
    await this.#holder.query("begin isolation level repeatable read");
    // The snapshot is taken by the first statement that reads.
    await this.#holder.query("select from runledger.job_queue limit 1");
  }
}
