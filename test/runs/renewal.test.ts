/** What recover and rerun take over and what they start anew, as a decision (FEATURES F-W11). */
import { describe, expect, test } from "@jest/globals";
import fc from "fast-check";
import type { DependencyKind, StepStatus } from "../../src/index.ts";
import { type Renewal, recovery, rerun } from "../../src/runs/renewal.ts";
import type { PlacedStep, RunStructure } from "../../src/runs/structure.ts";

/**
 * `b: ["CANCELED", "a", "c?"]`: b ended so, and had these prerequisites. `m[0]` is an item of the map step `m`, which
 * maps over `list`.
 */
function ended(steps: Record<string, string | readonly string[]>): RunStructure {
  const entries = Object.entries(steps).map(([key, given]) =>
    typeof given === "string" ? [key, given] : [key, ...given],
  );
  const keys = entries.map(([key = ""]) => key);
  return {
    steps: entries.map(([key = "", status = ""]) => stepOf(key, status as StepStatus, keys)),
    edges: entries.flatMap(([key = "", , ...needs]) =>
      needs.map((need) => ({
        prerequisiteId: need.replace("?", ""),
        stepId: key,
        kind: (need.endsWith("?") ? "ON_TERMINAL" : "ON_SUCCESS") as DependencyKind,
      })),
    ),
  };
}

function stepOf(key: string, status: StepStatus, keys: readonly string[]): PlacedStep {
  const isMap = /^m\d*$/.test(key);
  const items = keys.filter((other) => other.startsWith(`${key}[`)).length;
  return {
    id: key,
    key,
    kind: isMap ? "MAP" : key.startsWith("gate") ? "EXTERNAL" : "JOB",
    status,
    errorCode: null,
    pendingCount: 0,
    unsatisfiedCount: 0,
    itemCount: isMap && (items > 0 || status === "SUCCEEDED") ? items : null,
    mapSourceId: isMap ? "list" : null,
    mapStepId: key.includes("[") ? key.slice(0, key.indexOf("[")) : null,
  };
}

/** `anew` shows what becomes of each step that starts anew, with what it waits for; `kept` how the others ended. */
function shown({ steps, open, waiting, errored }: Renewal) {
  const entry = ({ step, status, pendingCount }: Renewal["steps"][number]) =>
    [step.key, pendingCount > 0 ? `${status} ${pendingCount}` : status] as const;
  return {
    anew: Object.fromEntries(steps.filter(({ anew }) => anew).map(entry)),
    kept: Object.fromEntries(steps.filter(({ anew }) => !anew).map(entry)),
    counts: [open, waiting, errored],
  };
}

const code = (call: () => unknown) => {
  try {
    return call();
  } catch (error) {
    const { code, details } = error as { code: string; details: unknown };
    return { code, details };
  }
};
const again = (run: RunStructure, ...keys: string[]) => rerun(run, new Set(keys));

describe("recovery", () => {
  test("takes over what succeeded and starts all else anew", () => {
    const run = ended({ a: "SUCCEEDED", b: ["FAILED", "a"], c: ["CANCELED", "b", "a"], gate: ["CANCELED", "a"] });

    expect(shown(recovery(run))).toEqual({
      anew: { b: "ENQUEUED", c: "BLOCKED 1", gate: "WAITING_FOR_EXTERNAL" },
      kept: { a: "SUCCEEDED" },
      counts: [2, 1, 0],
    });
  });

  test("takes over what ran after a failure, though what failed before it starts anew", () => {
    const run = ended({ a: "FAILED", clean: ["SUCCEEDED", "a?"] });

    expect(shown(recovery(run))).toMatchObject({ anew: { a: "ENQUEUED" }, kept: { clean: "SUCCEEDED 1" } });
  });

  test("keeps the items of a map step, and those that succeeded with their ends", () => {
    const run = ended({
      list: "SUCCEEDED",
      m: ["CANCELED", "list", "m[0]", "m[1]"],
      "m[0]": "SUCCEEDED",
      "m[1]": "FAILED",
    });
    const renewal = recovery(run);

    expect(shown(renewal)).toMatchObject({
      anew: { m: "BLOCKED 1", "m[1]": "ENQUEUED" },
      kept: { list: "SUCCEEDED", "m[0]": "SUCCEEDED" },
    });
    expect(renewal.steps.find(({ step }) => step.key === "m")).toMatchObject({ itemCount: 2 });
  });

  test("starts the source of a map step anew that did not put out an array", () => {
    const run = ended({ list: "SUCCEEDED", m: ["FAILED", "list"], other: ["SUCCEEDED", "list"] });

    expect(shown(recovery(run))).toMatchObject({
      anew: { list: "ENQUEUED", m: "BLOCKED 1" },
      kept: { other: "SUCCEEDED 1" },
    });
  });
});

describe("a rerun", () => {
  test("starts the named step anew and all that comes after it, and takes over the rest as it ended", () => {
    const run = ended({
      a: "SUCCEEDED",
      b: ["SUCCEEDED", "a"],
      c: ["SUCCEEDED", "b?"],
      d: ["SUCCEEDED", "a"],
      bad: "FAILED",
      e: ["CANCELED", "bad"],
    });

    expect(shown(again(run, "b"))).toEqual({
      anew: { b: "ENQUEUED", c: "BLOCKED 1" },
      kept: { a: "SUCCEEDED", d: "SUCCEEDED", bad: "FAILED", e: "CANCELED" },
      counts: [2, 0, 2],
    });
  });

  test("leaves a later step unsatisfied that also needs one that did not succeed", () => {
    const run = ended({ a: "SUCCEEDED", bad: "FAILED", c: ["CANCELED", "a", "bad"] });

    expect(again(run, "a").steps.find(({ step }) => step.key === "c")).toMatchObject({
      status: "BLOCKED",
      pendingCount: 1,
      unsatisfiedCount: 1,
    });
  });

  test("of a step that needs one that did not succeed is refused", () => {
    const run = ended({ a: "FAILED", b: ["CANCELED", "a"], c: ["SUCCEEDED", "a?"] });

    expect(code(() => again(run, "b"))).toEqual({ code: "workflow.rerun_step_unsatisfied", details: { stepKey: "b" } });
    expect(shown(again(run, "a", "b")).anew).toEqual({ a: "ENQUEUED", b: "BLOCKED 1", c: "BLOCKED 1" });
    expect(shown(again(run, "c")).anew).toEqual({ c: "ENQUEUED" });
  });

  const mapped = ended({
    setup: "SUCCEEDED",
    list: "SUCCEEDED",
    m: ["SUCCEEDED", "list", "setup?", "m[0]", "m[1]"],
    report: ["SUCCEEDED", "m"],
    "m[0]": "SUCCEEDED",
    "m[1]": "SUCCEEDED",
  });

  test.each(["list", "setup"])("of %s, before a map step: the map step fans out anew", (key) => {
    const renewal = again(mapped, key);

    expect(shown(renewal).anew).toEqual({ [key]: "ENQUEUED", m: "BLOCKED 1", report: "BLOCKED 1" });
    expect(renewal.steps.map(({ step }) => step.key)).toEqual(["setup", "list", "m", "report"]);
    expect(renewal.steps.find(({ step }) => step.key === "m")).toMatchObject({ itemCount: null, dependentCount: 1 });
  });

  test("of a map step: its items start anew", () => {
    const renewal = again(mapped, "m");

    expect(shown(renewal).anew).toEqual({
      m: "BLOCKED 2",
      report: "BLOCKED 1",
      "m[0]": "ENQUEUED",
      "m[1]": "ENQUEUED",
    });
    expect(renewal.steps.find(({ step }) => step.key === "m")).toMatchObject({ itemCount: 2 });
  });

  test("of an item: its map step joins it with the others", () => {
    expect(shown(again(mapped, "m[1]"))).toMatchObject({
      anew: { m: "BLOCKED 1", report: "BLOCKED 1", "m[1]": "ENQUEUED" },
      kept: { "m[0]": "SUCCEEDED" },
    });
  });

  test("of a map step without items is refused, and not of what comes before it", () => {
    for (const run of [
      ended({ list: "SUCCEEDED", m: ["SUCCEEDED", "list"] }),
      ended({ list: "SUCCEEDED", m: ["FAILED", "list"] }),
    ]) {
      expect(code(() => again(run, "m"))).toEqual({ code: "workflow.rerun_map_step", details: { stepKey: "m" } });
      expect(shown(again(run, "m", "list")).anew).toEqual({ list: "ENQUEUED", m: "BLOCKED 1" });
    }
  });

  test("is refused when a step depends on an item that is lost", () => {
    const run = ended({
      list: "SUCCEEDED",
      m: ["SUCCEEDED", "list", "m[0]"],
      "m[0]": "SUCCEEDED",
      extra: ["SUCCEEDED", "m[0]"],
      m2: ["SUCCEEDED", "list", "extra"],
    });

    expect(code(() => again(run, "list"))).toEqual({
      code: "workflow.rerun_item_needed",
      details: { stepKey: "extra" },
    });
    expect(shown(again(run, "m")).anew).toMatchObject({ "m[0]": "ENQUEUED", extra: "BLOCKED 1" });
  });
});

test("whatever ended how, the counts are those of the rules, and nothing stands still", () => {
  const dice = fc.infiniteStream(fc.nat(99));
  fc.assert(
    fc.property(fc.array(fc.nat(99), { minLength: 1, maxLength: 14 }), dice, (shape, stream) => {
      const next = () => stream.next().value ?? 0;
      const run = randomRun(shape, next);
      const names = run.steps.filter(() => next() < 25).map(({ key }) => key);
      const recovered = recovery(run);
      for (const renewal of [recovered, ...rerunOf(run, names)]) {
        const anews = new Set(renewal.steps.filter(({ anew }) => anew).map(({ step }) => step.id));
        const status = new Map(renewal.steps.map((step) => [step.step.id, step.status]));
        const hasEnded = (id: string) => /SUCCEEDED|FAILED|CANCELED/.test(status.get(id) ?? "");
        for (const { step, anew, status, ...counts } of renewal.steps) {
          const before = run.edges.filter(({ stepId }) => stepId === step.id);
          const follows = names.includes(step.key) || before.some(({ prerequisiteId }) => anews.has(prerequisiteId));
          expect(anew).toBe(renewal === recovered ? step.status !== "SUCCEEDED" : follows);
          const pending = before.filter(({ prerequisiteId }) => !hasEnded(prerequisiteId)).length;
          expect(counts).toMatchObject({
            pendingCount: pending,
            unsatisfiedCount: before.filter(
              ({ prerequisiteId: id, kind }) => kind === "ON_SUCCESS" && hasEnded(id) && !isSuccess(renewal, id),
            ).length,
            dependentCount: run.edges.filter(({ prerequisiteId }) => prerequisiteId === step.id).length,
          });
          if (anew && pending === 0) expect(counts.unsatisfiedCount).toBe(0);
          if (anew) expect(status === "BLOCKED").toBe(pending > 0);
          else expect(status).toBe(step.status);
        }
      }
    }),
  );
});

function isSuccess({ steps }: Renewal, id: string): boolean {
  return steps.find(({ step }) => step.id === id)?.status === "SUCCEEDED";
}

/** None when the rerun is refused. */
function rerunOf(run: RunStructure, names: readonly string[]): Renewal[] {
  if (names.length === 0) return [];
  try {
    return [again(run, ...names)];
  } catch (error) {
    expect(error).toMatchObject({ code: "workflow.rerun_step_unsatisfied" });
    return [];
  }
}

/** A run that was played to its end, or cancelled on the way. */
function randomRun(shape: readonly number[], next: () => number): RunStructure {
  const needs: Record<string, readonly string[]> = {};
  for (const [n, seed] of shape.entries()) {
    const before = Object.keys(needs).filter(() => next() < 35);
    needs[seed % 4 === 0 ? `gate${n}` : `s${n}`] = before.map((key) => (next() < 60 ? key : `${key}?`));
  }
  const canceled = next() < 30;
  const status: Record<string, StepStatus> = {};
  for (const [key, before] of Object.entries(needs)) {
    const lost = before.some((need) => !need.endsWith("?") && status[need] !== "SUCCEEDED");
    status[key] = lost || (canceled && next() < 40) ? "CANCELED" : next() < 60 ? "SUCCEEDED" : "FAILED";
  }
  return ended(Object.fromEntries(Object.entries(needs).map(([key, before]) => [key, [status[key] ?? "", ...before]])));
}
