/** What the documentation shows compiles, and the README's program does what its comments say. */
import { execFile } from "node:child_process";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { promisify } from "node:util";
import { expect, test } from "@jest/globals";
import pg from "pg";
import { cloneDatabase } from "../../src/testing/index.ts";
import { testServer } from "../support/database.ts";

const ROOT = resolve(import.meta.dirname, "../..");
const run = promisify(execFile);
const guides = (await readdir(join(ROOT, "docs"))).filter((name) => name.endsWith(".md"));
const pages = ["README.md", ...guides.map((name) => join("docs", name))];

test("every block of TypeScript compiles", async () => {
  await inFolder(async (folder) => {
    for (const page of pages) {
      const blocks = await blocksOf(page);
      await Promise.all(
        blocks.map((block, place) => writeFile(join(folder, `${page.replaceAll(/\W/g, "-")}-${place}.ts`), block)),
      );
    }
    const compiler = join(ROOT, "node_modules/@typescript/native/bin/tsc");
    const { stdout } = await run(process.execPath, [compiler, "-p", folder]).catch(
      (error: { stdout: string }) => error,
    );

    expect(stdout).toBe("");
  });
}, 120_000);

test("the README's program runs as it says", async () => {
  const database = await cloneDatabase(testServer(), "template0");
  try {
    await execute(database.url, "create table orders (id text primary key, total int not null)");
    await inFolder(async (folder) => {
      const [program = ""] = await blocksOf("README.md");
      await writeFile(join(folder, "program.ts"), program);
      const { stdout } = await run(
        process.execPath,
        [join(ROOT, "node_modules/tsx/dist/cli.mjs"), "--tsconfig", join(folder, "tsconfig.json"), "program.ts"],
        { cwd: folder, env: { ...process.env, DATABASE_URL: database.url, NODE_OPTIONS: "" } },
      );

      expect(stdout).toBe("o-1 for 42\n");
    });
  } finally {
    await database.drop();
  }
}, 120_000);

test("every page that is linked to is there", async () => {
  for (const page of pages) {
    const text = await readFile(join(ROOT, page), "utf8");
    const links = [...text.matchAll(/\]\((?!https?:)([^)#]+)/g)].map(([, link = ""]) =>
      resolve(ROOT, page, "..", link),
    );
    for (const link of links) await expect(readFile(link, "utf8")).resolves.not.toBe("");
  }
});

async function blocksOf(page: string): Promise<string[]> {
  const text = await readFile(join(ROOT, page), "utf8");
  return [...text.matchAll(/^```ts\n(.*?)^```/gms)].map(([, block = ""]) => block);
}

/** A folder in which `runledger` is this project's source and each file a module of its own. */
async function inFolder(action: (folder: string) => Promise<void>): Promise<void> {
  const folder = await mkdtemp(join(ROOT, ".docs-"));
  try {
    await writeFile(join(folder, "package.json"), '{ "type": "module" }');
    await writeFile(join(folder, "tsconfig.json"), JSON.stringify(tsconfig));
    await action(folder);
  } finally {
    await rm(folder, { recursive: true });
  }
}

const tsconfig = {
  extends: "../tsconfig.json",
  compilerOptions: {
    rootDir: "..",
    paths: {
      runledger: ["../src/index.ts"],
      "runledger/worker": ["../src/worker/index.ts"],
      "runledger/migrations": ["../db/index.ts"],
      "runledger/testing": ["../src/testing/index.ts"],
      "runledger/testing/setup": ["../src/testing/setup.ts"],
    },
  },
  include: ["*.ts"],
  exclude: [],
};

async function execute(url: string, statement: string): Promise<void> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  await client.query(statement);
  await client.end();
}
