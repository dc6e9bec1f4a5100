/** The migrated template of a test run: made by whichever process needs it first, waited for by the others. */
import { createHash } from "node:crypto";
import pg from "pg";
import { databaseName, noteUse, sharedTemplateName } from "../run/leftovers.ts";
import type { TestRun } from "../run/test-run.ts";
import { createTemplate } from "./databases.ts";
import { fingerprint } from "./fingerprint.ts";

/** What is in a template. */
export interface TemplateContent {
  /** The schema of the ledger's tables. */
  readonly schema: string | undefined;
  /** What the service's own preparation amounts to: another key, another template. Undefined when there is none. */
  readonly key: string | undefined;
  /** Whether the key says it for other runs too; else the template goes with the run. */
  readonly lasting: boolean;
  /** Fills the new database; must close its connections. */
  readonly prepare: (url: string) => Promise<void>;
}

const known = new Map<string, Promise<string>>();

/** The template's name, once it is there. Asked once by each process; one connection. */
export function templateFor(run: TestRun, content: TemplateContent): Promise<string> {
  const what = JSON.stringify([run.id, content.schema, content.key, content.lasting]);
  const name = known.get(what) ?? findOrMake(run, content);
  known.set(what, name);
  name.catch(() => known.delete(what));
  return name;
}

async function findOrMake(run: TestRun, content: TemplateContent): Promise<string> {
  const print = await fingerprint(content.schema, content.schema ?? "", content.key ?? "");
  const name = content.lasting ? sharedTemplateName(print) : databaseName(run, `template_${print}`);
  const client = new pg.Client({ connectionString: run.url });
  client.on("error", () => {});
  await client.connect();
  try {
    // Held to the end of the session: whoever makes it may be killed, and then the next one does.
    await client.query("select pg_advisory_lock($1)", [lockKey(name)]);
    if (!(await isComplete(client, name))) await make(client, run, name, content);
    if (content.lasting) await noteUse(client, name);
    return name;
  } finally {
    await client.end();
  }
}

/** It is closed to connections when all is in it; what somebody has left half-made is not. */
async function isComplete(client: pg.Client, name: string): Promise<boolean> {
  const { rowCount } = await client.query("select from pg_database where datname = $1 and not datallowconn", [name]);
  return rowCount === 1;
}

async function make(client: pg.Client, run: TestRun, name: string, { prepare }: TemplateContent): Promise<void> {
  await client.query(`drop database if exists ${pg.escapeIdentifier(name)} with (force)`);
  await createTemplate(run.url, name, prepare);
}

function lockKey(name: string): string {
  return createHash("sha256").update(name).digest().readBigInt64BE().toString();
}
