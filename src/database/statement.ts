/**
 * A statement is built and compiled once per schema and then sent with fresh values: building one
 * costs as much as a fast server needs to run it, and a text that never changes can be prepared.
 */
import {
  type Compilable,
  type CompiledQuery,
  DummyDriver,
  Kysely,
  PostgresAdapter,
  PostgresIntrospector,
  PostgresQueryCompiler,
  type QueryCreator,
  type RawBuilder,
} from "kysely";
import type { Executor } from "./executor.ts";
import { failure } from "./failures.ts";
import {
  type Arguments,
  bind,
  type ParameterTypes,
  Placeholder,
  type Placeholders,
  placeholders,
} from "./parameters.ts";
import { retrying } from "./retry.ts";
import type { LedgerTables } from "./tables.ts";

/** Constants are literals: no plan for any values could use a partial index whose predicate is a parameter's matter. */
class StatementCompiler extends PostgresQueryCompiler {
  protected override appendValue(value: unknown): void {
    if (value instanceof Placeholder) super.appendValue(value);
    else this.appendImmediateValue(value);
  }
}

const compiler = new Kysely<LedgerTables>({
  dialect: {
    createAdapter: () => new PostgresAdapter(),
    createDriver: () => new DummyDriver(),
    createIntrospector: (db) => new PostgresIntrospector(db),
    createQueryCompiler: () => new StatementCompiler(),
  },
});

interface Compiled {
  compile(schema: string): CompiledQuery<unknown>;
}

const registry = new Map<string, Compiled>();

/** Every statement of the modules loaded so far, by name: what a review of the SQL goes through. */
export function allStatements(): ReadonlyMap<string, Compiled> {
  return registry;
}

type Built<Row> = Compilable<Row> | RawBuilder<Row>;

interface StatementOptions<P extends ParameterTypes> {
  /** Stands as a comment in front of the text, where an operator sees it in pg_stat_activity. */
  readonly name: string;
  readonly parameters: P;
  /** Whether it changes rows: a connection lost meanwhile then leaves the outcome unknown. */
  readonly writes: boolean;
}

/** A named, typed statement: `execute` is one round trip. Drivers' errors come out as LedgerError. */
export class Statement<P extends ParameterTypes, Row> {
  readonly name: string;
  readonly #options: StatementOptions<P>;
  readonly #build: (db: QueryCreator<LedgerTables>, p: Placeholders<P>, schema: string) => Built<Row>;
  readonly #compiled = new Map<string, CompiledQuery<Row>>();

  constructor(
    options: StatementOptions<P>,
    build: (db: QueryCreator<LedgerTables>, p: Placeholders<P>, schema: string) => Built<Row>,
  ) {
    this.name = options.name;
    this.#options = options;
    this.#build = build;
    if (registry.has(options.name)) throw new Error(`two statements are called ${options.name}`);
    registry.set(options.name, this);
  }

  /** Outside a transaction the statement is one of its own, and is retried like one. */
  execute(executor: Executor, values: Arguments<P>): Promise<Row[]> {
    return retrying(executor, () => this.#executeOnce(executor, values));
  }

  async #executeOnce(executor: Executor, values: Arguments<P>): Promise<Row[]> {
    const compiled = this.compile(executor.schema);
    try {
      const bound: CompiledQuery<Row> = { ...compiled, parameters: bind(compiled.parameters, values) };
      const { rows } = await executor.handle.executeQuery<Row>(bound);
      return rows;
    } catch (error) {
      throw failure(error, executor, this.#options.writes);
    }
  }

  async executeFirst(executor: Executor, values: Arguments<P>): Promise<Row | undefined> {
    return (await this.execute(executor, values))[0];
  }

  compile(schema: string): CompiledQuery<Row> {
    const known = this.#compiled.get(schema);
    if (known) return known;
    const db = compiler.withSchema(schema);
    const built = this.#build(db, placeholders(this.#options.parameters), schema);
    const query = "isRawBuilder" in built ? built.compile(db) : built.compile();
    const compiled = { ...query, sql: `/* runledger:${this.name} */ ${query.sql}` };
    this.#compiled.set(schema, compiled);
    return compiled;
  }
}

/** Declares a statement that reads. */
export function reading<P extends ParameterTypes, Row>(
  name: string,
  parameters: P,
  build: (db: QueryCreator<LedgerTables>, p: Placeholders<P>, schema: string) => Built<Row>,
): Statement<P, Row> {
  return new Statement({ name, parameters, writes: false }, build);
}

/** Declares a statement that changes rows. */
export function writing<P extends ParameterTypes, Row>(
  name: string,
  parameters: P,
  build: (db: QueryCreator<LedgerTables>, p: Placeholders<P>, schema: string) => Built<Row>,
): Statement<P, Row> {
  return new Statement({ name, parameters, writes: true }, build);
}
