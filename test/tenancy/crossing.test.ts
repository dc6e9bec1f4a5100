/** Row-level security: each role tries to cross, with the ledger's functions and with SQL of its own. */
import { beforeAll, describe, expect, test } from "@jest/globals";
import { type Kysely, sql } from "kysely";
import { tableRules } from "../../db/row-security/rules.ts";
import {
  createLedger,
  defineSchedule,
  type EnqueuedJob,
  type JobOptions,
  type Ledger,
  type RunledgerDatabase,
  type Tenant,
  WorkflowAddition,
  WorkflowBuilder,
} from "../../src/index.ts";
import { createTestDatabase } from "../support/database.ts";
import { createLogins } from "./logins.ts";

const A = "00000000-0000-7000-8000-00000000000a";
const B = "00000000-0000-7000-8000-00000000000b";
const ofA = { organization: A } as const;
const ofB = { organization: B } as const;
const global = { global: true } as const;
const admin = { admin: true } as const;
const tenants: readonly Tenant[] = [ofA, ofB, global];

const database = await createTestDatabase();
const owner = createLedger({ db: database.db });
const logins = await createLogins(database);
const enqueuer = logins.as("enqueuer");
const reader = logins.as("reader");
const worker = logins.as("worker");
const operator = logins.as("admin");

type Db = Kysely<RunledgerDatabase>;

interface World {
  readonly live: string;
  readonly dead: string;
  readonly run: string;
}
const worlds = new Map<Tenant, World>();
const worldOf = (tenant: Tenant) => worlds.get(tenant) ?? { live: "", dead: "", run: "" };

/** In every tenant: a job that waits, one with a key that is dead, with logs; a run at an open gate, with an addition. */
async function populate(tenant: Tenant): Promise<World> {
  const organizationId = "organization" in tenant ? tenant.organization : null;
  const type = typeOf("dies", organizationId);
  const dying = await owner.jobs.enqueue(type, { secret: 1 }, { organizationId, idempotencyKey: "key" });
  const [claimed] = await owner.jobs.claim({ workerId: "w", limit: 1, types: [type] });
  if (claimed === undefined) throw new Error("a job is due");
  await owner.jobs.log(claimed.lease, [{ level: "info", message: "here" }]);
  await owner.jobs.fail(claimed.lease, { kind: "TERMINAL", code: "no", message: "no" });
  const limit = { key: "one", concurrency: 1 };
  for (const n of [1, 2]) await owner.jobs.enqueue("limited", n, { organizationId, limit });
  await owner.jobs.claim({ workerId: "w", limit: 1, types: ["limited"] });
  await owner.jobs.enqueue("limited", 3, { organizationId, limit });
  await owner.maintenance.compactCounts();
  const live = await owner.jobs.enqueue("waits", { secret: 2 }, { organizationId, runAt: "2999-01-01T00:00:00Z" });
  const run = await owner.runs.enqueue(gateThenJob(), { organizationId, idempotencyKey: "key" });
  await owner.runs.append(run.id, {
    scope: tenant,
    key: "more",
    graph: oneMoreStep(),
  });
  await sql`insert into runledger.job_events (job_id, run_number, event) values (${dying.id}, 1, 'noted')`.execute(
    database.db,
  );
  await owner.schedules.upsert(
    defineSchedule("nightly", { cron: "0 3 * * *", job: "waits", payload: {}, organizationId }),
  );
  await owner.schedules.triggerNow("nightly", { scope: tenant });
  await owner.jobs.replay(await succeededJob(organizationId), { scope: tenant, key: "again" });
  return { live: live.id, dead: dying.id, run: run.id };
}

const typeOf = (what: string, organizationId: string | null) => `${what}-${organizationId ?? "global"}`;
const expected = { status: "DEAD_LETTERED", runNumber: 1 } as const;

async function succeededJob(organizationId: string | null): Promise<string> {
  const type = typeOf("done", organizationId);
  const { id } = await owner.jobs.enqueue(type, {}, { organizationId });
  // Replays of it, too.
  for (const { lease } of await owner.jobs.claim({ workerId: "w", limit: 100, types: [type] })) {
    await owner.jobs.complete(lease);
  }
  return id;
}

function gateThenJob() {
  const graph = new WorkflowBuilder("approved");
  graph.job("after", "waits", {}, { onSuccess: [graph.external("gate")] });
  return graph.build();
}

function oneMoreStep() {
  const addition = new WorkflowAddition();
  addition.job("added", "waits", {}, { onSuccess: [addition.existing("gate")] });
  return addition.build();
}

beforeAll(async () => {
  for (const tenant of tenants) worlds.set(tenant, await populate(tenant));
});

const tenantTables = Object.entries(tableRules)
  .filter(([, { tenancy }]) => tenancy !== null)
  .map(([table]) => table);
/** What claims and compactions use up: there may be none of it. */
const passing = ["job_limit_wakes", "status_count_deltas"];

/** How many rows the login sees in each table that it may read, under the given setting. */
async function counts(db: Db, setting: string | null, tables: readonly string[] = tenantTables) {
  return db.transaction().execute(async (trx) => {
    if (setting !== null) await sql`select set_config('runledger.organization_id', ${setting}, true)`.execute(trx);
    const seen: Record<string, number> = {};
    for (const table of tables) {
      const { rows } = await sql<{ n: number }>`select count(*)::int as n from runledger.${sql.id(table)}`.execute(trx);
      seen[table] = rows[0]?.n ?? 0;
    }
    return seen;
  });
}

const readable = (kind: "enqueuer" | "reader" | "worker" | "admin") =>
  tenantTables.filter((table) => tableRules[table]?.grants[kind]?.includes("select"));
const none = (tables: readonly string[]) => Object.fromEntries(tables.map((table) => [table, 0]));

describe("what is seen", () => {
  test("is in every table the tenant's own, as the scope of a ledger that sees all would give it", async () => {
    await owner.maintenance.compactCounts();
    for (const kind of ["enqueuer", "reader"] as const) {
      const tables = readable(kind);
      const everything = await counts(database.db, null, tables);
      const seen = await Promise.all([A, B, "global"].map((one) => counts(logins.as(kind).db, one, tables)));
      for (const table of tables) {
        const own = seen.map((one) => one[table]);
        expect([table, own]).toEqual([table, [expect.any(Number), own[0], own[0]]]);
        if (!passing.includes(table)) expect([table, own[0]]).not.toEqual([table, 0]);
        expect([table, 3 * (own[0] ?? 0)]).toEqual([table, everything[table]]);
      }
    }
  });

  test("is nothing without the setting, and nothing with one that names no tenant", async () => {
    const odd = [
      "",
      "GLOBAL",
      " global",
      A.toUpperCase(),
      `{${A}}`,
      "null",
      "%",
      "' or true --",
      `${A}'::uuid or '1'='1`,
    ];
    for (const login of [enqueuer, reader]) {
      const tables = readable(login === enqueuer ? "enqueuer" : "reader");
      for (const setting of [null, ...odd]) expect(await counts(login.db, setting, tables)).toEqual(none(tables));
    }
  });

  test("is nothing after a transaction with the setting: it does not stay on the connection", async () => {
    const single = logins.as("enqueuer", { max: 1 });
    expect((await counts(single.db, A, ["job_queue"])).job_queue).toBeGreaterThan(0);
    expect(await counts(single.db, null, ["job_queue"])).toEqual({ job_queue: 0 });
  });

  test("is everything for a worker whatever the setting, and for an admin without one", async () => {
    const all = await counts(database.db, null, readable("worker"));
    expect(await counts(worker.db, null, readable("worker"))).toEqual(all);
    expect(await counts(worker.db, A, readable("worker"))).toEqual(all);
    expect(await counts(operator.db, null, readable("worker"))).toEqual(all);
    expect(await counts(operator.db, "", readable("worker"))).toEqual(all);
  });

  test("is the tenant's for an admin with the setting, and nothing when it names none", async () => {
    const tables = readable("admin");
    const [own, other] = [await counts(operator.db, A, tables), await counts(operator.db, B, tables)];
    const lasting = Object.entries(own).filter(([table]) => !passing.includes(table));
    expect(lasting.filter(([, n]) => n === 0)).toEqual([]);
    expect(own).toEqual(other);
    expect(await counts(operator.db, "GLOBAL", tables)).toEqual(none(tables));
  });

  test("is not more through a view", async () => {
    const { rows } = await sql<{
      version: number;
    }>`select current_setting('server_version_num')::int as version`.execute(database.db);
    const views = ["jobs", "job_timeline"];
    if ((rows[0]?.version ?? 0) < 150_000) {
      for (const { db } of [enqueuer, reader, operator]) {
        for (const view of views) await expect(counts(db, A, [view])).rejects.toMatchObject({ code: "42501" });
      }
      return;
    }
    const everything = await counts(database.db, null, views);
    for (const { db } of [enqueuer, reader, operator]) {
      const own = await counts(db, A, views);
      for (const view of views) expect(3 * (own[view] ?? 0)).toBe(everything[view]);
    }
    expect(await counts(worker.db, null, views)).toEqual(everything);
    expect(await counts(reader.db, null, views)).toEqual(none(views));
  });

  test("is not a partition, which has no policies", async () => {
    for (const { db } of [enqueuer, reader, worker, operator]) {
      await expect(counts(db, A, ["job_ledger_default"])).rejects.toMatchObject({ code: "42501" });
    }
  });

  test("is not how the schema was migrated, and definitions are everybody's", async () => {
    for (const { db } of [enqueuer, reader, worker, operator]) {
      await expect(counts(db, null, ["schema_migrations"])).rejects.toMatchObject({ code: "42501" });
      await expect(counts(db, null, ["job_definitions"])).resolves.toBeDefined();
    }
  });

  test("changes nothing for the owner", async () => {
    const { live } = worldOf(ofB);
    await database.db.transaction().execute(async (trx) => {
      await sql`select set_config('runledger.organization_id', ${A}, true)`.execute(trx);
      expect(await owner.in(trx).jobs.get(live, ofB)).toMatchObject({ id: live });
    });
  });
});

describe("the functions of the ledger, for the wrong tenant", () => {
  const asA = <T>(body: (ledger: Ledger<RunledgerDatabase>) => Promise<T>) => enqueuer.ledger.inTenant(ofA, body);

  type Attempt = readonly [name: string, act: (ledger: Ledger) => Promise<unknown>, code: string];
  const attempts: readonly Attempt[] = [
    ["enqueue", (ledger: Ledger) => ledger.jobs.enqueue("waits", {}, { organizationId: B }), "db.forbidden"],
    ["enqueue for nobody", (ledger: Ledger) => ledger.jobs.enqueue("waits", {}), "db.forbidden"],
    ["enqueue a run", (ledger: Ledger) => ledger.runs.enqueue(gateThenJob(), { organizationId: B }), "db.forbidden"],
    ["read", (ledger: Ledger) => ledger.jobs.get(worldOf(ofB).live, ofB), "job.not_found"],
    ["read as an admin would", (ledger: Ledger) => ledger.jobs.get(worldOf(ofB).dead, admin), "job.not_found"],
    ["read a run", (ledger: Ledger) => ledger.runs.get(worldOf(global).run, admin), "workflow.run_not_found"],
    ["cancel", (ledger: Ledger) => ledger.jobs.cancel(worldOf(ofB).live, { scope: admin }), "job.not_found"],
    [
      "requeue",
      (ledger: Ledger) => ledger.jobs.requeue(worldOf(ofB).dead, { scope: admin, expected }),
      "job.not_found",
    ],
    ["replay", (ledger: Ledger) => ledger.jobs.replay(worldOf(ofB).dead, { scope: admin, key: "k" }), "job.not_found"],
    [
      "cancel a run",
      (ledger: Ledger) => ledger.runs.cancel(worldOf(ofB).run, { scope: admin }),
      "workflow.run_not_found",
    ],
    [
      "complete a gate",
      (ledger: Ledger) => ledger.steps.complete(worldOf(ofB).run, "gate", { scope: admin }),
      "workflow.step_not_found",
    ],
    [
      "append",
      (ledger: Ledger) => ledger.runs.append(worldOf(ofB).run, { scope: admin, key: "x", graph: oneMoreStep() }),
      "workflow.run_not_found",
    ],
    [
      "retry",
      (ledger: Ledger) => ledger.runs.retry(worldOf(ofB).run, { scope: admin, key: "x" }),
      "workflow.run_not_found",
    ],
    [
      "recover",
      (ledger: Ledger) => ledger.runs.recover(worldOf(ofB).run, { scope: admin, key: "x" }),
      "workflow.run_not_found",
    ],
  ];
  test.each(attempts)("%s", async (_, act, code) => {
    await expect(asA(act)).rejects.toMatchObject({ code });
  });

  test("lists have the tenant's own only, even for a scope of all", async () => {
    const { gates } = await asA((ledger) => ledger.steps.openGates({ scope: admin }));
    expect(gates.map(({ organizationId }) => organizationId)).toEqual([A]);
    const { canceled } = await asA((ledger) => ledger.runs.cancelMany({ scope: admin, filter: { type: "nothing" } }));
    expect(canceled).toBe(0);
    const filter = { type: `dies-${B}`, status: "DEAD_LETTERED" } as const;
    expect(await asA((ledger) => ledger.jobs.requeueMany({ scope: admin, filter }))).toMatchObject({ requeued: 0 });
  });

  test("a key tells nothing of another tenant's: not found, no conflict, no difference", async () => {
    const again = await asA((ledger) =>
      ledger.jobs.enqueue(`dies-${B}`, { other: true }, { organizationId: A, idempotencyKey: "key" }),
    );
    expect(again.disposition).toBe("inserted");
    const attempt = (key: string) =>
      asA((ledger) => ledger.jobs.enqueue(`dies-${B}`, {}, { organizationId: B, idempotencyKey: key })).catch(
        (error: unknown) => JSON.stringify(error),
      );
    expect(await attempt("key")).toBe(await attempt("a key that nobody has"));
    expect(await attempt("key")).toContain("db.forbidden");
  });
});

describe("SQL of its own, for the wrong tenant", () => {
  const setTo = (setting: string, statement: ReturnType<typeof sql>, db: Db = enqueuer.db) =>
    db.transaction().execute(async (trx) => {
      await sql`select set_config('runledger.organization_id', ${setting}, true)`.execute(trx);
      return statement.execute(trx);
    });

  test("changes no row", async () => {
    const { run } = worldOf(ofB);
    const changes = [
      sql`delete from runledger.job_queue where organization_id = ${B}`,
      sql`update runledger.job_queue set priority = 1 where organization_id = ${B}`,
      sql`update runledger.workflow_runs set canceled_reason = 'x' where id = ${run}`,
      sql`update runledger.workflow_steps set reason = 'x' where run_id = ${run}`,
    ];
    for (const change of changes) expect((await setTo(A, change)).numAffectedRows).toBe(0n);
  });

  test("neither writes rows of another tenant, nor makes rows another's, nor hangs rows on another's run", async () => {
    const { run } = worldOf(ofB);
    const own = worldOf(ofA);
    const [first, second] = (await owner.runs.get(run, ofB)).steps.map(({ id }) => id);
    const writes = [
      sql`insert into runledger.job_queue (id, type, organization_id, priority, run_at, max_attempts, timeout_seconds, payload)
          values (gen_random_uuid(), 'x', ${B}, 1, now(), 1, 1, '{}')`,
      sql`insert into runledger.job_queue (id, type, organization_id, priority, run_at, max_attempts, timeout_seconds, payload, workflow_run_id, workflow_step_id)
          values (gen_random_uuid(), 'x', ${A}, 1, now(), 1, 1, '{}', ${run}, gen_random_uuid())`,
      sql`insert into runledger.workflow_steps (run_id, id, step_key, kind, status, organization_id, pending_count, unsatisfied_count, dependent_count, open_since)
          values (${run}, gen_random_uuid(), 'x', 'EXTERNAL', 'WAITING_FOR_EXTERNAL', ${A}, 0, 0, 0, now())`,
      sql`insert into runledger.workflow_run_mutations (run_id, mutation_key, mutation, requested, result)
          values (${run}, 'x', 'append', '{}', '{}')`,
      sql`insert into runledger.workflow_step_dependencies (run_id, prerequisite_id, step_id, kind)
          values (${run}, ${second}, ${first}, 'ON_SUCCESS')`,
      sql`insert into runledger.job_events (job_id, run_number, event) values (${worldOf(ofB).dead}, 1, 'x')`,
      sql`insert into runledger.job_idempotency_keys (type, organization_id, key, job_id, requested)
          values ('x', ${B}, 'k', gen_random_uuid(), '{}')`,
      sql`update runledger.workflow_runs set organization_id = ${B} where id = ${own.run}`,
      sql`update runledger.workflow_steps set run_id = ${run} where run_id = ${own.run}`,
      sql`update runledger.job_queue set organization_id = ${B} where id = ${own.live}`,
    ];
    for (const [place, write] of writes.entries()) {
      const error = await setTo(A, write).catch((thrown: { code?: string }) => thrown.code);
      expect([place, error]).toEqual([place, "42501"]);
    }
  });

  test("an admin with the setting is held to it as well", async () => {
    const { run } = worldOf(ofB);
    const writes = [
      sql`insert into runledger.workflow_run_mutations (run_id, mutation_key, mutation, requested, result)
          values (${run}, 'x', 'append', '{}', '{}')`,
      sql`insert into runledger.job_logs (job_id, run_number, attempt, level, message)
          values (${worldOf(ofB).dead}, 1, 1, 'info', 'x')`,
      sql`update runledger.job_queue set organization_id = ${B} where id = ${worldOf(ofA).live}`,
    ];
    for (const write of writes) await expect(setTo(A, write, operator.db)).rejects.toMatchObject({ code: "42501" });
    expect(
      (await setTo(A, sql`delete from runledger.job_queue where organization_id = ${B}`, operator.db)).numAffectedRows,
    ).toBe(0n);
  });

  test("without the setting an enqueuer writes nothing at all", async () => {
    const { run } = worldOf(ofB);
    const writes = [
      sql`insert into runledger.job_queue (id, type, priority, run_at, max_attempts, timeout_seconds, payload)
          values (gen_random_uuid(), 'x', 1, now(), 1, 1, '{}')`,
      sql`insert into runledger.workflow_run_mutations (run_id, mutation_key, mutation, requested, result)
          values (${run}, 'y', 'append', '{}', '{}')`,
    ];
    for (const setting of ["", "GLOBAL"]) {
      for (const write of writes) await expect(setTo(setting, write)).rejects.toMatchObject({ code: "42501" });
    }
  });

  test("a role does nothing that is not its work", async () => {
    const id = worldOf(ofA).live;
    const forbidden: readonly (readonly [Db, ReturnType<typeof sql>])[] = [
      [reader.db, sql`delete from runledger.job_queue where id = ${id}`],
      [reader.db, sql`update runledger.job_queue set priority = 1 where id = ${id}`],
      [reader.db, sql`insert into runledger.job_events (job_id, run_number, event) values (${id}, 1, 'x')`],
      [reader.db, sql`select requested from runledger.job_idempotency_keys`],
      [reader.db, sql`update runledger.job_definitions set paused = true`],
      [enqueuer.db, sql`update runledger.job_queue set worker_id = 'me' where id = ${id}`],
      [enqueuer.db, sql`update runledger.job_ledger set output = '1'`],
      [enqueuer.db, sql`delete from runledger.job_ledger`],
      [enqueuer.db, sql`update runledger.job_definitions set paused = true`],
      [
        enqueuer.db,
        sql`insert into runledger.job_logs (job_id, run_number, attempt, level, message) values (${id}, 1, 1, 'info', 'x')`,
      ],
      [enqueuer.db, sql`select from runledger.job_schedules`],
      [worker.db, sql`delete from runledger.job_schedules`],
      [enqueuer.db, sql`select runledger.ensure_job_ledger_partitions(1)`],
      [reader.db, sql`select runledger.ensure_job_ledger_partitions(1)`],
      [worker.db, sql`update runledger.job_ledger set output = '1'`],
      [worker.db, sql`truncate runledger.job_queue`],
      [operator.db, sql`truncate runledger.job_queue`],
      [worker.db, sql`create table runledger.mine ()`],
      [operator.db, sql`drop policy runledger_admin on runledger.job_queue`],
      [operator.db, sql`alter table runledger.job_queue disable row level security`],
    ];
    for (const [place, [db, statement]] of forbidden.entries()) {
      const error = await setTo(A, statement, db).catch((thrown: { code?: string }) => thrown.code);
      expect([place, error]).toEqual([place, "42501"]);
    }
  });

  test("partitions are made with the owner's rights, by names that the caller cannot redirect", async () => {
    const { rows } = await sql<{ made: string }>`select runledger.ensure_job_ledger_partitions(12) as made`.execute(
      worker.db,
    );
    const config = await sql<{ proconfig: string[] }>`
      select proconfig from pg_proc where proname = 'ensure_job_ledger_partitions'`.execute(database.db);

    expect(rows).toHaveLength(4);
    expect(config.rows).toEqual([{ proconfig: ["search_path=pg_catalog, pg_temp"] }]);
    await expect(counts(worker.db, null, [rows[0]?.made ?? ""])).rejects.toMatchObject({ code: "42501" });
  });
});

describe("the functions of the ledger, for the own tenant", () => {
  test.each(tenants)("everything that is an enqueuer's work: %j", async (tenant) => {
    const organizationId = "organization" in tenant ? tenant.organization : null;
    const own = <T>(body: (ledger: Ledger) => Promise<T>) => enqueuer.ledger.inTenant(tenant, body);
    const job = await own((ledger) =>
      ledger.jobs.enqueue("waits", { n: 1 }, { organizationId, idempotencyKey: "own" }),
    );
    const again = await own((ledger) =>
      ledger.jobs.enqueue("waits", { n: 1 }, { organizationId, idempotencyKey: "own" }),
    );
    expect(again).toMatchObject({ id: job.id, disposition: "existing" });
    await own((ledger) =>
      ledger.jobs.enqueueMany(
        [1, 2].map((n) => ({ type: "waits", payload: n, organizationId, idempotencyKey: `own-${n}` })),
      ),
    );
    expect(await own((ledger) => ledger.jobs.cancel(job.id, { scope: tenant }))).toMatchObject({ status: "CANCELED" });
    const canceledJob = { status: "CANCELED", runNumber: 1 } as const;
    const requeued = await own((ledger) => ledger.jobs.requeue(job.id, { scope: tenant, expected: canceledJob }));
    expect(requeued).toMatchObject({ runNumber: 2 });
    const done = await succeededJob(organizationId);
    const replay = () => own((ledger) => ledger.jobs.replay(done, { scope: tenant, key: "own" }));
    expect([await replay(), await replay()].map(({ disposition }) => disposition)).toEqual(["inserted", "existing"]);
    expect(
      await own((ledger) =>
        ledger.jobs.cancelMany({ scope: tenant, filter: { type: typeOf("done", organizationId) } }),
      ),
    ).toMatchObject({ canceled: 1 });

    const keys: readonly [JobOptions, EnqueuedJob["disposition"]][] = [
      [{ active: { key: "own" } }, "existing_active"],
      [
        { active: { key: "own", replace: true }, priority: 7, maxAttempts: 2, timeoutSeconds: 5, tags: ["new"] },
        "replaced",
      ],
      [{ debounce: { key: "own", seconds: 3600 } }, "replaced"],
      [{ throttle: { key: "own", seconds: 3600 } }, "throttled"],
    ];
    for (const [key, disposition] of keys) {
      const ask = () => own((ledger) => ledger.jobs.enqueue("keyed", {}, { organizationId, ...key }));
      await ask();
      expect(await ask()).toMatchObject({ disposition });
    }
    const expiring = { organizationId, idempotencyKey: "expiring", idempotencyTtlSeconds: 60 };
    for (let round = 1; round <= 2; round += 1) {
      const asked = await own(async (ledger) => [
        await ledger.jobs.enqueue("expires", {}, expiring),
        await ledger.runs.enqueue({ ...gateThenJob(), type: "expires" }, expiring),
      ]);
      expect(asked.map(({ disposition }) => disposition)).toEqual(["inserted", "inserted"]);
      for (const table of ["job", "workflow"])
        await database.pool.query(
          `update runledger.${table}_idempotency_keys set expires_at = now() where key = 'expiring'`,
        );
    }
    const run = await own((ledger) => ledger.runs.enqueue(gateThenJob(), { organizationId, idempotencyKey: "own" }));
    await own((ledger) =>
      ledger.runs.append(run.id, {
        scope: tenant,
        key: "own",
        graph: oneMoreStep(),
      }),
    );
    await own((ledger) => ledger.steps.complete(run.id, "gate", { scope: tenant, outcome: "FAILED" }));
    expect(await own((ledger) => ledger.runs.getStatus(run.id, tenant))).toMatchObject({
      status: "COMPLETED_WITH_ERRORS",
    });
    await own((ledger) => ledger.runs.retry(run.id, { scope: tenant, key: "again" }));
    const canceled = await own((ledger) => ledger.runs.cancel(run.id, { scope: tenant }));
    expect(canceled).toMatchObject({ status: "CANCELED" });
    const recovered = await own((ledger) => ledger.runs.recover(run.id, { scope: tenant, key: "anew" }));
    await own((ledger) => ledger.steps.complete(recovered.id, "gate", { scope: tenant }));
    expect(
      await own((ledger) => ledger.runs.cancelMany({ scope: tenant, filter: { type: "approved" } })),
    ).toMatchObject({
      canceled: 2,
    });
  });

  test.each(tenants)("everything that is a reader's work: %j", async (tenant) => {
    const { live, dead, run } = worldOf(tenant);
    const own = <T>(body: (ledger: Ledger) => Promise<T>) => reader.ledger.inTenant(tenant, body);
    expect(await own((ledger) => ledger.jobs.get(live, tenant))).toMatchObject({ status: "PENDING" });
    expect(await own((ledger) => ledger.jobs.get(dead, tenant))).toMatchObject({ status: "DEAD_LETTERED" });
    expect((await own((ledger) => ledger.runs.get(run, tenant))).steps.length).toBe(3);
    expect((await own((ledger) => ledger.schedules.list({ scope: { admin: true } }))).schedules).toMatchObject([
      { name: "nightly", organizationId: "organization" in tenant ? tenant.organization : null },
    ]);
    expect((await own((ledger) => ledger.schedules.fires("nightly", { scope: tenant }))).fires).toHaveLength(1);
    await expect(own((ledger) => ledger.jobs.cancel(live, { scope: tenant }))).rejects.toMatchObject({
      code: "db.forbidden",
      category: "forbidden",
    });
  });
});
