import { randomBytes } from "node:crypto";
import { afterAll, expect, test } from "@jest/globals";
import pg from "pg";
import { cloneDatabase, createTemplate, type TestDatabase } from "../../src/testing/index.ts";
import { testServer } from "../support/database.ts";

const made: TestDatabase[] = [];
afterAll(async () => {
  for (const database of made.reverse()) await database.drop();
});

test("each clone has the template's content and goes its own way", async () => {
  const template = await createTemplate(testServer(), uniqueName(), async (url) => {
    await query(url, "create table things (n int)");
  });
  made.push(template);
  const [first, second] = await Promise.all([
    cloneDatabase(testServer(), template.name),
    cloneDatabase(testServer(), template.name),
  ]);
  made.push(first, second);

  await query(first.url, "insert into things values (1)");

  expect(await query(second.url, "select n from things")).toEqual([]);
  await expect(query(template.url, "select 1")).rejects.toThrow(/not currently accepting connections/);
});

test("a template whose preparation fails is not left behind", async () => {
  const name = uniqueName();
  const prepared = createTemplate(testServer(), name, () => Promise.reject(new Error("no schema today")));

  await expect(prepared).rejects.toThrow("no schema today");
  expect(await query(testServer(), `select 1 from pg_database where datname = '${name}'`)).toEqual([]);
});

test("a database is dropped under the connections that are still open", async () => {
  const database = await cloneDatabase(testServer(), "template0");
  const client = new pg.Client({ connectionString: database.url });
  const lost = new Promise((resolve) => client.on("error", resolve));
  await client.connect();

  await database.drop();

  await expect(lost).resolves.toMatchObject({ code: "57P01" });
});

function uniqueName(): string {
  return `template_${randomBytes(6).toString("hex")}`;
}

async function query(url: string, text: string): Promise<unknown[]> {
  const client = new pg.Client({ connectionString: url });
  client.on("error", () => {});
  await client.connect();
  try {
    return (await client.query(text)).rows;
  } finally {
    await client.end();
  }
}
