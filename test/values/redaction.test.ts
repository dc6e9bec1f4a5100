/** Named fields are not shown to who looks, and are there for who works. */
import { describe, expect, test } from "@jest/globals";
import { Redaction } from "../../src/database/values/redaction.ts";
import type { JsonValue } from "../../src/index.ts";
import { handle, TerminalError } from "../../src/worker/index.ts";
import { claimedOne, codeOf, failure } from "../jobs/fixtures.ts";
import { globally, TestRun } from "../runs/fixtures.ts";
import { createTestDatabase } from "../support/database.ts";
import { startWorker } from "../worker/support.ts";
import { codec, ledgerWith } from "./support.ts";

const database = await createTestDatabase();
const redact = ["password", "card.number"];
const ledger = ledgerWith(database, { redact });
const everywhere = { admin: true } as const;

const secretive = { user: "u", password: "hunter22", card: { number: 4111111111111111, brand: "v" } };
const shown = { user: "u", password: "[redacted]", card: { number: "[redacted]", brand: "v" } };

describe("a redacted field", () => {
  const redaction = new Redaction(["password", "card.number", "a.b.c"]);
  test.each<[string, JsonValue, JsonValue]>([
    ["at any depth", { in: [{ password: "x" }] }, { in: [{ password: "[redacted]" }] }],
    ["whatever it holds", { password: { deep: [1] } }, { password: "[redacted]" }],
    ["null too", { password: null }, { password: "[redacted]" }],
    [
      "of a path, in lists too",
      { cards: 1, card: [{ number: 1 }, 2] },
      { cards: 1, card: [{ number: "[redacted]" }, 2] },
    ],
    ["of a path, below others", { x: { card: { number: 1 } } }, { x: { card: { number: "[redacted]" } } }],
    ["of a longer path", { a: { b: { c: 1, d: 2 } } }, { a: { b: { c: "[redacted]", d: 2 } } }],
    ["whose own name has a dot", { "card.number": 1 }, { "card.number": "[redacted]" }],
    ["and not of half a name", { discard: { number: 1 }, passwords: 1 }, { discard: { number: 1 }, passwords: 1 }],
    ["and not of half a path", { number: 1, b: { c: 1 } }, { number: 1, b: { c: 1 } }],
    ["and not of another case", { Password: 1 }, { Password: 1 }],
    ["and not a value of that name", ["password", { of: "password" }], ["password", { of: "password" }]],
  ])("is left out %s", (_what, value, expected) => {
    expect(redaction.redacted(value)).toEqual(expected);
  });

  test("may be anywhere in what is nested deeper than the stack: all of it is left out", () => {
    let deep: JsonValue = { password: "secret" };
    for (let depth = 0; depth < 50_000; depth += 1) deep = [deep];

    expect(redaction.redacted(deep)).toBe("[redacted]");
    expect(redaction.redactorOf([deep])("a secret")).toBe("[redacted]");
    expect(redaction.redacted(null)).toBeNull();
  });

  test("leaves the value itself as it was", () => {
    const value = { password: "x", in: { card: { number: 1 } } };
    redaction.redacted(value);

    expect(value).toEqual({ password: "x", in: { card: { number: 1 } } });
  });
});

describe.each([
  ["plain", ledger],
  ["under a codec", ledgerWith(database, { redact, codec })],
])("stored %s", (_how, own) => {
  test("a job is read without it, revealed on request, and claimed with it", async () => {
    const { id } = await own.jobs.enqueue("read", secretive);
    const job = await claimedOne(own, "read");
    await own.jobs.checkpoint(job.lease, [secretive]);
    await own.jobs.handBack([job.lease]);
    const again = await claimedOne(own, "read");
    await own.jobs.complete(again.lease, { output: { secretive } });

    expect([job.payload, again.checkpoint]).toEqual([secretive, [secretive]]);
    expect(await own.jobs.get(id, everywhere)).toMatchObject({
      payload: shown,
      checkpoint: [shown],
      output: { secretive: shown },
    });
    expect(await own.jobs.get(id, everywhere, { values: "revealed" })).toMatchObject({
      payload: secretive,
      checkpoint: [secretive],
      output: { secretive },
    });
  });

  test("a list and a log are read without it", async () => {
    const { id } = await own.jobs.enqueue("listed", secretive);
    const { lease } = await claimedOne(own, "listed");
    await own.jobs.log(lease, [
      { level: "info", message: "one", fields: secretive },
      { level: "info", message: "two" },
    ]);
    await own.jobs.settle([failure(lease, "TERMINAL")]);
    const newest = { scope: everywhere, type: "listed", limit: 1, payload: true } as const;
    const payloads = async (options?: { values: "revealed" }) =>
      [await own.jobs.list({ ...newest, ...options }), await own.jobs.deadLetters({ ...newest, ...options })].map(
        ({ jobs }) => jobs[0]?.payload,
      );
    const fields = async (options?: { values: "revealed" }) =>
      (await own.jobs.logs(id, everywhere, options)).lines.map((line) => line.fields);

    expect(await payloads()).toEqual([shown, shown]);
    expect(await payloads({ values: "revealed" })).toEqual([secretive, secretive]);
    expect(await fields()).toEqual([shown, null]);
    expect(await fields({ values: "revealed" })).toEqual([secretive, null]);
  });

  test("a run is read without it, and its steps and result have it", async () => {
    const run = await TestRun.start(database, own, { a: [], gate: [], b: ["a", "gate"] }, { result: "b" });
    await run.succeed("a", secretive);
    await own.steps.complete(run.id, "gate", { ...globally, output: [secretive] });
    const b = await run.claim("b");
    const found = await own.steps.prerequisites([b]);
    await own.jobs.complete(b.lease, { output: secretive });
    const outputs = async (options?: { values: "revealed" }) =>
      (await own.runs.get(run.id, globally.scope, options)).steps.map(({ output }) => output);
    const handle = own.runs.handle(run.id, globally);

    expect(found.get(b.lease.jobId)?.outputs).toEqual({ a: secretive, gate: [secretive] });
    expect(await own.runs.getResult(run.id, globally)).toEqual(secretive);
    expect(await outputs()).toEqual([shown, [shown], shown]);
    expect(await outputs({ values: "revealed" })).toEqual([secretive, [secretive], secretive]);
    expect((await handle.getRun()).steps[0]?.output).toEqual(shown);
    expect((await handle.getRun({ values: "revealed" })).steps[0]?.output).toEqual(secretive);
  });
});

test("a ledger that redacts nothing shows everything", async () => {
  const { id } = await ledger.jobs.enqueue("open", secretive);

  expect((await ledgerWith(database, {}).jobs.get(id, everywhere)).payload).toEqual(secretive);
});

describe("a message", () => {
  const redactor = ledger.redactor({ password: 'pass"word', card: { number: 4111111111111111 }, pin: 12 }, [
    { password: { old: ["first-one", "first"], short: "ab", flag: true, n: 4.5 } },
  ]);

  test.each([
    ["a text", 'no pass"word here', "no [redacted] here"],
    ["a text as JSON writes it", JSON.stringify({ p: 'pass"word' }), '{"p":"[redacted]"}'],
    ["a number", "card 4111111111111111 is refused", "card [redacted] is refused"],
    ["all of them, the longest first", "first-one first 4.5", "[redacted] [redacted] [redacted]"],
    ["nothing so short that it stands anywhere", "ab 12 true", "ab 12 true"],
  ])("loses %s", (_what, text, expected) => {
    expect(redactor(text)).toBe(expected);
  });

  test("of a handler's failure and log is stored and told without it", async () => {
    const handlers = [
      handle("mess", async ({ payload, log }) => {
        const text = JSON.stringify(payload);
        await log("warn", `got ${text}`, payload);
        // What becomes of the handler's own copy does not matter.
        Object.assign(payload as object, { password: "" });
        throw new TerminalError("test.mess", `cannot do ${text}`);
      }),
    ];
    const { id } = await ledger.jobs.enqueue("mess", secretive);
    const watched = await startWorker({ ledger, handlers });
    const { failure } = await watched.event("failed");

    const message = 'cannot do {"card":{"brand":"v","number":[redacted]},"user":"u","password":"[redacted]"}';
    expect(failure.message).toBe(message);
    expect((await ledger.jobs.get(id, everywhere)).errorMessage).toBe(message);
    const { rows } = await database.pool.query("select message from runledger.job_logs where job_id = $1", [id]);
    expect(rows).toEqual([{ message: message.replace("cannot do", "got") }]);
  });

  test("of a step's failure loses what its prerequisites and its checkpoint hold", async () => {
    const run = await TestRun.start(database, ledger, { a: [], b: ["a"] });
    await run.succeed("a", { password: "from-prerequisite" });
    const claimed = await run.claim("b");
    await ledger.jobs.checkpoint(claimed.lease, { password: "from-checkpoint" });
    await ledger.jobs.handBack([claimed.lease]);
    const handlers = [
      handle(`${run.type}.b`, ({ prerequisites, checkpoint }) => {
        throw `${JSON.stringify(prerequisites)} ${JSON.stringify(checkpoint)}`;
      }),
    ];
    const watched = await startWorker({ ledger, handlers });
    const { failure } = await watched.event("failed");

    expect(failure).toMatchObject({ kind: "PANICKED", message: expect.stringContaining("[redacted]") });
    expect(failure.message).not.toMatch(/from-/);
    const { rows } = await database.pool.query(
      `select error_message as message from runledger.job_ledger where id = $1 union all
       select error_message from runledger.job_attempts where job_id = $1 union all
       select error_message from runledger.workflow_steps where job_id = $1`,
      [claimed.lease.jobId],
    );
    expect(rows).toEqual(Array.from({ length: 3 }, () => ({ message: failure.message })));
  });
});

test.each([[""], ["a..b"], ["*"], ["card.*"], [" "], [5 as unknown as string]])("%j names no field", (path) => {
  expect(() => ledgerWith(database, { redact: [path] })).toThrow(expect.objectContaining({ code: "config.invalid" }));
});

test("a read knows three ways only", async () => {
  const { id } = await ledger.jobs.enqueue("ways", 1);
  const options = JSON.parse('{"values":"all"}');

  expect(await codeOf(() => ledger.jobs.get(id, everywhere, options))).toBe("input.invalid");
});
