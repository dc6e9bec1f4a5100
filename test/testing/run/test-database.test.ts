/** Databases of a test run: made from one template, and gone afterwards, however the run ends. */
import { type ChildProcess, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "@jest/globals";
import { CamelCasePlugin, type Generated, sql } from "kysely";
import pg from "pg";
import { type TemplateContent, templateFor } from "../../../src/testing/databases/template.ts";
import { type PostgresServer, startTestServer, testDatabase } from "../../../src/testing/index.ts";
import type { TestRun } from "../../../src/testing/run/test-run.ts";
import { testServer } from "../../support/database.ts";
import { backendGone } from "../../support/waiting.ts";

interface ShopTables {
  shops: { id: Generated<number>; name: string };
}

const ROOT = resolve(import.meta.dirname, "../../..");
const LOADER = pathToFileURL(join(ROOT, "node_modules/tsx/dist/loader.mjs")).href;
const TIMEOUT = 120_000;

const observer = new pg.Client({ connectionString: testServer() });
let server: PostgresServer;
const children: ChildProcess[] = [];

beforeAll(async () => {
  await observer.connect();
  server = await startTestServer({ url: testServer() });
});
afterEach(() => {
  for (const child of children.splice(0)) child.kill("SIGKILL");
});
afterAll(async () => {
  await server.stop();
  await observer.end();
});

test("each database is migrated, prepared, and goes its own way", async () => {
  const prepare: NonNullable<Parameters<typeof testDatabase<ShopTables>>[0]>["prepare"] = async (db) => {
    await sql`create table shops (id serial primary key, name text not null)`.execute(db);
    await db.insertInto("shops").values({ name: "corner" }).execute();
  };
  const started = performance.now();
  await using first = await testDatabase<ShopTables>({ prepare });
  const made = performance.now();
  await using second = await testDatabase<ShopTables>({ prepare });
  console.log(
    `a database with its template: ${(made - started).toFixed()} ms, another: ${(performance.now() - made).toFixed()} ms`,
  );
  await first.db.insertInto("shops").values({ name: "market" }).execute();
  await first.ledger.jobs.enqueue("restock", {});

  expect(await second.db.selectFrom("shops").select("name").execute()).toEqual([{ name: "corner" }]);
  expect(await second.db.selectFrom("runledger.job_queue").select("id").execute()).toEqual([]);
  expect(second.url).toContain(second.name);
});

test("the ledger's schema, plugins and pool are as they are asked for", async () => {
  await using kit = await testDatabase({ ledger: { schema: "billing" }, plugins: [new CamelCasePlugin()], max: 3 });
  const { id } = await kit.ledger.jobs.enqueue("invoice", {});

  const { rows } = await sql<{ jobType: string }>`select type as job_type from billing.job_queue`.execute(kit.db);
  expect(rows).toEqual([{ jobType: "invoice" }]);
  await kit.advance({ days: 1 });
  await kit.expectEnqueued("invoice", {}, { count: 1 });
  expect(await kit.drain({ handlers: [] as never }).catch((error: { code: string }) => error.code)).toBe(
    "config.invalid",
  );
  expect(id).toEqual(expect.any(String));
});

test("a dropped database is gone, and may be dropped again", async () => {
  const kit = await testDatabase();
  const client = new pg.Client({ connectionString: kit.url });
  client.on("error", () => {});
  await client.connect();

  await kit.drop();
  await kit.drop();

  expect(await namesLike(kit.name)).toEqual([]);
});

test("a preparation that fails leaves no template, and can be tried again", async () => {
  let tries = 0;
  const prepare = async () => {
    tries += 1;
    if (tries === 1) throw new Error("not yet");
  };

  await expect(testDatabase({ prepare })).rejects.toThrow("not yet");
  await using kit = await testDatabase({ prepare });
  expect(kit.name).toMatch(/^runledger_test_/);
});

test(
  "processes that start at once make one template",
  async () => {
    const told = await Promise.all(Array.from({ length: 4 }, async () => (await child("")).told));

    expect(new Set(told.map(({ name }) => name)).size).toBe(4);
    const makers = new Set(told.map(({ preparedBy }) => preparedBy.join()));
    expect(makers.size).toBe(1);
  },
  TIMEOUT,
);

describe("on a server that was there before", () => {
  test(
    "databases of a run that was killed are dropped by the next one, those of a live run are not",
    async () => {
      const [killed, live] = await Promise.all([child(testServer(), ownRun), child(testServer(), ownRun)]);
      const session = await sessionOf(killed.told.name);
      killed.process.kill("SIGKILL");
      await once(killed.process, "exit");
      await backendGone(observer, session);
      expect(await namesLike(killed.told.name)).toEqual([killed.told.name]);

      await withoutRun(async () => {
        const next = await startTestServer({ url: testServer() });
        await next.stop();
      });

      expect(await namesLike(killed.told.name)).toEqual([]);
      expect(await namesLike(live.told.name)).toEqual([live.told.name]);
    },
    TIMEOUT,
  );

  test("stopping drops the run's databases, under whoever is connected, and its templates", async () => {
    await withoutRun(async () => {
      const next = await startTestServer({ url: testServer() });
      const kit = await testDatabase({ prepare: async () => {} });
      const run = kit.name.split("_").slice(0, 3).join("_");
      expect(await namesLike(`${run}_`)).toHaveLength(2);
      await next.stop();
      await next.stop();

      expect(await namesLike(`${run}_`)).toEqual([]);
      await kit.db.destroy();
      await expect(testDatabase()).rejects.toThrow(/No test server is running.*runledger\/testing\/setup/);
    });
  });

  test(
    "a template with a key is there for later runs",
    async () => {
      const key = randomBytes(6).toString("hex");
      const first = await child(testServer(), { ...ownRun, key });
      const second = await child(testServer(), { ...ownRun, key });

      expect(second.told.preparedBy).toEqual(first.told.preparedBy);
    },
    TIMEOUT,
  );

  test("a template that none has used for a week goes with the next run", async () => {
    const [used, old] = [await ownTemplate(), await ownTemplate()];
    await observer.query(`comment on database ${pg.escapeIdentifier(old.name)} is 'used 2020-01-01'`);
    await withoutRun(async () => (await startTestServer({ url: testServer() })).stop());

    expect(await namesLike(old.name)).toEqual([]);
    expect(await namesLike(used.name)).toEqual([used.name]);
  });

  test("a template that its maker left half-made is made anew", async () => {
    const template = await ownTemplate();
    await observer.query(
      `alter database ${pg.escapeIdentifier(template.name)} is_template false allow_connections true`,
    );

    expect(await template.make({ id: "another", url: testServer() })).toBe(template.name);
    expect(template.made()).toBe(2);
    expect(await template.make({ id: "a-third", url: testServer() })).toBe(template.name);
    expect(template.made()).toBe(2);
  });
});

/** A template that no other test uses; a run that has not asked for it yet looks for it anew. */
async function ownTemplate() {
  let made = 0;
  const content: TemplateContent = {
    schema: undefined,
    key: randomBytes(6).toString("hex"),
    lasting: true,
    prepare: async () => {
      made += 1;
    },
  };
  const make = (run: TestRun) => templateFor(run, content);
  return { make, made: () => made, name: await make({ id: "first", url: testServer() }) };
}

interface Told {
  readonly name: string;
  readonly preparedBy: readonly number[];
}

const ownRun = { env: { RUNLEDGER_TEST_RUN: undefined } };

/** A process of this run, or of its own; ended after the test. */
async function child(
  url: string,
  { env = {}, key = "" }: { env?: NodeJS.Dict<string>; key?: string } = {},
): Promise<{ readonly process: ChildProcess; readonly told: Told }> {
  const program = join(import.meta.dirname, "child.ts");
  const started = spawn(process.execPath, ["--import", LOADER, program, url, key], {
    env: { ...process.env, NODE_OPTIONS: "", ...env },
    stdio: ["pipe", "pipe", "inherit"],
  });
  children.push(started);
  let output = "";
  for await (const text of started.stdout.setEncoding("utf8")) {
    output += text;
    if (output.includes("\n")) return { process: started, told: JSON.parse(output) };
  }
  throw new Error(`The process ended without a word: ${output}`);
}

/** The process that the run of this file is not told to. */
async function withoutRun(action: () => Promise<void>): Promise<void> {
  const run = process.env.RUNLEDGER_TEST_RUN;
  delete process.env.RUNLEDGER_TEST_RUN;
  try {
    await action();
  } finally {
    if (run !== undefined) process.env.RUNLEDGER_TEST_RUN = run;
  }
}

async function namesLike(prefix: string): Promise<string[]> {
  const { rows } = await observer.query<{ datname: string }>(
    "select datname from pg_database where starts_with(datname, $1) order by datname",
    [prefix],
  );
  return rows.map(({ datname }) => datname);
}

/** The backend of the session that the database's run holds. */
async function sessionOf(database: string): Promise<number> {
  const { rows } = await observer.query<{ pid: number }>(
    "select pid from pg_stat_activity where application_name <> '' and starts_with($1, application_name || '_')",
    [database],
  );
  const [row] = rows;
  if (row === undefined) throw new Error("the run holds no session");
  return row.pid;
}
