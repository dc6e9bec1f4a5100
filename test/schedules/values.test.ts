/** A schedule's payload goes by the ledger's rules for values. */
import { randomBytes } from "node:crypto";
import { expect, test } from "@jest/globals";
import { aesGcmCodec, createLedger } from "../../src/index.ts";
import { createTestDatabase } from "../support/database.ts";
import { global, hourly, setBack } from "./fixtures.ts";

const database = await createTestDatabase();
const keys = { a: randomBytes(32), b: randomBytes(32) };
const under = (current: "a" | "b") =>
  createLedger({ db: database.db, values: { codec: aesGcmCodec({ keys, current }), redact: ["of"] } });
const ledger = under("a");

async function storedPayload(name: string): Promise<string> {
  const { rows } = await database.pool.query<{ payload: string }>(
    "select payload::text from runledger.job_schedules where name = $1",
    [name],
  );
  return rows[0]?.payload ?? "";
}

test("the payload is stored encoded, shown redacted, and decoded for the job of a tick", async () => {
  const definition = hourly();
  const { name } = definition;
  await ledger.schedules.upsert(definition);
  await setBack(database, name, 1);
  await ledger.schedules.fireDue();
  const [job] = await ledger.jobs.claim({ workerId: "w", limit: 1, types: [name] });

  expect(await storedPayload(name)).toMatch(/^\{"\$runledger": "a\./);
  expect((await ledger.schedules.get(name, global)).payload).toEqual({ of: "[redacted]" });
  expect((await ledger.schedules.get(name, global, { values: "revealed" })).payload).toEqual({ of: name });
  expect(job?.payload).toEqual({ of: name });
});

test("a sync writes an encoded payload again only when it is another, or the key is", async () => {
  const definition = hourly();
  await ledger.schedules.sync([definition]);

  expect(await ledger.schedules.sync([definition])).toMatchObject({ written: [] });
  expect(await under("b").schedules.sync([definition])).toMatchObject({ written: [definition.name] });
  expect(await storedPayload(definition.name)).toContain('"b.');
});

test("a schedule whose payload does not decode is set aside, and the others are fired", async () => {
  const [lost, kept] = [hourly(), hourly()];
  await under("b").schedules.upsert(lost);
  await ledger.schedules.upsert(kept);
  for (const { name } of [lost, kept]) await setBack(database, name, 1);
  const onlyA = createLedger({
    db: database.db,
    values: { codec: aesGcmCodec({ keys: { a: keys.a }, current: "a" }) },
  });
  const { fired, setAside } = await onlyA.schedules.fireDue();

  expect(fired.map(({ name }) => name)).toEqual([kept.name]);
  expect(setAside).toMatchObject([{ name: lost.name, error: { code: "payload.undecodable" } }]);
});
