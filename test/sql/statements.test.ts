/** The SQL of every statement, kept beside the code: a reviewer sees what a change does on the wire. */
import { expect, test } from "@jest/globals";
import { allStatements } from "../../src/database/statement.ts";
import "../../src/index.ts";

const statements = [...allStatements()].sort(([a], [b]) => (a < b ? -1 : 1));

test.each(statements)("%s", (_name, statement) => {
  expect(lines(statement.compile("runledger").sql)).toMatchSnapshot();
});

test("a statement names its schema everywhere, and no other", () => {
  for (const [, statement] of statements) {
    expect(statement.compile("elsewhere").sql).not.toContain('runledger".');
  }
});

/** One CTE a line, so that a diff shows which one changed. */
function lines(sql: string): string {
  return sql.replace(/\s+/g, " ").replace(/(, "\w+"(?:\([^)]*\))? as (?:materialized )?\()/g, "\n$1");
}
