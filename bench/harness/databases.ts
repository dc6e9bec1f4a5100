/** Each contestant's tables are made once; every repetition of a work gets a copy that nobody has used. */
import pg from "pg";
import { cloneDatabase, createTemplate, type TestDatabase } from "../../src/testing/index.ts";
import { ContestantProcess } from "./player.ts";
import type { Entry } from "./roster.ts";

export class Databases {
  readonly #server: string;
  readonly #templates = new Map<string, Promise<TestDatabase>>();

  constructor(server: string) {
    this.#server = server;
  }

  /** A fresh database; with a checkpoint none falls due to what was done before. */
  async fresh(entry: Entry, checkpoint: boolean): Promise<TestDatabase> {
    const template = this.#templates.get(entry.name) ?? this.#install(entry);
    this.#templates.set(entry.name, template);
    const database = await cloneDatabase(this.#server, (await template).name);
    if (checkpoint) await execute(this.#server, "checkpoint");
    return database;
  }

  #install(entry: Entry): Promise<TestDatabase> {
    return createTemplate(this.#server, `template_${entry.name}`, async (url) => {
      const installer = await ContestantProcess.start({ name: entry.name, tuning: "defaults", size: "smoke", url }, "");
      try {
        await installer.install();
      } finally {
        await installer.stop();
      }
    });
  }
}

async function execute(url: string, statement: string): Promise<void> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  await client.query(statement).finally(() => client.end());
}
