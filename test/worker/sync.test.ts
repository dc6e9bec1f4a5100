/** At its start a worker tells the database what its code declares, before it claims (FEATURES F-J1, F-S2). */
import { expect, test } from "@jest/globals";
import { defineJob, type Ledger, typed } from "../../src/index.ts";
import { createWorker, handle, type WorkerOptions } from "../../src/worker/index.ts";
import { codeOf } from "../jobs/fixtures.ts";
import { global, hourly, newName } from "../schedules/fixtures.ts";
import { createTestDatabase } from "../support/database.ts";
import { waitForBackend } from "../support/waiting.ts";
import { ledgerOn, makeWorker, startWorker } from "./support.ts";

const database = await createTestDatabase();
const ledger = ledgerOn(database);

const handlersOf = (...types: string[]) =>
  types.map((type) => handle(defineJob(type, { input: typed<unknown>(), priority: 7 }), () => {}));
const definitionsOf = async (...types: string[]) => {
  const { rows } = await database.pool.query(
    "select type, priority, enabled from runledger.job_definitions where type = any($1) order by type",
    [types],
  );
  return rows;
};
const enabledIn = async (name: string, by: Ledger = ledger) => (await by.schedules.get(name, global)).enabled;

test("the handlers' definitions and the schedules are there when the worker has started", async () => {
  const [type, schedule] = [newName(), hourly({}, newName())];
  const nameless = handle("no-definition", () => {});
  await startWorker({ ledger, handlers: [...handlersOf(type), nameless], sync: { schedules: [schedule] } });

  expect(await definitionsOf(type, "no-definition")).toEqual([{ type, priority: 7, enabled: true }]);
  expect(await enabledIn(schedule.name)).toBe(true);
});

test("exact disables what the same catalogue holds no more, additive leaves it, and neither touches another catalogue's", async () => {
  const [kept, gone, other] = [newName(), newName(), newName()].sort();
  if (kept === undefined || gone === undefined || other === undefined) throw new Error("three names were made");
  const start = (types: string[], sync: WorkerOptions["sync"]) =>
    startWorker({ ledger, handlers: handlersOf(...types), sync: sync ?? true });
  const states = async () => ({
    definitions: (await definitionsOf(kept, gone, other)).map(({ enabled }) => enabled),
    schedules: [await enabledIn(kept), await enabledIn(gone), await enabledIn(other)],
  });
  const schedulesOf = (...names: string[]) => names.map((name) => hourly({}, name));
  await start([other], { catalogue: "others", schedules: schedulesOf(other) });
  await start([kept, gone], { catalogue: "own", schedules: schedulesOf(kept, gone) });

  await start([kept], { catalogue: "own", schedules: schedulesOf(kept) });
  expect(await states()).toEqual({ definitions: [true, true, true], schedules: [true, true, true] });
  await start([kept], { catalogue: "own", mode: "exact" });
  expect(await states()).toEqual({ definitions: [true, false, true], schedules: [true, true, true] });
  await start([kept], { catalogue: "own", mode: "exact", schedules: schedulesOf(kept) });
  expect(await states()).toEqual({ definitions: [true, false, true], schedules: [true, false, true] });
});

test("without it nothing is written", async () => {
  const type = newName();
  await startWorker({ ledger, handlers: handlersOf(type) });

  expect(await definitionsOf(type)).toEqual([]);
});

test("what it throws start throws, nothing is claimed, and the worker may be started again", async () => {
  const type = newName();
  const { id } = await ledger.jobs.enqueue(type, {});
  const schedules = [hourly({}, newName())];
  const { worker, count } = makeWorker({ ledger, handlers: handlersOf(type), sync: { schedules } });
  await database.pool.query("alter table runledger.job_schedules rename to job_schedules_away");
  expect(await codeOf(() => worker.start())).toBe("schema.missing");
  await database.pool.query("alter table runledger.job_schedules_away rename to job_schedules");
  expect(await ledger.jobs.get(id, { global: true })).toMatchObject({ status: "PENDING", attempt: 0 });

  await worker.start();
  await count("succeeded", 1);
});

test("a worker that is stopped while it syncs does not start, nor is it started twice", async () => {
  const type = newName();
  const holder = await database.connect();
  await holder.query("begin; lock table runledger.job_definitions in exclusive mode");
  const { worker, events } = makeWorker({ ledger, handlers: handlersOf(type), sync: true });
  const starting = codeOf(() => worker.start());
  await waitForBackend({ client: database.pool, marker: "sync_job_definitions" });
  expect(await codeOf(() => worker.start())).toBe("worker.invalid_state");
  await worker.stop();
  await holder.query("rollback");

  expect(await starting).toBe("worker.invalid_state");
  expect(events.map((event) => event.type)).toEqual(["stopped"]);
});

test.each([
  ["a word", { sync: "exact" }],
  ["null", { sync: null }],
  ["a mode that there is not", { sync: { mode: "exactly" } }],
  ["schedules that are no list", { sync: { schedules: {} } }],
  ["an option that there is not", { sync: { modus: "exact" } }],
])("sync as %s is refused when the worker is made", (_, wrong) => {
  const options = { ledger, handlers: handlersOf("refused"), ...wrong };
  expect(() => Reflect.apply(createWorker, undefined, [options])).toThrow(
    expect.objectContaining({ code: "config.invalid" }),
  );
});
