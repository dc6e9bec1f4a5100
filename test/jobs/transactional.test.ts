/** What a handler writes in the transaction of its completion is kept with the completion, or not at all (FEATURES F-J8). */
import { afterEach, beforeAll, describe, expect, test } from "@jest/globals";
import { CamelCasePlugin, Kysely, PostgresDialect, sql, type Transaction } from "kysely";
import pg from "pg";
import { createLedger, type Lease, WorkflowBuilder } from "../../src/index.ts";
import { expectInvariants } from "../invariants.ts";
import { createTestDatabase } from "../support/database.ts";
import { claimedOne, codeOf, errorOf, expire, globally, leased } from "./fixtures.ts";

interface Service {
  // No unique key: what is written twice is seen twice.
  "public.effects": { job_id: string };
}
type Body = (trx: Transaction<Service>) => Promise<unknown>;

const database = await createTestDatabase();
const db = serviceDb();
const ledger = createLedger({ db, notify: false });

beforeAll(async () => {
  await database.pool.query(`
    create table public.effects (job_id uuid not null);
    create table public.parents (id int primary key);
    create table public.children (parent_id int references public.parents deferrable initially deferred);
    create sequence public.tries;
    create function public.raise_until(state text, tries bigint) returns void language plpgsql as $$
    begin
      if nextval('public.tries') < tries then raise exception 'on purpose' using errcode = state; end if;
    end $$;
    create function public.raise_in_trigger() returns trigger language plpgsql as $$
    begin perform public.raise_until('40001', 1000); return new; end $$;
    create trigger raises before insert on runledger.job_queue for each row when (new.type = 'raising')
    execute function public.raise_in_trigger()`);
});

afterEach(() => expectInvariants(database));

test("the body's writes and the job's end are committed together", async () => {
  const { lease } = await leased(ledger, "together");

  const settled = await ledger.jobs.complete(lease, { output: { done: 1 } }, async (trx) => {
    await effect(lease)(trx);
    expect((await ledger.jobs.get(lease.jobId, globally)).status).toBe("LEASED");
  });

  expect(settled).toEqual({ status: "SUCCEEDED", runAt: null });
  expect(await ledger.jobs.get(lease.jobId, globally)).toMatchObject({ status: "SUCCEEDED", output: { done: 1 } });
  expect(await effectsOf(lease)).toBe(1);
});

test("no success need be given, and what the body resolves with is not used", async () => {
  const { lease } = await leased(ledger, "nothing");

  await ledger.jobs.complete(lease, undefined, async () => "ignored");

  expect(await ledger.jobs.get(lease.jobId, globally)).toMatchObject({ status: "SUCCEEDED", output: null });
});

test("what the body enqueues through ledger.in(trx) is there with the completion, and not before", async () => {
  const { lease } = await leased(ledger, "parent");

  let followUp = "";
  await ledger.jobs.complete(lease, {}, async (trx) => {
    followUp = (await ledger.in(trx).jobs.enqueue("follow-up", {})).id;
    expect(await codeOf(() => ledger.jobs.get(followUp, globally))).toBe("job.not_found");
  });

  expect((await ledger.jobs.get(followUp, globally)).status).toBe("PENDING");
});

describe("nothing is kept and the lease stands", () => {
  test("when the body throws, and what it threw comes out as it is", async () => {
    const { lease } = await leased(ledger, "throwing");
    const own = new RangeError("the body's own");

    const failing = ledger.jobs.complete(lease, {}, async (trx) => {
      await effect(lease)(trx);
      throw own;
    });

    await expect(failing).rejects.toBe(own);
    await expectUntouched(lease);
  });

  test("when a statement of the body fails, with the driver's own error", async () => {
    const { lease } = await leased(ledger, "failing");

    const error = await errorOf(
      ledger.jobs.complete(lease, {}, async (trx) => {
        await effect(lease)(trx);
        await sql`select 1 / 0`.execute(trx);
      }),
    );

    expect(error).toMatchObject({ name: "error", code: "22012" });
    await expectUntouched(lease);
  });

  test("when the body ignores that a statement failed", async () => {
    const { lease } = await leased(ledger, "ignoring");

    const completing = ledger.jobs.complete(lease, {}, async (trx) => {
      await effect(lease)(trx);
      await sql`select 1 / 0`.execute(trx).catch(() => {});
    });

    await expect(completing).rejects.toMatchObject({ code: "db.transaction_aborted" });
    await expectUntouched(lease);
  });

  test("when the body does not wait for a statement that fails", async () => {
    const { lease } = await leased(ledger, "hasty");

    const completing = ledger.jobs.complete(lease, {}, async (trx) => {
      void effect(lease)(trx);
      void sql`select 1 / 0`.execute(trx).catch(() => {});
    });

    await expect(completing).rejects.toMatchObject({ code: "db.transaction_aborted" });
    await expectUntouched(lease);
  });

  test("when a deferred constraint refuses at the commit", async () => {
    const { lease } = await leased(ledger, "deferred");

    const completing = ledger.jobs.complete(lease, {}, async (trx) => {
      await effect(lease)(trx);
      await sql`insert into public.children values (1)`.execute(trx);
    });

    await expect(completing).rejects.toMatchObject({ code: "db.constraint_violated", sqlstate: "23503" });
    await expectUntouched(lease);
  });
});

describe("nothing is kept when the lease is lost", () => {
  test("before the body", async () => {
    const { lease } = await leased(ledger, "lost-before");
    await expire(database, [lease.jobId]);

    expect(await codeOf(() => ledger.jobs.complete(lease, {}, effect(lease)))).toBe("job.lease_owner_mismatch");
    expect(await effectsOf(lease)).toBe(0);
  });

  test("while the body runs", async () => {
    const { lease } = await leased(ledger, "lost-meanwhile");

    const completing = codeOf(() =>
      ledger.jobs.complete(lease, {}, async (trx) => {
        await effect(lease)(trx);
        await expire(database, [lease.jobId]);
        await ledger.jobs.reap();
      }),
    );

    expect(await completing).toBe("job.lease_owner_mismatch");
    expect(await effectsOf(lease)).toBe(0);
    expect((await ledger.jobs.get(lease.jobId, globally)).status).toBe("PENDING");
  });

  test("to a completion that was committed: the second of two has no effect", async () => {
    const { lease } = await leased(ledger, "twice");

    const both = await Promise.allSettled([
      ledger.jobs.complete(lease, {}, effect(lease)),
      ledger.jobs.complete(lease, {}, effect(lease)),
    ]);

    expect(both.map(({ status }) => status).sort()).toEqual(["fulfilled", "rejected"]);
    expect(await effectsOf(lease)).toBe(1);
  });
});

describe("a conflict of the body's is tried again, body and all", () => {
  test.each([
    ["40001", 5],
    ["40P01", 5],
    ["55P03", 2],
  ])("%s, %i times in all", async (state, tries) => {
    const { lease } = await leased(ledger, "conflict");
    await database.pool.query("alter sequence public.tries restart");

    await ledger.jobs.complete(lease, {}, async (trx) => {
      await effect(lease)(trx);
      await sql`select public.raise_until(${state}, ${tries})`.execute(trx);
    });

    expect(await effectsOf(lease)).toBe(1);
  });

  test("so is one of the ledger's in it, and at last it comes out", async () => {
    const { lease } = await leased(ledger, "conflicts");
    let calls = 0;

    const error = await errorOf(
      ledger.jobs.complete(lease, {}, async (trx) => {
        calls += 1;
        await ledger.in(trx).jobs.enqueue("raising", {});
      }),
    );

    expect(error).toMatchObject({ code: "db.serialization_conflict" });
    expect(calls).toBe(5);
  });

  test("other errors are not", async () => {
    const { lease } = await leased(ledger, "no-conflict");
    let calls = 0;

    await errorOf(
      ledger.jobs.complete(lease, {}, async (trx) => {
        calls += 1;
        await sql`select public.raise_until('23505', 1000)`.execute(trx);
      }),
    );

    expect(calls).toBe(1);
  });
});

test("heartbeats go on while the body runs, of a job and of a step", async () => {
  for (const lease of [(await leased(ledger, "beating")).lease, await leasedStep("beating-step")]) {
    await ledger.jobs.complete(lease, {}, async (trx) => {
      await effect(lease)(trx);
      expect(await ledger.jobs.heartbeat([lease])).toMatchObject([{ state: "EXTENDED" }]);
      expect(await ledger.jobs.progress(lease, { done: 1 })).toBeUndefined();
    });
  }
});

test("the service's plugins are in force for the body, and not for the ledger", async () => {
  interface CamelService {
    effects: { jobId: string };
  }
  const camel = createLedger({ db: serviceDb<CamelService>().withPlugin(new CamelCasePlugin()), notify: false });
  const { lease } = await leased(camel, "camel");

  await camel.jobs.complete(lease, { output: { snake_case: 1 } }, async (trx) => {
    const effects = trx.withSchema("public");
    await effects.insertInto("effects").values({ jobId: lease.jobId }).execute();
    const row = await effects.selectFrom("effects").selectAll().where("jobId", "=", lease.jobId).executeTakeFirst();
    expect(row).toEqual({ jobId: lease.jobId });
  });

  expect((await ledger.jobs.get(lease.jobId, globally)).output).toEqual({ snake_case: 1 });
});

test("the body's transaction is READ COMMITTED whatever the session's default", async () => {
  const options = "-c default_transaction_isolation=serializable";
  const pool = new pg.Pool({ connectionString: database.url, max: 1, options });
  database.defer(() => pool.end());
  const serializable = createLedger({ db: serviceDb(pool) });
  const { lease } = await leased(ledger, "level");

  await serializable.jobs.complete(lease, {}, async (trx) => {
    const { rows } = await sql<{ level: string }>`select current_setting('transaction_isolation') as level`.execute(
      trx,
    );
    expect(rows).toEqual([{ level: "read committed" }]);
  });
});

describe("bad input is refused before the body runs, and nothing is sent", () => {
  const never: Body = () => Promise.reject(new Error("the body ran"));
  const bad: [string, (lease: Lease) => Promise<unknown>, string][] = [
    ["an output that is not JSON", (lease) => ledger.jobs.complete(lease, { output: 1n }, never), "payload.not_json"],
    ["a lease of no job", (lease) => ledger.jobs.complete({ ...lease, jobId: "none" }, {}, never), "input.invalid"],
    // @ts-expect-error a string is no function
    ["a body that is no function", (lease) => ledger.jobs.complete(lease, {}, "body"), "input.invalid"],
    // @ts-expect-error null is no function
    ["null for a body", (lease) => ledger.jobs.complete(lease, {}, null), "input.invalid"],
  ];

  test.each(bad)("%s", async (_, call, code) => {
    const { lease } = await leased(ledger, "bad");
    const { statements, result } = await database.record(() => codeOf(() => call(lease)));

    expect(result).toBe(code);
    expect(statements).toEqual([]);
  });
});

describe("in the caller's transaction", () => {
  test("the body runs in it, and is kept or not with it", async () => {
    const [kept, dropped] = [await leasedStep("kept"), await leasedStep("dropped")];

    await db.transaction().execute((trx) => ledger.in(trx).jobs.complete(kept, {}, effect(kept)));
    const trx = await db.startTransaction().execute();
    await ledger.in(trx).jobs.complete(dropped, {}, async (own) => {
      expect(own).toBe(trx);
      await effect(dropped)(own);
    });
    await trx.rollback().execute();

    expect([await effectsOf(kept), await effectsOf(dropped)]).toEqual([1, 0]);
    expect((await ledger.jobs.get(kept.jobId, globally)).status).toBe("SUCCEEDED");
    expect((await ledger.jobs.get(dropped.jobId, globally)).status).toBe("LEASED");
  });

  const failures: [string, (lease: Lease) => Body][] = [
    ["the lease is lost", (lease) => (trx) => effect(lease)(trx).then(() => expire(database, [lease.jobId]))],
    ["the body throws", (lease) => (trx) => effect(lease)(trx).then(() => Promise.reject(new Error("own")))],
    ["a statement of the body fails", (lease) => (trx) => effect(lease)(trx).then(() => failingIn(trx))],
    ["the body ignores a failed statement", (lease) => (trx) => effect(lease)(trx).then(() => ignoredIn(trx))],
  ];
  test.each(failures)("a caller who goes on after %s keeps nothing of it, and what was before", async (_, bodyOf) => {
    const lease = await leasedStep("going-on");
    const before = await leased(ledger, "before");

    await db.transaction().execute(async (trx) => {
      await ledger.in(trx).jobs.complete(before.lease, {}, effect(before.lease));
      await errorOf(ledger.in(trx).jobs.complete(lease, {}, bodyOf(lease)));
      await ledger.in(trx).jobs.enqueue("after", {});
    });

    expect(await effectsOf(lease)).toBe(0);
    expect(await effectsOf(before.lease)).toBe(1);
    expect((await ledger.jobs.get(lease.jobId, globally)).status).toBe("LEASED");
  });

  test("completions within completions are kept or taken back each for itself", async () => {
    const [outer, inner, lost] = [await leasedStep("outer"), await leasedStep("inner"), await leasedStep("lost")];
    await expire(database, [lost.jobId]);

    await ledger.jobs.complete(outer, {}, async (trx) => {
      await effect(outer)(trx);
      await ledger.in(trx).jobs.complete(inner, {}, effect(inner));
      expect(await codeOf(() => ledger.in(trx).jobs.complete(lost, {}, effect(lost)))).toBe("job.lease_owner_mismatch");
    });

    expect([await effectsOf(outer), await effectsOf(inner), await effectsOf(lost)]).toEqual([1, 1, 0]);
  });

  test.each(["repeatable read", "serializable"] as const)(
    "of level %s a step is refused before its body runs, and a job alone is not",
    async (level) => {
      const [step, { lease }] = [await leasedStep("level-step"), await leased(ledger, "level-job")];
      const ran: string[] = [];
      const inLevel = (of: Lease) =>
        db
          .transaction()
          .setIsolationLevel(level)
          .execute((trx) => ledger.in(trx).jobs.complete(of, {}, async () => ran.push(of.jobId)));

      expect(await codeOf(() => inLevel(step))).toBe("workflow.terminal_completion_unsupported_isolation");
      await inLevel(lease);

      expect(ran).toEqual([lease.jobId]);
    },
  );

  test("nothing is tried again", async () => {
    const { lease } = await leased(ledger, "callers-conflict");
    let calls = 0;
    const conflicting: Body = async (trx) => {
      calls += 1;
      await sql`select public.raise_until('40001', 1000)`.execute(trx);
    };

    await errorOf(db.transaction().execute((trx) => ledger.in(trx).jobs.complete(lease, {}, conflicting)));

    expect(calls).toBe(1);
  });
});

describe("round trips besides the body's", () => {
  const nothing: Body = async () => {};
  const counts: [string, () => Promise<Lease>, number, number][] = [
    ["a job", async () => (await leased(ledger, "counted")).lease, 3, 5],
    ["a step", () => leasedStep("counted-step"), 4, 8],
  ];

  test.each(counts)("of %s: alone, and in the caller's transaction", async (_, leaseOf, alone, inCallers) => {
    const [one, other] = [await leaseOf(), await leaseOf()];
    const first = await database.record(() => ledger.jobs.complete(one, {}, nothing));
    const second = await database.record(() =>
      db.transaction().execute((trx) => ledger.in(trx).jobs.complete(other, {}, nothing)),
    );

    expect(first.statements).toHaveLength(alone);
    expect(second.statements.slice(1, -1)).toHaveLength(inCallers);
  });
});

/** Writes one row for the job. */
function effect({ jobId }: Lease): Body {
  return (trx) => trx.insertInto("public.effects").values({ job_id: jobId }).execute();
}

async function failingIn(trx: Transaction<Service>): Promise<unknown> {
  return sql`select 1 / 0`.execute(trx);
}

async function ignoredIn(trx: Transaction<Service>): Promise<unknown> {
  return failingIn(trx).catch(() => {});
}

async function effectsOf({ jobId }: Lease): Promise<number> {
  const { rows } = await database.pool.query("select count(*)::int as n from public.effects where job_id = $1", [
    jobId,
  ]);
  return rows[0].n;
}

async function expectUntouched(lease: Lease): Promise<void> {
  expect(await effectsOf(lease)).toBe(0);
  expect((await ledger.jobs.get(lease.jobId, globally)).status).toBe("LEASED");
  expect(await ledger.jobs.heartbeat([lease])).toMatchObject([{ state: "EXTENDED" }]);
}

async function leasedStep(type: string): Promise<Lease> {
  const graph = new WorkflowBuilder(type);
  const step = graph.job("step", type, {});
  graph.job("after", `${type}.after`, {}, { onSuccess: [step] });
  await ledger.runs.enqueue(graph.build());
  return (await claimedOne(ledger, type)).lease;
}

function serviceDb<DB = Service>(pool: pg.Pool = database.pool): Kysely<DB> {
  return new Kysely<DB>({ dialect: new PostgresDialect({ pool }) });
}
