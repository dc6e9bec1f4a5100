/**
 * The operations that model and ledger are both put through. They are drawn before anything has
 * happened, so they name what they act on by number; `aim` makes something definite of it.
 */
import fc from "fast-check";
import { type Kysely, sql } from "kysely";
import type {
  ClaimedJob,
  Lease,
  Ledger,
  RunledgerDatabase,
  Scope,
  SettleResult,
  StepSettlement,
} from "../../src/index.ts";
import { statusesOf } from "./derive.ts";
import type { Claimed, Model, Settled } from "./model.ts";
import {
  type AdditionGiven,
  additionTo,
  anyAddition,
  anyLoneJob,
  anyOutput,
  anyRun,
  describedAddition,
  describedJob,
  describedRun,
  jobRequestOf,
  jobTypes,
  organizations,
  requestOf,
  requestOfAddition,
  reversed,
} from "./plans.ts";
import type { Addition, Ended, LoneJobPlan, Outcome, Run, RunPlan, Settling } from "./state.ts";

/** What was ever handed out or sent, also in transactions that were rolled back. */
export interface Memory {
  readonly leases: Lease[];
  readonly runs: RunPlan[];
  readonly jobs: LoneJobPlan[];
  readonly additions: { readonly run: string; readonly addition: Addition }[];
}

export interface Action {
  readonly text: string;
  act(ledger: Ledger, db: Kysely<RunledgerDatabase>): Promise<unknown>;
  /** The model's answer. Ids of what was inserted are taken from the ledger's. */
  expected(model: Model, answer: unknown): unknown;
}

export interface Operation {
  toString(): string;
  /** Null when there is nothing to do it to. */
  aim(model: Model, memory: Memory, inTransaction: boolean): Action | null;
}

const MAX_RUNS = 6;
const workers = ["w1", "w2"] as const;

// --- Enqueue

function enqueuing(plans: readonly RunPlan[], memory: Memory, text: string): Action {
  memory.runs.push(...plans);
  return {
    text,
    act: (ledger) => ledger.runs.enqueueMany(plans.map(requestOf)),
    expected: (model, answer) =>
      model.enqueueRuns(plans).map(({ item, disposition }, place) => {
        if (item.id === "") item.id = idAt(answer, place);
        return { id: item.id, status: model.runStatus(item), disposition };
      }),
  };
}

const enqueueRuns = fc.array(anyRun, { minLength: 1, maxLength: 3 }).map((plans): Operation => {
  const text = `enqueue ${plans.map(describedRun).join(" and ")}`;
  return {
    toString: () => text,
    aim: (model, memory) => (model.runs.length + plans.length > MAX_RUNS ? null : enqueuing(plans, memory, text)),
  };
});

const resendRun = fc.record({ place: fc.nat(9), reverse: fc.boolean() }).map(
  ({ place, reverse }): Operation => ({
    toString: () => `send request ${place} again`,
    aim: (model, memory) => {
      const plan = picked(memory.runs, place);
      if (plan === undefined || (plan.idempotencyKey === null && model.runs.length >= MAX_RUNS)) return null;
      return enqueuing([reverse ? reversed(plan) : plan], memory, `enqueue again ${describedRun(plan)}`);
    },
  }),
);

function enqueuingJobs(plans: readonly LoneJobPlan[], memory: Memory, text: string): Action {
  memory.jobs.push(...plans);
  return {
    text,
    act: (ledger) => ledger.jobs.enqueueMany(plans.map(jobRequestOf)),
    expected: (model, answer) =>
      model.enqueueJobs(plans).map(({ item, disposition }, place) => {
        if (item.id === "") item.id = idAt(answer, place);
        return { id: item.id, status: model.jobStatus(item), runNumber: item.runNumber, disposition };
      }),
  };
}

const enqueueJobs = fc.array(anyLoneJob, { minLength: 1, maxLength: 3 }).map((plans): Operation => {
  const text = `enqueue jobs ${plans.map(describedJob).join(" and ")}`;
  return { toString: () => text, aim: (_, memory) => enqueuingJobs(plans, memory, text) };
});

const resendJob = fc.nat(9).map(
  (place): Operation => ({
    toString: () => `send job request ${place} again`,
    aim: (_, memory) => {
      const plan = picked(memory.jobs, place);
      return plan ? enqueuingJobs([plan], memory, `enqueue again job ${describedJob(plan)}`) : null;
    },
  }),
);

// --- Claims and leases

const anyClaim = fc.record({
  workerId: fc.constantFrom(...workers),
  limit: fc.integer({ min: 1, max: 6 }),
  types: fc.option(fc.subarray([...jobTypes], { minLength: 1 }), { freq: 3 }),
});
type ClaimGiven = typeof anyClaim extends fc.Arbitrary<infer Given> ? Given : never;

const claim = anyClaim.map((given): Operation => {
  const text = describedClaim(given);
  return {
    toString: () => text,
    aim: (_, memory) => ({
      text,
      act: async (ledger) => shownClaims(ledger, await claimed(ledger, given, memory)),
      expected: (model) => expectedClaims(model, given),
    }),
  };
});

function describedClaim({ workerId, limit, types }: ClaimGiven): string {
  return `${workerId} claims ${limit}${types === null ? "" : ` of ${types.join(", ")}`}`;
}

async function claimed(ledger: Ledger, { workerId, limit, types }: ClaimGiven, memory: Memory): Promise<ClaimedJob[]> {
  const jobs = await ledger.jobs.claim({ workerId, limit, leaseSeconds: 3600, ...(types === null ? {} : { types }) });
  memory.leases.push(...jobs.map(({ lease }) => lease));
  return jobs;
}

async function shownClaims(ledger: Ledger, jobs: readonly ClaimedJob[]) {
  const found = [...(await ledger.steps.prerequisites(jobs))];
  const outputs = Object.fromEntries(found.map(([jobId, { outputs }]) => [jobId, outputs]));
  return { claimed: jobs.map(shownClaim), outputs };
}

function expectedClaims(model: Model, { workerId, limit, types }: ClaimGiven) {
  const jobs = model.claim(workerId, limit, types);
  return { claimed: jobs, outputs: model.prerequisiteOutputs(jobs.map(({ lease }) => lease)) };
}

function shownClaim(job: ClaimedJob): Claimed {
  const { lease, type, payload, priority, maxAttempts, organizationId, workflowStepId } = job;
  return { lease, type, payload, priority, maxAttempts, organizationId, workflowStepId };
}

/** One that is held, mostly; any that was ever handed out, sometimes. */
const anyLease = fc.record({ place: fc.nat(15), stale: fc.constantFrom(false, false, false, false, true) });
type LeasePick = { readonly place: number; readonly stale: boolean };

function pickedLease(model: Model, memory: Memory, { place, stale }: LeasePick): Lease | undefined {
  return picked(stale ? memory.leases : memory.leases.filter((lease) => model.isHeld(lease)), place);
}

function pickedLeases(model: Model, memory: Memory, picks: readonly LeasePick[]): Lease[] {
  return picks.map((pick) => pickedLease(model, memory, pick)).filter((lease) => lease !== undefined);
}

const expire = anyLease.map(
  (pick): Operation => ({
    toString: () => `lease ${pick.place} expires`,
    aim: (model, memory) => {
      const lease = pickedLease(model, memory, { ...pick, stale: false });
      if (lease === undefined || !model.isHeld(lease)) return null;
      return {
        text: `the lease of ${nameOf(model, lease)} expires`,
        act: async (_, db) => {
          await sql`update runledger.job_queue set lease_expires_at = 'epoch' where id = ${lease.jobId}`.execute(db);
        },
        expected: (other) => other.expire(lease.jobId),
      };
    },
  }),
);

const reap = fc.constantFrom(1, 2, 500).map((limit): Operation => {
  const action: Action = {
    text: `reap ${limit}`,
    act: (ledger) => ledger.jobs.reap({ limit }),
    expected: (model) => ({ ...model.reap(limit), setAside: [] }),
  };
  return { toString: () => action.text, aim: () => action };
});

const heartbeat = fc.array(anyLease, { minLength: 1, maxLength: 4 }).map(
  (picks): Operation => ({
    toString: () => `heartbeat of ${placesOf(picks)}`,
    aim: (model, memory) => {
      const leases = pickedLeases(model, memory, picks);
      if (leases.length === 0) return null;
      return {
        text: `heartbeat of ${namesOf(model, leases)}`,
        act: async (ledger) => (await ledger.jobs.heartbeat(leases, 3600)).map(({ state }) => state),
        expected: (other) => other.heartbeat(leases),
      };
    },
  }),
);

const handBack = fc.array(anyLease, { minLength: 1, maxLength: 3 }).map(
  (picks): Operation => ({
    toString: () => `hand back ${placesOf(picks)}`,
    aim: (model, memory) => {
      const leases = pickedLeases(model, memory, picks);
      if (leases.length === 0) return null;
      return {
        text: `hand back ${namesOf(model, leases)}`,
        act: async (ledger) => (await ledger.jobs.handBack(leases)).sort(),
        expected: (other) => other.handBack(leases).sort(),
      };
    },
  }),
);

// --- Outcomes

/** What an outcome adds is made for its run, once this is known. */
type OutcomeGiven = { readonly outcome: Outcome; readonly addition: AdditionGiven | null };

const plainOutcome: fc.Arbitrary<Outcome> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({ kind: fc.constant("SUCCESS" as const), output: anyOutput, append: fc.constant(null) }),
  },
  {
    weight: 4,
    arbitrary: fc.record({
      kind: fc.constantFrom("RETRYABLE", "TERMINAL", "RETRYABLE", "PANICKED", "TIMEOUT"),
      code: fc.constantFrom("model.first", "model.second"),
      message: fc.constant("It failed."),
    }),
  },
);

const anyOutcome: fc.Arbitrary<OutcomeGiven> = fc.record({
  outcome: plainOutcome,
  addition: seldom(anyAddition),
});

/** A lease's outcome, with what it adds to its run, if it has one. */
function settlingOf(model: Model, lease: Lease, { outcome, addition }: OutcomeGiven): Settling {
  const run = model.runs.find(({ id }) => id === lease.workflowRunId);
  if (outcome.kind !== "SUCCESS" || addition === null || run === undefined) return { lease, outcome };
  const append = additionTo(
    run.steps.map(({ key }) => key),
    addition,
  );
  return { lease, outcome: { ...outcome, append } };
}

const settle = fc
  .record({
    items: fc.array(fc.record({ pick: anyLease, given: anyOutcome }), { minLength: 1, maxLength: 5 }),
    eager: fc.oneof(fc.constant(null), anyClaim),
  })
  .map(({ items, eager }): Operation => {
    const also = eager === null ? "" : `, and ${describedClaim(eager)}`;
    const text = items.map(({ pick, given }) => `${pick.place} as ${given.outcome.kind}`).join(", ");
    return {
      toString: () => `settle ${text}${also}`,
      aim: (model, memory, inTransaction) => {
        const wanted = items.flatMap(({ pick, given }) => {
          const lease = pickedLease(model, memory, pick);
          return lease === undefined ? [] : [settlingOf(model, lease, given)];
        });
        // In a caller's transaction an addition that does not fit is an error of the whole call.
        const settlings = inTransaction && model.refusesAny(wanted) ? wanted.map(withoutAddition) : wanted;
        if (settlings.length === 0) return null;
        remember(model, memory, settlings);
        return {
          text: `settle ${settlings.map(({ lease, outcome }) => `${nameOf(model, lease)} as ${described(outcome)}`).join(", ")}${also}`,
          ...(eager === null ? settlesOnly(settlings) : settlesAndClaims(settlings, eager, memory)),
        };
      },
    };
  });

function settlesOnly(settlings: readonly Settling[]): Pick<Action, "act" | "expected"> {
  return {
    act: async (ledger) => shownResults(await ledger.jobs.settle(settlings.map(settlementOf))),
    expected: (model) => model.settle(settlings),
  };
}

/** Which jobs are claimed with it depends on the way that each run takes; the model knows which may be. */
function settlesAndClaims(
  settlings: readonly Settling[],
  { types, ...claim }: ClaimGiven,
  memory: Memory,
): Pick<Action, "act" | "expected"> {
  const given = { ...claim, types: types ?? jobTypes, leaseSeconds: 3600 };
  let jobIds: readonly string[] = [];
  return {
    act: async (ledger) => {
      const { results, claimed: jobs } = await ledger.jobs.settleAndClaim(settlings.map(settlementOf), given);
      memory.leases.push(...jobs.map(({ lease }) => lease));
      jobIds = jobs.map(({ lease }) => lease.jobId);
      return { results: shownResults(results), ...(await shownClaims(ledger, jobs)) };
    },
    expected: (model) => {
      const results = model.settle(settlings);
      const jobs = model.claimAmong(jobIds, given.workerId, given.limit, given.types);
      return { results, claimed: jobs, outputs: model.prerequisiteOutputs(jobs.map(({ lease }) => lease)) };
    },
  };
}

/**
 * Claims, settles at once what was claimed, as far as there are outcomes, and perhaps claims what that releases: so that
 * a play gets somewhere.
 */
const work = fc
  .record({
    given: anyClaim,
    outcomes: fc.array(plainOutcome, { minLength: 1, maxLength: 6, size: "max" }),
    goesOn: fc.boolean(),
  })
  .map(({ given, outcomes, goesOn }): Operation => {
    const also = goesOn ? ", and goes on" : "";
    const text = `${describedClaim(given)} and settles ${outcomes.map(described).join(", ")}${also}`;
    const settlingsOf = (jobs: readonly Pick<ClaimedJob, "lease">[]) =>
      outcomes.flatMap((outcome, place) => {
        const lease = jobs[place]?.lease;
        return lease === undefined ? [] : [{ lease, outcome }];
      });
    return {
      toString: () => text,
      aim: (_, memory) => {
        let settles: Pick<Action, "act" | "expected"> = settlesOnly([]);
        return {
          text,
          act: async (ledger, db) => {
            const jobs = await claimed(ledger, given, memory);
            const settlings = settlingsOf(jobs);
            settles = goesOn ? settlesAndClaims(settlings, given, memory) : settlesOnly(settlings);
            return { claimed: jobs.map(shownClaim), settled: await settles.act(ledger, db) };
          },
          expected: (model, answer) => ({
            claimed: model.claim(given.workerId, given.limit, given.types),
            settled: settles.expected(model, answer),
          }),
        };
      },
    };
  });

function shownResults(results: readonly SettleResult[]): Settled[] {
  return results.map((result) =>
    result.ok ? { ok: true, status: result.status } : { ok: false, code: result.error.code },
  );
}

function withoutAddition({ lease, outcome }: Settling): Settling {
  return { lease, outcome: outcome.kind === "SUCCESS" ? { ...outcome, append: null } : outcome };
}

function remember(model: Model, memory: Memory, settlings: readonly Settling[]): void {
  for (const { lease, outcome } of settlings) {
    const run = model.runs.find(({ id }) => id === lease.workflowRunId);
    if (outcome.kind === "SUCCESS" && outcome.append !== null && run !== undefined) {
      memory.additions.push({ run: run.name, addition: outcome.append });
    }
  }
}

function settlementOf({ lease, outcome }: Settling): StepSettlement {
  if (outcome.kind === "SUCCESS") {
    const { output, append } = outcome;
    return {
      lease,
      success: {
        ...(output === undefined ? {} : { output }),
        ...(append === null ? {} : { append: requestOfAddition(append) }),
      },
    };
  }
  if (outcome.kind === "LEASE_EXPIRED") throw new Error("only the reaper says so");
  return { lease, failure: { ...outcome, kind: outcome.kind } };
}

function described(outcome: Outcome): string {
  if (outcome.kind !== "SUCCESS") return outcome.kind;
  const { output, append } = outcome;
  return ["SUCCESS", JSON.stringify(output) ?? "", append === null ? "" : `adding ${describedAddition(append)}`]
    .filter((part) => part !== "")
    .join(" ");
}

// --- Gates and cancels

type Whose = "own" | "admin" | "other";
const whose = fc.constantFrom<Whose[]>("own", "own", "own", "own", "admin", "other");
const anyReason = fc.constantFrom(null, "because");

function scopeFor(organization: string | null, whom: Whose): Scope {
  if (whom === "admin") return { admin: true };
  if (whom === "other") return { organization: organizations.second };
  return organization === null ? { global: true } : { organization };
}

const completeGate = fc
  .record({
    run: fc.nat(5),
    place: fc.nat(9),
    // Mostly one that waits, else any step, or one that is not there.
    any: fc.constantFrom(false, false, false, false, true),
    whom: whose,
    outcome: fc.constantFrom<Ended[]>("SUCCEEDED", "SUCCEEDED", "FAILED", "CANCELED"),
    output: anyOutput,
    reason: anyReason,
    completedBy: fc.constantFrom(null, "somebody"),
    keep: fc.constantFrom(false, false, true),
  })
  .map(
    ({ run: n, place, any, whom, outcome, output, reason, completedBy, keep }): Operation => ({
      toString: () => `${keep ? "keep" : "complete"} ${any ? "step" : "gate"} ${place} of run ${n} as ${outcome}`,
      aim: (model) => {
        const run = picked(model.runs, n);
        if (run === undefined) return null;
        const statuses = statusesOf(run);
        const keys = run.steps.map(({ key }) => key);
        const gates = run.steps.filter(({ plan }) => plan.job === null).map(({ key }) => key);
        const waiting = gates.filter((key) => statuses.get(key) === "WAITING_FOR_EXTERNAL");
        const key = any
          ? picked([...gates, ...keys, "nowhere"], place)
          : picked(!keep && (waiting.length > 0 || place > 1) ? waiting : gates, place);
        if (key === undefined) return null;
        const scope = scopeFor(run.plan.organization, whom);
        const given = outcome === "SUCCEEDED" ? output : undefined;
        return {
          text: `${whom} ${keep ? "keeps for" : "completes"} ${run.name}.${key} as ${outcome} ${JSON.stringify(given) ?? ""}`.trim(),
          act: (ledger) =>
            ledger.steps.complete(run.id, key, {
              scope,
              outcome,
              ...(given === undefined ? {} : { output: given }),
              ...(reason === null ? {} : { reason }),
              ...(completedBy === null ? {} : { completedBy }),
              ...(keep ? { keep } : {}),
            }),
          expected: (other) => {
            const completion = { scope, outcome, output: given, reason, completedBy, keep };
            return { runId: run.id, stepKey: key, ...other.completeGate(run.name, key, completion) };
          },
        };
      },
    }),
  );

// --- Appends

function appending(
  { id, name, plan }: Run,
  addition: Addition,
  gate: string | null,
  whom: Whose,
  memory: Memory,
): Action {
  memory.additions.push({ run: name, addition });
  const scope = scopeFor(plan.organization, whom);
  return {
    text: `${whom} adds ${describedAddition(addition)} to ${name}${gate === null ? "" : ` by ${gate}`}`,
    act: async (ledger) => {
      const request = { ...requestOfAddition(addition), scope, ...(gate === null ? {} : { gate }) };
      const { runId, disposition, steps } = await ledger.runs.append(id, request);
      const { steps: all } = await ledger.runs.get(id, { admin: true });
      // Its ids are those of the run's steps.
      const known = steps.every((step) => all.some((other) => other.id === step.id && other.key === step.key));
      return { runId, disposition, statuses: Object.fromEntries(steps.map(({ key, status }) => [key, status])), known };
    },
    expected: (model) => ({ runId: id, ...model.append(name, scope, gate, addition), known: true }),
  };
}

const append = fc.record({ n: fc.nat(5), given: anyAddition, gate: seldom(fc.nat(3)), whom: whose }).map(
  ({ n, given, gate, whom }): Operation => ({
    toString: () => `add ${given.key} to run ${n}`,
    aim: (model, memory) => {
      const open = model.runs.filter((run) => [...statusesOf(run).values()].includes("WAITING_FOR_EXTERNAL"));
      const run = picked(open.length > 0 ? open : model.runs, n);
      if (run === undefined) return null;
      const keys = run.steps.map(({ key }) => key);
      const gates = run.steps.filter(({ plan }) => plan.job === null).map(({ key }) => key);
      const named = gate === null ? null : (picked([...gates, ...gates, ...keys], gate) ?? null);
      return appending(run, additionTo(keys, given), named, whom, memory);
    },
  }),
);

const resendAddition = fc.record({ place: fc.nat(9), whom: whose }).map(
  ({ place, whom }): Operation => ({
    toString: () => `send addition ${place} again`,
    aim: (model, memory) => {
      const sent = picked(memory.additions, place);
      const run = model.runs.find(({ name }) => name === sent?.run);
      return sent && run ? appending(run, sent.addition, null, whom, memory) : null;
    },
  }),
);

const retry = fc
  .record({
    n: fc.nat(5),
    whom: whose,
    key: seldom(fc.constantFrom("m1", "r1", "r2")),
    places: seldom(fc.array(fc.nat(9), { minLength: 1, maxLength: 3 })),
  })
  .map(
    ({ n, whom, key, places }): Operation => ({
      toString: () => `retry run ${n}`,
      aim: (model) => {
        const failed = model.runs.filter((run) => model.runStatus(run) === "COMPLETED_WITH_ERRORS");
        const run = picked(failed.length > 0 ? failed : model.runs, n);
        if (run === undefined) return null;
        const { id, name } = run;
        const scope = scopeFor(run.plan.organization, whom);
        const all = [...run.steps.map((step) => step.key), "nowhere"];
        const steps = places?.map((place) => all[place % all.length] ?? "") ?? null;
        return {
          text: `${whom} retries ${steps?.join(", ") ?? "what failed"} of ${name}${key === null ? "" : ` under ${key}`}`,
          act: async (ledger) => {
            const request = { scope, ...(key === null ? {} : { key }), ...(steps === null ? {} : { steps }) };
            const { retried, ...answer } = await ledger.runs.retry(id, request);
            return { ...answer, retried: [...retried].sort() };
          },
          expected: (other) => ({ runId: id, ...other.retry(name, scope, key, steps) }),
        };
      },
    }),
  );

const cancelRun = fc.record({ n: fc.nat(5), whom: whose, reason: anyReason }).map(
  ({ n, whom, reason }): Operation => ({
    toString: () => `cancel run ${n}`,
    aim: (model) => {
      const run = picked(model.runs, n);
      if (run === undefined) return null;
      const { id, name } = run;
      const scope = scopeFor(run.plan.organization, whom);
      return {
        text: `${whom} cancels ${name}`,
        act: (ledger) => ledger.runs.cancel(id, { scope, ...(reason === null ? {} : { reason }) }),
        expected: (other) => ({ id, ...other.cancelRun(name, scope, reason) }),
      };
    },
  }),
);

const cancelJob = fc.record({ place: fc.nat(9), ofRun: fc.boolean(), whom: whose, reason: anyReason }).map(
  ({ place, ofRun, whom, reason }): Operation => ({
    toString: () => `cancel job ${place}`,
    aim: (model) => {
      const job = picked(
        model.jobs.filter(({ run }) => (run !== null) === ofRun),
        place,
      );
      if (job === undefined) return null;
      const { id, name } = job;
      const scope = scopeFor(job.organization, whom);
      return {
        text: `${whom} cancels ${name}`,
        act: async (ledger) => {
          const { leaseExpiresAt: _, ...answer } = await ledger.jobs.cancel(id, {
            scope,
            ...(reason === null ? {} : { reason }),
          });
          return answer;
        },
        expected: (other) => ({ id, ...other.cancelJob(id, scope, reason) }),
      };
    },
  }),
);

const pause = fc
  .record({ type: fc.constantFrom(...jobTypes), paused: fc.constantFrom(false, false, true) })
  .map(({ type, paused }): Operation => {
    const action: Action = {
      text: `${paused ? "pause" : "resume"} ${type}`,
      act: (ledger) => (paused ? ledger.jobs.pause([type]) : ledger.jobs.resume([type])),
      expected: (model) => model.pause(type, paused),
    };
    return { toString: () => action.text, aim: () => action };
  });

export const anyOperation: fc.Arbitrary<Operation> = fc.oneof(
  { weight: 12, arbitrary: work },
  { weight: 6, arbitrary: claim },
  { weight: 10, arbitrary: settle },
  { weight: 10, arbitrary: completeGate },
  { weight: 5, arbitrary: append },
  { weight: 2, arbitrary: resendAddition },
  { weight: 6, arbitrary: retry },
  { weight: 2, arbitrary: enqueueRuns },
  { weight: 2, arbitrary: resendRun },
  { weight: 1, arbitrary: enqueueJobs },
  { weight: 1, arbitrary: resendJob },
  { weight: 3, arbitrary: expire },
  { weight: 2, arbitrary: reap },
  { weight: 1, arbitrary: heartbeat },
  { weight: 1, arbitrary: handBack },
  { weight: 1, arbitrary: cancelRun },
  { weight: 1, arbitrary: cancelJob },
  { weight: 1, arbitrary: pause },
);

export const firstOperation: fc.Arbitrary<Operation> = enqueueRuns;

/** Once in four. */
function seldom<T>(arbitrary: fc.Arbitrary<T>): fc.Arbitrary<T | null> {
  return fc.oneof({ weight: 3, arbitrary: fc.constant(null) }, { weight: 1, arbitrary });
}

function picked<T>(items: readonly T[], place: number): T | undefined {
  return items.length === 0 ? undefined : items[place % items.length];
}

function idAt(answer: unknown, place: number): string {
  const item: unknown = Array.isArray(answer) ? answer[place] : undefined;
  return typeof item === "object" && item !== null && "id" in item ? String(item.id) : "";
}

function nameOf(model: Model, { jobId, attempt }: Lease): string {
  return `${model.jobs.find(({ id }) => id === jobId)?.name ?? "a job that was rolled back"}#${attempt}`;
}

function namesOf(model: Model, leases: readonly Lease[]): string {
  return leases.map((lease) => nameOf(model, lease)).join(", ");
}

function placesOf(picks: readonly LeasePick[]): string {
  return picks.map(({ place }) => place).join(", ");
}
