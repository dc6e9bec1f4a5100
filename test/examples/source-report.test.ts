/** The example that `npm start` runs, as a process, in each of its ways to end. */
import { createHash } from "node:crypto";
import { mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";
import { exitCodes, help, type Options, parseOptions, UsageError } from "../../examples/source-report/options.ts";
import { requestFor } from "../../examples/source-report/request.ts";
import type { Run } from "../../src/index.ts";
import { desk } from "./program.ts";

const TIMEOUT = 60_000;
const POEM = "So much depends\nupon\n";

let folder: string;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "runledger-files-"));
  await writeFile(join(folder, "poem.txt"), POEM);
  await mkdir(join(folder, "code", "node_modules"), { recursive: true });
  await writeFile(join(folder, "code", "one.ts"), "export const one = 1;");
  await writeFile(join(folder, "code", "node_modules", "left-out.ts"), "");
  await writeFile(join(folder, "picture.png"), Buffer.from([0x89, 0x50, 0, 1, 0x0a]));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

describe("a run that is approved", () => {
  test(
    "publishes what the files hold, and is found again by the same content",
    async () => {
      const { start, runOf, runIds, folder: cwd } = await desk("source-report");
      const first = await start([folder, "--yes", "--format", "json"]);

      expect(first).toMatchObject({ code: 0, errors: "" });
      const run = await runOf(first);
      expect(run.status).toBe("SUCCEEDED");
      expect(statuses(run)).toEqual({
        scan: "SUCCEEDED",
        "file:code/one.ts": "SUCCEEDED",
        "file:picture.png": "SUCCEEDED",
        "file:poem.txt": "SUCCEEDED",
        report: "SUCCEEDED",
        approve: "SUCCEEDED",
        publish: "SUCCEEDED",
      });
      const report = JSON.parse(await readFile(join(cwd, ".runledger/reports", `${run.id}.json`), "utf8"));
      expect(report).toMatchObject({ files: 3, lines: 3, words: 9, unread: [], approvedBy: "--yes" });
      expect(report.sources).toContainEqual({
        path: "poem.txt",
        bytes: POEM.length,
        sha256: createHash("sha256").update(POEM).digest("hex"),
        language: "Text",
        lines: 2,
        words: 4,
      });
      expect(report.sources).toContainEqual(expect.objectContaining({ path: "picture.png", lines: null, words: null }));

      const second = await start([folder, "--yes", "--format", "json"]);
      expect(second.code).toBe(0);
      expect(second.output).toContain(`reported before, by run ${run.id}`);
      expect(second.output).toContain("file:poem.txt");
      expect(await runIds()).toEqual([run.id]);

      const third = await start([folder, "--yes", "--format", "json", "--again"]);
      expect(third.code).toBe(0);
      expect(await runIds()).toHaveLength(2);
      expect(third.output).not.toContain(run.id);
    },
    TIMEOUT,
  );

  test(
    "names the file that cannot be read, in the table and in the report",
    async () => {
      const { start, runOf, folder: cwd } = await desk("source-report");
      await symlink("nowhere", join(cwd, "broken"));
      await writeFile(join(cwd, "whole.md"), "# Whole\n");
      const ended = await start([".", "--yes"]);

      expect(ended).toMatchObject({ code: 0, errors: "" });
      const run = await runOf(ended);
      expect(run.status).toBe("COMPLETED_WITH_ERRORS");
      expect(statuses(run)).toMatchObject({
        "file:broken": "FAILED",
        "file:whole.md": "SUCCEEDED",
        publish: "SUCCEEDED",
      });
      expect(ended.output).toMatch(/file:broken +FAILED .*The file does not exist\./);
      const [name = ""] = await readdir(join(cwd, ".runledger/reports"));
      expect(await readFile(join(cwd, ".runledger/reports", name), "utf8")).toContain(
        "- `broken`: The file does not exist.",
      );
    },
    TIMEOUT,
  );
});

test(
  "a run that is refused cancels its publication",
  async () => {
    const { start, runOf, folder: cwd } = await desk("source-report");
    const ended = await start([folder, "--reject"]);

    expect(ended).toMatchObject({ code: 3, errors: "" });
    const run = await runOf(ended);
    expect(run.status).toBe("COMPLETED_WITH_ERRORS");
    expect(statuses(run)).toMatchObject({ report: "SUCCEEDED", approve: "FAILED", publish: "CANCELED" });
    expect(ended.output).toContain("No report was published.");
    expect(await readdir(cwd)).toEqual([]);
  },
  TIMEOUT,
);

describe("a run of many files", () => {
  const FILES = 400;
  let many: string;

  beforeAll(async () => {
    many = await mkdtemp(join(tmpdir(), "runledger-many-"));
    for (let file = 0; file < FILES; file += 1) await writeFile(join(many, `${file}.txt`), `${file}\n`);
  });
  afterAll(() => rm(many, { recursive: true, force: true }));

  test(
    "is cancelled in mid-flight, and nothing starts afterwards",
    async () => {
      const { start, runOf } = await desk("source-report");
      const ended = await start([many, "--cancel-after", "10", "--concurrency", "4"]);

      expect(ended).toMatchObject({ code: 3, errors: "" });
      const run = await runOf(ended);
      const succeeded = run.steps.filter(({ key, status }) => key.startsWith("file:") && status === "SUCCEEDED");
      expect(run.status).toBe("CANCELED");
      expect(succeeded.length).toBeGreaterThanOrEqual(10);
      expect(succeeded.length).toBeLessThan(FILES);
      expect(ended.output).toMatch(/steps started afterwards: +0\n/);
      expect(ended.output).toMatch(/live jobs of the run: +0\n/);
      expect(startedAfter(run)).toEqual([]);
    },
    TIMEOUT,
  );

  test(
    "that is interrupted goes on when the command is started again",
    async () => {
      const { start, runOf, runIds } = await desk("source-report");
      const first = await start([many, "--yes"], (output, interrupt) => {
        if (output.endsWith("is enqueued.\n")) interrupt();
      });
      expect(first).toMatchObject({ code: 130, errors: "" });
      const second = await start([many, "--yes"]);

      expect(second).toMatchObject({ code: 0, errors: "" });
      const run = await runOf(second);
      expect(second.output).toContain(`Run ${run.id} for the same content is still RUNNING: it goes on.`);
      expect(run.status).toBe("SUCCEEDED");
      expect(await runIds()).toEqual([run.id]);
      expect(second.output).toMatch(/\n395 more file steps are left out; --all shows them\.\n/);
    },
    TIMEOUT,
  );
});

test(
  "without an answer and without a terminal it stops before it starts anything",
  async () => {
    const { start, runIds } = await desk("source-report");
    const { code, errors, output } = await start([folder]);

    expect({ code, output }).toEqual({ code: 2, output: "" });
    expect(errors).toContain("give --yes or --reject");
    await expect(runIds()).rejects.toThrow("does not exist");
  },
  TIMEOUT,
);

test.each([
  ["two answers", ["--yes", "--reject"], "exclude each other"],
  ["an unknown option", ["--yse"], "--yse"],
  ["two folders", ["--yes", "one", "two"], "One folder at most"],
  ["a number that is none", ["--workers", "two"], "--workers takes a whole number"],
  ["a number out of range", ["--concurrency", "0"], "--concurrency takes a whole number"],
  ["a format that is none", ["--format", "xml"], "markdown or json"],
])("%s: a wrong call", (_what, args, message) => {
  expect(() => parseOptions(args)).toThrow(UsageError);
  expect(() => parseOptions(args)).toThrow(message);
});

test("a folder that cannot be listed, or has too few files to cancel after, is a wrong call", async () => {
  const nowhere = parseOptions([join(folder, "nowhere")]);
  const tooFew = parseOptions([folder, "--cancel-after", "4"]);

  await expect(requestFor(nowhere as Options)).rejects.toThrow("is not a folder that can be read (ENOENT)");
  await expect(requestFor(tooFew as Options)).rejects.toThrow("has only 3 files");
});

test("--help asks for nothing else", () => {
  expect(parseOptions(["--help"])).toBeNull();
  for (const code of Object.values(exitCodes)) expect(help).toMatch(new RegExp(`^ +${code}  `, "m"));
});

function statuses(run: Run): Record<string, string> {
  return Object.fromEntries(run.steps.map(({ key, status }) => [key, status]));
}

function startedAfter({ endedAt, steps }: Run): string[] {
  const end = endedAt?.getTime() ?? 0;
  return steps.filter(({ startedAt }) => startedAt !== null && startedAt.getTime() > end).map(({ key }) => key);
}
