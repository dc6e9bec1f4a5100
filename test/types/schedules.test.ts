/** A schedule's payload fits what it starts: each `@ts-expect-error` must not compile. `npm run typecheck` is the test. */
import { expect, test } from "@jest/globals";
import { z } from "zod";
import {
  type ClaimedJob,
  defineJob,
  defineSchedule,
  defineWorkflow,
  type ScheduleTick,
  typed,
} from "../../src/index.ts";
import { handle } from "../../src/worker/index.ts";

/** Compiles only when both types are the same. */
type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
function same<A, B>(_: Same<A, B>): void {}

const report = defineJob("report", { input: typed<{ kind: "daily" | "weekly" }>() });
const dated = defineJob("dated", { input: z.object({ at: z.string().transform((text) => new Date(text)) }) });
const audit = defineWorkflow("audit", {
  input: typed<{ area: string }>(),
  build(graph, { area }, { schedule }) {
    same<typeof schedule, ScheduleTick | null>(true);
    return graph.job("look", "look", { area });
  },
});
const cron = "0 * * * *";

test("the payload is the job's input", () => {
  const good = [
    defineSchedule("a", { cron, job: report, payload: { kind: "daily" }, priority: 1 }),
    defineSchedule("a", { cron, job: dated, payload: { at: "2026-01-01" } }),
    defineSchedule("a", { cron, job: "plain", payload: ["anything"] }),
  ];
  const bad = () => [
    // @ts-expect-error there is no such kind
    defineSchedule("a", { cron, job: report, payload: { kind: "hourly" } }),
    // @ts-expect-error the payload is missing
    defineSchedule("a", { cron, job: report }),
    // @ts-expect-error the schema reads a string
    defineSchedule("a", { cron, job: dated, payload: { at: new Date() } }),
    // @ts-expect-error a job has no deadline
    defineSchedule("a", { cron, job: report, payload: { kind: "daily" }, deadlineSeconds: 1 }),
  ];
  expect(good.map(({ name }) => name)).toEqual(["a", "a", "a"]);
  expect(bad).toBeInstanceOf(Function);
});

test("the input is the workflow's", () => {
  const good = defineSchedule("a", { cron, workflow: audit, input: { area: "north" }, deadlineSeconds: 60 });
  const bad = () => [
    // @ts-expect-error an area is a string
    defineSchedule("a", { cron, workflow: audit, input: { area: 1 } }),
    // @ts-expect-error a run has no priority
    defineSchedule("a", { cron, workflow: audit, input: { area: "" }, priority: 1 }),
    // @ts-expect-error it starts one or the other
    defineSchedule("a", { cron, job: report, payload: { kind: "daily" }, workflow: audit, input: { area: "" } }),
  ];
  expect(good.target).toMatchObject({ kind: "workflow", type: "audit" });
  expect(bad).toBeInstanceOf(Function);
});

test("policies are words", () => {
  const bad = () => [
    // @ts-expect-error there is no such policy
    defineSchedule("a", { cron, job: "any", payload: 1, catchUp: "twice" }),
    // @ts-expect-error there is no such policy
    defineSchedule("a", { cron, job: "any", payload: 1, overlap: "ONCE" }),
    // @ts-expect-error when is missing
    defineSchedule("a", { job: "any", payload: 1 }),
  ];
  expect(bad).toBeInstanceOf(Function);
});

test("a handler and a claimed job know their tick", () => {
  const handler = handle(report, ({ schedule, payload }) => {
    same<typeof schedule, ScheduleTick | null>(true);
    same<typeof payload, { kind: "daily" | "weekly" }>(true);
  });
  same<ClaimedJob["schedule"], ScheduleTick | null>(true);
  expect(handler.type).toBe("report");
});
