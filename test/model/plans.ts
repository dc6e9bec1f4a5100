/** Random graphs and jobs to come, small enough to read when one of them is a counterexample. */
import fc from "fast-check";
import type { GraphSpec, JobRequest, JsonValue, RunRequest } from "../../src/index.ts";
import type { JobPlan, LoneJobPlan, Need, Output, RunPlan, StepPlan } from "./state.ts";

/** Two types, so that a claim may leave some jobs aside. */
export const jobTypes = ["model.x", "model.y"] as const;
export const organizations = {
  first: "0190a5f0-0000-7000-8000-000000000001",
  second: "0190a5f0-0000-7000-8000-000000000002",
} as const;

const MAX_STEPS = 8;
const keys = ["a", "b", "c", "d", "e", "f", "g", "h"];
const values: JsonValue[] = [null, 0, "x", { v: 1 }, [], [1, "two"]];

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

/** A step behind others: `back` 0 is the step just before it. */
const anyStep = fc.record({
  job: fc.option(anyJob, { freq: 4 }),
  needs: fc.array(
    fc.record({ back: fc.nat(MAX_STEPS - 2), kind: fc.constantFrom<Need["kind"][]>("ON_SUCCESS", "ON_TERMINAL") }),
    { maxLength: 3, size: "max" },
  ),
});

/** Steps whose prerequisites are before them. */
const anySteps: fc.Arbitrary<StepPlan[]> = fc
  .array(anyStep, { minLength: 1, maxLength: MAX_STEPS, size: "max" })
  .map((steps) =>
    steps.map(({ job, needs }, place) => ({ key: keys[place] ?? "", job, needs: needsAt(place, needs) })),
  );

function needsAt(place: number, needs: readonly { back: number; kind: Need["kind"] }[]): Need[] {
  if (place === 0) return [];
  const byKey = new Map(needs.map(({ back, kind }) => [keys[place - 1 - (back % place)] ?? "", kind]));
  return [...byKey].map(([key, kind]) => ({ key, kind }));
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
    steps: steps.map(({ key, needs, job }) => ({ key, dependencies: needs, ...(job === null ? {} : { job }) })),
  };
  return { graph, organizationId: organization, ...(idempotencyKey === null ? {} : { idempotencyKey }) };
}

export function jobRequestOf({ organization, idempotencyKey, ...job }: LoneJobPlan): JobRequest {
  return { ...job, organizationId: organization, ...(idempotencyKey === null ? {} : { idempotencyKey }) };
}

/** `{ a, gate b(a), c(a, b?) -> result }`: b needs a's success, c also b's end. */
export function describedRun({ steps, result, organization, idempotencyKey }: RunPlan): string {
  const parts = steps.map(({ key, needs, job }) => {
    const after = needs.map((need) => (need.kind === "ON_SUCCESS" ? need.key : `${need.key}?`)).join(", ");
    const attempts = job !== null && job.maxAttempts > 1 ? ` x${job.maxAttempts}` : "";
    const named = `${job === null ? "gate " : ""}${key}${needs.length > 0 ? `(${after})` : ""}${attempts}`;
    return key === result ? `${named} -> result` : named;
  });
  return `{ ${parts.join(", ")} }${tags({ organization, idempotencyKey })}`;
}

export function describedJob({ organization, idempotencyKey, type, maxAttempts }: LoneJobPlan): string {
  return `${type} x${maxAttempts}${tags({ organization, idempotencyKey })}`;
}

function tags({ organization, idempotencyKey }: Pick<RunPlan, "organization" | "idempotencyKey">): string {
  return `${organization === null ? "" : " of first"}${idempotencyKey === null ? "" : ` under ${idempotencyKey}`}`;
}
