/** A step may start some time after its release, by the database's clock (FEATURES F-W12). */
import { afterEach, describe, expect, test } from "@jest/globals";
import type { ClaimedJob, StepSpec } from "../../src/index.ts";
import { expectInvariants } from "../invariants.ts";
import { codeOf, ledgerOf, TestRun } from "../runs/fixtures.ts";
import { createTestDatabase } from "../support/database.ts";

const database = await createTestDatabase({ max: 4 });
const ledger = ledgerOf(database);

afterEach(() => expectInvariants(database));

let runs = 0;

/** A run of steps that each depend on those named, and start so many seconds after their release. */
async function start(steps: Record<string, readonly [needs: string[], delaySeconds?: number]>): Promise<TestRun> {
  runs += 1;
  const type = `delayed-${runs}`;
  const specs = Object.entries(steps).map(([key, [needs, delaySeconds]]): StepSpec => {
    const job = { type: `${type}.${key}`, payload: { key }, maxAttempts: 2 };
    return {
      key,
      dependencies: needs.map((need) => ({ key: need, kind: "ON_SUCCESS" })),
      job: delaySeconds === undefined ? job : { ...job, delaySeconds },
    };
  });
  const { id } = await ledger.runs.enqueue({ type, steps: specs, resultStep: null });
  return new TestRun(database, ledger, id, type);
}

function claimed(run: TestRun, key: string): Promise<ClaimedJob[]> {
  return ledger.jobs.claim({ workerId: "w", limit: 1, types: [`${run.type}.${key}`] });
}

/** How long after the step's release its job is due. */
async function delayOf(run: TestRun, key: string): Promise<number> {
  const { rows } = await database.pool.query<{ seconds: number }>(
    `select round(extract(epoch from q.run_at - s.released_at))::int as seconds
     from runledger.workflow_steps as s join runledger.job_queue as q on q.id = s.job_id
     where s.run_id = $1 and s.step_key = $2`,
    [run.id, key],
  );
  return rows[0]?.seconds ?? Number.NaN;
}

async function delayIsOver(run: TestRun, key: string): Promise<void> {
  await database.pool.query(
    "update runledger.job_queue set run_at = now() - interval '1 second' where workflow_run_id = $1 and type = $2",
    [run.id, `${run.type}.${key}`],
  );
}

describe("a step with a delay", () => {
  test("and nothing to wait for cannot be claimed before it", async () => {
    const run = await start({ a: [[], 600], b: [[]] });

    expect(await delayOf(run, "a")).toBe(600);
    expect(await run.statuses()).toEqual({ a: "ENQUEUED", b: "ENQUEUED" });
    expect(await claimed(run, "a")).toEqual([]);
    expect(await claimed(run, "b")).toHaveLength(1);
    await delayIsOver(run, "a");
    expect(await claimed(run, "a")).toHaveLength(1);
  });

  test("counts it from its release, not from the start of the run", async () => {
    const run = await start({ a: [[]], b: [["a"], 600], c: [["b"], 0.5] });
    await database.pool.query(
      "update runledger.workflow_steps set released_at = now() - interval '1 day' where run_id = $1 and step_key = 'a'",
      [run.id],
    );
    await run.succeed("a");

    expect(await delayOf(run, "b")).toBe(600);
    expect(await claimed(run, "b")).toEqual([]);
    expect(await run.statuses()).toMatchObject({ b: "ENQUEUED", c: "BLOCKED" });
    await delayIsOver(run, "b");
    await run.succeed("b");
    expect(await run.statuses()).toMatchObject({ c: "ENQUEUED" });
  });

  test("that is released by a failure is delayed too", async () => {
    runs += 1;
    const type = `delayed-${runs}`;
    const job = (key: string) => ({ type: `${type}.${key}`, payload: null, maxAttempts: 1 });
    const steps: StepSpec[] = [
      { key: "a", dependencies: [], job: job("a") },
      { key: "b", dependencies: [{ key: "a", kind: "ON_TERMINAL" }], job: { ...job("b"), delaySeconds: 600 } },
    ];
    const { id } = await ledger.runs.enqueue({ type, steps, resultStep: null });
    const run = new TestRun(database, ledger, id, type);
    await run.fail("a");

    expect(await delayOf(run, "b")).toBe(600);
    expect(await claimed(run, "b")).toEqual([]);
  });

  test("that fails is tried again after its backoff, without the delay", async () => {
    const run = await start({ a: [[], 600] });
    await delayIsOver(run, "a");
    const { lease } = await run.claim("a");

    const { runAt } = await ledger.jobs.fail(lease, { code: "again", message: "again" });

    const { rows } = await database.pool.query("select $1::timestamptz < now() + interval '300 seconds' as soon", [
      runAt,
    ]);
    expect(rows).toEqual([{ soon: true }]);
  });

  test("is cancelled with its run before it starts", async () => {
    const run = await start({ a: [[], 600] });
    await ledger.runs.cancel(run.id, { scope: { global: true } });

    expect(await run.state()).toEqual({ run: "CANCELED", steps: { a: "CANCELED" } });
    expect(await run.liveJobs()).toEqual([]);
  });
});

test.each([0, -1, Number.NaN, Number.POSITIVE_INFINITY, "5" as never])(
  "a delay of %p seconds is refused before anything is sent",
  async (delaySeconds) => {
    const { result, statements } = await database.record(() => codeOf(start({ a: [[], delaySeconds] })));

    expect(result).toBe("input.invalid");
    expect(statements).toEqual([]);
  },
);
