/** The Node that all contestants run on: the one in bench/node_modules, else the one that runs this. */
import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { arch, platform } from "node:os";
import { fileURLToPath } from "node:url";

export interface BenchNode {
  readonly path: string;
  /** Such as `24.21.0`. */
  readonly version: string;
}

let found: BenchNode | undefined;

export function benchNode(): BenchNode {
  found ??= findNode();
  return found;
}

function findNode(): BenchNode {
  const own = fileURLToPath(new URL(`../node_modules/node-${platform()}-${arch()}/bin/node`, import.meta.url));
  if (!existsSync(own)) return { path: process.execPath, version: process.versions.node };
  return { path: own, version: execFileSync(own, ["--version"], { encoding: "utf8" }).trim().slice(1) };
}
