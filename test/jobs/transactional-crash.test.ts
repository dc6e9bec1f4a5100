/**
 * A completion with a body loses its connection at each of its statements in turn, is recovered as a
 * service would recover, and in the end its effect is there exactly once (FEATURES F-J8).
 */
import { afterEach, describe, expect, test } from "@jest/globals";
import { Kysely, PostgresDialect } from "kysely";
import pg from "pg";
import {
  type AppendRequest,
  createLedger,
  isLedgerError,
  type Lease,
  type Ledger,
  WorkflowAddition,
  WorkflowBuilder,
} from "../../src/index.ts";
import { expectInvariants } from "../invariants.ts";
import { createTestDatabase } from "../support/database.ts";
import { startProxy } from "../support/proxy.ts";
import { backendGone } from "../support/waiting.ts";
import { claimedOne, expire, globally, makeDue } from "./fixtures.ts";

interface Service {
  // No unique key: what is written twice is seen twice.
  effects: { run_id: string };
}

const database = await createTestDatabase();
const ledger = createLedger({ db: database.db, notify: false });
const proxy = await startProxy(database);
await database.pool.query("create table public.effects (run_id uuid not null)");

afterEach(() => expectInvariants(database));

/** What happens to the connection at one statement. */
type Fault = (client: pg.Client, send: () => Promise<unknown>) => Promise<unknown>;

const faults: Record<string, Fault> = {
  "the session ends before it is sent": async (client, send) => {
    await terminate(client);
    return send();
  },
  "the session ends as it is sent": async (client, send) => {
    const answer = send();
    await Promise.allSettled([answer, terminate(client)]);
    return answer;
  },
  "it is carried out and its answer is lost": async (client, send) => {
    const before = await activityOf(client);
    proxy.mute();
    const answer = send();
    answer.catch(() => {});
    await carriedOut(client, before);
    proxy.cut();
    await gone(client);
    return answer;
  },
  "the session ends once it is answered": async (client, send) => {
    const answer = await send();
    await terminate(client);
    return answer;
  },
};

/** Where the job stands: what of its run the completion changes, and to what. */
interface Situation {
  readonly dependents: Readonly<Record<string, string>>;
  readonly prepare: (type: string) => Promise<void>;
  readonly additions?: (type: string) => AppendRequest[];
}

const situations: Readonly<Record<string, Situation>> = {
  "dependents are released": {
    dependents: { after: "ENQUEUED", "after all": "BLOCKED" },
    prepare: async () => {},
  },
  "a dependent is cancelled, and one below it": {
    dependents: { after: "ENQUEUED", "after all": "CANCELED", "after that": "CANCELED" },
    prepare: async (type: string) => {
      const { lease } = await claimedOne(ledger, `${type}.other`);
      await ledger.jobs.fail(lease, { kind: "TERMINAL", code: "test.failed", message: "It failed." });
    },
  },
  "steps are added to the run": {
    dependents: { after: "ENQUEUED", "after all": "BLOCKED", added: "ENQUEUED", "after added": "BLOCKED" },
    prepare: async () => {},
    additions: (type: string) => {
      const graph = new WorkflowAddition();
      const added = graph.job("added", `${type}.added`, {}, { onSuccess: [graph.existing("step")] });
      graph.job("after added", `${type}.after-added`, {}, { onSuccess: [added] });
      return [{ key: "more", graph: graph.build() }];
    },
  },
};

let runs = 0;

describe.each(Object.entries(situations))("%s", (_, { dependents, prepare, additions = () => [] }) => {
  test.each(Object.entries(faults))("at every statement: %s", async (_name, fault) => {
    const count = await statementsOfACompletion();
    const outcomes: unknown[] = [];
    for (let place = 1; place <= count; place += 1) outcomes.push({ place, ...(await crashedAt(place, fault)) });

    const expected = { effects: 1, followUps: 1, ends: ["SUCCEEDED"], ...dependents };
    expect(outcomes).toEqual(outcomes.map((_outcome, n) => ({ place: n + 1, ...expected })));
    expect(count).toBeGreaterThan(5);
  });

  async function statementsOfACompletion(): Promise<number> {
    const { type, lease } = await started();
    const sent: string[] = [];
    const recording = faultyLedger((_client, send, text) => {
      sent.push(text);
      return send();
    });
    await complete(recording, lease, type);
    expect([sent.at(0), sent.at(-1)]).toEqual([expect.stringMatching(/^start transaction/), "commit"]);
    return sent.length;
  }

  async function crashedAt(place: number, fault: Fault): Promise<Record<string, unknown>> {
    const { type, lease } = await started();
    let sent = 0;
    const faulty = faultyLedger((client, send) => {
      sent += 1;
      return sent === place ? fault(client, send) : send();
    });
    const error = await complete(faulty, lease, type).then(
      () => null,
      (thrown: unknown) => thrown,
    );
    expect(sent).toBeGreaterThanOrEqual(place);
    await expectHonest(error, lease, type);
    await recover(lease, type);
    return endOf(lease, type, Object.keys(dependents));
  }

  /** The handler: writes to a table of the service's own, enqueues more, and completes its job. */
  async function complete(of: Ledger<Service>, lease: Lease, type: string): Promise<unknown> {
    return of.jobs.complete(lease, { output: { done: true }, append: additions(type) }, async (trx) => {
      await trx
        .withSchema("public")
        .insertInto("effects")
        .values({ run_id: String(lease.workflowRunId) })
        .execute();
      await of.in(trx).jobs.enqueue(`${type}.follow-up`, {});
    });
  }

  /** As the fleet would: the lease runs out, a reaper returns the job, the next worker claims it and does the same. */
  async function recover(lease: Lease, type: string): Promise<void> {
    await expire(database, [lease.jobId]);
    await ledger.jobs.reap();
    await makeDue(database, [lease.jobId]);
    const [again] = await ledger.jobs.claim({ workerId: "the next", limit: 1, types: [`${type}.step`] });
    if (again === undefined) return;
    expect(again.lease).toMatchObject({ jobId: lease.jobId, attempt: 2 });
    await complete(createLedger({ db: serviceDb(database.pool), notify: false }), again.lease, type);
  }

  async function started(): Promise<{ type: string; lease: Lease }> {
    runs += 1;
    const type = `run-${runs}`;
    const graph = new WorkflowBuilder(type);
    const step = graph.job("step", `${type}.step`, {}, { maxAttempts: 5 });
    const other = graph.job("other", `${type}.other`, {});
    graph.job("after", `${type}.after`, {}, { onSuccess: [step] });
    const all = graph.job("after all", `${type}.after-all`, {}, { onSuccess: [step, other] });
    graph.job("after that", `${type}.after-that`, {}, { onSuccess: [all] });
    await ledger.runs.enqueue(graph.build());
    await prepare(type);
    return { type, lease: (await claimedOne(ledger, `${type}.step`)).lease };
  }
});

/** Success is only said of what is committed, and failure only of what is not. */
async function expectHonest(error: unknown, lease: Lease, type: string): Promise<void> {
  const committed = (await effectsOf(lease)) === 1;
  const unknown = isLedgerError(error) && error.code === "db.commit_unconfirmed";
  if (!unknown) expect({ type, committed }).toEqual({ type, committed: error === null });
  expect((await ledger.jobs.get(lease.jobId, globally)).status).toBe(committed ? "SUCCEEDED" : "LEASED");
}

async function endOf(lease: Lease, type: string, dependents: readonly string[]): Promise<Record<string, unknown>> {
  const { rows } = await database.pool.query<{ step_key: string; status: string }>(
    `select s.step_key, s.status from runledger.workflow_steps as s
     where s.run_id = $1 and s.step_key = any($2) and (s.status = 'ENQUEUED') =
       (select count(*) = 1 from runledger.jobs as j where j.workflow_step_id = s.id and j.status = 'PENDING')`,
    [lease.workflowRunId, dependents],
  );
  const ends = await database.pool.query<{ status: string }>("select status from runledger.job_ledger where id = $1", [
    lease.jobId,
  ]);
  const followUps = await database.pool.query("select from runledger.job_queue where type = $1", [`${type}.follow-up`]);
  return {
    effects: await effectsOf(lease),
    followUps: followUps.rowCount,
    ends: ends.rows.map(({ status }) => status),
    ...Object.fromEntries(rows.map(({ step_key, status }) => [step_key, status])),
  };
}

async function effectsOf({ workflowRunId }: Lease): Promise<number> {
  const { rows } = await database.pool.query("select count(*)::int as n from public.effects where run_id = $1", [
    workflowRunId,
  ]);
  return rows[0].n;
}

/** A ledger through the proxy, on a pool of one connection whose statements pass by `at`. */
function faultyLedger(
  at: (client: pg.Client, send: () => Promise<unknown>, text: string) => Promise<unknown>,
): Ledger<Service> {
  const pool = new pg.Pool({ connectionString: proxy.url, max: 1 });
  pool.on("error", () => {});
  pool.on("connect", (client: pg.Client) => {
    client.on("error", () => {});
    client.query = new Proxy(client.query, {
      apply: (query, self, args: unknown[]) =>
        at(client, async () => Reflect.apply(query, self, args), String(args[0])),
    });
  });
  database.defer(() => pool.end());
  return createLedger({ db: serviceDb(pool), notify: false });
}

function serviceDb(pool: pg.Pool): Kysely<Service> {
  return new Kysely<Service>({ dialect: new PostgresDialect({ pool }) });
}

async function terminate(client: pg.Client): Promise<void> {
  await database.pool.query("select pg_terminate_backend($1)", [pidOf(client)]);
  await gone(client);
}

async function gone(client: pg.Client): Promise<void> {
  await backendGone(database.pool, pidOf(client));
}

interface Activity {
  readonly state: string;
  readonly query_start: string | null;
}

/** Resolves when the backend has done the statement that it was sent last. */
async function carriedOut(client: pg.Client, before: Activity): Promise<void> {
  for (;;) {
    const now = await activityOf(client);
    if (now.query_start !== before.query_start && now.state.startsWith("idle")) return;
  }
}

async function activityOf(client: pg.Client): Promise<Activity> {
  const { rows } = await database.pool.query<Activity>(
    "select state, query_start::text from pg_stat_activity where pid = $1",
    [pidOf(client)],
  );
  const [row] = rows;
  if (row === undefined) throw new Error("the session is gone");
  return row;
}

function pidOf(client: pg.Client): number {
  return Number(Reflect.get(client, "processID"));
}
