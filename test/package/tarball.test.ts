/**
 * The package as a user gets it: packed, unpacked beside nothing but its declared dependencies, imported
 * by Node and compiled against, with the newest and the oldest supported Kysely.
 */
import { execFile } from "node:child_process";
import { mkdir, mkdtemp, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";

const run = promisify(execFile);
const ROOT = resolve(import.meta.dirname, "../..");
const SUBPATHS = [
  "runledger",
  "runledger/worker",
  "runledger/testing",
  "runledger/testing/setup",
  "runledger/migrations",
];

const SERVICE = `
import { type Kysely, PostgresDialect } from "kysely";
import pg from "pg";
import { createLedger, type RunledgerDatabase } from "runledger";
import { migrate, migrationProvider, migrationTables } from "runledger/migrations";
import { cloneDatabase, startPostgres } from "runledger/testing";
import * as worker from "runledger/worker";

interface Orders {
  orders: { id: string };
}

export async function prepare(db: Kysely<Orders & RunledgerDatabase>): Promise<string[]> {
  await migrate(db);
  createLedger({ db });
  const jobs = await db.selectFrom("runledger.jobs").select(["id", "status"]).execute();
  return jobs.map(({ id }) => id);
}

export const surface = { PostgresDialect, pg, migrationProvider, migrationTables, cloneDatabase, startPostgres, worker };
`;

let folder: string;
let tarball: string;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "runledger-package-"));
  const { stdout } = await run("npm", ["pack", "--json", "--pack-destination", folder], { cwd: ROOT });
  tarball = join(folder, packedFile(stdout));
}, 120_000);
afterAll(() => rm(folder, { recursive: true, force: true }));

test("the tarball holds what runs and its sources, and nothing of the workshop", async () => {
  const { stdout } = await run("tar", ["-tzf", tarball]);
  const folders = new Set(stdout.split("\n").map((file) => file.split("/")[1]));
  folders.delete(undefined);

  expect([...folders].sort()).toEqual(["LICENSE", "README.md", "db", "dist", "package.json", "src"]);
});

describe.each(["kysely", "kysely-028"])("installed with %s", (kysely) => {
  let project: string;

  beforeAll(async () => {
    project = join(folder, kysely);
    await install(project, kysely);
  });

  test.each(SUBPATHS)("%s can be imported", async (subpath) => {
    const program = `console.log(Object.keys(await import("${subpath}")).length)`;
    const { stdout } = await run(process.execPath, ["--input-type=module", "--eval", program], { cwd: project });

    expect(Number(stdout)).toBeGreaterThan(0);
  });

  test("a service compiles against its types, declaration files included", async () => {
    const options = { module: "NodeNext", target: "ES2023", types: ["node"], strict: true, noEmit: true };
    await writeFile(join(project, "service.ts"), SERVICE);
    await writeFile(
      join(project, "tsconfig.json"),
      JSON.stringify({ compilerOptions: options, files: ["service.ts"] }),
    );

    // tsc reports to its standard output, which a failed run would otherwise hide.
    const { stdout } = await run(join(ROOT, "node_modules/.bin/tsc"), ["-p", project]).catch(
      (failure: { stdout: string }) => failure,
    );
    expect(stdout).toBe("");
  }, 60_000);
});

/** npm would do the same over the network; this way the test needs none. */
async function install(project: string, kysely: string): Promise<void> {
  const modules = join(project, "node_modules");
  const home = join(modules, "runledger");
  await mkdir(home, { recursive: true });
  await writeFile(join(project, "package.json"), '{ "type": "module" }');
  await run("tar", ["-xzf", tarball, "--strip-components=1", "-C", home]);

  const manifest: { dependencies: object; peerDependencies: object } = JSON.parse(
    await readFile(join(home, "package.json"), "utf8"),
  );
  const declared = { ...manifest.dependencies, ...manifest.peerDependencies };
  for (const name of [...Object.keys(declared), "@types/pg", "@types/node"]) {
    await mkdir(dirname(join(modules, name)), { recursive: true });
    await symlink(join(ROOT, "node_modules", name === "kysely" ? kysely : name), join(modules, name));
  }
}

function packedFile(output: string): string {
  // A build may print before npm does.
  const [packed]: { filename: string }[] = JSON.parse(output.slice(output.indexOf("[\n")));
  if (packed === undefined) throw new Error(`npm pack made nothing: ${output}`);
  return packed.filename;
}
