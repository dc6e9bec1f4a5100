/** The plan of a statement as it is sent: which scans it makes, and how many pages they touch. */
import { Kysely, PostgresDialect } from "kysely";
import pg from "pg";
import { createLedger, type Ledger } from "../../src/index.ts";
import type { TestDatabase } from "./database.ts";

export interface Plan {
  /** Each scan of a table by its kind and its index, or its table where it has none. */
  readonly scans: readonly string[];
  readonly buffers: number;
}

/** The plan of the call's first statement that has the marker in it, by a prepared plan for any values, or by one for these. */
export async function planOf(
  database: TestDatabase,
  planCacheMode: "force_generic_plan" | "force_custom_plan",
  call: (ledger: Ledger) => Promise<unknown>,
  marker = "/* runledger:",
): Promise<Plan> {
  const { sql, parameters } = await firstSent(database, call, marker);
  const client = await database.connect();
  await client.query(`set plan_cache_mode = ${planCacheMode}`);
  await client.query(`prepare explained as ${sql}`);
  const { rows } = await client.query(
    `explain (analyze, buffers, format json) execute explained(${parameters.map(literal).join(", ")})`,
  );
  await client.query("deallocate explained");
  const [{ Plan: plan }] = rows[0]["QUERY PLAN"];
  const scans = nodesOf(plan).filter((node) => /^(Seq|Index|Index Only|Bitmap Heap) Scan$/.test(node["Node Type"]));
  return {
    scans: scans.map((node) => `${node["Node Type"]} ${node["Index Name"] ?? node["Relation Name"]}`).sort(),
    buffers: scans.reduce((sum, node) => sum + node["Shared Hit Blocks"] + node["Shared Read Blocks"], 0),
  };
}

interface Sent {
  readonly sql: string;
  readonly parameters: readonly unknown[];
}

async function firstSent(
  { pool }: TestDatabase,
  call: (ledger: Ledger) => Promise<unknown>,
  marker: string,
): Promise<Sent> {
  const sent: Sent[] = [];
  const db = new Kysely<unknown>({
    dialect: new PostgresDialect({ pool }),
    log: ({ query: { sql, parameters } }) => {
      sent.push({ sql, parameters });
    },
  });
  await call(createLedger({ db }));
  const first = sent.find(({ sql }) => sql.includes(marker));
  if (first === undefined) throw new Error("nothing was sent");
  return first;
}

function literal(value: unknown): string {
  if (value === null) return "null";
  if (Array.isArray(value)) return pg.escapeLiteral(`{${value.map((element) => JSON.stringify(element)).join(",")}}`);
  return pg.escapeLiteral(String(value));
}

interface PlanNode {
  readonly "Node Type": string;
  readonly "Index Name"?: string;
  readonly "Relation Name"?: string;
  readonly "Shared Hit Blocks": number;
  readonly "Shared Read Blocks": number;
  readonly Plans?: readonly PlanNode[];
}

function nodesOf(node: PlanNode): PlanNode[] {
  return [node, ...(node.Plans ?? []).flatMap(nodesOf)];
}
