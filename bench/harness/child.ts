/** A contestant's process: opens its database, then plays the parts that it is told to, until it is told to stop. */
import pg from "pg";
import { works } from "../works/all.ts";
import type { ContestantModule, Tuning } from "./contestant.ts";
import { roster } from "./roster.ts";
import { type SizeName, sizes } from "./sizes.ts";
import { Starts } from "./starts.ts";
import { type Host, nothing, type Report } from "./work.ts";

/** In the process's first argument, as JSON. */
export interface ChildArguments {
  readonly name: string;
  readonly tuning: Tuning;
  readonly size: SizeName;
  readonly url: string;
}

export type Order =
  | { readonly id: number; readonly install: true }
  | { readonly id: number; readonly work: string; readonly part: string; readonly value: number }
  | { readonly stop: true };

/** The answer with the id 0 says that the process is ready. */
export type Answer = { readonly id: number } & ({ readonly report: Report } | { readonly error: string });

const { name, tuning, size, url }: ChildArguments = JSON.parse(process.argv[2] ?? "");
const { open }: ContestantModule = await import(roster.find((known) => known.name === name)?.module ?? name);
const host: Host = { contestant: await open(url, tuning), starts: new Starts(), pending };
const known = works(sizes[size]);

process.on("message", async (order: Order) => {
  if ("stop" in order) return stop();
  try {
    answer({ id: order.id, report: await report(order) });
  } catch (error) {
    answer({ id: order.id, error: error instanceof Error ? (error.stack ?? error.message) : String(error) });
  }
});
// Whoever started this process is gone.
process.on("disconnect", () => process.exit(1));
answer({ id: 0, report: nothing });

async function report(order: Exclude<Order, { stop: true }>): Promise<Report> {
  if ("install" in order) {
    await host.contestant.install();
    return nothing;
  }
  const part = known.find(({ id }) => id === order.work)?.parts[order.part];
  if (part === undefined) throw new Error(`The work ${order.work} has no part ${order.part}.`);
  return part(host, order.value);
}

async function pending(): Promise<number> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  try {
    const { rows } = await client.query<{ count: string }>(host.contestant.pending);
    return Number(rows[0]?.count);
  } finally {
    await client.end();
  }
}

async function stop(): Promise<void> {
  await host.contestant.close().catch(() => {});
  process.exit(0);
}

function answer(value: Answer): void {
  process.send?.(value);
}
