/** The map over a real list: its digest is that of the files, whatever the folder. */
import { createHash } from "node:crypto";
import { mkdir, readdir, readFile, symlink, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { expect, test } from "@jest/globals";
import type { Run } from "../../src/index.ts";
import { desk } from "./program.ts";

const TIMEOUT = 60_000;

test(
  "sums this repository's sources, an item for each file, joined in the order of the list",
  async () => {
    const { start, runOf } = await desk("checksums");
    const ended = await start([]);

    expect(ended).toMatchObject({ code: 0, errors: "" });
    const root = resolve(import.meta.dirname, "../../src");
    const expected = await checksumsOf(root);
    const run = await runOf(ended);
    expect(run.status).toBe("SUCCEEDED");
    expect(stepOf(run, "checksum")).toMatchObject({
      kind: "MAP",
      itemCount: expected.length,
      output: expected.map(([path, sha256]) => ({ path, sha256 })),
    });
    expect(run.steps.filter(({ mapIndex }) => mapIndex !== null)).toHaveLength(expected.length);
    expect(stepOf(run, "digest")?.output).toEqual({ files: expected.length, sha256: digestOf(expected) });
    expect(ended.output).toContain(`The map:  ${digestOf(expected)} of ${expected.length} files`);
    expect(ended.output).toContain(`The loop: ${digestOf(expected)} of ${expected.length} files.`);
  },
  TIMEOUT,
);

test(
  "sums an empty folder: a map without items",
  async () => {
    const { start, runOf, folder } = await desk("checksums");
    await mkdir(join(folder, "empty"));
    const ended = await start(["--folder", "empty"]);

    expect(ended).toMatchObject({ code: 0, errors: "" });
    expect(stepOf(await runOf(ended), "digest")?.output).toEqual({ files: 0, sha256: digestOf([]) });
  },
  TIMEOUT,
);

test(
  "a file that cannot be read fails its item, which cancels the join",
  async () => {
    const { start, runOf, folder } = await desk("checksums");
    await mkdir(join(folder, "files"));
    await writeFile(join(folder, "files", "whole"), "whole");
    await symlink("nowhere", join(folder, "files", "broken"));
    const ended = await start(["--folder", "files"]);

    expect(ended).toMatchObject({ code: 1, errors: "" });
    expect(ended.output).toContain("checksum[0]: broken cannot be read: ENOENT.");
    const { status, steps } = await runOf(ended);
    expect(status).toBe("COMPLETED_WITH_ERRORS");
    expect(Object.fromEntries(steps.map((step) => [step.key, step.status]))).toEqual({
      list: "SUCCEEDED",
      "checksum[0]": "FAILED",
      "checksum[1]": "SUCCEEDED",
      checksum: "CANCELED",
      digest: "CANCELED",
    });
  },
  TIMEOUT,
);

test("a flag that does not exist is a wrong call", async () => {
  const { start } = await desk("checksums");

  expect(await start(["--fodler", "src"])).toMatchObject({ code: 2, output: "" });
});

/** Path and checksum, by a way of its own. */
async function checksumsOf(root: string): Promise<[string, string][]> {
  const names = await readdir(root, { recursive: true, withFileTypes: true });
  const paths = names.filter((entry) => entry.isFile()).map(({ parentPath, name }) => join(parentPath, name));
  const sums = paths.map(async (path): Promise<[string, string]> => {
    return [path.slice(root.length + 1), sha256(await readFile(path))];
  });
  return (await Promise.all(sums)).sort(([a], [b]) => (a < b ? -1 : 1));
}

function digestOf(checksums: readonly [string, string][]): string {
  return sha256(checksums.map(([path, hash]) => `${hash}  ${path}\n`).join(""));
}

function sha256(content: string | Buffer): string {
  return createHash("sha256").update(content).digest("hex");
}

function stepOf({ steps }: Run, key: string) {
  return steps.find((step) => step.key === key);
}
