/**
 * npx tsx examples/checksums/main.ts [--folder <folder>]: the checksums of a folder's files by a map, one digest of
 * them, and the same digest by a plain loop. The default is this repository's src. Exits with 1 when the two
 * differ or a file cannot be read.
 */
import { readFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import type { Run } from "../../src/index.ts";
import { ended, exitCodes, flagsOf, runProgram } from "../support/program.ts";
import { checksums, type Digest } from "./graph.ts";
import { filesBelow, handlers, sha256, sum } from "./handlers.ts";

const { folder } = flagsOf({ folder: { type: "string", default: join(import.meta.dirname, "../../src") } });
const root = resolve(folder);

await runProgram({
  handlers: () => handlers,
  async main({ ledger }) {
    const { id } = await ledger.runs.enqueue(checksums, { root });
    console.log(`Run ${id} sums the files below ${root}.`);
    const run = await ended(ledger, id);
    if (run.status !== "SUCCEEDED") return failed(run);

    const byMap = await ledger.runs.getResult(id, { scope: { global: true }, workflow: checksums });
    const byLoop = await plainDigest();
    console.log(`The map:  ${byMap.sha256} of ${byMap.files} files, in ${run.stepCount} steps.`);
    console.log(`The loop: ${byLoop.sha256} of ${byLoop.files} files.`);
    return byMap.sha256 === byLoop.sha256 ? exitCodes.done : exitCodes.failed;
  },
});

async function plainDigest(): Promise<Digest> {
  const files = await filesBelow(root);
  const sums = files.map(async ({ path }) => ({ path, sha256: sha256(await readFile(join(root, path))) }));
  return sum(await Promise.all(sums));
}

function failed({ status, steps }: Run): number {
  console.log(`The run is ${status}.`);
  for (const step of steps) if (step.status === "FAILED") console.log(`  ${step.key}: ${step.errorMessage}`);
  return exitCodes.failed;
}
