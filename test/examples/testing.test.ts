/** The example projects pass as a user runs them, with jest and with vitest, and fail when their service is broken. */
import { spawn } from "node:child_process";
import { cp, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { describe, expect, test } from "@jest/globals";
import { testServer } from "../support/database.ts";

const ROOT = resolve(import.meta.dirname, "../..");
const TIMEOUT = 120_000;

interface Project {
  readonly name: string;
  /** Of the runner, which writes its results as JSON into the file. */
  readonly args: (results: string) => readonly string[];
  readonly nodeOptions: string;
  readonly tests: number;
  /** A defect of the service: what stands in a file, and what in its place. */
  readonly defect: { readonly file: string; readonly from: string; readonly to: string };
  readonly failing: readonly string[];
}

const projects: readonly Project[] = [
  {
    name: "testing-jest",
    args: (results) => [bin("jest/bin/jest.js"), "--json", `--outputFile=${results}`],
    nodeOptions: "--experimental-vm-modules --import tsx",
    tests: 5,
    defect: { file: "src/trials.ts", from: "14 * DAY_MS", to: "15 * DAY_MS" },
    failing: ["the trial takes its course"],
  },
  {
    name: "testing-vitest",
    args: (results) => [bin("vitest/vitest.mjs"), "run", "--reporter=json", `--outputFile=${results}`],
    nodeOptions: "",
    tests: 6,
    defect: { file: "src/refunds.ts", from: "onSuccess: [approval]", to: "onSuccess: []" },
    failing: [
      "a large refund is paid and told of when it was approved",
      "a large refund is given up after three days without an approval",
    ],
  },
];

describe.each(projects)("$name", (project) => {
  test(
    "passes",
    async () => {
      expect(await resultsOf(project, async () => {})).toEqual({ passed: project.tests, failing: [] });
    },
    TIMEOUT,
  );

  test(
    "fails when its service is broken",
    async () => {
      const { defect, failing, tests } = project;
      const results = await resultsOf(project, async (folder) => {
        const file = join(folder, defect.file);
        const text = await readFile(file, "utf8");
        expect(text).toContain(defect.from);
        await writeFile(file, text.replace(defect.from, defect.to));
      });

      expect(results).toEqual({ passed: tests - failing.length, failing });
    },
    TIMEOUT,
  );
});

interface Results {
  readonly passed: number;
  readonly failing: readonly string[];
}

/** Runs a copy of the project, as deep below the root as the project itself, and as the name in its package.json says. */
async function resultsOf({ name, args, nodeOptions }: Project, change: (folder: string) => Promise<void>) {
  const place = await mkdtemp(join(ROOT, ".examples-"));
  try {
    const folder = join(place, name);
    await cp(join(ROOT, "examples", name), folder, { recursive: true });
    await change(folder);
    const results = join(place, "results.json");
    const output = await run(folder, args(results), nodeOptions);
    const text = await readFile(results, "utf8").catch(() => {
      throw new Error(`The runner wrote no results:\n${output}`);
    });
    return readResults(text);
  } finally {
    await rm(place, { recursive: true, force: true });
  }
}

/** The same form with both runners. */
function readResults(text: string): Results {
  const results: {
    readonly numPassedTests: number;
    readonly testResults: readonly {
      readonly message: string;
      readonly assertionResults: readonly { readonly fullName: string; readonly status: string }[];
    }[];
  } = JSON.parse(text);
  const tests = results.testResults.flatMap(({ assertionResults }) => assertionResults);
  if (tests.length === 0) throw new Error(results.testResults.map(({ message }) => message).join("\n"));
  const failing = tests.filter(({ status }) => status === "failed").map(({ fullName }) => fullName);
  return { passed: results.numPassedTests, failing };
}

async function run(cwd: string, args: readonly string[], nodeOptions: string): Promise<string> {
  const child = spawn(process.execPath, args, {
    cwd,
    // A test run of its own, on the server of this one.
    env: {
      ...process.env,
      NODE_OPTIONS: nodeOptions,
      RUNLEDGER_TEST_DATABASE_URL: testServer(),
      RUNLEDGER_TEST_RUN: undefined,
      JEST_WORKER_ID: undefined,
    },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let output = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8").on("data", (text: string) => {
      output += text;
    });
  }
  await new Promise<number | null>((done, fail) => child.on("error", fail).on("close", done));
  return output;
}

function bin(path: string): string {
  return join(ROOT, "node_modules", path);
}
