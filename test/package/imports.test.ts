/** The arrows between the folders point one way: whoever opens a folder knows what it can depend on. */
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";
import { expect, test } from "@jest/globals";

const ROOT = resolve(import.meta.dirname, "../..");

/** What each room may import of the others. The public surface is `index`, and `db` for the migrations. */
const ALLOWED: Readonly<Record<string, readonly string[]>> = {
  errors: [],
  remedies: ["errors"],
  database: ["errors"],
  locks: ["database", "errors"],
  invariants: ["jobs", "locks", "database", "errors"],
  jobs: ["locks", "database", "errors"],
  steps: ["jobs", "locks", "database", "errors"],
  runs: ["steps", "jobs", "locks", "database", "errors"],
  schedules: ["runs", "steps", "jobs", "locks", "database", "errors"],
  retention: ["runs", "steps", "jobs", "locks", "database", "errors"],
  ledger: ["retention", "schedules", "runs", "steps", "jobs", "locks", "database", "errors"],
  index: ["ledger", "remedies", "retention", "schedules", "runs", "steps", "jobs", "locks", "database", "errors"],
  // What the functions in SQL share with those in TypeScript.
  db: ["jobs", "database", "errors"],
  // These stand on what a user has, too.
  worker: ["index"],
  testing: ["index", "worker", "db"],
};

interface Import {
  readonly file: string;
  readonly specifier: string;
  readonly target: string;
}

const files = ["src", "db"].flatMap(sourceFiles);
const imports = files.flatMap(importsOf);

test("a folder imports only the folders below it", () => {
  const wrong = imports.filter(({ file, target }) => !isAllowed(roomOf(file), roomOf(target)));

  expect(wrong.map(({ file, specifier }) => `${file} imports ${specifier}`)).toEqual([]);
});

test("every folder of src has its place in the order", () => {
  expect([...new Set(files.map(roomOf))].filter((room) => !(room in ALLOWED))).toEqual([]);
});

test("no file imports itself through others", () => {
  expect(findCycle()?.join(" -> ")).toBeUndefined();
});

function sourceFiles(folder: string): string[] {
  return readdirSync(join(ROOT, folder), { recursive: true, encoding: "utf8" })
    .filter((file) => file.endsWith(".ts"))
    .map((file) => join(folder, file))
    .sort();
}

function importsOf(file: string): Import[] {
  const text = readFileSync(join(ROOT, file), "utf8");
  return [...text.matchAll(/(?:\bfrom|\bimport|\bimport\()\s*"(\.[^"]+)"/g)].map(([, specifier = ""]) => {
    return { file, specifier, target: relative(ROOT, resolve(ROOT, dirname(file), specifier)) };
  });
}

/** `src/jobs/claim.ts` is in `jobs`, `src/ledger.ts` is `ledger`, and all of db is `db`. */
function roomOf(file: string): string {
  const [top = "", room = ""] = file.split("/");
  return top === "src" ? room.replace(/\.ts$/, "") : top;
}

function isAllowed(from: string, to: string): boolean {
  return from === to || (ALLOWED[from]?.includes(to) ?? false);
}

/** The first way from a file back to itself, if there is one. */
function findCycle(): string[] | undefined {
  const done = new Set<string>();
  const visit = (file: string, path: readonly string[]): string[] | undefined => {
    const start = path.indexOf(file);
    if (start >= 0) return [...path.slice(start), file];
    if (done.has(file)) return undefined;
    for (const next of imports.filter((found) => found.file === file)) {
      const cycle = visit(next.target, [...path, file]);
      if (cycle !== undefined) return cycle;
    }
    done.add(file);
    return undefined;
  };
  for (const file of files) {
    const cycle = visit(file, []);
    if (cycle !== undefined) return cycle;
  }
  return undefined;
}
