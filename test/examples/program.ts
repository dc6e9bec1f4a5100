/** An example as a user starts it: a process of its own, on a database of its own. */
import { spawn } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { afterAll } from "@jest/globals";
import { Kysely, PostgresDialect } from "kysely";
import pg from "pg";
import { createLedger, type Run, type RunledgerDatabase } from "../../src/index.ts";
import { cloneDatabase } from "../../src/testing/index.ts";
import { expectInvariants } from "../invariants.ts";
import { testServer } from "../support/database.ts";

const ROOT = resolve(import.meta.dirname, "../..");
const LOADER = pathToFileURL(join(ROOT, "node_modules/tsx/dist/loader.mjs")).href;

export interface Ended {
  readonly code: number | null;
  readonly output: string;
  readonly errors: string;
}

/** `Tables` are the program's own. */
export interface Desk<Tables = unknown> {
  /** The program's working directory: what it writes goes below `.runledger`. */
  readonly folder: string;
  readonly db: Kysely<RunledgerDatabase & Tables>;
  /** Runs the program to its end; `onOutput` sees all output so far. */
  start(args: readonly string[], onOutput?: (output: string, interrupt: () => void) => void): Promise<Ended>;
  /** The run that the output names first, from the database; the ledger's invariants hold. */
  runOf(ended: Ended): Promise<Run>;
  runIds(): Promise<string[]>;
}

const cleanUps: (() => Promise<void>)[] = [];

afterAll(async () => {
  for (const cleanUp of cleanUps) await cleanUp();
});

/** Call it in a test: an empty database and an empty working directory for one of the examples. */
export async function desk<Tables = unknown>(program: string): Promise<Desk<Tables>> {
  const database = await cloneDatabase(testServer(), "template0");
  const folder = await mkdtemp(join(tmpdir(), "runledger-example-"));
  const pool = new pg.Pool({ connectionString: database.url, max: 2 });
  const dialect = new PostgresDialect({ pool });
  const db = new Kysely<RunledgerDatabase & Tables>({ dialect });
  const ledgerDb = new Kysely<RunledgerDatabase>({ dialect });
  cleanUps.push(async () => {
    await pool.end();
    await database.drop();
    await rm(folder, { recursive: true, force: true });
  });
  return {
    folder,
    db,
    start: (args, onOutput = () => {}) => ended({ program, cwd: folder, url: database.url, args }, onOutput),
    runOf: async ({ output }) => {
      await expectInvariants({ db: ledgerDb });
      return createLedger({ db: ledgerDb }).runs.get(runIdIn(output), { global: true });
    },
    runIds: async () => {
      const rows = await ledgerDb.selectFrom("runledger.workflow_runs").select("id").execute();
      return rows.map(({ id }) => id);
    },
  };
}

export function runIdIn(output: string): string {
  const [id] = /[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/.exec(output) ?? [];
  if (id === undefined) throw new Error(`The output names no run:\n${output}`);
  return id;
}

interface Call {
  readonly program: string;
  readonly cwd: string;
  readonly url: string;
  readonly args: readonly string[];
}

async function ended(
  { program, cwd, url, args }: Call,
  onOutput: (output: string, interrupt: () => void) => void,
): Promise<Ended> {
  const main = join(ROOT, "examples", program, "main.ts");
  const child = spawn(process.execPath, ["--import", LOADER, main, ...args], {
    cwd,
    env: { ...process.env, RUNLEDGER_TEST_DATABASE_URL: url, npm_lifecycle_event: undefined },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let output = "";
  let errors = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    output += text;
    onOutput(output, () => child.kill("SIGINT"));
  });
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    errors += text;
  });
  const code = await new Promise<number | null>((done, fail) => child.on("error", fail).on("close", done));
  return { code, output, errors };
}
