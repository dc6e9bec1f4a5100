/** SQLSTATE to code, in one table; what an error says to a client, and what it keeps for the log. */
import { expect, test } from "@jest/globals";
import { failure } from "../../src/database/failures.ts";
import { errorCodes, isLedgerError, LedgerError, type LedgerErrorCode } from "../../src/errors.ts";
import { createLedger } from "../../src/index.ts";
import { errorOf, executorOf, globally } from "../jobs/fixtures.ts";
import { createTestDatabase } from "../support/database.ts";

const database = await createTestDatabase();
const ledger = createLedger({ db: database.db });

const bySqlstate: readonly [string, LedgerErrorCode, string, boolean][] = [
  ["40001", "db.serialization_conflict", "unavailable", true],
  ["40P01", "db.deadlock", "unavailable", true],
  ["55P03", "db.lock_timeout", "unavailable", true],
  ["57014", "db.query_canceled", "unavailable", true],
  ["25P02", "db.transaction_aborted", "internal", false],
  ["42501", "db.forbidden", "forbidden", false],
  ["3F000", "schema.missing", "unavailable", false],
  ["42P01", "schema.missing", "unavailable", false],
  ["42703", "schema.missing", "unavailable", false],
  ["42883", "schema.missing", "unavailable", false],
  ["23505", "db.constraint_violated", "internal", false],
  ["23503", "db.constraint_violated", "internal", false],
  ["23514", "db.constraint_violated", "internal", false],
  ["22P02", "db.value_rejected", "validation", false],
  ["22003", "db.value_rejected", "validation", false],
  ["53100", "db.unavailable", "unavailable", true],
  ["53300", "db.unavailable", "unavailable", true],
  ["57P03", "db.unavailable", "unavailable", true],
  ["08006", "db.unavailable", "unavailable", true],
  ["P0001", "db.error", "internal", false],
  ["XX000", "db.error", "internal", false],
];

test.each(bySqlstate)("SQLSTATE %s, as the server raises it, is %s", async (sqlstate, code, category, retryable) => {
  const raised = await errorOf(
    database.pool.query(`do $$ begin raise exception 'x' using errcode = '${sqlstate}'; end $$`),
  );

  const error = failure(raised, executorOf(database.db), true);

  expect({ code: error.code, category: error.category, retryable: error.retryable, sqlstate: error.sqlstate }).toEqual({
    code,
    category,
    retryable,
    sqlstate,
  });
  expect(error.cause).toBe(raised);
});

const byDriver: readonly [string, unknown, LedgerErrorCode, LedgerErrorCode][] = [
  // What went wrong, the driver's error, the code for a read, the code for a write that is its own transaction.
  ["nobody listens", { code: "ECONNREFUSED" }, "db.unavailable", "db.unavailable"],
  ["the name is unknown", { code: "ENOTFOUND" }, "db.unavailable", "db.unavailable"],
  ["the name server is gone", { code: "EAI_AGAIN" }, "db.unavailable", "db.unavailable"],
  [
    "a pool has no connection",
    new Error("timeout exceeded when trying to connect"),
    "db.unavailable",
    "db.unavailable",
  ],
  [
    "a connection took too long",
    new Error("Connection terminated due to connection timeout"),
    "db.unavailable",
    "db.unavailable",
  ],
  [
    "the pool was closed",
    new Error("Cannot use a pool after calling end on the pool"),
    "db.unavailable",
    "db.unavailable",
  ],
  [
    "the connection was lost before",
    new Error("Client has encountered a connection error and is not queryable"),
    "db.unavailable",
    "db.unavailable",
  ],
  [
    "the connection was closed before",
    new Error("Client was closed and is not queryable"),
    "db.unavailable",
    "db.unavailable",
  ],
  ["the connection was reset", { code: "ECONNRESET" }, "db.unavailable", "db.commit_unconfirmed"],
  ["the pipe broke", { code: "EPIPE" }, "db.unavailable", "db.commit_unconfirmed"],
  ["the server went away", new Error("Connection terminated unexpectedly"), "db.unavailable", "db.commit_unconfirmed"],
  ["an administrator ended the session", { code: "57P01" }, "db.unavailable", "db.commit_unconfirmed"],
  ["the server crashed", { code: "57P02" }, "db.unavailable", "db.commit_unconfirmed"],
  ["something else", new Error("who knows"), "db.error", "db.error"],
  ["not even an error", "text", "db.error", "db.error"],
];

test.each(byDriver)("when %s, only a write that may have committed is unconfirmed", (_what, raised, read, write) => {
  expect(failure(raised, executorOf(database.db), false).code).toBe(read);
  expect(failure(raised, executorOf(database.db), true).code).toBe(write);
});

test("a write within a transaction is not unconfirmed: only its commit can be", async () => {
  await database.db.transaction().execute(async (trx) => {
    expect(failure({ code: "ECONNRESET" }, executorOf(trx), true).code).toBe("db.unavailable");
  });
});

test("a LedgerError passes through unchanged", () => {
  const error = new LedgerError("job.not_found");

  expect(failure(error, executorOf(database.db), true)).toBe(error);
});

test("a commit that is unconfirmed is not reported as retryable", () => {
  expect(errorCodes["db.commit_unconfirmed"].retryable).toBe(false);
});

test("what a client sees holds no payload, key, sqlstate or constraint; the log has them", async () => {
  await database.pool.query(
    "alter table runledger.job_queue add constraint no_secret check (payload::text not like '%s3cret%')",
  );
  database.defer(() => database.pool.query("alter table runledger.job_queue drop constraint if exists no_secret"));

  const error = await errorOf(ledger.jobs.enqueue("job", { password: "s3cret" }, { idempotencyKey: "k-hidden" }));

  if (!isLedgerError(error)) throw error;
  const shown = `${JSON.stringify(error)} ${error.message} ${JSON.stringify({ ...error })} ${String(error)}`;
  for (const hidden of ["s3cret", "k-hidden", "23514", "no_secret"]) expect(shown).not.toContain(hidden);
  expect(error).toMatchObject({ code: "db.constraint_violated", sqlstate: "23514", constraint: "no_secret" });
  expect(Object.keys(error.toJSON())).toEqual(["code", "category", "retryable", "message", "details"]);
  expect(error.cause).toMatchObject({ code: "23514" });
  await database.pool.query("alter table runledger.job_queue drop constraint no_secret");
});

test("an idempotency conflict names neither key nor payload", async () => {
  await ledger.jobs.enqueue("job", { password: "s3cret" }, { idempotencyKey: "k-hidden-2" });

  const error = await errorOf(ledger.jobs.enqueue("job", { password: "0ther" }, { idempotencyKey: "k-hidden-2" }));

  if (!isLedgerError(error)) throw error;
  expect(error.code).toBe("job.idempotency_conflict");
  const shown = `${JSON.stringify(error)} ${error.message} ${error.stack}`;
  for (const hidden of ["s3cret", "0ther", "k-hidden-2"]) expect(shown).not.toContain(hidden);
});

test("an error of another copy of the package is recognized", () => {
  const foreign = { [Symbol.for("runledger.LedgerError")]: true, code: "job.not_found" };

  expect(isLedgerError(foreign)).toBe(true);
  expect(isLedgerError(new Error("job.not_found"))).toBe(false);
  expect(isLedgerError(null)).toBe(false);
});

test("a schema that is not there is schema.missing", async () => {
  const elsewhere = createLedger({ db: database.db, schema: "nowhere" });

  await expect(elsewhere.jobs.get("0190a5f0-7b1c-7e3a-9f00-0123456789ab", globally)).rejects.toMatchObject({
    code: "schema.missing",
    sqlstate: "42P01",
  });
});

test("a role without privileges is db.forbidden", async () => {
  await database.db.transaction().execute(async (trx) => {
    const { sql } = await import("kysely");
    await sql`set local role pg_monitor`.execute(trx);
    await expect(ledger.in(trx).jobs.enqueue("job", {})).rejects.toMatchObject({
      code: "db.forbidden",
      sqlstate: "42501",
    });
    await sql`rollback`.execute(trx);
  });
});
