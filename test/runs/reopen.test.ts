/** The decision of a retry in place, held against the rules written down without regard to cost (FEATURES F-W11). */
import { describe, expect, test } from "@jest/globals";
import fc from "fast-check";
import type { DependencyKind, StepStatus } from "../../src/index.ts";
import { type Reopening, reopen } from "../../src/runs/reopen.ts";
import type { PlacedStep, RunStructure } from "../../src/runs/structure.ts";

const UNSATISFIED = "workflow.dependency_unsatisfied";

describe("a retried step", () => {
  test("is runnable, and what was cancelled because of it waits for it again, all the way down", () => {
    const run = ended({ a: "FAILED", b: ["CANCELED", "a"], c: ["CANCELED", "b"], d: ["CANCELED", "c", "a"] });

    expect(shown(reopen(run, ids(run, "a")))).toEqual({
      live: { a: "ENQUEUED", b: "BLOCKED 1", c: "BLOCKED 1", d: "BLOCKED 2" },
      recounted: {},
      deltas: { steps: 0, open: 4, waiting: 0, errored: -4 },
    });
  });

  test("is open when it is a gate", () => {
    const run = ended({ gate: "FAILED", b: ["CANCELED", "gate"] });

    expect(shown(reopen(run, ids(run, "gate")))).toEqual({
      live: { gate: "WAITING_FOR_EXTERNAL", b: "BLOCKED 1" },
      recounted: {},
      deltas: { steps: 0, open: 1, waiting: 1, errored: -2 },
    });
  });

  test("is BLOCKED when another one comes before it", () => {
    const run = ended({ a: "FAILED", b: ["FAILED", "a?"], gate: ["CANCELED!", "b?"] });

    expect(shown(reopen(run, ids(run, "a", "b", "gate"))).live).toEqual({
      a: "ENQUEUED",
      b: "BLOCKED 1",
      gate: "BLOCKED 1",
    });
  });

  test("leaves cancelled what also needs a failed step that is not retried, and counts again", () => {
    const run = ended({ a: "FAILED", b: "FAILED", c: ["CANCELED", "a", "b"], d: ["CANCELED", "c", "a"] });

    expect(shown(reopen(run, ids(run, "a")))).toEqual({
      live: { a: "ENQUEUED" },
      recounted: { c: "1 pending, 1 unsatisfied", d: "1 pending, 1 unsatisfied" },
      deltas: { steps: 0, open: 1, waiting: 0, errored: -1 },
    });
  });

  test("leaves what has run already as it ended, and counts again", () => {
    const run = ended({ a: "FAILED", clean: ["SUCCEEDED", "a?"], after: ["SUCCEEDED", "clean"] });

    expect(shown(reopen(run, ids(run, "a")))).toMatchObject({
      live: { a: "ENQUEUED" },
      recounted: { clean: "1 pending, 0 unsatisfied" },
    });
  });

  test("leaves cancelled what somebody cancelled", () => {
    const run = ended({ a: "FAILED", gate: ["CANCELED!", "a?"], b: ["CANCELED", "gate"] });

    expect(shown(reopen(run, ids(run, "a")))).toMatchObject({
      live: { a: "ENQUEUED" },
      recounted: { gate: "1 pending, 0 unsatisfied" },
    });
  });

  test("an item's map step waits for it again, whatever the order of the ids", () => {
    const run = ended({ "ship[0]": "SUCCEEDED", "ship[1]": "FAILED", ship: ["CANCELED", "ship[0]", "ship[1]"] });
    const steps = run.steps.map((step) => (step.key === "ship" ? { ...step, kind: "MAP" as const } : step)).reverse();

    expect(shown(reopen({ ...run, steps }, ids(run, "ship[1]"))).live).toEqual({
      "ship[1]": "ENQUEUED",
      ship: "BLOCKED 1",
    });
  });
});

test("whatever ran, failed and was retried before, the counts are those of the rules, and all can end again", () => {
  fc.assert(
    fc.property(fc.array(fc.nat(), { minLength: 1, maxLength: 14 }), fc.infiniteStream(fc.nat(99)), (shape, dice) => {
      const next = () => dice.next().value ?? 0;
      let run = played(randomRun(shape, next), next);
      for (let generation = 0; generation < 4; generation += 1) {
        const failed = run.steps.filter(({ status }) => status === "FAILED" && next() < 60);
        const reopening = reopen(run, new Set(failed.map(({ id }) => id)));
        const live = lives(run, failed);
        expect(new Set(reopening.reopened.map(({ step }) => step.key))).toEqual(live);
        run = changed(run, reopening);
        expect(run.steps).toEqual(run.steps.map((step) => ({ ...step, ...counted(run, step) })));
        for (const step of run.steps) if (live.has(step.key)) expect(step.status).toBe(statusOf(step));
        run = played(run, next);
      }
    }),
  );
});

/** `b: ["CANCELED", "a", "c?"]`: b ended so, and had these prerequisites. `CANCELED!`: by somebody. */
function ended(steps: Record<string, string | readonly string[]>): RunStructure {
  const entries = Object.entries(steps).map(([key, given]) =>
    typeof given === "string" ? [key, given] : [key, ...given],
  );
  const edges = entries.flatMap(([key = "", , ...needs]) => needs.map((need) => edgeOf(need, key)));
  const run = { steps: entries.map(([key = "", status = ""]) => stepOf(key, status)), edges };
  return { ...run, steps: run.steps.map((step) => ({ ...step, ...counted(run, step) })) };
}

function edgeOf(need: string, key: string) {
  const kind: DependencyKind = need.endsWith("?") ? "ON_TERMINAL" : "ON_SUCCESS";
  return { prerequisiteId: `id of ${need.replace("?", "")}`, stepId: `id of ${key}`, kind };
}

function stepOf(key: string, given: string): PlacedStep {
  const status = given.replace("!", "") as StepStatus;
  return {
    id: `id of ${key}`,
    key,
    kind: key.startsWith("gate") ? "EXTERNAL" : "JOB",
    status,
    errorCode: given === "CANCELED" ? UNSATISFIED : null,
    pendingCount: 0,
    unsatisfiedCount: 0,
    itemCount: null,
    mapSourceId: null,
    mapStepId: null,
  };
}

function ids(run: RunStructure, ...keys: readonly string[]): Set<string> {
  return new Set(run.steps.filter(({ key }) => keys.includes(key)).map(({ id }) => id));
}

function shown({ reopened, recounted, deltas }: Reopening) {
  return {
    live: Object.fromEntries(
      reopened.map(({ step, status, pendingCount }) => [
        step.key,
        status === "BLOCKED" ? `BLOCKED ${pendingCount}` : status,
      ]),
    ),
    recounted: Object.fromEntries(
      recounted.map((step) => [step.step.key, `${step.pendingCount} pending, ${step.unsatisfiedCount} unsatisfied`]),
    ),
    deltas,
  };
}

const hasEnded = ({ status }: PlacedStep) => status === "SUCCEEDED" || status === "FAILED" || status === "CANCELED";

/** The counts that the invariants ask for. */
function counted({ steps, edges }: RunStructure, { id }: PlacedStep) {
  const before = edges
    .filter(({ stepId }) => stepId === id)
    .map(({ prerequisiteId, kind }) => ({
      kind,
      step: steps.find((step) => step.id === prerequisiteId) as PlacedStep,
    }));
  return {
    pendingCount: before.filter(({ step }) => !hasEnded(step)).length,
    unsatisfiedCount: before.filter(
      ({ kind, step }) => kind === "ON_SUCCESS" && hasEnded(step) && step.status !== "SUCCEEDED",
    ).length,
  };
}

/** The steps that live again, found by asking every step again until nothing changes. */
function lives({ steps, edges }: RunStructure, chosen: readonly PlacedStep[]): Set<string> {
  const live = new Set(chosen.map(({ key }) => key));
  const key = (id: string) => id.slice("id of ".length);
  for (let before = -1; before !== live.size; ) {
    before = live.size;
    for (const step of steps) {
      const needs = edges.filter(({ stepId, kind }) => stepId === step.id && kind === "ON_SUCCESS");
      const satisfiable = needs.every(
        ({ prerequisiteId }) =>
          live.has(key(prerequisiteId)) || steps.find(({ id }) => id === prerequisiteId)?.status === "SUCCEEDED",
      );
      if (step.errorCode === UNSATISFIED && satisfiable) live.add(step.key);
    }
  }
  return live;
}

function statusOf({ pendingCount, kind }: PlacedStep): StepStatus {
  if (pendingCount > 0) return "BLOCKED";
  return kind === "JOB" ? "ENQUEUED" : "WAITING_FOR_EXTERNAL";
}

function changed(run: RunStructure, { reopened, recounted }: Reopening): RunStructure {
  const live = new Map(reopened.map(({ step, ...change }) => [step.id, { ...change, errorCode: null }] as const));
  const counts = new Map(recounted.map(({ step, ...change }) => [step.id, change]));
  return { ...run, steps: run.steps.map((step) => ({ ...step, ...live.get(step.id), ...counts.get(step.id) })) };
}

function randomRun(shape: readonly number[], next: () => number): RunStructure {
  const keys = shape.map((seed, n) => (seed % 4 === 0 ? `gate${n}` : `s${n}`));
  const steps = keys.map((key) => stepOf(key, "BLOCKED"));
  const edges = keys.flatMap((key, n) =>
    keys.slice(0, n).flatMap((need) => (next() < 35 ? [edgeOf(next() < 60 ? need : `${need}?`, key)] : [])),
  );
  return { steps, edges };
}

/** Every step that lives ends, in topological order: by chance, or because of its prerequisites. */
function played(run: RunStructure, next: () => number): RunStructure {
  const steps = [...run.steps];
  for (const [place, step] of steps.entries()) {
    if (hasEnded(step)) continue;
    const { unsatisfiedCount } = counted({ ...run, steps }, step);
    const status = unsatisfiedCount > 0 ? "CANCELED" : next() < 60 ? "SUCCEEDED" : "FAILED";
    steps[place] = { ...step, status, errorCode: unsatisfiedCount > 0 ? UNSATISFIED : null };
  }
  return { ...run, steps: steps.map((step) => ({ ...step, ...counted({ ...run, steps }, step) })) };
}
