/**
 * `npm run bench [-- --quick]`: the ledger and a hand-written floor on one server in one run, taking
 * turns, so that a noisy machine is noisy for both. Prints medians, spread and ratios.
 */
import { parseArgs } from "node:util";
import { startPostgres } from "../src/testing/index.ts";
import { floorScenarios } from "./floor.ts";
import { ledgerScenarios } from "./ledger.ts";
import { measured, table } from "./measure.ts";

const { values } = parseArgs({ options: { quick: { type: "boolean", default: false } } });
const sizes = values.quick
  ? { single: 200, batches: 5, drain: 5_000, fan: 1_000, repetitions: 3 }
  : { single: 1_000, batches: 20, drain: 50_000, fan: 10_000, repetitions: 5 };

// Durable: a queue that may lose jobs is not what is measured.
const server = await startPostgres({ durable: true, container: false });
try {
  const floor = await floorScenarios(server.url, sizes);
  const ledger = await ledgerScenarios(server.url, sizes);
  const results = [];
  for (const name of Object.keys(ledger.scenarios)) {
    const ours = ledger.scenarios[name];
    if (ours !== undefined) results.push(await measured(name, ours, floor.scenarios[name], sizes.repetitions));
  }
  process.stdout.write(`${table(results)}\n`);
  await floor.close();
  await ledger.close();
} finally {
  await server.stop();
}
