/** What the compiler refuses: each `@ts-expect-error` is a mistake that must not compile. `npm run typecheck` is the test. */
import { expect, test } from "@jest/globals";
import type { Kysely } from "kysely";
import { z } from "zod";
import {
  type AnyJobDefinition,
  defineJob,
  defineWorkflow,
  type InputOf,
  type JsonValue,
  type Ledger,
  type OutputOf,
  type PayloadOf,
  type PrerequisitesOf,
  type RunledgerDatabase,
  type Scope,
  typed,
  WorkflowBuilder,
} from "../../src/index.ts";

/** Compiles only when both types are the same. */
type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
function same<A, B>(_: Same<A, B>): void {}

const reserve = defineJob("reserve", {
  input: typed<{ orderId: string }>(),
  output: typed<{ stock: number }>(),
});
const charge = defineJob("charge", {
  input: typed<{ orderId: string }>(),
  output: typed<{ receipt: string }>(),
  prerequisites: typed<{ reserve: { stock: number }; approve: { by: string } }>(),
});
const parse = defineJob("parse", { input: z.object({ at: z.string().transform((text) => new Date(text)) }) });
const anything = defineJob("anything");

test("a definition carries its input, payload, output and prerequisites", () => {
  same<InputOf<typeof reserve>, { orderId: string }>(true);
  same<PayloadOf<typeof reserve>, { orderId: string }>(true);
  same<OutputOf<typeof reserve>, { stock: number }>(true);
  same<PrerequisitesOf<typeof charge>, { reserve: { stock: number }; approve: { by: string } }>(true);
  // A schema that transforms: the caller gives the one, the handler receives the other.
  same<InputOf<typeof parse>, { at: string }>(true);
  same<PayloadOf<typeof parse>, { at: Date }>(true);
  same<InputOf<typeof anything>, unknown>(true);
  expect<AnyJobDefinition[]>([reserve, charge, parse, anything]).toHaveLength(4);
});

test("the builder refuses a payload that its definition does not take", () => {
  const graph = new WorkflowBuilder("t");
  graph.job("right", reserve, { orderId: "o" });
  // @ts-expect-error a number is no order id
  graph.job("wrong", reserve, { orderId: 1 });
  // @ts-expect-error the order id is missing
  graph.job("missing", reserve, {});
  // @ts-expect-error there is no such property
  graph.job("more", reserve, { orderId: "o", amount: 1 });
  graph.job("parse", parse, { at: "2026-01-01" });
  // @ts-expect-error the schema takes text; a Date is what it makes
  graph.job("parsed", parse, { at: new Date() });
  graph.job("plain", "any.type", Symbol("anything"));
  expect(graph.build().steps).toHaveLength(7);
});

test("the builder refuses a step whose prerequisites lack an output that its definition needs", () => {
  const graph = new WorkflowBuilder("t");
  const reserved = graph.job("reserve", reserve, { orderId: "o" });
  const approved = graph.external("approve", { output: typed<{ by: string }>() });
  graph.job("a", charge, { orderId: "o" }, { onSuccess: [reserved, approved] });
  // @ts-expect-error nothing is there
  graph.job("b", charge, { orderId: "o" });
  // @ts-expect-error approve is missing
  graph.job("c", charge, { orderId: "o" }, { onSuccess: [reserved] });
  // @ts-expect-error of an ON_TERMINAL prerequisite there may be no output
  graph.job("d", charge, { orderId: "o" }, { onSuccess: [reserved], onTerminal: [approved] });
  const wrong = graph.external("approve", { output: typed<{ by: number }>() });
  // @ts-expect-error approve's output has another type
  graph.job("e", charge, { orderId: "o" }, { onSuccess: [reserved, wrong] });
  const other = graph.job("stock", reserve, { orderId: "o" });
  // @ts-expect-error the right output under the wrong key
  graph.job("f", charge, { orderId: "o" }, { onSuccess: [other, approved] });
  // More than it needs is no mistake.
  graph.job("g", charge, { orderId: "o" }, { onSuccess: [reserved, approved, other], priority: 1 });
  expect(graph.build().steps).toHaveLength(11);
});

test("the builder refuses settings and references that are none", () => {
  const graph = new WorkflowBuilder("t");
  const a = graph.job("a", reserve, { orderId: "o" });
  // @ts-expect-error a priority is a number
  graph.job("b", reserve, { orderId: "o" }, { priority: "high" });
  // @ts-expect-error a step's run-at follows from the graph
  graph.job("c", reserve, { orderId: "o" }, { runAt: new Date() });
  // @ts-expect-error an EXTERNAL step has no job settings
  graph.external("d", { onSuccess: [a], maxAttempts: 3 });
  // @ts-expect-error prerequisites are references that the builder gave out, not keys
  expect(() => graph.job("e", reserve, { orderId: "o" }, { onSuccess: ["a"] })).not.toThrow();
});

test("a workflow's result has the type of the step that its graph returns", () => {
  const order = defineWorkflow("order", {
    input: typed<{ orderId: string }>(),
    build(graph, { orderId }) {
      const reserved = graph.job("reserve", reserve, { orderId });
      const approved = graph.external("approve", { output: typed<{ by: string }>(), onSuccess: [reserved] });
      return graph.job("charge", charge, { orderId }, { onSuccess: [reserved, approved] });
    },
  });
  const silent = defineWorkflow("silent", {
    build(graph) {
      graph.job("reserve", reserve, { orderId: "o" });
      return undefined;
    },
  });

  async function compiles(ledger: Ledger, scope: Scope): Promise<void> {
    await ledger.runs.enqueue(order, { orderId: "o" }, { idempotencyKey: "k" });
    // @ts-expect-error a number is no order id
    await ledger.runs.enqueue(order, { orderId: 1 });
    // @ts-expect-error the input is missing
    await ledger.runs.enqueue(order);
    // @ts-expect-error there is no such option
    await ledger.runs.enqueue(order, { orderId: "o" }, { runAt: new Date() });
    await ledger.runs.enqueue(silent, undefined);

    const typedResult = await ledger.runs.getResult("id", { scope, workflow: order });
    same<typeof typedResult, { receipt: string }>(true);
    const plain = await ledger.runs.getResult("id", { scope });
    same<typeof plain, JsonValue>(true);
    // @ts-expect-error a scope is never left out
    await ledger.runs.getResult("id", { timeoutMs: 1 });
    // @ts-expect-error a scope says true
    await ledger.runs.get("id", { admin: false });
    // @ts-expect-error an outcome is a terminal status
    await ledger.steps.complete("id", "gate", { scope, outcome: "RUNNING" });
    await ledger.jobs.enqueue(reserve, { orderId: "o" });
    // @ts-expect-error a number is no order id
    await ledger.jobs.enqueue(reserve, { orderId: 1 });
  }
  expect(compiles).toBeDefined();
  expect(order.graph({ orderId: "o" })).toMatchObject({ type: "order", resultStep: "charge" });
  expect(silent.graph(undefined)).toMatchObject({ resultStep: null });
});

test("a zod schema gives a workflow its input", () => {
  const workflow = defineWorkflow("checked", {
    input: z.object({ amount: z.number(), note: z.string().optional() }),
    build: (graph, input) => {
      same<typeof input, { amount: number; note?: string | undefined }>(true);
      return graph.external("gate", { output: typed<{ ok: boolean }>() });
    },
  });
  async function compiles(ledger: Ledger): Promise<void> {
    await ledger.runs.enqueue(workflow, { amount: 1 });
    // @ts-expect-error the amount is a number
    await ledger.runs.enqueue(workflow, { amount: "1" });
  }
  expect(compiles).toBeDefined();
});

interface AppDatabase {
  orders: { id: string; run_id: string | null; total: number };
}

test("the ledger's tables join with the service's own, by qualified name", () => {
  async function compiles(db: Kysely<AppDatabase & RunledgerDatabase>, elsewhere: Kysely<RunledgerDatabase<"ledger">>) {
    const rows = await db
      .selectFrom("orders as o")
      .innerJoin("runledger.workflow_runs as r", "r.id", "o.run_id")
      .leftJoin("runledger.workflow_steps as s", (join) =>
        join.onRef("s.run_id", "=", "r.id").on("s.status", "=", "WAITING_FOR_EXTERNAL"),
      )
      .select(["o.total", "r.status", "r.ended_at", "s.step_key"])
      .execute();
    same<
      (typeof rows)[number],
      {
        total: number;
        status: "RUNNING" | "WAITING_FOR_EXTERNAL" | "SUCCEEDED" | "COMPLETED_WITH_ERRORS" | "CANCELED";
        ended_at: Date | null;
        step_key: string | null;
      }
    >(true);
    // @ts-expect-error there is no such status
    await db.selectFrom("runledger.workflow_runs").where("status", "=", "DONE").selectAll().execute();
    // @ts-expect-error there is no such column
    await db.selectFrom("runledger.workflow_runs").select("finished_at").execute();
    // @ts-expect-error the tables are known by their qualified names only
    await db.selectFrom("workflow_runs").selectAll().execute();
    await elsewhere.selectFrom("ledger.workflow_runs").select("id").execute();
    // @ts-expect-error another schema, other names
    await elsewhere.selectFrom("runledger.workflow_runs").select("id").execute();
  }
  expect(compiles).toBeDefined();
});
