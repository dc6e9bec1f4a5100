/** The switch of row-level security: on, on again, off; by many at once; and every object of the schema has its rule. */
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "@jest/globals";
import { sql } from "kysely";
import {
  disableRowSecurity,
  enableRowSecurity,
  migrate,
  rollback,
  rowSecurityOffStatements,
  rowSecurityStatements,
} from "../../db/index.ts";
import { functionRules, tableRules, viewRules } from "../../db/row-security/rules.ts";
import { createLedger } from "../../src/index.ts";
import { createTestDatabase } from "../support/database.ts";
import { waitForBackend } from "../support/waiting.ts";
import { roleNames } from "./logins.ts";

const database = await createTestDatabase();
const { db } = database;
const roles = roleNames();
const others = roleNames();
const options = { roles };

/** Everything of the schema that the switch may touch. */
async function catalog() {
  const { rows } = await sql<{ object: string; state: string }>`
    select relname as object, concat_ws(' ', relrowsecurity, relforcerowsecurity, reloptions::text,
      (select string_agg(acl::text, ',' order by acl::text) from unnest(coalesce(relacl, acldefault('r', relowner))) as acl),
      (select string_agg(attname || attacl::text, ',') from pg_attribute where attrelid = c.oid and attacl is not null)) as state
    from pg_class as c where relnamespace = to_regnamespace('runledger') and relkind in ('r', 'p', 'v')
    union all
    select proname, concat_ws(' ', prosecdef, proconfig::text,
      (select string_agg(acl::text, ',' order by acl::text) from unnest(coalesce(proacl, acldefault('f', proowner))) as acl))
    from pg_proc where pronamespace = to_regnamespace('runledger')
    union all
    select 'schema', string_agg(acl::text, ',' order by acl::text)
    from pg_namespace, unnest(coalesce(nspacl, acldefault('n', nspowner))) as acl where nspname = 'runledger'
    union all
    select 'policy ' || polname || ' of ' || polrelid::regclass, pg_get_expr(polqual, polrelid) || pg_get_expr(polwithcheck, polrelid) || polroles::regrole[]::text from pg_policy
    union all
    select 'trigger ' || tgname, tgrelid::regclass::text from pg_trigger where not tgisinternal
    order by 1, 2`.execute(db);
  return rows;
}

describe("the rules", () => {
  test("have every table and view of the schema", async () => {
    const { rows } = await sql<{ name: string; kind: string }>`
      select relname as name, relkind as kind from pg_class
      where relnamespace = 'runledger'::regnamespace and relkind in ('r', 'p', 'v', 'm') and not relispartition`.execute(
      db,
    );
    const named = (kinds: string) => rows.filter(({ kind }) => kinds.includes(kind)).map(({ name }) => name);

    expect(named("rp").sort()).toEqual(Object.keys(tableRules).sort());
    expect(named("vm").sort()).toEqual(Object.keys(viewRules).sort());
  });

  test("have every function of the schema", async () => {
    const { rows } = await sql<{ name: string }>`
      select proname || '(' || oidvectortypes(proargtypes) || ')' as name from pg_proc
      where pronamespace = 'runledger'::regnamespace order by 1`.execute(db);

    expect(rows.map(({ name }) => name)).toEqual(Object.keys(functionRules).sort());
  });

  test("say of every table with an organization, or hanging on one, whose its rows are", async () => {
    const { rows } = await sql<{ name: string }>`
      select distinct table_name as name from information_schema.columns
      where table_schema = 'runledger' and column_name in ('organization_id', 'run_id', 'job_id', 'schedule_id')
        and table_name in (select relname from pg_class where relkind in ('r', 'p') and not relispartition)`.execute(
      db,
    );

    expect(rows.map(({ name }) => name).filter((name) => tableRules[name]?.tenancy === null)).toEqual([]);
  });

  test("are not undone by a view that is replaced in place: that would lose its reading with the caller's rights", async () => {
    const folder = join(import.meta.dirname, "../../db/migrations");
    for (const file of await readdir(folder)) {
      expect([file, (await readFile(join(folder, file), "utf8")).match(/create or replace view/i)]).toEqual([
        file,
        null,
      ]);
    }
  });
});

describe("the switch", () => {
  test("off leaves everything as it was before on, and nothing that would keep a role from being dropped", async () => {
    const before = await catalog();
    await enableRowSecurity(db, options);
    const on = await catalog();
    await disableRowSecurity(db);

    expect(await catalog()).toEqual(before);
    expect(on).not.toEqual(before);
    for (const role of Object.values(roles)) await sql`drop role ${sql.id(role)}`.execute(db);
  });

  test("on twice is on, and off twice is off", async () => {
    await enableRowSecurity(db, options);
    const once = await catalog();
    await enableRowSecurity(db, options);
    expect(await catalog()).toEqual(once);

    await disableRowSecurity(db);
    const off = await catalog();
    await disableRowSecurity(db);
    expect(await catalog()).toEqual(off);
  });

  test("thrown by many at once ends as thrown once", async () => {
    await enableRowSecurity(db, options);
    const once = await catalog();
    await disableRowSecurity(db);
    await Promise.all(Array.from({ length: 6 }, () => enableRowSecurity(db, options)));

    expect(await catalog()).toEqual(once);
  });

  test("with other roles takes the rights of those before", async () => {
    await enableRowSecurity(db, options);
    await enableRowSecurity(db, { roles: others });
    const state = JSON.stringify(await catalog());

    expect(state).toContain(others.worker);
    expect(state).not.toContain(roles.worker);
    await disableRowSecurity(db);
  });

  test("is the printed statements and nothing else", async () => {
    await enableRowSecurity(db, options);
    const on = await catalog();
    for (const statement of rowSecurityOffStatements()) await sql.raw(statement).execute(db);
    const off = await catalog();
    for (const statement of rowSecurityStatements(options)) await sql.raw(statement).execute(db);
    expect(await catalog()).toEqual(on);

    await disableRowSecurity(db);
    expect(await catalog()).toEqual(off);
  });

  test("goes with a caller's transaction", async () => {
    await disableRowSecurity(db);
    const before = await catalog();
    const undone = db.transaction().execute(async (trx) => {
      await enableRowSecurity(trx, options);
      throw new Error("undone");
    });

    await expect(undone).rejects.toThrow("undone");
    expect(await catalog()).toEqual(before);
  });

  test("waits for a lock no longer than its caller would", async () => {
    const holder = await database.connect();
    await holder.query("begin; lock table runledger.workflow_runs in access share mode");
    const waiting = db.transaction().execute(async (trx) => {
      await sql`set local lock_timeout = '400ms'`.execute(trx);
      await enableRowSecurity(trx, options);
    });
    const refused = expect(waiting).rejects.toMatchObject({ code: "db.lock_timeout", retryable: true });

    await waitForBackend({ client: database.pool, marker: "workflow_runs" });
    await refused;
    await holder.query("rollback");
  });

  test("refuses names that are not one role each", async () => {
    const refused = [{ worker: "w", admin: "w" }, { reader: 'r"; drop' }, { reader: "public" }, { reader: "pg_read" }];
    for (const wrong of [...refused, { reader: "" }, { reader: "r".repeat(64) }]) {
      await expect(enableRowSecurity(db, { roles: wrong })).rejects.toMatchObject({ code: "config.invalid" });
    }
  });

  test("takes roles with any letters", async () => {
    const named = { ...others, worker: `Wörker.${others.worker}@x` };
    await enableRowSecurity(db, { roles: named });
    await disableRowSecurity(db);
    await sql`drop role ${sql.id(named.worker)}`.execute(db);
  });

  test("on a schema that is not there says so", async () => {
    await expect(enableRowSecurity(db, { ...options, schema: "nowhere" })).rejects.toMatchObject({
      code: "schema.missing",
    });
    await expect(disableRowSecurity(db, { schema: "nowhere" })).resolves.toBeUndefined();
  });
});

describe("migrating", () => {
  test("throws the switch too, and takes no lock when exactly that is on", async () => {
    await migrate(db, { rowSecurity: roles });
    const on = await catalog();
    const holder = await database.connect();
    await holder.query("begin; lock table runledger.workflow_runs in access share mode");
    await migrate(db, { rowSecurity: roles });
    await holder.query("rollback");

    expect(await catalog()).toEqual(on);
    await disableRowSecurity(db);
    await migrate(db, { rowSecurity: roles });
    expect(await catalog()).toEqual(on);
  });

  test("back takes it along, and forth again makes a schema that it can be switched on in", async () => {
    const second = { schema: "second" };
    await migrate(db, { ...second, rowSecurity: roles });
    expect((await rollback(db, second)).migrations.length).toBeGreaterThan(0);
    await migrate(db, second);
    await createLedger({ db, ...second }).jobs.enqueue("any", {});
    await enableRowSecurity(db, { ...second, roles });
    await disableRowSecurity(db, second);
    await disableRowSecurity(db);
  });
});
