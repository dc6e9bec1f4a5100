/** Random graphs and jobs to come, small enough to read when one of them is a counterexample. */
import fc from "fast-check";
import type { AppendRequest, GraphSpec, JobRequest, JsonValue, RunRequest, StepSpec } from "../../src/index.ts";
import type { Addition, JobPlan, LoneJobPlan, Need, Output, RunPlan, StepPlan } from "./state.ts";

/** Two types, so that a claim may leave some jobs aside. */
export const jobTypes = ["model.x", "model.y"] as const;
export const organizations = {
  first: "0190a5f0-0000-7000-8000-000000000001",
  second: "0190a5f0-0000-7000-8000-000000000002",
} as const;

const MAX_STEPS = 8;
const keys = ["a", "b", "c", "d", "e", "f", "g", "h"];
const newKeys = ["n1", "n2", "n3", "n4", "n5", "a"];
const values: JsonValue[] = [null, 0, "x", { v: 1 }, [], [1, "two"], [[], [true], {}]];

/** Undefined: no output. Few values, so that a repeated completion is often the same. */
export const anyOutput: fc.Arbitrary<Output> = fc.constantFrom<Output[]>(undefined, ...values);

const anyOrganization = fc.constantFrom(null, null, organizations.first);
const anyKey = fc.constantFrom(null, null, null, "k1", "k2");

const anyJob: fc.Arbitrary<JobPlan> = fc.record({
  type: fc.constantFrom(...jobTypes),
  priority: fc.constantFrom(100, 100, 50),
  maxAttempts: fc.integer({ min: 1, max: 3 }),
  payload: fc.constantFrom<JsonValue[]>(0, ...values),
});

/** A step behind others: `back` 0 is the step just before it. A map goes over the first that it needs. */
const anyStep = fc.record({
  job: fc.option(anyJob, { freq: 4 }),
  map: fc.constantFrom(null, null, null, null, "cancel" as const, "continue" as const),
  needs: fc.array(
    fc.record({ back: fc.nat(MAX_STEPS - 2), kind: fc.constantFrom<Need["kind"][]>("ON_SUCCESS", "ON_TERMINAL") }),
    { maxLength: 3, size: "max" },
  ),
});
type StepGiven = typeof anyStep extends fc.Arbitrary<infer Given> ? Given : never;

/** Steps whose prerequisites are before them, in one line with those of `old`. */
function stepsOf(given: readonly StepGiven[], own: readonly string[], old: readonly string[] = []): StepPlan[] {
  return given.map((step, place) => stepAt(step, own[place] ?? "", [...old, ...own.slice(0, place)]));
}

function stepAt({ job, map, needs }: StepGiven, key: string, before: readonly string[]): StepPlan {
  const byKey = new Map(
    before.length === 0 ? [] : needs.map(({ back, kind }) => [before.at(-1 - (back % before.length)) ?? "", kind]),
  );
  const [over] = byKey.keys();
  if (job === null || map === null || over === undefined) return { key, job, map: null, needs: needsIn(byKey) };
  return { key, job, map: { over, onItemFailure: map }, needs: needsIn(byKey.set(over, "ON_SUCCESS")) };
}

function needsIn(byKey: ReadonlyMap<string, Need["kind"]>): Need[] {
  return [...byKey].map(([key, kind]) => ({ key, kind }));
}

const anySteps = fc
  .array(anyStep, { minLength: 1, maxLength: MAX_STEPS, size: "max" })
  .map((given) => stepsOf(given, keys));

/** What is added to a run once its steps are known: it may need these, and one that is not there. */
export interface AdditionGiven {
  readonly key: string;
  readonly steps: readonly StepGiven[];
  readonly first: number;
  readonly astray: boolean;
}

export const anyAddition: fc.Arbitrary<AdditionGiven> = fc.record({
  key: fc.constantFrom("m1", "m2", "m3"),
  steps: fc.array(anyStep, { minLength: 1, maxLength: 3 }),
  // Which keys the new steps have: some are taken already.
  first: fc.nat(5),
  astray: fc.constantFrom(false, false, false, false, false, false, false, true),
});

export function additionTo(old: readonly string[], { key, steps, first, astray }: AdditionGiven): Addition {
  const own = steps.map((_, place) => newKeys[(first + place) % newKeys.length] ?? "");
  const before = [...old, ...(astray ? ["nowhere"] : [])].filter((known) => !own.includes(known));
  return { key, steps: stepsOf(steps, own, before) };
}

export const anyRun: fc.Arbitrary<RunPlan> = fc
  .record({
    steps: anySteps,
    result: fc.option(fc.nat(MAX_STEPS - 1)),
    organization: anyOrganization,
    idempotencyKey: anyKey,
  })
  .map(({ steps, result, ...rest }) => ({
    ...rest,
    steps,
    // A first shrink of the place is the last step, whose output is the one that matters.
    result: result === null ? null : (steps.at(-1 - (result % steps.length))?.key ?? null),
  }));

export const anyLoneJob: fc.Arbitrary<LoneJobPlan> = fc
  .record({ job: anyJob, organization: anyOrganization, idempotencyKey: anyKey })
  .map(({ job, ...rest }) => ({ ...job, ...rest }));

/** The same request, with its steps and their dependencies in another order. */
export function reversed(plan: RunPlan): RunPlan {
  return { ...plan, steps: plan.steps.map((step) => ({ ...step, needs: step.needs.toReversed() })).reverse() };
}

export function requestOf({ steps, result, organization, idempotencyKey }: RunPlan): RunRequest {
  const graph: GraphSpec = {
    type: "model",
    resultStep: result,
    steps: steps.map(specOf),
  };
  return { graph, organizationId: organization, ...(idempotencyKey === null ? {} : { idempotencyKey }) };
}

function specOf({ key, needs, job, map }: StepPlan): StepSpec {
  if (job === null) return { key, dependencies: needs };
  if (map === null) return { key, dependencies: needs, job };
  const { payload: _, ...ofItems } = job;
  return { key, dependencies: needs, job: ofItems, map };
}

export function requestOfAddition({ key, steps }: Addition): AppendRequest {
  return { key, graph: { steps: steps.map(specOf) } };
}

export function jobRequestOf({ organization, idempotencyKey, ...job }: LoneJobPlan): JobRequest {
  return { ...job, organizationId: organization, ...(idempotencyKey === null ? {} : { idempotencyKey }) };
}

/** `{ a, gate b(a), map c(a, b?) -> result }`: b needs a's success, c also b's end, and goes over what a puts out. */
export function describedRun({ steps, result, organization, idempotencyKey }: RunPlan): string {
  return `{ ${steps.map((step) => describedStep(step, result)).join(", ")} }${tags({ organization, idempotencyKey })}`;
}

export function describedAddition({ key, steps }: Addition): string {
  return `${key} { ${steps.map((step) => describedStep(step, null)).join(", ")} }`;
}

function describedStep({ key, needs, job, map }: StepPlan, result: string | null): string {
  const kind = job === null ? "gate " : map === null ? "" : `map-${map.onItemFailure} `;
  const after = needs.map((need) => (need.kind === "ON_SUCCESS" ? need.key : `${need.key}?`)).join(", ");
  const attempts = job !== null && job.maxAttempts > 1 ? ` x${job.maxAttempts}` : "";
  return `${kind}${key}${needs.length > 0 ? `(${after})` : ""}${attempts}${key === result ? " -> result" : ""}`;
}

export function describedJob({ organization, idempotencyKey, type, maxAttempts }: LoneJobPlan): string {
  return `${type} x${maxAttempts}${tags({ organization, idempotencyKey })}`;
}

function tags({ organization, idempotencyKey }: Pick<RunPlan, "organization" | "idempotencyKey">): string {
  return `${organization === null ? "" : " of first"}${idempotencyKey === null ? "" : ` under ${idempotencyKey}`}`;
}
