/** Who is measured: where each is implemented, what it can do, and what its documentation says about tuning it. */
import { existsSync, readFileSync } from "node:fs";
import type { Fan } from "./contestant.ts";

export interface Entry {
  readonly name: string;
  /** Relative to this folder. */
  readonly module: string;
  /** The npm package; undefined for those that are part of this repository. */
  readonly package?: string;
  /** The oldest major version of Node that it runs on. */
  readonly node: number;
  /** Whether it has workers that run handlers as soon as jobs come. The floor has none. */
  readonly waits: boolean;
  readonly chains: boolean;
  /** Whether a step can tell when the one before it ended. */
  readonly gaps: boolean;
  /** The widest fan-out that it takes, for each way to do it. */
  readonly fans: Readonly<Partial<Record<Fan, number>>>;
  /** What `tuned` sets. */
  readonly tuned: string;
  /** Where that is written. */
  readonly source: string;
}

export const OURS = "runledger";
export const FLOOR = "floor";

export const roster: readonly Entry[] = [
  {
    name: FLOOR,
    module: "../contestants/floor.ts",
    node: 20,
    waits: false,
    chains: false,
    gaps: false,
    fans: {},
    tuned: "two connections, batches of 500, named statements",
    source: "hand-written",
  },
  {
    name: OURS,
    module: "../contestants/runledger.ts",
    node: 20,
    waits: true,
    chains: true,
    gaps: true,
    fans: { steps: Number.POSITIVE_INFINITY, "child runs": Number.POSITIVE_INFINITY },
    tuned: "concurrency 500, pool of 20",
    source: "docs/jobs.md, src/worker/options.ts",
  },
  {
    name: "graphile-worker",
    module: "../peers/graphile-worker.ts",
    package: "graphile-worker",
    node: 22,
    waits: true,
    chains: false,
    gaps: false,
    fans: {},
    tuned: "concurrentJobs 24, maxPoolSize 25, localQueue.size 500, completeJobBatchDelay 0, failJobBatchDelay 0",
    source: "worker.graphile.org/docs/performance",
  },
  {
    name: "pg-boss",
    module: "../peers/pg-boss.ts",
    package: "pg-boss",
    node: 22,
    waits: true,
    chains: true,
    gaps: false,
    fans: { steps: Number.POSITIVE_INFINITY },
    tuned:
      "useListenNotify, queue notify, batchSize 1000, burstWhenBatchFull, localConcurrency 4, max 20; the shortest intervals that it takes for its flows: pollingIntervalSeconds and notifyPollingIntervalSeconds 0.5, flowIntervalSeconds 1",
    source: "pgboss.io/api/workers, pgboss.io/api/constructor, pgboss.io/api/jobs (flow)",
  },
  {
    name: "dbos",
    module: "../peers/dbos.ts",
    package: "@dbos-inc/dbos-sdk",
    node: 20,
    waits: true,
    chains: true,
    gaps: true,
    fans: { steps: Number.POSITIVE_INFINITY, "child runs": Number.POSITIVE_INFINITY },
    tuned: "systemDatabasePoolSize 50, queue minPollingIntervalMs 10, workerConcurrency 500",
    source: "docs.dbos.dev/typescript/reference/configuration, …/queues",
  },
  {
    name: "openworkflow",
    module: "../peers/openworkflow.ts",
    package: "openworkflow",
    node: 20,
    waits: true,
    chains: true,
    gaps: true,
    // A run has at most 1000 steps.
    fans: { steps: 998, "child runs": 998 },
    tuned: "concurrency 100, pool of 100",
    source: "openworkflow.dev/docs/production (concurrency tuning)",
  },
];

/** The installed version, or undefined where `npm ci --prefix bench` has not been run. */
export function versionOf(entry: Entry): string | undefined {
  const manifest =
    entry.package === undefined
      ? new URL("../../package.json", import.meta.url)
      : new URL(`../node_modules/${entry.package}/package.json`, import.meta.url);
  if (!existsSync(manifest)) return undefined;
  const { version }: { version: string } = JSON.parse(readFileSync(manifest, "utf8"));
  return version;
}
