/** What a template is made of, as a short word: two that would come out the same have the same one. */
import { createHash } from "node:crypto";
import {
  type CompiledQuery,
  DummyDriver,
  Kysely,
  PostgresAdapter,
  PostgresIntrospector,
  PostgresQueryCompiler,
} from "kysely";
import { migrations } from "../../../db/index.ts";

/** Of the ledger's migrations, statement for statement, and of `rest`. Nothing is sent to a server. */
export async function fingerprint(schema: string | undefined, ...rest: readonly string[]): Promise<string> {
  const statements: string[] = [];
  const db = new Kysely<unknown>({
    dialect: {
      createAdapter: () => new PostgresAdapter(),
      createDriver: () => new DummyDriver(),
      createIntrospector: (kysely) => new PostgresIntrospector(kysely),
      createQueryCompiler: () => new NotingCompiler(statements),
    },
  });
  for (const [name, migration] of Object.entries(migrations(schema === undefined ? {} : { schema }))) {
    statements.push(name);
    await migration.up(db);
  }
  return createHash("sha256")
    .update(JSON.stringify([statements, rest]))
    .digest("hex")
    .slice(0, 16);
}

class NotingCompiler extends PostgresQueryCompiler {
  readonly #statements: string[];

  constructor(statements: string[]) {
    super();
    this.#statements = statements;
  }

  override compileQuery(...query: Parameters<PostgresQueryCompiler["compileQuery"]>): CompiledQuery {
    const compiled = super.compileQuery(...query);
    this.#statements.push(compiled.sql);
    return compiled;
  }
}
