/** A graph is checked in memory before anything is sent, and the first error wins (FEATURES F-W1). */
import { describe, expect, test } from "@jest/globals";
import { defaultRules } from "../../src/database/values/rules.ts";
import {
  defineJob,
  type GraphSpec,
  type LedgerErrorCode,
  type StepSpec,
  typed,
  WorkflowBuilder,
} from "../../src/index.ts";
import { prepareRun } from "../../src/runs/prepare.ts";
import { topologicallySorted } from "../../src/runs/validate.ts";
import { expectInvariants } from "../invariants.ts";
import { createTestDatabase } from "../support/database.ts";
import { countOf, errorOf, graphOf, ledgerOf } from "./fixtures.ts";

const database = await createTestDatabase({ max: 2 });
const ledger = ledgerOf(database);

const on = (...keys: string[]) => keys.map((key) => ({ key, kind: "ON_SUCCESS" as const }));
const step = (key: string, rest: Partial<StepSpec> = {}): StepSpec => ({
  key,
  dependencies: [],
  job: { type: "work", payload: {} },
  ...rest,
});
const job = (rest: object) => ({ job: { type: "work", payload: {}, ...rest } });

// One fault each, in the order in which they are looked for.
const blankWorkflow: Fault = { graph: { type: " " } };
const blankKey: Fault = { steps: [step("\t")] };
const blankJob: Fault = { steps: [step("blank-job", job({ type: "" }))] };
const shape: Fault = { steps: [step("no-attempts", job({ maxAttempts: 0 }))] };
const twice: Fault = { steps: [step("twice"), step("twice")] };
const blankDependency: Fault = { steps: [step("blank-need", { dependencies: on("") })] };
const self: Fault = { steps: [step("self", { dependencies: on("self") })] };
const dependencyTwice: Fault = { steps: [step("double", { dependencies: on("root", "root") })] };
const missing: Fault = { steps: [step("lost", { dependencies: on("nowhere") })] };
const cycle: Fault = { steps: [step("x", { dependencies: on("y") }), step("y", { dependencies: on("x") })] };
const noResult: Fault = { graph: { resultStep: "nothing" } };

interface Fault {
  readonly graph?: Partial<GraphSpec>;
  readonly steps?: readonly StepSpec[];
}

const inOrder: readonly (readonly [LedgerErrorCode, Fault, object])[] = [
  ["workflow.invalid_dag_blank_type", blankWorkflow, {}],
  ["workflow.invalid_dag_blank_step_key", blankKey, {}],
  ["workflow.invalid_dag_blank_type", blankJob, { stepKey: "blank-job" }],
  ["workflow.invalid_dag_step_shape", shape, { stepKey: "no-attempts" }],
  ["workflow.invalid_dag_duplicate_step_key", twice, { stepKey: "twice" }],
  ["workflow.invalid_dag_blank_dependency", blankDependency, { stepKey: "blank-need", dependency: "" }],
  ["workflow.invalid_dag_self_dependency", self, { stepKey: "self", dependency: "self" }],
  ["workflow.invalid_dag_duplicate_dependency", dependencyTwice, { stepKey: "double", dependency: "root" }],
  ["workflow.invalid_dag_missing_dependency", missing, { stepKey: "lost", dependency: "nowhere" }],
  ["workflow.invalid_dag_cycle", cycle, { stepKey: "x", cycle: ["x", "y"] }],
  ["workflow.invalid_dag_result_step", noResult, { stepKey: "nothing" }],
];

/** A graph with all these faults, the last one's steps first. */
function faulty(faults: readonly Fault[]): GraphSpec {
  const steps = faults.flatMap((fault) => fault.steps ?? []).reverse();
  const rest = Object.assign({}, ...faults.map(({ graph }) => graph));
  return { type: "faulty", resultStep: null, steps: [step("root"), ...steps], ...rest };
}

/** The fault at this place and all that are looked for later; blank keys and types are one pass over the steps. */
function after(place: number): Fault[] {
  const faults = inOrder.slice(place).map(([, fault]) => fault);
  return faults[0] === blankKey ? faults.filter((fault) => fault !== blankJob) : faults;
}

describe("validation", () => {
  test.each(inOrder.map(([code, , details], place) => [code, place, details] as const))(
    "%s is found before all that comes after it",
    async (code, place, details) => {
      const { result, statements } = await database.record(() => errorOf(ledger.runs.enqueue(faulty(after(place)))));

      expect(result).toMatchObject({ code, category: "validation", retryable: false });
      if (place !== 9) expect(result.details).toEqual(details);
      expect(statements).toEqual([]);
    },
  );

  test.each(inOrder)("%s is found alone", async (code, fault, details) => {
    const error = await errorOf(ledger.runs.enqueue(faulty([fault])));

    expect(error.code).toBe(code);
    expect(Object.keys(error.details)).toEqual(Object.keys(details));
  });

  test("a graph without steps is none", async () => {
    const empty = { type: "empty", steps: [], resultStep: null };

    expect((await errorOf(ledger.runs.enqueue(empty))).code).toBe("workflow.invalid_dag_no_steps");
  });

  test.each<[string, StepSpec]>([
    ["attempts below one", step("s", job({ maxAttempts: -1 }))],
    ["half an attempt", step("s", job({ maxAttempts: 1.5 }))],
    ["more attempts than an int4 holds", step("s", job({ maxAttempts: 2 ** 31 }))],
    ["no time", step("s", job({ timeoutSeconds: 0 }))],
    ["a priority that is no integer", step("s", job({ priority: Number.NaN }))],
    ["defaults out of range", step("s", job({ defaults: { maxAttempts: 0 } }))],
    ["a key of 513 bytes", step(`${"ü".repeat(256)}x`)],
    ["a key with NUL", step("a\0b")],
    ["a key with half a surrogate pair", step("a\ud800")],
    ["a job type with NUL", step("s", job({ type: "a\0b" }))],
    ["an EXTERNAL step with job settings", { key: "s", dependencies: [], maxAttempts: 3 } as StepSpec],
    ["an EXTERNAL step with a payload", { key: "s", dependencies: [], payload: {} } as StepSpec],
  ])("a step with %s has no valid shape", async (_, wrong) => {
    const error = await errorOf(ledger.runs.enqueue({ type: "t", steps: [wrong], resultStep: null }));

    expect(error).toMatchObject({ code: "workflow.invalid_dag_step_shape", details: { stepKey: wrong.key } });
  });

  test("a key of 512 bytes in any script is a key", async () => {
    const key = "ü".repeat(256);
    await ledger.runs.enqueue({ type: key, steps: [step(key, job({ type: key }))], resultStep: key });

    expect(await countOf(database, "runledger.workflow_steps where step_key = $1", [key])).toBe(1);
  });

  test("a cycle is named step by step, each after the one that it waits for", async () => {
    const graph = graphOf("t", { entry: [], a: ["entry", "c"], b: ["a"], c: ["b?"], tail: ["c"], tailEnd: ["tail"] });

    const { details } = await errorOf(ledger.runs.enqueue(graph));

    const names = details.cycle as string[];
    expect([...names].sort()).toEqual(["a", "b", "c"]);
    const start = names.indexOf("a");
    expect([...names.slice(start), ...names.slice(0, start)]).toEqual(["a", "b", "c"]);
  });

  test("keys that objects have already are keys like any others", async () => {
    const keys = {
      constructor: [],
      toString: ["constructor"],
      ["__proto__"]: ["toString"],
      hasOwnProperty: ["__proto__"],
    };
    const { id } = await ledger.runs.enqueue(graphOf("reserved", keys));

    expect(await countOf(database, "runledger.workflow_steps where run_id = $1", [id])).toBe(4);
    await expectInvariants(database);
  });
});

describe("ten thousand steps and fifty thousand edges", () => {
  const graph = wide(10_000, 5);

  test("validate with work that grows as steps and edges do", () => {
    // Counted where validation looks at an edge: reading a dependency's key.
    const looks = (size: number) => {
      let count = 0;
      const counted = wide(size, 5, () => {
        count += 1;
      });
      topologicallySorted(counted);
      return count;
    };
    const [small, large] = [looks(1000), looks(10_000)];

    expect(large).toBeLessThan(small * 11);
    expect(large).toBeLessThan(50_000 * 10);
  });

  test("are stored in one statement", async () => {
    const { result, statements } = await database.record(() => ledger.runs.enqueue(graph));

    expect(statements).toHaveLength(1);
    expect(await countOf(database, "runledger.workflow_steps where run_id = $1", [result.id])).toBe(10_000);
    expect(await countOf(database, "runledger.workflow_step_dependencies where run_id = $1", [result.id])).toBe(49_985);
    await expectInvariants(database);
  });

  test("get ids in topological order, of steps and of jobs", async () => {
    const { steps, edges } = await prepareRun(defaultRules, shuffled(graph), {});

    expect(edges.filter(({ prerequisiteId, stepId }) => prerequisiteId >= stepId)).toEqual([]);
    const ids = (of: (index: number) => string) => steps.map((_, index) => of(index));
    const stepIds = ids((index) => steps[index]?.id ?? "");
    const jobIds = ids((index) => steps[index]?.job?.id ?? "");
    expect(stepIds).toEqual([...stepIds].sort());
    expect(jobIds).toEqual([...jobIds].sort());
    expect(new Set([...stepIds, ...jobIds]).size).toBe(20_000);
  });

  test("in one chain validate too, and a cycle through all of them is named", async () => {
    const chain = { type: "chain", resultStep: null, steps: wide(10_000, 1).steps };
    expect(topologicallySorted(chain)).toHaveLength(10_000);

    const [first, ...rest] = chain.steps;
    const round = { ...chain, steps: [{ ...first, key: "s0", dependencies: on("s9999") }, ...rest] };
    const { details } = await errorOf(ledger.runs.enqueue(round));
    expect(details.cycle).toHaveLength(10_000);
  });
});

describe("the builder", () => {
  const reserve = defineJob("reserve", { output: typed<{ stock: number }>(), maxAttempts: 2, priority: 7 });
  const charge = defineJob("charge", { input: typed<{ orderId: string }>(), output: typed<{ paid: boolean }>() });

  test("makes plain data, with ON_SUCCESS and ON_TERMINAL named in the call", () => {
    const graph = new WorkflowBuilder("order");
    const reserved = graph.job("reserve", reserve, undefined);
    const approved = graph.external("approve", { output: typed<{ by: string }>(), onSuccess: [reserved] });
    const paid = graph.job(
      "charge",
      charge,
      { orderId: "o-1" },
      { onSuccess: [approved], onTerminal: [reserved], priority: 9 },
    );
    graph.result(paid);

    expect(graph.build()).toEqual({
      type: "order",
      resultStep: "charge",
      steps: [
        {
          key: "reserve",
          job: { type: "reserve", payload: undefined, schema: undefined, defaults: { maxAttempts: 2, priority: 7 } },
          dependencies: [],
        },
        { key: "approve", dependencies: [{ key: "reserve", kind: "ON_SUCCESS" }] },
        {
          key: "charge",
          job: { type: "charge", payload: { orderId: "o-1" }, priority: 9, schema: charge.input, defaults: {} },
          dependencies: [
            { key: "approve", kind: "ON_SUCCESS" },
            { key: "reserve", kind: "ON_TERMINAL" },
          ],
        },
      ],
    });
  });

  test("a graph that was built does not change with its builder", () => {
    const graph = new WorkflowBuilder("t");
    graph.job("a", "work", {});
    const built = graph.build();
    graph.job("b", "work", {});

    expect(built.steps.map(({ key }) => key)).toEqual(["a"]);
  });

  test("a step's settings are the requested, else the definition's in code, else the stored definition's", async () => {
    await database.pool.query(
      "insert into runledger.job_definitions (type, priority, max_attempts, timeout_seconds) values ('settings', 1, 11, 111)",
    );
    const definition = defineJob("settings", { maxAttempts: 5, timeoutSeconds: 50 });
    const graph = new WorkflowBuilder("settings");
    graph.job("a", definition, {}, { timeoutSeconds: 33 });
    await ledger.runs.enqueue(graph.build());

    const { rows } = await database.pool.query(
      "select priority, max_attempts, timeout_seconds from runledger.job_queue where type = 'settings'",
    );
    expect(rows).toEqual([{ priority: 1, max_attempts: 5, timeout_seconds: 33 }]);
  });
});

/** Each step needs the `needs` steps before it. */
function wide(size: number, needs: number, onLook: () => void = () => {}): GraphSpec {
  const steps = Array.from({ length: size }, (_, place) => ({
    key: `s${place}`,
    job: { type: "wide", payload: null },
    dependencies: Array.from({ length: Math.min(place, needs) }, (_, back) => ({
      get key() {
        onLook();
        return `s${place - back - 1}`;
      },
      kind: "ON_SUCCESS" as const,
    })),
  }));
  return { type: "wide", steps, resultStep: null };
}

function shuffled(graph: GraphSpec): GraphSpec {
  const steps = graph.steps
    .map((spec, place) => ({ spec, at: (place * 7919) % graph.steps.length }))
    .sort((a, b) => a.at - b.at)
    .map(({ spec }) => spec);
  return { ...graph, steps };
}
