/** A database that is put back to where it was in one round trip, the sessions that act in it, and one that looks on. */
import type pg from "pg";
import { createExecutor } from "../../src/database/executor.ts";
import { createLedger, type Ledger } from "../../src/index.ts";
import { checkInvariants, type Violation } from "../../src/invariants/check.ts";
import { createTestDatabase, type TestDatabase } from "../support/database.ts";
import { Scene } from "./scene.ts";
import { Session } from "./session.ts";

/** How many schedules leave so many dead rows behind that the tables are worth sweeping. */
const SWEEP_AFTER = 100;

export class Stage {
  readonly database: TestDatabase;
  /** Of the test itself: its statements are not scheduled. */
  readonly ledger: Ledger;
  readonly scene = new Scene();
  readonly #observer: pg.Client;
  readonly #sessions: Session[] = [];
  readonly #seen = new Map<string, Contents>();
  #contents: Contents = { version: 0, text: "", violations: [] };
  #sets = 0;
  #resets = 0;

  /** Call it at the top of a test file. */
  static async open(): Promise<Stage> {
    const database = await createTestDatabase({ max: 2 });
    const observer = await database.connect();
    // The observer only puts back what was consistent before.
    await observer.query("set session_replication_role = replica");
    await observer.query("create schema explorer");
    const { rows } = await observer.query<{ name: string }>(tablesQuery);
    for (const { name } of rows) await observer.query(`alter table runledger.${name} set (autovacuum_enabled = off)`);
    return new Stage(database, observer);
  }

  private constructor(database: TestDatabase, observer: pg.Client) {
    this.database = database;
    this.#observer = observer;
    this.ledger = createLedger({ db: database.db });
    database.defer(() => this.#closeSessions());
  }

  /** Keeps what the tables hold now as a set that every schedule starts from, and empties them for the next. */
  async keep(): Promise<Reset> {
    const set = `set_${this.#sets++}`;
    for (const { id } of (await this.#observer.query<{ id: string }>(idsQuery)).rows) this.scene.known.add(`"${id}"`);
    await this.#observer.query(keepQuery(set));
    return () => this.#reset(set);
  }

  async #reset(set: string): Promise<void> {
    this.scene.clear();
    await this.#observer.query({ name: set, text: `select explorer.${set}()` });
    this.#resets += 1;
    if (this.#resets % SWEEP_AFTER === 0) await this.#observer.query("vacuum");
  }

  /** The first sessions of the stage, as many as the schedule needs. */
  async sessions(count: number): Promise<Session[]> {
    while (this.#sessions.length < count) this.#sessions.push(await Session.open(this.database.url, this.scene));
    return this.#sessions.slice(0, count);
  }

  /** Whom each of these backends waits for; no entry for one that does not wait. */
  async blockers(pids: readonly number[]): Promise<Map<number, number[]>> {
    const { rows } = await this.#observer.query<{ pid: number; blockers: number[] }>({
      name: "blockers",
      text: "select pid, pg_blocking_pids(pid) as blockers from unnest($1::int[]) as pid",
      values: [pids],
    });
    return new Map(rows.filter(({ blockers }) => blockers.length > 0).map(({ pid, blockers }) => [pid, blockers]));
  }

  /** Looks at what is committed, where anything may have been, and returns the invariants that it breaks. */
  async look(): Promise<readonly Violation[]> {
    if (this.scene.committed) {
      this.#contents = await this.#readContents();
      this.scene.committed = false;
    }
    this.scene.version = this.#contents.version;
    return this.#contents.violations;
  }

  /** All that is committed, as text, without times and ids. */
  get contents(): string {
    return this.#contents.text;
  }

  async #readContents(): Promise<Contents> {
    const { rows } = await this.#observer.query<{ contents: string }>({ name: "contents", text: contentsQuery });
    const text = rows[0]?.contents ?? "";
    const known = this.#seen.get(text);
    if (known !== undefined) return known;
    const executor = createExecutor(this.database.db, "runledger", { notify: false, lockWaitMs: 5000 });
    const contents = { version: this.#seen.size, text, violations: await checkInvariants(executor) };
    this.#seen.set(text, contents);
    return contents;
  }

  /** How many deadlocks the server has counted in this database. Ends the sessions: only then it has counted them all. */
  async deadlocks(): Promise<number> {
    await this.#closeSessions();
    const { rows } = await this.#observer.query<{ deadlocks: number }>(
      "select deadlocks::int as deadlocks from pg_stat_database where datname = current_database()",
    );
    return rows[0]?.deadlocks ?? 0;
  }

  async #closeSessions(): Promise<void> {
    await Promise.all(this.#sessions.splice(0).map((session) => session.close()));
  }
}

/** A state of the tables, which comes back in many schedules: looked through once. */
interface Contents {
  readonly version: number;
  readonly text: string;
  readonly violations: readonly Violation[];
}

export type Reset = () => Promise<void>;

const tablesQuery = `
  select relname as name from pg_class
  where relnamespace = 'runledger'::regnamespace and relkind = 'r' order by relname`;

/** Copies every table, and makes a function that brings the copies back, in an order that is not that of the ids. */
function keepQuery(set: string): string {
  return `do $do$
    declare
      t record;
      body text := '';
    begin
      for t in
        select c.relname as name, string_agg(quote_ident(a.attname), ', ' order by a.attnum) as columns
        from pg_class as c
        join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
        where c.relnamespace = 'runledger'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
        group by c.relname
      loop
        execute format('create table explorer.${set}_%s as select * from runledger.%I', t.name, t.name);
        body := body || format('delete from runledger.%I; ', t.name) || format(
          'insert into runledger.%I (%s) overriding system value select %s from explorer.${set}_%s as copy order by md5(copy::text); ',
          t.name, t.columns, t.columns, t.name);
        execute format('delete from runledger.%I', t.name);
      end loop;
      execute format('create function explorer.${set}() returns void language plpgsql as $f$ begin %s end $f$', body);
    end $do$`;
}

const idsQuery = `
  select id from runledger.jobs
  union select id from runledger.workflow_runs
  union select id from runledger.workflow_steps
  union select job_id from runledger.workflow_steps where job_id is not null`;

const step = (id: string) => `(select step_key from runledger.workflow_steps as s where s.id = ${id})`;

const listed = {
  runs: `select jsonb_build_array(type, status, step_count, open_count, waiting_count, errored_count)
    from runledger.workflow_runs`,
  steps: `select jsonb_build_array(r.type, step_key, s.status, pending_count, unsatisfied_count, dependent_count, error_code, output,
      reason, completed_by, kept_outcome, expires_at < now(), item_count, child_run_id is null, job_run_number)
    from runledger.workflow_steps as s join runledger.workflow_runs as r on r.id = s.run_id`,
  edges: `select jsonb_build_array(${step("prerequisite_id")}, ${step("step_id")}, kind)
    from runledger.workflow_step_dependencies`,
  queue: `select jsonb_build_array(type, status, run_number, attempt, worker_id, lease_expires_at < now(), ${step("workflow_step_id")})
    from runledger.job_queue`,
  ledger: "select jsonb_build_array(type, status, run_number, attempt, failure_kind) from runledger.job_ledger",
  mutations: "select jsonb_build_array(mutation_key, mutation) from runledger.workflow_run_mutations",
  attempts: "select jsonb_build_array(run_number, attempt, failure_kind) from runledger.job_attempts",
  jobKeys: "select jsonb_build_array(key) from runledger.job_idempotency_keys",
  runKeys: "select jsonb_build_array(key) from runledger.workflow_idempotency_keys",
};

const contentsQuery = `select jsonb_build_object(${Object.entries(listed)
  .map(([name, rows]) => `'${name}', (select jsonb_agg(item order by item) from (${rows}) as rows(item))`)
  .join(", ")})::text as contents`;
