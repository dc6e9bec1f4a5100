/** The Node that all contestants run on: the one in bench/node_modules, else the one that runs this. */
import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { arch, platform } from "node:os";
import { fileURLToPath } from "node:url";

export interface BenchNode {
  readonly path: string;
  /** Such as `24.21.0`. */
  readonly version: string;
  readonly readsTypeScript: boolean;
}

let found: BenchNode | undefined;

export function benchNode(): BenchNode {
  found ??= findNode();
  return found;
}

function findNode(): BenchNode {
  const own = fileURLToPath(new URL(`../node_modules/node-${platform()}-${arch()}/bin/node`, import.meta.url));
  const path = existsSync(own) ? own : process.execPath;
  const script =
    "JSON.stringify({ version: process.versions.node, readsTypeScript: process.features.typescript === 'strip' })";
  return { path, ...JSON.parse(execFileSync(path, ["-p", script], { encoding: "utf8" })) };
}
