/** What each step does; `sum` is what the program compares the run's digest with. */
import { createHash } from "node:crypto";
import { readdir, readFile } from "node:fs/promises";
import { join, relative, sep } from "node:path";
import { type Handler, handle, TerminalError } from "../../src/worker/index.ts";
import { type Checksum, checksum, type Digest, digest, type FoundFile, list } from "./graph.ts";

export const handlers: readonly Handler[] = [
  handle(list, ({ payload }) => filesBelow(payload.root)),

  handle(checksum, async ({ payload: { root, path }, signal }) => {
    const bytes = await readFile(join(root, path), { signal }).catch((error: NodeJS.ErrnoException) => {
      signal.throwIfAborted();
      throw new TerminalError("checksums.unreadable", `${path} cannot be read: ${error.code}.`, { cause: error });
    });
    return { path, sha256: sha256(bytes) };
  }),

  // In the order of the list, whichever was ready first.
  handle(digest, ({ prerequisites }) => sum(prerequisites.checksum)),
];

export async function filesBelow(root: string): Promise<FoundFile[]> {
  const entries = await readdir(root, { recursive: true, withFileTypes: true });
  return entries
    .filter((entry) => !entry.isDirectory())
    .map((entry) => ({ root, path: relative(root, join(entry.parentPath, entry.name)).split(sep).join("/") }))
    .sort((a, b) => (a.path < b.path ? -1 : 1));
}

/** Of the lines that `sha256sum` would print. */
export function sum(checksums: readonly Checksum[]): Digest {
  const lines = checksums.map(({ path, sha256: hash }) => `${hash}  ${path}\n`);
  return { files: checksums.length, sha256: sha256(lines.join("")) };
}

export function sha256(content: string | Buffer): string {
  return createHash("sha256").update(content).digest("hex");
}
