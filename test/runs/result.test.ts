/** Waiting for a run's result, with a listener and without (FEATURES F-W10). */
import { afterEach, describe, expect, jest, test } from "@jest/globals";
import { Kysely, PostgresDialect } from "kysely";
import pg from "pg";
import { createLedger, defineJob, defineWorkflow, type ListenSource, typed } from "../../src/index.ts";
import { expectInvariants } from "../invariants.ts";
import { createTestDatabase } from "../support/database.ts";
import { waitForBackend } from "../support/waiting.ts";
import { codeOf, errorOf, globally, ledgerOf, openTransaction, TestRun, unknownId } from "./fixtures.ts";

const database = await createTestDatabase();
const ledger = ledgerOf(database);
/** Longer than any test may take: who is not told finds out too late, and the test has ended. */
const LONG = { ...globally, timeoutMs: 60_000 };
/** Shorter than the ten seconds after which a listening waiter looks by itself. */
jest.setTimeout(8_000);

afterEach(() => expectInvariants(database));

const start = (steps: Record<string, string[]>, result?: string) =>
  TestRun.start(database, ledger, steps, result === undefined ? {} : { result });

/** A ledger whose LISTEN connections are counted; `connecting` runs before each is made. */
function listening(connecting: (count: number) => Promise<unknown> | undefined = () => undefined) {
  const clients: pg.Client[] = [];
  const listen: ListenSource = () => {
    const client = new pg.Client({ connectionString: database.url, application_name: "listener" });
    const count = clients.push(client);
    const connect = client.connect.bind(client) as () => Promise<unknown>;
    return Object.assign(client, {
      connect: async () => {
        await connecting(count);
        return connect();
      },
    }) as ReturnType<ListenSource>;
  };
  return { ledger: createLedger({ db: database.db, listen, onListenError: () => {} }), listen, clients };
}

/** A Kysely whose first look at the run's result comes back only after `meanwhile`. */
function afterFirstLookAt(runId: string, meanwhile: () => Promise<unknown>): Kysely<unknown> {
  let looked = false;
  const connect = async () => {
    const client = await database.pool.connect();
    const query = async (text: string, values: unknown[]) => {
      const answer = await client.query(text, values);
      if (!looked && text.includes("get_workflow_result") && values.includes(runId)) {
        looked = true;
        await meanwhile();
      }
      return answer;
    };
    return Object.assign(Object.create(client), { query });
  };
  return new Kysely({ dialect: new PostgresDialect({ pool: { connect, end: async () => {}, options: {} } }) });
}

/** Resolves when a LISTEN connection idles. */
function listeners(): Promise<unknown> {
  return waitForBackend({ client: database.pool, marker: 'listen "runledger_runs"', waitEventType: "Client" });
}

describe("a result", () => {
  test.each([[{ paid: true }], [null], [0], [""], [[1, 2]]])("is the result step's output: %j", async (output) => {
    const run = await start({ a: [], b: ["a"] }, "a");
    await run.succeed("a", output);
    await run.succeed("b", "not this");

    expect(await ledger.runs.getResult(run.id, globally)).toEqual(output);
  });

  test("may be an external step's", async () => {
    const run = await start({ gate: [] }, "gate");
    await ledger.steps.complete(run.id, "gate", { ...globally, output: "approved" });

    expect(await ledger.runs.getResult(run.id, globally)).toBe("approved");
  });

  test("has the type that the workflow's definition declares", async () => {
    const add = defineJob("add", { output: typed<{ sum: number }>() });
    const workflow = defineWorkflow("typed-result", { build: (graph) => graph.job("add", add, null) });
    const { id } = await ledger.runs.enqueue(workflow, undefined);
    const [job] = await ledger.jobs.claim({ workerId: "w", limit: 1, types: ["add"] });
    if (job !== undefined) await ledger.jobs.complete(job.lease, { output: { sum: 3 } });

    const { sum } = await ledger.runs.getResult(id, { ...globally, workflow });
    expect(sum).toBe(3);
  });
});

describe("there is no result", () => {
  test("of a run that declares none, ended or not", async () => {
    const run = await start({ a: [] });
    expect(await codeOf(ledger.runs.getResult(run.id, LONG))).toBe("workflow.result_not_declared");
    await run.succeed("a");
    expect(await codeOf(ledger.runs.getResult(run.id, LONG))).toBe("workflow.result_not_declared");
  });

  test("when the result step succeeded without an output", async () => {
    const run = await start({ a: [] }, "a");
    await run.succeed("a");

    expect(await errorOf(ledger.runs.getResult(run.id, LONG))).toMatchObject({
      code: "workflow.result_missing",
      category: "internal",
    });
  });

  test("of a run that failed or was cancelled; the error says which", async () => {
    const failed = await start({ a: [], b: [] }, "a");
    await failed.succeed("a", 1);
    await failed.fail("b");
    const canceled = await start({ a: [] }, "a");
    await ledger.runs.cancel(canceled.id, globally);

    for (const [run, status] of [
      [failed, "COMPLETED_WITH_ERRORS"],
      [canceled, "CANCELED"],
    ] as const) {
      expect(await errorOf(ledger.runs.getResult(run.id, LONG))).toMatchObject({
        code: "workflow.result_unsuccessful_terminal",
        details: { status },
      });
    }
  });

  test("of an unknown run", async () => {
    expect(await codeOf(ledger.runs.getResult(unknownId, LONG))).toBe("workflow.run_not_found");
  });

  test("yet, after one look when no time is given", async () => {
    const run = await start({ a: [] }, "a");
    const { ledger: withListener, clients } = listening();
    for (const each of [ledger, withListener]) {
      const { result, statements } = await database.record(() => errorOf(each.runs.getResult(run.id, globally)));
      expect(result).toMatchObject({ code: "workflow.result_wait_timeout", retryable: true });
      expect(statements).toHaveLength(1);
    }
    expect(clients).toEqual([]);
  });

  test("at the end of the time given, after a last look", async () => {
    const run = await start({ a: [] }, "a");
    for (const each of [ledger, listening().ledger]) {
      const { result, statements } = await database.record(() =>
        codeOf(each.runs.getResult(run.id, { ...globally, timeoutMs: 30 })),
      );
      expect(result).toBe("workflow.result_wait_timeout");
      expect(statements.length).toBeGreaterThan(1);
    }
  });

  test("at the end of the time given, though the LISTEN connection is never made", async () => {
    const run = await start({ a: [] }, "a");
    const { ledger: stuck } = listening(() => new Promise(() => {}));

    expect(await codeOf(stuck.runs.getResult(run.id, { ...globally, timeoutMs: 50 }))).toBe(
      "workflow.result_wait_timeout",
    );
  });

  test.each([-1, Number.NaN, Number.POSITIVE_INFINITY])("in %d milliseconds", async (timeoutMs) => {
    const run = await start({ a: [] }, "a");

    expect(await codeOf(ledger.runs.getResult(run.id, { ...globally, timeoutMs }))).toBe("input.invalid");
  });
});

describe("a waiter", () => {
  test("without a listener polls", async () => {
    const run = await start({ a: [] }, "a");
    const waiting = ledger.runs.getResult(run.id, LONG);
    await run.succeed("a", "polled");

    expect(await waiting).toBe("polled");
  });

  test("with a listener is told of the run's end", async () => {
    const run = await start({ a: [] }, "a");
    const { ledger: waiter } = listening();
    const waiting = waiter.runs.getResult(run.id, LONG);
    await listeners();
    await run.succeed("a", "told");

    expect(await waiting).toBe("told");
  });

  const endings: [string, (run: TestRun) => Promise<unknown>, string][] = [
    ["a cancel", (run) => ledger.runs.cancel(run.id, globally), "CANCELED"],
    ["a failure", (run) => run.fail("a"), "COMPLETED_WITH_ERRORS"],
    ["a gate", async (run) => [await run.fail("a"), await gateOf(run)], "COMPLETED_WITH_ERRORS"],
    ["the reaper", async (run) => [await run.claim("a"), await reaped(run)], "COMPLETED_WITH_ERRORS"],
  ];
  test.each(endings)("with a listener is told when %s ends the run", async (what, end, status) => {
    const run = await start(what === "a gate" ? { a: [], gate: [] } : { a: [] }, "a");
    const { ledger: waiter } = listening();
    const waiting = errorOf(waiter.runs.getResult(run.id, LONG));
    await listeners();
    await end(run);

    expect(await waiting).toMatchObject({ details: { status } });
  });

  test("sees a run that ended between its first look and LISTEN", async () => {
    const run = await start({ a: [] }, "a");
    const { ledger: waiter, clients } = listening(() => run.succeed("a", "in between"));

    expect(await waiter.runs.getResult(run.id, LONG)).toBe("in between");
    expect(clients).toHaveLength(1);
  });

  test("sees a run that ended between its first look and its subscription to what others listen to", async () => {
    const [run, other] = [await start({ a: [] }, "a"), await start({ a: [] }, "a")];
    const { listen, clients } = listening();
    const waiter = createLedger({ db: afterFirstLookAt(run.id, () => run.succeed("a", "in between")), listen });
    const waiting = waiter.runs.getResult(other.id, LONG);
    await listeners();

    expect(await waiter.runs.getResult(run.id, LONG)).toBe("in between");
    await other.succeed("a", "later");
    expect(await waiting).toBe("later");
    expect(clients).toHaveLength(1);
  });

  test("looks at first, when it listens, and when it is told, and no more often", async () => {
    const run = await start({ a: [] }, "a");
    const { ledger: waiter } = listening();
    const { lease } = await run.claim("a");
    const { result, statements } = await database.record(async () => {
      const waiting = waiter.runs.getResult(run.id, LONG);
      await listeners();
      await idle();
      await ledger.jobs.complete(lease, { output: "told" });
      return waiting;
    });

    expect(result).toBe("told");
    expect(statements.filter((text) => text.includes("get_workflow_result"))).toHaveLength(3);
  });

  test("polls while the LISTEN connection is not there", async () => {
    const run = await start({ a: [] }, "a");
    const { ledger: stuck } = listening(() => new Promise(() => {}));
    const waiting = stuck.runs.getResult(run.id, LONG);
    await run.succeed("a", "polled");

    expect(await waiting).toBe("polled");
  });

  test("sees a run that ended while its connection was lost", async () => {
    const run = await start({ a: [] }, "a");
    const { ledger: waiter, clients } = listening((count) =>
      count === 2 ? run.succeed("a", "in the gap") : undefined,
    );
    const waiting = waiter.runs.getResult(run.id, LONG);
    const { pid } = (await listeners()) as { pid: number };
    await database.pool.query("select pg_terminate_backend($1)", [pid]);

    expect(await waiting).toBe("in the gap");
    expect(clients.length).toBeGreaterThan(1);
  });

  test("whose ledger has no LISTEN connection at all goes on by itself", async () => {
    const run = await start({ a: [] }, "a");
    const refused = createLedger({
      db: database.db,
      listen: () => new pg.Client({ host: "127.0.0.1", port: 1 }) as ReturnType<ListenSource>,
      onListenError: () => {},
    });
    const waiting = refused.runs.getResult(run.id, { ...globally, timeoutMs: 200 });

    expect(await codeOf(waiting)).toBe("workflow.result_wait_timeout");
  });

  test("in a caller's transaction sees what that has written", async () => {
    const run = await start({ a: [] }, "a");
    const { lease } = await run.claim("a");
    const trx = await openTransaction(database);
    await ledger.in(trx).jobs.complete(lease, { output: "mine" });

    expect(await ledger.in(trx).runs.getResult(run.id, globally)).toBe("mine");
    await trx.rollback().execute();
  });
});

test("a hundred waiters share one connection, hold none of the pool, and leave none behind", async () => {
  const runs = await Promise.all(Array.from({ length: 100 }, () => start({ a: [] }, "a")));
  const { ledger: waiter, clients } = listening();
  const waiting = runs.map((run) => waiter.runs.getResult(run.id, LONG));
  await listeners();
  await idle();

  expect(clients).toHaveLength(1);
  expect(database.pool.idleCount).toBe(database.pool.totalCount);
  for (const run of runs) await run.succeed("a", run.id);

  expect(await Promise.all(waiting)).toEqual(runs.map(({ id }) => id));
  expect(clients).toHaveLength(1);
  await ended(clients[0]);
});

/** Resolves when no look is under way any more: the pool has been given all its connections back. */
async function idle(): Promise<void> {
  while (database.pool.idleCount < database.pool.totalCount || database.pool.waitingCount > 0) {
    await new Promise((resolve) => setImmediate(resolve));
  }
}

/** Resolves when the server has no LISTEN connection of this database any more. */
async function ended(client: pg.Client | undefined): Promise<void> {
  expect(client).toBeDefined();
  for (;;) {
    const { rows } = await database.pool.query(
      "select from pg_stat_activity where application_name = 'listener' and datname = current_database()",
    );
    if (rows.length === 0) return;
  }
}

async function gateOf(run: TestRun): Promise<void> {
  await ledger.steps.complete(run.id, "gate", globally);
}

async function reaped(run: TestRun): Promise<void> {
  await database.pool.query(
    "update runledger.job_queue set lease_expires_at = now() - interval '1 second' where workflow_run_id = $1",
    [run.id],
  );
  await ledger.jobs.reap();
}
