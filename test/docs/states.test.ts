/** The table of transitions is what the code does, and docs/state-machines.md is what the table says. */
import { readFile } from "node:fs/promises";
import { beforeAll, describe, expect, test } from "@jest/globals";
import { diagram, statesPage, statesText } from "../../docs/generate-states.ts";
import { allStatements } from "../../src/database/statement.ts";
import { jobStatuses, runStatuses, stepStatuses } from "../../src/database/statuses.ts";
import {
  type Lock,
  type Machine,
  type Maker,
  type MakerName,
  makers,
  type Transition,
  transitions,
} from "../../src/database/transitions.ts";
import type { Ledger } from "../../src/index.ts";
import { rerun } from "../../src/runs/renewal.ts";
import { reopen } from "../../src/runs/reopen.ts";
import { resolve } from "../../src/steps/resolve.ts";
import { expectInvariants } from "../invariants.ts";
import { createTestDatabase } from "../support/database.ts";
import { recordTransitions, type SeenTransition } from "./states/recorder.ts";
import { scenarios } from "./states/scenarios.ts";
import { Stage } from "./states/stage.ts";

const database = await createTestDatabase();
const { ledger, seen, calls } = await recordTransitions(database);
const tables: readonly (readonly [Machine, readonly Transition[], readonly string[]])[] = [
  ["job", transitions.job, jobStatuses],
  ["step", transitions.step, stepStatuses],
  ["run", transitions.run, runStatuses],
];
const entries: readonly (readonly [string, Maker])[] = Object.entries(makers);

beforeAll(async () => {
  for (const play of Object.values(scenarios)) await play(new Stage(database, ledger));
  await expectInvariants(database);
}, 120_000);

describe("the table of transitions", () => {
  test("has every transition that was seen, with the function that made it", () => {
    const table = new Set(tables.flatMap(([machine, list]) => list.flatMap((entry) => keysOf(machine, entry))));
    const unknown = seen.filter((one) => !makersOf(one).some((name) => table.has(keyOf(one, name))));

    expect(distinct(unknown.map((one) => keyOf(one, `${one.call} by ${one.statement}`)))).toEqual([]);
  });

  test("has no transition, and no function that makes it, that was not seen", () => {
    const found = new Set(
      seen.flatMap((one) => makersOf(one).map((name, _, names) => (names.length === 1 ? keyOf(one, name) : ""))),
    );
    const missing = tables.flatMap(([machine, list]) => list.flatMap((entry) => keysOf(machine, entry)));

    expect(missing.filter((key) => !found.has(key))).toEqual([]);
  });

  test("has the locks that were taken, in their order", () => {
    const wrong = seen.filter((one) => makersOf(one).some((name) => `${makers[name].locks}` !== `${one.locks}`));

    expect(distinct(wrong.map((one) => `${one.call} by ${one.statement}: ${one.locks.join(", ")}`))).toEqual([]);
  });

  test("keeps the order of locks, but for those that only try the release lock", () => {
    const order = ["job", "release", "step", "run"];
    const placeOf = (lock: Lock) => order.findIndex((kind) => lock.includes(kind));
    const unordered = entries.filter(([, { locks }]) => {
      const places = locks.filter((lock) => !lock.endsWith("if free")).map(placeOf);
      return `${places}` !== `${[...places].sort()}`;
    });

    expect(unordered).toEqual([]);
  });

  test("names calls and statements that were seen, each for its way", () => {
    const found = new Set(
      seen.flatMap((one) => makersOf(one).flatMap((name) => [`${name} ${one.call}`, `${name} ${one.statement}`])),
    );
    const named = entries.flatMap(([name, { calls: own, statements }]) =>
      [...own, ...statements].map((what) => `${name} ${what}`),
    );

    expect(named.filter((key) => !found.has(key))).toEqual([]);
  });

  test("names every statement that writes rows with a status, unless it leaves the status alone", () => {
    const named = new Set(entries.flatMap(([, { statements }]) => statements));
    const writers = [...allStatements()].filter(([, statement]) => writesStatus(statement.compile("runledger").sql));

    expect(
      writers
        .map(([name]) => name)
        .filter((name) => !named.has(name))
        .sort(),
    ).toEqual(quiet);
  });

  test("has each transition once, and every status", () => {
    for (const [, list, statuses] of tables) {
      const pairs = list.map(({ from, to }) => `${from} ${to}`);
      expect(distinct(pairs)).toHaveLength(pairs.length);
      expect(distinct(list.map(({ to }) => to))).toEqual([...statuses].sort());
    }
  });

  test("is what the code obeys that decides what becomes of steps", () => {
    expect(() => resolve({ ...nothing, steps: [placed], ended: [{ id: placed.id, status: "FAILED" }] })).toThrow(
      "A step cannot go from SUCCEEDED to FAILED.",
    );
    expect(() => reopen({ steps: [placed], edges: [] }, new Set([placed.id]))).toThrow(
      "A step cannot go from SUCCEEDED to ENQUEUED.",
    );
    expect(() => rerun({ steps: [{ ...placed, status: "RUNNING" }], edges: [] }, new Set())).toThrow(
      "A step cannot go from nothing to RUNNING.",
    );
  });
});

test("every function of a ledger was called, but for those that only read", () => {
  const all = (["jobs", "runs", "schedules", "steps"] as const).flatMap((aggregate) => functionsOf(ledger, aggregate));

  expect(all.filter((call) => !calls.has(call) && !readers.has(call))).toEqual([]);
});

describe("docs/state-machines.md", () => {
  test("is what the table and the invariants say (else: npm run docs:states)", async () => {
    expect(await readFile(statesPage, "utf8")).toBe(statesText());
  });

  test("has diagrams of plain edges between statuses, with labels that Mermaid reads", async () => {
    const blocks = [...(await readFile(statesPage, "utf8")).matchAll(/^```mermaid\n(.*?)\n```$/gms)].map(
      ([, text]) => text,
    );
    expect(blocks).toEqual(tables.map(([, list]) => diagram(list)));
    for (const block of blocks) {
      const [head, ...edges] = block?.split("\n") ?? [];
      expect(head).toBe("stateDiagram-v2");
      for (const edge of edges) expect(edge).toMatch(/^ {2}(\[\*\]|[A-Z_]+) --> ([A-Z_]+: [a-z][a-z ',-]*|\[\*\])$/);
    }
  });
});

const nothing = { steps: [], edges: [], ended: [], added: [], lengths: new Map<string, number | null>() };

/** A step that has ended. */
const placed = {
  runId: "run",
  id: "step",
  key: "step",
  kind: "JOB",
  status: "SUCCEEDED",
  errorCode: null,
  pendingCount: 0,
  unsatisfiedCount: 0,
  dependentCount: 0,
  keptOutcome: null,
  mapSourceId: null,
  mapStepId: null,
  itemCount: null,
} as const;

/** What writes such rows without a change of status. */
const quiet = [
  "checkpoint_job",
  "collect_map_outputs",
  "forget_jobs",
  "forget_workflow_runs",
  "heartbeat_jobs",
  "keep_gate_completion",
  "progress_job",
  "set_aside_leases",
];

const readers = new Set([
  "jobs.counts",
  "jobs.deadLetters",
  "jobs.list",
  "jobs.logs",
  "jobs.timeline",
  "runs.counts",
  "runs.list",
  "runs.timeline",
  "runs.get",
  "runs.getResult",
  "runs.getStatus",
  "runs.handle",
  "schedules.fires",
  "schedules.get",
  "schedules.list",
  "steps.openGates",
  "steps.prerequisites",
]);

function writesStatus(sql: string): boolean {
  return /(insert into|update|delete from) "runledger"\."(job_queue|job_ledger|workflow_steps|workflow_runs)"/.test(
    sql,
  );
}

function functionsOf(of: Ledger, aggregate: "jobs" | "runs" | "schedules" | "steps"): string[] {
  const names = Object.getOwnPropertyNames(Object.getPrototypeOf(of[aggregate]));
  return names.filter((name) => name !== "constructor").map((name) => `${aggregate}.${name}`);
}

function keysOf(machine: string, { from, to, by }: Transition): string[] {
  return by.map((name) => keyOf({ machine, from, to }, name));
}

function keyOf({ machine, from, to }: { machine: string; from: string | null; to: string }, by: string): string {
  return `${machine}: ${from ?? "nothing"} -> ${to} by ${by}`;
}

/** The ways that send the statement and belong to the call: several where the call does different things in one batch. */
function makersOf({ call, statement }: SeenTransition): MakerName[] {
  const names = Object.keys(makers).filter((name): name is MakerName => name in makers);
  return names.filter((name) => {
    const { calls: own, statements }: Maker = makers[name];
    return own.includes(call) && statements.includes(statement);
  });
}

function distinct(values: readonly string[]): string[] {
  return [...new Set(values)].sort();
}
