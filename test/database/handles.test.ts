/** The service's handle may carry plugins and parsers of its own: they do not bend what the ledger says. */
import { expect, test } from "@jest/globals";
import { CamelCasePlugin, Kysely, ParseJSONResultsPlugin, PostgresDialect, sql } from "kysely";
import pg from "pg";
import { migrate } from "../../db/index.ts";
import { createLedger, type Ledger, WorkflowBuilder } from "../../src/index.ts";
import { claimedOne, codeOf, expire, globally } from "../jobs/fixtures.ts";
import { createTestDatabase } from "../support/database.ts";

const database = await createTestDatabase();

const payload = { snake_case: { inner_key: 1 }, camelCase: 2, "with space": [{ a_b: null }], json_text: '{"x":1}' };

const handles: readonly [string, () => Kysely<unknown>][] = [
  ["a plain handle", () => handle()],
  ["CamelCasePlugin", () => handle().withPlugin(new CamelCasePlugin())],
  ["ParseJSONResultsPlugin", () => handle().withPlugin(new ParseJSONResultsPlugin())],
  ["a schema of the service's own", () => handle().withSchema("pg_catalog")],
  ["int8 parsed to numbers", () => handle({ 20: Number })],
  ["int8 parsed to bigints", () => handle({ 20: BigInt })],
  ["timestamps left as text", () => handle({ 1184: String })],
  ["timestamps parsed to milliseconds", () => handle({ 1184: (text) => Date.parse(text) })],
  ["json left as text", () => handle({ 114: String, 3802: String })],
  ["json parsed to something else", () => handle({ 114: () => "bent", 3802: () => "bent" })],
];

test.each(handles)("a job lives the same life through %s", async (name, makeHandle) => {
  const ledger = createLedger({ db: makeHandle() });

  expect(await lifeOf(ledger, name)).toEqual(await lifeOf(createLedger({ db: handle() }), `${name} again`));
});

test.each(handles)("the caller's transaction through %s is no different", async (name, makeHandle) => {
  const db = makeHandle();
  const ledger = createLedger({ db });

  const { id } = await db.transaction().execute((trx) => ledger.in(trx).jobs.enqueue(`in ${name}`, payload));

  expect((await createLedger({ db: handle() }).jobs.get(id, globally)).payload).toEqual(payload);
});

test("a workflow's outputs keep their keys through CamelCasePlugin", async () => {
  const ledger = createLedger({ db: handle().withPlugin(new CamelCasePlugin()) });
  const graph = new WorkflowBuilder("plugins");
  const first = graph.job("first_step", "plugin-step", payload);
  graph.result(graph.job("second_step", "plugin-step", {}, { onSuccess: [first] }));
  const { id } = await ledger.runs.enqueue(graph.build());

  const one = await claimedOne(ledger, "plugin-step");
  await ledger.jobs.complete(one.lease, { output: payload });
  const two = await claimedOne(ledger, "plugin-step");
  const found = await ledger.steps.prerequisites([two]);
  await ledger.jobs.complete(two.lease, { output: payload });

  expect(one.payload).toEqual(payload);
  expect(found.get(two.lease.jobId)).toEqual({
    outputs: { first_step: payload },
    failures: {},
    undecodable: null,
  });
  expect(await ledger.runs.getResult(id, { scope: globally })).toEqual(payload);
});

test("a second schema works end to end, and the first sees nothing of it", async () => {
  const db = handle();
  await migrate(db, { schema: "other" });
  const other = createLedger({ db, schema: "other" });

  const life = await lifeOf(other, "elsewhere");
  const graph = new WorkflowBuilder("elsewhere");
  graph.result(graph.external("gate", { onTerminal: [graph.job("work", "elsewhere-step", {})] }));
  const { id } = await other.runs.enqueue(graph.build());
  await other.jobs.complete((await claimedOne(other, "elsewhere-step")).lease, { output: 1 });
  await other.steps.complete(id, "gate", { scope: globally, output: { ok: true } });

  expect(life).toEqual(await lifeOf(createLedger({ db }), "here"));
  expect(await other.runs.getResult(id, { scope: globally })).toEqual({ ok: true });
  expect(await codeOf(() => createLedger({ db }).runs.getStatus(id, globally))).toBe("workflow.run_not_found");
  expect((await other.jobs.sync([])).written).toEqual([]);
  await other.jobs.pause(["elsewhere"]);
  const leases = await other.jobs.enqueue("elsewhere-lost", {}).then(() => claimedOne(other, "elsewhere-lost"));
  await sql`update other.job_queue set lease_expires_at = now() - interval '1 hour'`.execute(db);
  expect(await other.jobs.reap()).toMatchObject({ returned: 1 });
  expect((await other.jobs.get(leases.lease.jobId, globally)).status).toBe("PENDING");
  expect((await sql`select other.ensure_job_ledger_partitions(9)`.execute(db)).rows).toHaveLength(1);
});

test.each(["Upper", "with-dash", "", "1st", 'quo"te', "a".repeat(49), "pg;drop"])(
  "the schema name '%s' is refused",
  async (schema) => {
    expect(await codeOf(async () => createLedger({ db: handle(), schema }))).toBe("config.invalid");
  },
);

test("one text is compiled for a statement, whoever sends it, and no value stands in it", async () => {
  const ledger = createLedger({ db: database.db });
  const first = await database.record(() => ledger.jobs.enqueue("compiled", { secret: 1 }));
  const second = await database.record(() => ledger.jobs.enqueue("another", { secret: 2 }));

  expect(first.statements).toEqual(second.statements);
  expect(first.statements[0]).not.toContain("secret");
});

/** A whole life of a job, without what differs from one to the next. */
async function lifeOf(ledger: Ledger, type: string): Promise<unknown> {
  const { id, ...enqueued } = await ledger.jobs.enqueue(type, payload, {
    idempotencyKey: type,
    tags: ["a_b", 'q"uo\\te'],
    runAt: "2020-01-02T03:04:05.678901Z",
  });
  const again = await ledger.jobs.enqueue(type, payload, {
    idempotencyKey: type,
    tags: ["a_b", 'q"uo\\te'],
    runAt: "2020-01-02T04:04:05.678901+01:00",
  });
  const first = await claimedOne(ledger, type);
  await ledger.jobs.progress(first.lease, { done: 3, total: Number.MAX_SAFE_INTEGER });
  await ledger.jobs.checkpoint(first.lease, payload);
  const [beat] = await ledger.jobs.heartbeat([first.lease]);
  const failed = await ledger.jobs.fail(first.lease, { code: "a", message: "b", notBefore: "2020-01-01T00:00:00Z" });
  await database.pool.query(`update ${ledger.schema}.job_queue set run_at = now() where id = $1`, [id]);
  const second = await claimedOne(ledger, type);
  if (ledger.schema === "runledger") await expire(database, [id]);
  else await database.pool.query("update other.job_queue set lease_expires_at = '2020-01-01' where id = $1", [id]);
  const reaped = await ledger.jobs.reap();
  await database.pool.query(`update ${ledger.schema}.job_queue set run_at = now() where id = $1`, [id]);
  const third = await claimedOne(ledger, type);
  await ledger.jobs.complete(third.lease, { output: payload });
  const job = await ledger.jobs.get(id, globally);
  return {
    enqueued,
    again: again.id === id && again.disposition,
    firstRunAt: first.runAt.toISOString(),
    payloads: [first.payload, second.checkpoint, job.output],
    beat: [beat?.state, (beat?.leaseExpiresAt?.getTime() ?? 0) > Date.now()],
    failed: [failed.status, failed.runAt instanceof Date],
    reaped,
    tags: job.tags,
    numbers: [job.runNumber, job.attempt, job.priority, job.progress],
    times: [job.endedAt instanceof Date, job.enqueuedAt instanceof Date, Number.isFinite(job.enqueuedAt.getTime())],
  };
}

function handle(parsers: Record<number, (text: string) => unknown> = {}): Kysely<unknown> {
  const types: pg.CustomTypesConfig = {
    getTypeParser: (oid: number, format?: "text" | "binary") =>
      parsers[oid] ??
      (pg.types.getTypeParser as (oid: number, format?: string) => (text: string) => unknown)(oid, format),
  };
  const pool = new pg.Pool({ connectionString: database.url, max: 2, types });
  database.defer(() => pool.end());
  return new Kysely<unknown>({ dialect: new PostgresDialect({ pool }) });
}
