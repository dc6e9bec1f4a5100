/** How attempts end (FEATURES F-J7), and cancel (F-J9). */
import { expect, test } from "@jest/globals";
import { v7 } from "uuid";
import { createLedger, defineJob, type Failure, type Lease, type Scope, WorkflowBuilder } from "../../src/index.ts";
import { createTestDatabase } from "../support/database.ts";
import { waitForBackend } from "../support/waiting.ts";
import { claimedOne, codeOf, everythingOf, expire, failure, globally, leased, makeDue, success } from "./fixtures.ts";

const database = await createTestDatabase();
const ledger = createLedger({ db: database.db });

test("a success moves the job from the queue to the ledger, with its output", async () => {
  const { lease } = await leased(ledger, "succeeds", { payload: { in: 1 }, tags: ["t"] });
  await ledger.jobs.checkpoint(lease, { page: 1 });

  expect(await ledger.jobs.complete(lease, { output: { out: [1, null] } })).toEqual({
    status: "SUCCEEDED",
    runAt: null,
  });

  expect(await rowsOf(lease)).toMatchObject({
    queue: [],
    attempts: [],
    ledger: [
      {
        run_number: 1,
        status: "SUCCEEDED",
        attempt: 1,
        worker_id: "worker",
        payload: { in: 1 },
        checkpoint: { page: 1 },
        output: { out: [1, null] },
        tags: ["t"],
        failure_kind: null,
        error_code: null,
      },
    ],
  });
});

test("a success without output has none", async () => {
  const { lease } = await leased(ledger, "silent");
  await ledger.jobs.complete(lease);

  expect((await ledger.jobs.get(lease.jobId, globally)).output).toBeNull();
});

test.each(["RETRYABLE", "TIMEOUT"] as const)(
  "a failure of kind %s goes back to PENDING in the same run",
  async (kind) => {
    const { lease } = await leased(ledger, "retries", { payload: { in: 1 } });

    const settled = await ledger.jobs.fail(lease, { kind, code: "net.down", message: "No route." });

    expect(settled).toEqual({ status: "PENDING", runAt: expect.any(Date) });
    expect(await rowsOf(lease)).toMatchObject({
      ledger: [],
      queue: [
        {
          status: "PENDING",
          run_number: 1,
          attempt: 1,
          worker_id: null,
          leased_at: null,
          lease_expires_at: null,
          run_at: settled.runAt,
        },
      ],
      attempts: [
        {
          run_number: 1,
          attempt: 1,
          worker_id: "worker",
          failure_kind: kind,
          error_code: "net.down",
          error_message: "No route.",
        },
      ],
    });
  },
);

test.each(["TERMINAL", "PANICKED"] as const)(
  "a failure of kind %s is dead-lettered at once, with the payload as it was",
  async (kind) => {
    const { lease } = await leased(ledger, "dies", { payload: { in: 1 } });

    expect(await ledger.jobs.fail(lease, { kind, code: "bad.input", message: "No." })).toEqual({
      status: "DEAD_LETTERED",
      runAt: null,
    });

    expect(await rowsOf(lease)).toMatchObject({
      queue: [],
      ledger: [
        {
          status: "DEAD_LETTERED",
          failure_kind: kind,
          error_code: "bad.input",
          error_message: "No.",
          payload: { in: 1 },
          output: null,
        },
      ],
      attempts: [{ attempt: 1, failure_kind: kind }],
    });
  },
);

test.each(["RETRYABLE", "TIMEOUT"] as const)(
  "the last attempt's %s failure is dead-lettered, and each attempt has its row",
  async (kind) => {
    const type = `exhausted-${kind}`;
    let { lease } = await leased(ledger, type, { maxAttempts: 3 });
    for (const attempt of [1, 2]) {
      expect(await ledger.jobs.fail(lease, { kind, code: `c${attempt}`, message: "m" })).toMatchObject({
        status: "PENDING",
      });
      await makeDue(database, [lease.jobId]);
      lease = (await claimedOne(ledger, type)).lease;
    }

    expect(await ledger.jobs.fail(lease, { kind, code: "c3", message: "m" })).toEqual({
      status: "DEAD_LETTERED",
      runAt: null,
    });

    const { attempts, ledger: ended } = await rowsOf(lease);
    expect(attempts.map(({ attempt, error_code }) => [attempt, error_code])).toEqual([
      [1, "c1"],
      [2, "c2"],
      [3, "c3"],
    ]);
    expect(ended).toMatchObject([{ attempt: 3, failure_kind: kind, error_code: "c3" }]);
  },
);

const policies = [
  [
    "the default",
    undefined,
    [
      [0.5, 1],
      [1, 2],
      [2, 4],
      [4, 8],
    ],
  ],
  [
    "a fixed delay",
    { initialSeconds: 10, factor: 1, jitter: 0 },
    [
      [10, 10],
      [10, 10],
      [10, 10],
      [10, 10],
    ],
  ],
  [
    "by three, at most 50",
    { initialSeconds: 5, factor: 3, maxSeconds: 50, jitter: 0.2 },
    [
      [4, 5],
      [12, 15],
      [36, 45],
      [40, 50],
    ],
  ],
  [
    "all at random",
    { initialSeconds: 8, factor: 2, jitter: 1 },
    [
      [0, 8],
      [0, 16],
      [0, 32],
      [0, 64],
    ],
  ],
  [
    "at once",
    { initialSeconds: 0, factor: 2, jitter: 0.5 },
    [
      [0, 0],
      [0, 0],
      [0, 0],
      [0, 0],
    ],
  ],
] as const;

test.each(policies)("backoff by policy: %s", async (name, backoff, bounds) => {
  const type = `backoff-${name}`;
  if (backoff) await ledger.jobs.sync([defineJob(type, { backoff })]);
  const samples = 100;
  await ledger.jobs.enqueueMany(Array.from({ length: samples }, () => ({ type, payload: {}, maxAttempts: 100 })));
  for (const [low, high] of bounds) {
    const jobs = await ledger.jobs.claim({ workerId: "w", limit: samples, types: [type] });
    expect(jobs).toHaveLength(samples);
    await ledger.jobs.settle(jobs.map(({ lease }) => failure(lease)));
    const ids = jobs.map(({ lease }) => lease.jobId);
    const { rows } = await database.pool.query<{ delay: number }>(
      `select extract(epoch from q.run_at - a.ended_at)::float as delay
       from runledger.job_queue q join runledger.job_attempts a on a.job_id = q.id and a.attempt = q.attempt
       where q.id = any($1)`,
      [ids],
    );
    const delays = rows.map(({ delay }) => delay);
    // The two clock readings of one statement lie a moment apart.
    expect(Math.min(...delays)).toBeGreaterThanOrEqual(low - 0.1);
    expect(Math.max(...delays)).toBeLessThanOrEqual(high + 0.1);
    if (high - low >= 1) {
      expect(Math.max(...delays) - Math.min(...delays)).toBeGreaterThan((high - low) / 2);
      expect(new Set(delays.map((delay) => delay.toFixed(3))).size).toBeGreaterThan(samples / 4);
    }
    await makeDue(database, ids);
  }
});

test("backoff by error code: what it sets stands in place of the type's own, for that code only", async () => {
  const backoff = {
    initialSeconds: 4,
    factor: 1,
    jitter: 0,
    byCode: { "rate.limited": { initialSeconds: 100, factor: 3, maxSeconds: 800 }, gone: { initialSeconds: 0 } },
  };
  await ledger.jobs.sync([defineJob("by-code", { backoff })]);
  const bounds = { "rate.limited": [100, 300, 800], gone: [0, 0, 0], "net.down": [4, 4, 4] };
  for (const [code, delays] of Object.entries(bounds)) {
    let { lease } = await leased(ledger, "by-code");
    for (const delay of delays) {
      await ledger.jobs.fail(lease, { code, message: "m" });

      expect(Math.abs((await delayOf(lease)) - delay)).toBeLessThan(0.1);
      await makeDue(database, [lease.jobId]);
      lease = (await claimedOne(ledger, "by-code")).lease;
    }
    await ledger.jobs.complete(lease);
  }
});

test("backoff by error code: a lease that ran out has a code too, and notBefore can only make it longer", async () => {
  const backoff = { initialSeconds: 1, jitter: 0, byCode: { "job.lease_expired": { initialSeconds: 50 } } };
  await ledger.jobs.sync([defineJob("by-code-reaped", { backoff })]);
  const { lease } = await leased(ledger, "by-code-reaped");
  await expire(database, [lease.jobId]);
  await ledger.jobs.reap();

  expect(Math.abs((await delayOf(lease)) - 50)).toBeLessThan(0.1);
  await makeDue(database, [lease.jobId]);
  const again = await claimedOne(ledger, "by-code-reaped");
  const { runAt } = await ledger.jobs.fail(again.lease, {
    code: "job.lease_expired",
    message: "m",
    notBefore: "2999-01-01T00:00:00Z",
  });
  expect(runAt).toEqual(new Date("2999-01-01T00:00:00Z"));
});

/** From the end of the attempt to when the job is due again, both by the database's clock, in seconds. */
async function delayOf({ jobId, attempt }: Lease): Promise<number> {
  const { rows } = await database.pool.query<{ delay: number }>(
    `select extract(epoch from q.run_at - a.ended_at)::float as delay
     from runledger.job_queue q join runledger.job_attempts a on a.job_id = q.id and a.attempt = $2
     where q.id = $1`,
    [jobId, attempt],
  );
  return rows[0]?.delay ?? Number.NaN;
}

test("a backoff at a very high attempt is the maximum, not an overflow", async () => {
  await ledger.jobs.sync([
    defineJob("overflow", { backoff: { initialSeconds: 1, factor: 1000, maxSeconds: 100, jitter: 0 } }),
  ]);
  const { lease } = await leased(ledger, "overflow", { maxAttempts: 2_000_000_000 });
  await database.pool.query("update runledger.job_queue set attempt = 1999999999 where id = $1", [lease.jobId]);

  const { runAt } = await ledger.jobs.fail({ ...lease, attempt: 1_999_999_999 }, { code: "c", message: "m" });

  expect(Math.abs((runAt?.getTime() ?? 0) - Date.now() - 100_000)).toBeLessThan(60_000);
});

test("notBefore can only make the backoff longer", async () => {
  await ledger.jobs.sync([defineJob("not-before", { backoff: { initialSeconds: 3600, factor: 1, jitter: 0 } })]);
  const fail = async (notBefore: Failure["notBefore"] & (Date | string)) => {
    const { lease } = await leased(ledger, "not-before");
    return (await ledger.jobs.fail(lease, { code: "c", message: "m", notBefore })).runAt;
  };
  const far = new Date("2099-01-01T00:00:00.000Z");

  expect(await fail(far)).toEqual(far);
  expect(await fail("2099-01-01T00:00:00Z")).toEqual(far);
  const soon = await fail(new Date(Date.now() + 60_000));
  const past = await fail("2001-01-01T00:00:00Z");
  for (const runAt of [soon, past]) expect((runAt?.getTime() ?? 0) - Date.now()).toBeGreaterThan(3_000_000);
});

test("a batch settles each by its own outcome, answers in order, and a lost lease spoils nothing", async () => {
  const leases: Lease[] = [];
  for (let n = 0; n < 6; n += 1) leases.push((await leased(ledger, "batch")).lease);
  const [a, b, c, d, e, f] = leases as [Lease, Lease, Lease, Lease, Lease, Lease];
  await expire(database, [d.jobId]);

  const results = await ledger.jobs.settle([
    success(f, 6),
    failure(a),
    failure(b, "TERMINAL"),
    success(c),
    success(d),
    success({ ...e, attempt: 9 }),
    success(a),
  ]);

  expect(results.map((result) => (result.ok ? result.status : result.error.code))).toEqual([
    "SUCCEEDED",
    "PENDING",
    "DEAD_LETTERED",
    "SUCCEEDED",
    "job.lease_owner_mismatch",
    "job.lease_owner_mismatch",
    "job.lease_owner_mismatch",
  ]);
  expect(await ledger.jobs.settle([])).toEqual([]);
});

test("a batch with an old and the present lease of one job settles by the present one", async () => {
  const { lease: old } = await leased(ledger, "old-and-present");
  await expire(database, [old.jobId]);
  await ledger.jobs.reap();
  await makeDue(database, [old.jobId]);
  const { lease: present } = await claimedOne(ledger, "old-and-present");

  const results = await ledger.jobs.settle([success(old, "old"), success(present, "present")]);

  expect(results.map((result) => (result.ok ? result.status : result.error.code))).toEqual([
    "job.lease_owner_mismatch",
    "SUCCEEDED",
  ]);
  expect((await ledger.jobs.get(old.jobId, globally)).output).toBe("present");
});

test("a step's batch with an old and the present lease settles by the present one", async () => {
  const graph = new WorkflowBuilder("old-and-present-step");
  graph.job("work", "old-and-present-step", {});
  const { id } = await ledger.runs.enqueue(graph.build());
  const { lease: old } = await claimedOne(ledger, "old-and-present-step");
  await expire(database, [old.jobId]);
  await ledger.jobs.reap();
  await makeDue(database, [old.jobId]);
  const { lease: present } = await claimedOne(ledger, "old-and-present-step");

  const results = await ledger.jobs.settle([failure(old, "TERMINAL"), success(present)]);

  expect(results.map((result) => (result.ok ? result.status : result.error.code))).toEqual([
    "job.lease_owner_mismatch",
    "SUCCEEDED",
  ]);
  expect((await ledger.runs.getStatus(id, globally)).status).toBe("SUCCEEDED");
});

test("many completions of one lease at once: one counts", async () => {
  const { lease } = await leased(ledger, "raced");

  const codes = await Promise.all(
    Array.from({ length: 10 }, (_, n) =>
      codeOf(() =>
        n % 2 === 0 ? ledger.jobs.complete(lease, { output: n }) : ledger.jobs.fail(lease, { code: "c", message: "m" }),
      ),
    ),
  );

  expect(codes.filter((code) => code === "job.lease_owner_mismatch")).toHaveLength(9);
});

test("batches that settle the same jobs in opposite order do not deadlock", async () => {
  await ledger.jobs.enqueueMany(Array.from({ length: 100 }, (_, n) => ({ type: "opposite", payload: n })));
  const jobs = await ledger.jobs.claim({ workerId: "w", limit: 100, types: ["opposite"] });
  const settlements = jobs.map(({ lease }) => success(lease));

  const { result, statements } = await database.record(() =>
    Promise.all(
      Array.from({ length: 8 }, (_, n) => ledger.jobs.settle(n % 2 === 0 ? settlements : [...settlements].reverse())),
    ),
  );

  expect(result.flat().filter(({ ok }) => ok)).toHaveLength(100);
  // Each tries all once, and asks again for those that others have ended.
  expect(statements.filter((text) => text.includes("complete_jobs"))).toHaveLength(8);
  expect(statements.length).toBeLessThanOrEqual(16);
});

test("an error's message is stored whatever is in it, up to 10 000 characters", async () => {
  const { lease } = await leased(ledger, "message");

  await ledger.jobs.fail(lease, { kind: "TERMINAL", code: "c", message: `\0\ud800${"x".repeat(20_000)}` });

  const { errorMessage } = await ledger.jobs.get(lease.jobId, globally);
  expect(errorMessage).toHaveLength(10_000);
  expect(errorMessage?.startsWith("��x")).toBe(true);
});

test("a cancelled PENDING job never starts; a LEASED one keeps its lease's end as a marker", async () => {
  const pending = await ledger.jobs.enqueue("cancel", {}, { tags: ["t"] });
  expect(await ledger.jobs.cancel(pending.id, { scope: globally, reason: "no longer\0" })).toEqual({
    id: pending.id,
    status: "CANCELED",
    canceled: true,
    leaseExpiresAt: null,
  });
  expect(await ledger.jobs.claim({ workerId: "w", limit: 1, types: ["cancel"] })).toEqual([]);
  expect(await ledger.jobs.get(pending.id, globally)).toMatchObject({
    status: "CANCELED",
    canceledReason: "no longer�",
    failureKind: null,
  });

  const { lease, leaseExpiresAt } = await leased(ledger, "cancel");
  expect(await ledger.jobs.cancel(lease.jobId, { scope: globally })).toMatchObject({ canceled: true, leaseExpiresAt });
  expect(await ledger.jobs.get(lease.jobId, globally)).toMatchObject({
    status: "CANCELED",
    leaseExpiresAt,
    workerId: "worker",
  });
});

test("a job that has ended is returned unchanged by a cancel", async () => {
  const { lease } = await leased(ledger, "cancel-ended");
  await ledger.jobs.complete(lease);
  const before = await everythingOf(database, lease.jobId);

  expect(await ledger.jobs.cancel(lease.jobId, { scope: globally })).toMatchObject({
    status: "SUCCEEDED",
    canceled: false,
  });

  expect(await everythingOf(database, lease.jobId)).toEqual(before);
});

test("a cancel goes by scope, and another tenant's job is not found", async () => {
  const organizationId = v7();
  const enqueue = () => ledger.jobs.enqueue("cancel-scoped", {}, { organizationId });
  const cancel = async (scope: Scope) => codeOf(async () => ledger.jobs.cancel((await enqueue()).id, { scope }));

  expect(await cancel(globally)).toBe("job.not_found");
  expect(await cancel({ organization: v7() })).toBe("job.not_found");
  expect(await cancel({ organization: organizationId })).toMatchObject({ resolved: { canceled: true } });
  expect(await cancel({ admin: true })).toMatchObject({ resolved: { canceled: true } });
  expect(await cancel({} as Scope)).toBe("scope.required");
});

test("a job of a workflow run refuses: live, ended, and whoever asks", async () => {
  const graph = new WorkflowBuilder("cancel-step");
  graph.job("work", "cancel-step", {});
  await ledger.runs.enqueue(graph.build());
  const { lease } = await claimedOne(ledger, "cancel-step");
  const before = await everythingOf(database, lease.jobId);

  expect(await codeOf(() => ledger.jobs.cancel(lease.jobId, { scope: { admin: true } }))).toBe(
    "job.workflow_requeue_not_supported",
  );
  expect(await everythingOf(database, lease.jobId)).toEqual(before);
  await ledger.jobs.complete(lease);
  expect(await codeOf(() => ledger.jobs.cancel(lease.jobId, { scope: globally }))).toBe(
    "job.workflow_requeue_not_supported",
  );
});

test.each(["completion", "retry"])("a cancel that waited for a %s goes by what it left", async (what) => {
  const { lease } = await leased(ledger, `cancel-waits-${what}`);
  const trx = await database.db.startTransaction().execute();
  const bound = ledger.in(trx);
  await (what === "completion" ? bound.jobs.complete(lease) : bound.jobs.fail(lease, { code: "c", message: "m" }));

  const canceling = ledger.jobs.cancel(lease.jobId, { scope: globally });
  await waitForBackend({ client: database.pool, marker: "runledger:cancel_job" });
  await trx.commit().execute();

  expect(await canceling).toMatchObject(
    what === "completion" ? { status: "SUCCEEDED", canceled: false } : { status: "CANCELED", canceled: true },
  );
});

test("50 cancels of one job at once: one cancels, the others find it cancelled", async () => {
  const { id } = await ledger.jobs.enqueue("cancel-crowd", {});

  const canceled = await Promise.all(Array.from({ length: 50 }, () => ledger.jobs.cancel(id, { scope: globally })));

  expect(canceled.filter((result) => result.canceled)).toHaveLength(1);
  expect(new Set(canceled.map(({ status }) => status))).toEqual(new Set(["CANCELED"]));
});

async function rowsOf({ jobId }: Lease) {
  const [queue, ended, attempts] = (await everythingOf(database, jobId)) as Record<string, unknown>[][];
  return { queue: queue ?? [], ledger: ended ?? [], attempts: attempts ?? [] };
}
