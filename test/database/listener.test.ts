/** One LISTEN connection for a process: shared, made anew after a loss, gone with its last subscriber. */
import { expect, test } from "@jest/globals";
import pg from "pg";
import { Listener } from "../../src/database/listener.ts";
import { createLedger } from "../../src/index.ts";
import { createTestDatabase } from "../support/database.ts";

const database = await createTestDatabase();

/** Only `pg.Client`s that were made for LISTEN carry this name. */
const NAME = "listener-under-test";

test("many subscribers share one connection, and each hears its own channel", async () => {
  const { listener } = listening();
  const heard: string[] = [];
  const ends = ["a", "a", "b"].map((channel, n) =>
    listener.subscribe(channel, (payload) => heard.push(`${n}${payload}`)),
  );
  await listener.ready();

  await database.pool.query("select pg_notify('a', '!'), pg_notify('b', '?')");
  await until(() => heard.length >= 3);

  expect(heard.sort()).toEqual(["0!", "1!", "2?"]);
  expect(await connections()).toHaveLength(1);
  for (const end of ends) end();
  await until(async () => (await connections()).length === 0);
});

test("a channel that is subscribed later is listened to on the same connection", async () => {
  const { listener, made } = listening();
  const end = listener.subscribe("early", () => {});
  await listener.ready();
  const heard: (string | null)[] = [];
  const endLate = listener.subscribe("late", (payload) => heard.push(payload));
  await listener.ready();

  await database.pool.query("select pg_notify('late', 'x')");
  await until(() => heard.length > 0);

  expect(heard).toEqual(["x"]);
  expect(made()).toBe(1);
  end();
  endLate();
});

test("the connection goes when the last subscriber does, not before", async () => {
  const { listener } = listening();
  const endOne = listener.subscribe("a", () => {});
  const endTwo = listener.subscribe("b", () => {});
  await listener.ready();

  endOne();
  endOne();
  expect(await connections()).toHaveLength(1);
  endTwo();
  await until(async () => (await connections()).length === 0);
});

test("whoever comes after the last gets a new connection", async () => {
  const { listener, made } = listening();
  const end = listener.subscribe("a", () => {});
  await listener.ready();
  end();
  const heard: (string | null)[] = [];
  const endAgain = listener.subscribe("a", (payload) => heard.push(payload));
  await listener.ready();

  await database.pool.query("select pg_notify('a', 'again')");
  await until(() => heard.length > 0);

  expect(made()).toBe(2);
  endAgain();
});

test("a subscription that ends before there is a connection leaves none", async () => {
  const { listener } = listening();
  const end = listener.subscribe("a", () => {});
  const ready = listener.ready();
  end();
  await ready;

  await until(async () => (await connections()).length === 0);
});

test("a lost connection is made again, and every subscriber is told of the gap by null", async () => {
  const { listener, errors } = listening();
  const heard: (string | null)[] = [];
  const ends = ["a", "b"].map((channel) => listener.subscribe(channel, (payload) => heard.push(payload)));
  await listener.ready();
  const before = await connections();

  await database.pool.query("select pg_terminate_backend($1)", [before[0]]);
  await until(() => heard.length === 2);

  expect(heard).toEqual([null, null]);
  expect(errors.length).toBeGreaterThan(0);
  const after = await connections();
  expect(after).toHaveLength(1);
  expect(after).not.toEqual(before);
  await database.pool.query("select pg_notify('a', 'after'), pg_notify('b', 'after')");
  await until(() => heard.length === 4);
  expect(heard.slice(2)).toEqual(["after", "after"]);
  for (const end of ends) end();
});

test("a server that is away at first is tried again until it is there", async () => {
  let away = 2;
  const { listener, errors, made } = listening(() => {
    away -= 1;
    return away >= 0 ? new pg.Client("postgres://nobody@127.0.0.1:1/none") : undefined;
  });
  const heard: (string | null)[] = [];
  const end = listener.subscribe("a", (payload) => heard.push(payload));

  await until(() => heard.length > 0);

  expect(heard).toEqual([null]);
  expect(errors).toHaveLength(2);
  expect(made()).toBe(3);
  end();
});

test("a source that throws is reported and tried again", async () => {
  let broken = true;
  const { listener, errors } = listening(() => {
    if (!broken) return undefined;
    broken = false;
    throw new RangeError("no connection could be made");
  });
  const heard: (string | null)[] = [];
  const end = listener.subscribe("a", (payload) => heard.push(payload));

  await until(() => heard.length > 0);

  expect(errors).toEqual([expect.any(RangeError)]);
  end();
});

test("a handler that throws does not keep the announcement from the others", async () => {
  const { listener, errors } = listening();
  const heard: (string | null)[] = [];
  const endBad = listener.subscribe("a", () => {
    throw new RangeError("the handler's own");
  });
  const endGood = listener.subscribe("a", (payload) => heard.push(payload));
  await listener.ready();

  await database.pool.query("select pg_notify('a', 'one')");
  await until(() => heard.length === 1);
  const [pid] = await connections();
  await database.pool.query("select pg_terminate_backend($1)", [pid]);
  await until(() => heard.length === 2);

  expect(heard).toEqual(["one", null]);
  expect(errors.filter((error) => error instanceof RangeError)).toHaveLength(2);
  endBad();
  endGood();
});

test("one handler in two subscriptions stays until both have ended", async () => {
  const { listener } = listening();
  const heard: (string | null)[] = [];
  const handler = (payload: string | null) => heard.push(payload);
  const endOne = listener.subscribe("a", handler);
  const endTwo = listener.subscribe("a", handler);
  await listener.ready();

  endOne();
  await database.pool.query("select pg_notify('a', 'x')");
  await until(() => heard.length > 0);

  expect(heard).toEqual(["x"]);
  endTwo();
  await until(async () => (await connections()).length === 0);
});

test("the ledger announces runnable jobs once a statement, and not those of the future", async () => {
  const ledger = createLedger({ db: database.db, listen: client });
  const quiet = createLedger({ db: database.db, notify: false });
  const heard: (string | null)[] = [];
  const end = ledger.onJobs((payload) => heard.push(payload));
  await until(async () => (await listeningTo()).includes("runledger_jobs"));

  await quiet.jobs.enqueue("announced", {});
  await ledger.jobs.enqueue("announced", {}, { runAt: "2100-01-01T00:00:00Z" });
  await ledger.jobs.enqueueMany(Array.from({ length: 50 }, () => ({ type: "announced", payload: {} })));
  await database.pool.query("select pg_notify('runledger_jobs', 'last')");
  await until(() => heard.includes("last"));

  expect(heard).toEqual(["", "last"]);
  end?.();
  expect(createLedger({ db: database.db }).onJobs(() => {})).toBeNull();
});

function client(): pg.Client {
  return new pg.Client({ connectionString: database.url, application_name: NAME });
}

function listening(instead: () => pg.Client | undefined = () => undefined) {
  let count = 0;
  const errors: unknown[] = [];
  const source = () => {
    count += 1;
    return instead() ?? client();
  };
  return { listener: new Listener(source, (error) => errors.push(error)), errors, made: () => count };
}

async function connections(): Promise<number[]> {
  const { rows } = await database.pool.query<{ pid: number }>(
    "select pid from pg_stat_activity where application_name = $1 and datname = current_database()",
    [NAME],
  );
  return rows.map(({ pid }) => pid);
}

/** The last statement of the LISTEN connections: the channels that they have got to. */
async function listeningTo(): Promise<string> {
  const { rows } = await database.pool.query<{ query: string }>(
    "select query from pg_stat_activity where application_name = $1 and state = 'idle' and datname = current_database()",
    [NAME],
  );
  return rows.map(({ query }) => query).join();
}

async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = Date.now() + 10_000;
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error("it did not come to pass within ten seconds");
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}
