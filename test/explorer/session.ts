/** A session whose statements go to the server one by one, each only when the schedule says so. */
import { Kysely, PostgresDialect } from "kysely";
import pg from "pg";
import type { RunledgerDatabase } from "../../src/database/tables.ts";
import type { Scene } from "./scene.ts";

/**
 * `thinking`: the code between two statements runs. `asking`: a statement waits for its permission.
 * `running`: the server has it. `ended`: the operation is over.
 */
export type SessionState = "idle" | "thinking" | "asking" | "running" | "ended";

export type Outcome = { readonly value: unknown } | { readonly error: unknown };

/** One statement as it went: what it was answered, and what was committed when it began and when it was done. */
interface Step {
  readonly statement: string;
  readonly from: number;
  to: number | null;
  answer: string | null;
}

// They take no lock, read no rows and change nothing that another session could see.
const ownBusiness =
  /^(begin|start transaction|savepoint)|^\/\* runledger:(savepoint|cap_lock_timeout|restore_lock_timeout|isolation_level) /;

const settings = {
  deadlock_timeout: "30ms",
  lock_timeout: 0,
  enable_seqscan: "off",
  enable_hashjoin: "off",
  enable_mergejoin: "off",
};

export class Session {
  readonly db: Kysely<RunledgerDatabase>;
  state: SessionState = "idle";
  /** What the session did and was answered in this schedule. */
  steps: Step[] = [];
  /** Who it waits for, as last seen; meaningful while `running`. */
  blockers: readonly number[] = [];
  /** Whether the statement sent last could have set others free. */
  released = false;
  outcome: Outcome | undefined;
  readonly #pool: pg.Pool;
  readonly #scene: Scene;
  #pid = 0;
  #inTransaction = false;
  /** How many steps belong to transactions that have ended: what they saw has no more consequences. */
  #over = 0;
  #abandoned = false;
  #beginning = false;
  #pending: { readonly statement: string; readonly send: () => void; readonly refuse: () => void } | undefined;
  #operation: Promise<void> = Promise.resolve();

  static async open(url: string, scene: Scene): Promise<Session> {
    const session = new Session(url, scene);
    // The only connection, made now, so that its process id is known.
    (await session.#pool.connect()).release();
    return session;
  }

  private constructor(url: string, scene: Scene) {
    this.#scene = scene;
    // A deadlock is a defect here, so it may as well show at once. Rows are reached one by one from what was given,
    // as in large tables: in small ones every plan goes through the table, and so all go in one order.
    this.#pool = new pg.Pool({
      connectionString: url,
      max: 1,
      idleTimeoutMillis: 0,
      options: Object.entries(settings)
        .map(([name, value]) => `-c ${name}=${value}`)
        .join(" "),
    });
    this.#pool.on("error", () => {});
    this.#pool.on("connect", (client) => {
      this.#pid = Number(Reflect.get(client, "processID"));
      client.on("error", () => {});
      client.query = this.#gated(client.query);
    });
    this.db = new Kysely<RunledgerDatabase>({ dialect: new PostgresDialect({ pool: this.#pool }) });
  }

  get pid(): number {
    return this.#pid;
  }

  /** The statement that asks for permission, or that the server has. */
  get statement(): string {
    return this.#pending?.statement ?? this.steps.at(-1)?.statement ?? "";
  }

  /**
   * Asks to begin the operation. Its first statement goes with the permission: what the time is in a
   * transaction is decided when it begins.
   */
  prepare(operation: (session: Session) => Promise<unknown>): void {
    this.steps = [];
    this.#over = 0;
    this.blockers = [];
    this.outcome = undefined;
    this.#abandoned = false;
    this.state = "asking";
    this.#operation = Promise.resolve();
    const send = () => {
      this.#beginning = true;
      this.state = "thinking";
      this.#operation = operation(this).then(
        (value) => this.#end({ value }),
        (error: unknown) => this.#end({ error }),
      );
    };
    this.#pending = { statement: "begins", send, refuse: () => {} };
  }

  #end(outcome: Outcome): void {
    this.outcome = outcome;
    this.state = "ended";
    this.#scene.changed();
  }

  grant(): void {
    const pending = this.#pending;
    if (pending === undefined) throw new Error("the session asks for nothing");
    this.#pending = undefined;
    pending.send();
  }

  /** Notes what is committed now that everybody stands still. */
  standsStill(): void {
    for (const step of this.steps) if (step.answer !== null) step.to ??= this.#scene.version;
  }

  /** All that decides what the session does next and what it holds. */
  situation(): unknown {
    if (this.state === "ended") return this.#scene.digest(this.outcome);
    const steps = this.steps.map(({ statement, answer, from, to }, place) =>
      place < this.#over ? [statement, answer] : [statement, answer, from, to],
    );
    return [this.state, steps];
  }

  /** Lets the operation fail at its next statement and roll back; what it waits for must be given up by others. */
  async abandon(): Promise<void> {
    this.#abandoned = true;
    const pending = this.#pending;
    this.#pending = undefined;
    if (pending?.statement === "rollback") pending.send();
    else pending?.refuse();
    await this.#operation;
    if (this.#inTransaction) throw new Error("an abandoned operation left its transaction open");
  }

  async close(): Promise<void> {
    await this.db.destroy();
  }

  #gated(query: pg.ClientBase["query"]): pg.ClientBase["query"] {
    return new Proxy(query, {
      apply: (target, client, [text, values]: [unknown, unknown[] | undefined]) => {
        const sql = String(text);
        const send = () => this.#send(sql, () => Reflect.apply(target, client, [prepared(sql, values)]));
        if (this.state === "idle") return Reflect.apply(target, client, [sql]);
        if (this.#abandoned) return /^rollback$/.test(sql) ? send() : Promise.reject(new Abandoned());
        return ownBusiness.test(sql) ? send() : this.#ask(sql, send);
      },
    });
  }

  #ask(sql: string, send: () => Promise<unknown>): Promise<unknown> {
    if (this.#beginning) {
      this.#beginning = false;
      return send();
    }
    return new Promise((resolve, reject) => {
      const refuse = () => reject(new Abandoned());
      this.#pending = { statement: nameOf(sql), send: () => send().then(resolve, reject), refuse };
      this.state = "asking";
      this.#scene.changed();
    });
  }

  async #send(sql: string, query: () => Promise<pg.QueryResult>): Promise<pg.QueryResult> {
    const step: Step = { statement: nameOf(sql), from: this.#scene.version, to: null, answer: null };
    this.steps.push(step);
    this.blockers = [];
    this.released = false;
    this.state = "running";
    this.#scene.changed();
    try {
      const result = await query();
      step.answer = this.#scene.digest(result.rows);
      this.#answered(result.command);
      return result;
    } catch (error) {
      step.answer = this.#scene.failed(nameOf(sql), error);
      this.released = true;
      throw error;
    } finally {
      this.blockers = [];
      this.state = "thinking";
      this.#scene.changed();
    }
  }

  #answered(command: string): void {
    const begins = command === "START" || command === "BEGIN";
    const back = command === "ROLLBACK" && this.statement === "rollback_to_savepoint";
    const ends = command === "COMMIT" || (command === "ROLLBACK" && !back);
    if (begins) this.#inTransaction = true;
    else if (ends) this.#inTransaction = false;
    this.released = back || !this.#inTransaction;
    if (this.#inTransaction) return;
    this.#scene.committed = true;
    this.#over = this.steps.length;
  }
}

/** What an operation meets when its schedule is given up. */
class Abandoned extends Error {}

const names = new Map<string, string>();

/** Prepared by name: planning the same statements thousands of times would take most of the time. */
function prepared(text: string, values: unknown[] | undefined): pg.QueryConfig {
  if (!text.startsWith("/* runledger:")) return { text, values: values ?? [] };
  const name = names.get(text) ?? `s${names.size}`;
  names.set(text, name);
  return { name, text, values: values ?? [] };
}

/** The marker of a statement of the ledger; other statements by their first words. */
export function nameOf(sql: string): string {
  return /^\/\* runledger:(\w+) \*\//.exec(sql)?.[1] ?? sql.slice(0, 60);
}
