/** Keys and limits: after the same calls by SQL, by TypeScript and by both in turns, all answers and all rows are the same. */
import { afterEach, expect, test } from "@jest/globals";
import fc from "fast-check";
import { createLedger, type EnqueuedJob, isLedgerError, type JobOptions, type Lease } from "../../src/index.ts";
import { expectInvariants } from "../invariants.ts";
import { createTestDatabase } from "../support/database.ts";
import { manyBySql } from "./by-sql.ts";

const database = await createTestDatabase();
const { db, pool } = database;
const ledger = createLedger({ db });

afterEach(() => expectInvariants(database));

interface Request {
  readonly payload: unknown;
  readonly options: JobOptions;
}

type Step =
  | { readonly enqueue: readonly Request[]; readonly bySql: boolean }
  /** What has happened meanwhile: keys expired, jobs fell due, were claimed, were tried again, went on, or ended. */
  | { readonly happened: Happening };

const events = ["expiry", "due", "claim", "retry", "slice", "end"] as const;
type Happening = (typeof events)[number];

const organizations = [null, "00000000-0000-7000-8000-00000000000a"] as const;
const far = "2100-01-01T00:00:00.000123Z";

// Thousands of seconds: so that the time that the calls take makes no difference.
const seconds = fc.constantFrom(1000, 3000);
const key = fc.constantFrom("k", "other k");
const keyed: fc.Arbitrary<JobOptions> = fc.oneof(
  fc.constant({}),
  fc.record({ runAt: fc.constant(far) }),
  fc.record({ idempotencyKey: key }),
  fc.record({ idempotencyKey: key, idempotencyTtlSeconds: seconds, runAt: fc.constant(far) }),
  fc.record({ idempotencyKey: key, idempotencyTtlSeconds: seconds }),
  fc.record({ active: fc.record({ key }) }),
  fc.record({ active: fc.record({ key, replace: fc.boolean() }) }),
  fc.record({ active: fc.record({ key, replace: fc.constant(true) }), runAt: fc.constant(far) }),
  fc.record({ debounce: fc.record({ key, seconds }) }),
  fc.record({ debounce: fc.record({ key, seconds, maxSeconds: fc.constantFrom(3000, 5000) }) }),
  fc.record({ throttle: fc.record({ key, seconds }) }),
);
// Wide enough that all that is due can be claimed at once.
const rate = fc.record({ starts: fc.constantFrom(1000, 2000), periodSeconds: fc.constantFrom(0.5, 60) });
const concurrency = fc.constantFrom(1000, 2000);
const limit = fc.oneof(fc.record({ concurrency }), fc.record({ rate }), fc.record({ concurrency, rate }));
const settings = fc.record(
  {
    priority: fc.constantFrom(1, 200),
    maxAttempts: fc.constantFrom(1, 3),
    timeoutSeconds: fc.constantFrom(5, 50),
    tags: fc.constantFrom([], ["a", 'b"\\']),
    organizationId: fc.constantFrom(...organizations),
    limit: limit.map((of) => ({ key: "limit", ...of })),
  },
  { requiredKeys: [] },
);
const request = fc.record({
  payload: fc.constantFrom(1, 2),
  options: fc.tuple(keyed, settings).map(([one, other]) => ({ ...one, ...other })),
});
const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.record({ enqueue: fc.array(request, { minLength: 1, maxLength: 5 }), bySql: fc.boolean() }),
  },
  { weight: 3, arbitrary: fc.record({ happened: fc.constantFrom(...events) }) },
);

let worlds = 0;

/** Jobs and keys of a type of their own. */
function newWorld() {
  worlds += 1;
  const type = `world ${worlds}`;
  const ids: string[] = [];
  const leases: Lease[] = [];
  const leased = () => leases.splice(0);
  const happenings: Record<Happening, () => Promise<unknown>> = {
    expiry: () =>
      pool.query(
        "update runledger.job_idempotency_keys set expires_at = clock_timestamp() where type = $1 and expires_at is not null",
        [type],
      ),
    due: () =>
      pool.query("update runledger.job_queue set run_at = enqueued_at where type = $1 and run_at < '2090-01-01'", [
        type,
      ]),
    claim: async () => {
      for (;;) {
        const jobs = await ledger.jobs.claim({ workerId: "w", limit: 100, types: [type] });
        if (jobs.length === 0) break;
        leases.push(...jobs.map(({ lease }) => lease));
      }
    },
    retry: () =>
      Promise.all(
        leased().map(async (lease) => {
          await ledger.jobs.progress(lease, { done: 1, total: 2 });
          await ledger.jobs.checkpoint(lease, 1);
          await ledger.jobs.fail(lease, { code: "c", message: "m" });
        }),
      ),
    slice: () => Promise.all(leased().map((lease) => ledger.jobs.continue(lease))),
    end: () => Promise.all(leased().map((lease) => ledger.jobs.complete(lease))),
  };
  return {
    async enqueue(requests: readonly Request[], bySql: boolean): Promise<unknown> {
      const jobs = requests.map(({ payload, options: { limit, ...options } }) => ({
        type,
        payload,
        ...options,
        ...(limit && { limit: { ...limit, key: `${type} ${limit.key}` } }),
      }));
      try {
        return (bySql ? await manyBySql(db, jobs) : await ledger.jobs.enqueueMany(jobs)).map(named);
      } catch (error) {
        // The functions in SQL have the code as the hint.
        return isLedgerError(error) ? error.code : Reflect.get(Object(error), "hint");
      }
    },
    happen: (what: Happening) => happenings[what](),
    state: () => stateOf(type),
  };

  function named({ id, ...answer }: EnqueuedJob) {
    if (!ids.includes(id)) ids.push(id);
    return { ...answer, job: ids.indexOf(id) };
  }
}

/** All that the calls wrote, without ids, and times to the thousand seconds. */
async function stateOf(type: string): Promise<unknown> {
  const about = (time: string, from: string) =>
    `case when ${time} < '2090-01-01' then round(extract(epoch from ${time} - ${from}) / 1000)::text else ${time}::text end`;
  const queries = [
    `select to_jsonb(q) - '{id,enqueued_at,leased_at,lease_expires_at}'::text[] || jsonb_build_object('run_at', ${about("run_at", "enqueued_at")})
     from runledger.job_queue as q where type = $1`,
    `select to_jsonb(k) - '{job_id,created_at}'::text[] || jsonb_build_object('expires_at', ${about("expires_at", "created_at")})
     from runledger.job_idempotency_keys as k where type = $1`,
    `select to_jsonb(w) - '{id,job_id}'::text[] || jsonb_build_object('due_at', ${about("due_at", "now()")})
     from runledger.job_limit_wakes as w where key like $1 || ' %'`,
    `select to_jsonb(e) - '{id,job_id,at,details}'::text[] from runledger.job_events as e
     where job_id in (select id from runledger.jobs where type = $1)`,
  ];
  return Promise.all(
    queries.map(async (text) => {
      const { rows } = await pool.query({ text, values: [type], rowMode: "array" });
      return rows.map((row) => JSON.stringify(row).replaceAll(type, "world")).sort();
    }),
  );
}

/** What seldom comes by chance: a job that has been tried gives way to a newer request, which leaves it an attempt. */
const replaces = { active: { key: "k", replace: true } };
const triedBefore: Step[] = [
  { enqueue: [{ payload: 1, options: replaces }], bySql: false },
  { happened: "claim" },
  { happened: "retry" },
  { enqueue: [{ payload: 2, options: { ...replaces, maxAttempts: 1 } }], bySql: true },
];

test("of any calls, in any turns", async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 2, maxLength: 8 }), async (steps) => {
      const [own, sql, mixed] = [newWorld(), newWorld(), newWorld()];
      for (const next of steps) {
        if ("happened" in next) {
          for (const world of [own, sql, mixed]) await world.happen(next.happened);
          continue;
        }
        const answer = await own.enqueue(next.enqueue, false);
        expect(await sql.enqueue(next.enqueue, true)).toEqual(answer);
        expect(await mixed.enqueue(next.enqueue, next.bySql)).toEqual(answer);
      }
      const state = await own.state();
      expect(await sql.state()).toEqual(state);
      expect(await mixed.state()).toEqual(state);
    }),
    { numRuns: 40, examples: [[triedBefore]] },
  );
}, 180_000);
