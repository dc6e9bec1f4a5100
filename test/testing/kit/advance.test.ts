/** Advancing time: everything that is stored becomes older by the same span, and nothing else changes. */
import { expect, test } from "@jest/globals";
import { Kysely, PostgresDialect, sql } from "kysely";
import pg from "pg";
import { createLedger, defineJob, type RunledgerDatabase, typed } from "../../../src/index.ts";
import { TestKit } from "../../../src/testing/index.ts";
import { handle } from "../../../src/worker/index.ts";
import { scenarios } from "../../docs/states/scenarios.ts";
import { Stage } from "../../docs/states/stage.ts";
import { expectInvariants } from "../../invariants.ts";
import { graphOf } from "../../runs/fixtures.ts";
import { createTestDatabase } from "../../support/database.ts";
import { backendPid, waitForBackend } from "../../support/waiting.ts";
import { everywhere, newKit } from "./kits.ts";

const database = await createTestDatabase();
const kit = await newKit();
const { ledger } = kit;
const remind = defineJob("remind", { input: typed<string>() });
const handlers = [handle(remind, () => null)];
const HOUR_MS = 3_600_000;

test("what is due later is due", async () => {
  await ledger.jobs.enqueue(remind, "later", { runAt: new Date(Date.now() + 2 * HOUR_MS) });

  await kit.advance({ hours: 1, minutes: 59 });
  expect(await kit.drain({ handlers })).toMatchObject({ succeeded: 0 });
  await kit.advance({ minutes: 1 });
  expect(await kit.drain({ handlers })).toMatchObject({ succeeded: 1, left: [] });
});

test("time advances to a time that was read, and not when that is past", async () => {
  const { id } = await ledger.jobs.enqueue(remind, "later", { runAt: new Date(Date.now() + 2 * HOUR_MS) });
  const { runAt } = await ledger.jobs.get(id, everywhere);

  await kit.advanceTo(runAt);
  const due = await ledger.jobs.get(id, everywhere);
  await kit.advanceTo(due.runAt);

  expect((await ledger.jobs.get(id, everywhere)).runAt).toEqual(due.runAt);
  expect(await kit.drain({ handlers })).toMatchObject({ succeeded: 1, left: [] });
});

test("a lease runs out with the time", async () => {
  const { id } = await ledger.jobs.enqueue(remind, "claimed");
  const [claimed] = await ledger.jobs.claim({ workerId: "w", limit: 1, types: ["remind"], leaseSeconds: 60 });
  if (claimed === undefined) throw new Error("nothing was claimed");

  await kit.advance({ seconds: 60 });

  await expect(ledger.jobs.complete(claimed.lease)).rejects.toMatchObject({ code: "job.lease_owner_mismatch" });
  expect(await ledger.jobs.reap()).toMatchObject({ returned: 1 });
  await ledger.jobs.cancel(id, { scope: everywhere });
});

test("the same request is still the same after some time", async () => {
  const options = { idempotencyKey: "once", runAt: new Date(Date.now() + HOUR_MS) };
  const { id } = await ledger.jobs.enqueue(remind, "keyed", options);

  await kit.advance({ hours: 2 });

  expect(await ledger.jobs.enqueue(remind, "keyed", options)).toMatchObject({ id, disposition: "existing" });
  await ledger.jobs.cancel(id, { scope: everywhere });
});

test("every time of every table shifts by the same span, whatever there is in the ledger, and the rest stays", async () => {
  const played = createLedger({ db: database.db });
  for (const play of Object.values(scenarios)) await play(new Stage(database, played));
  await played.runs.enqueue(graphOf("keyed", { only: [] }), { idempotencyKey: "once" });
  await played.jobs.enqueue("keyed", null, { idempotencyKey: "then", runAt: new Date(Date.now() + HOUR_MS) });
  await fillSchedules(database.db);
  const days = 150;
  const expected = await contentOf(database.db, days);

  // A session in a zone where the clocks were changed meanwhile must not make a difference.
  const pool = new pg.Pool({ connectionString: database.url, options: "-c timezone=Europe/Berlin" });
  const berlin = new Kysely<RunledgerDatabase>({ dialect: new PostgresDialect({ pool }) });
  await new TestKit({ db: berlin, ledger: createLedger({ db: berlin }) }).advance({ days });
  await berlin.destroy();

  expect(await contentOf(database.db, 0)).toEqual(expected);
  await expectInvariants(database);
  const filled = Object.keys(expected).filter((table) => expected[table]?.length);
  expect(filled).toEqual(expect.arrayContaining(TABLES));
}, 120_000);

const TABLES = [
  "job_attempts",
  "job_definitions",
  "job_idempotency_keys",
  "job_ledger",
  "job_logs",
  "job_queue",
  "job_schedule_fires",
  "job_schedules",
  "workflow_idempotency_keys",
  "workflow_run_mutations",
  "workflow_runs",
  "workflow_steps",
];

test("it waits for who writes, and a deadlock with it is not the end", async () => {
  const other = new TestKit({ db: database.db, ledger: createLedger({ db: database.db }) });
  const { id } = await other.ledger.jobs.enqueue("held", null, { runAt: new Date(Date.now() + HOUR_MS) });
  const writer = await database.connect();
  // The writer gives up later: of the two it is not the victim.
  await writer.query("set deadlock_timeout = '1min'");
  await writer.query("begin");
  await writer.query("update runledger.job_queue set priority = 7 where id = $1", [id]);

  const advanced = other.advance({ hours: 1 });
  const { pid } = await waitForBackend({ client: database.pool, marker: "lock table" });
  expect(pid).not.toBe(await backendPid(writer));
  // Held by the one that waits: now each waits for the other.
  await writer.query("insert into runledger.job_definitions (type) values ('deadlock')");
  await writer.query("commit");
  await advanced;

  expect(await other.ledger.jobs.claim({ workerId: "w", limit: 1, types: ["held"] })).toMatchObject([{ priority: 7 }]);
});

test("spans that make no sense are refused", async () => {
  const refused = { code: "input.invalid" };
  await expect(kit.advance({ hours: -1 })).rejects.toMatchObject(refused);
  await expect(kit.advance({ days: Number.NaN })).rejects.toMatchObject(refused);
  await expect(kit.advance(Object({ weeks: 1 }))).rejects.toMatchObject(refused);
  await expect(kit.advanceTo(new Date("never"))).rejects.toMatchObject(refused);
});

/** One that fires every hour: each of its times is another one's after a shift by hours. */
async function fillSchedules<DB>(db: Kysely<DB>): Promise<void> {
  await sql`
    insert into runledger.job_schedules (id, name, cron, target, target_type, payload, due_at, intended_at)
    values ('0190a5f0-7b1c-7e3a-9f00-0123456789ab', 'hourly', '0 * * * *', 'JOB', 'remind', '{}', now(), now())`.execute(
    db,
  );
  await sql`
    insert into runledger.job_schedule_fires (schedule_id, intended_at)
    select '0190a5f0-7b1c-7e3a-9f00-0123456789ab', date_trunc('hour', now()) + make_interval(hours => n)
    from generate_series(6000, 0, -1) as n`.execute(db);
}

/** Every row of every table as text, as it is when so many days have passed. */
async function contentOf<DB>(db: Kysely<DB>, days: number): Promise<Record<string, string[]>> {
  const columns = await sql<{ table: string; times: string[] }>`
    select table_name as table, coalesce(array_agg(column_name::text) filter (
      where data_type = 'timestamp with time zone' and column_name not like 'requested%'
    ), '{}') as times
    from information_schema.columns join information_schema.tables using (table_schema, table_name)
    where table_schema = 'runledger' and table_type = 'BASE TABLE' and table_name not like 'job_ledger\_%'
    group by table_name`.execute(db);
  const content: Record<string, string[]> = {};
  for (const { table, times } of columns.rows) {
    const changes = times.map((time) => sql`${sql.lit(time)}, extract(epoch from ${sql.id(time)}) - ${days} * 86400`);
    const rows = await sql<{ row: string }>`
      select (to_jsonb(t) || jsonb_build_object(${sql.join(changes)}))::text as row
      from ${sql.id("runledger", table)} as t`.execute(db);
    content[table] = rows.rows.map(({ row }) => row).sort();
  }
  return content;
}
