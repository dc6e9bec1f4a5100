/** One LISTEN connection for a process: shared, made anew after a loss, gone with its last subscriber. */
import { describe, expect, test } from "@jest/globals";
import pg from "pg";
import { Listener } from "../../src/database/listener.ts";
import { createLedger } from "../../src/index.ts";
import { createTestDatabase } from "../support/database.ts";
import { until } from "../support/waiting.ts";

const database = await createTestDatabase();

/** Only `pg.Client`s that were made for LISTEN carry this name. */
const NAME = "listener-under-test";

test("many subscribers share one connection, and each hears its own channel", async () => {
  const { listener } = listening();
  const subscriptions = ["a", "a", "b"].map((channel) => subscribed(listener, channel));
  await Promise.all(subscriptions.map(({ told }) => told()));

  await database.pool.query("select pg_notify('a', '!'), pg_notify('b', '?')");
  await until(() => subscriptions.every(({ heard }) => heard.length > 1));

  expect(subscriptions.map(({ heard }) => heard)).toEqual([
    [null, "!"],
    [null, "!"],
    [null, "?"],
  ]);
  expect(await connections()).toHaveLength(1);
  for (const { end } of subscriptions) end();
  await until(async () => (await connections()).length === 0);
});

test("a channel that is subscribed later is listened to on the same connection", async () => {
  const { listener, made } = listening();
  const early = subscribed(listener, "early");
  await early.told();
  const late = subscribed(listener, "late");
  await late.told();

  await database.pool.query("select pg_notify('late', 'x')");
  await until(() => late.heard.length > 1);

  expect(late.heard).toEqual([null, "x"]);
  expect(early.heard).toEqual([null]);
  expect(made()).toBe(1);
  early.end();
  late.end();
});

describe("null tells a subscriber to look for itself", () => {
  test("once the channel is listened to: what is announced after it is heard, what came before is not", async () => {
    const { listener } = listening();
    await database.pool.query("select pg_notify('a', 'before')");
    const { heard, told, end } = subscribed(listener, "a");
    expect(heard).toEqual([]);
    await told();
    await database.pool.query("select pg_notify('a', 'after')");
    await until(() => heard.length > 1);

    expect(heard).toEqual([null, "after"]);
    end();
  });

  test("at once, and after subscribe has returned, when the channel is listened to already", async () => {
    const { listener } = listening();
    const first = subscribed(listener, "a");
    await first.told();
    const second = subscribed(listener, "a");
    const heardAtOnce = [...second.heard];
    await Promise.resolve();

    expect(heardAtOnce).toEqual([]);
    expect(second.heard).toEqual([null]);
    expect(first.heard).toEqual([null]);
    first.end();
    second.end();
  });

  test("once, however many come before there is a connection", async () => {
    const { listener } = listening();
    const all = Array.from({ length: 5 }, () => subscribed(listener, "a"));
    await Promise.all(all.map(({ told }) => told()));
    await database.pool.query("select pg_notify('a', 'last')");
    await until(() => all.every(({ heard }) => heard.includes("last")));

    expect(all.map(({ heard }) => heard)).toEqual(all.map(() => [null, "last"]));
    for (const { end } of all) end();
  });

  test("not when it has left before", async () => {
    const { listener } = listening();
    const stays = subscribed(listener, "a");
    const leaves = subscribed(listener, "a");
    leaves.end();
    await stays.told();
    const leavesAtOnce = subscribed(listener, "a");
    leavesAtOnce.end();
    await Promise.resolve();

    expect([...leaves.heard, ...leavesAtOnce.heard]).toEqual([]);
    stays.end();
  });
});

test("the connection goes when the last subscriber does, not before", async () => {
  const { listener } = listening();
  const [one, two] = [subscribed(listener, "a"), subscribed(listener, "b")];
  await Promise.all([one.told(), two.told()]);

  one.end();
  one.end();
  expect(await connections()).toHaveLength(1);
  two.end();
  await until(async () => (await connections()).length === 0);
});

test("whoever comes after the last gets a new connection", async () => {
  const { listener, made } = listening();
  const before = subscribed(listener, "a");
  await before.told();
  before.end();
  const again = subscribed(listener, "a");
  await again.told();

  await database.pool.query("select pg_notify('a', 'again')");
  await until(() => again.heard.length > 1);

  expect(made()).toBe(2);
  expect(before.heard).toEqual([null]);
  again.end();
});

test("a subscription that ends before there is a connection leaves none", async () => {
  const { listener, made } = listening();
  const { heard, end } = subscribed(listener, "a");
  await until(() => made() === 1);
  end();

  await until(async () => (await connections()).length === 0);
  expect(heard).toEqual([]);
});

test("a lost connection is made again, and every subscriber is told of the gap by null", async () => {
  const { listener, errors } = listening();
  const both = ["a", "b"].map((channel) => subscribed(listener, channel));
  await Promise.all(both.map(({ told }) => told()));
  const before = await connections();

  await database.pool.query("select pg_terminate_backend($1)", [before[0]]);
  await Promise.all(both.map(({ told }) => told(2)));

  expect(both.map(({ heard }) => heard)).toEqual([
    [null, null],
    [null, null],
  ]);
  expect(errors.length).toBeGreaterThan(0);
  const after = await connections();
  expect(after).toHaveLength(1);
  expect(after).not.toEqual(before);
  await database.pool.query("select pg_notify('a', 'after'), pg_notify('b', 'after')");
  await until(() => both.every(({ heard }) => heard.includes("after")));
  for (const { end } of both) end();
});

test("a connection that breaks while it is told to listen is made again, once", async () => {
  let breaking = true;
  const { listener, errors, made } = listening(() => {
    if (!breaking) return undefined;
    breaking = false;
    return breakingClient();
  });
  const { heard, end, told } = subscribed(listener, "a");
  await told();
  // Longer than a second attempt would wait for its turn.
  await database.pool.query("select pg_sleep(0.5)");

  const left = await connections();
  end();

  expect(heard).toEqual([null]);
  expect(errors).toHaveLength(1);
  expect(made()).toBe(2);
  expect(left).toHaveLength(1);
  await until(async () => (await connections()).length === 0);
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
  const endBad = listener.subscribe("a", () => {
    throw new RangeError("the handler's own");
  });
  const good = subscribed(listener, "a");
  await good.told();

  await database.pool.query("select pg_notify('a', 'one')");
  await until(() => good.heard.includes("one"));
  const [pid] = await connections();
  await database.pool.query("select pg_terminate_backend($1)", [pid]);
  await good.told(2);

  expect(good.heard).toEqual([null, "one", null]);
  expect(errors.filter((error) => error instanceof RangeError)).toHaveLength(3);
  endBad();
  good.end();
});

test("one handler in two subscriptions stays until both have ended", async () => {
  const { listener } = listening();
  const heard: (string | null)[] = [];
  const handler = (payload: string | null) => heard.push(payload);
  const endOne = listener.subscribe("a", handler);
  const endTwo = listener.subscribe("a", handler);
  await until(() => heard.length === 2);

  endOne();
  await database.pool.query("select pg_notify('a', 'x')");
  await until(() => heard.length > 2);

  expect(heard).toEqual([null, null, "x"]);
  endTwo();
  await until(async () => (await connections()).length === 0);
});

test("the ledger announces runnable jobs once a statement, and not those of the future", async () => {
  const ledger = createLedger({ db: database.db, listen: client });
  const quiet = createLedger({ db: database.db, notify: false });
  const heard: (string | null)[] = [];
  const end = ledger.onJobs((payload) => heard.push(payload));
  await until(() => heard.length > 0);

  await quiet.jobs.enqueue("announced", {});
  await ledger.jobs.enqueue("announced", {}, { runAt: "2100-01-01T00:00:00Z" });
  await ledger.jobs.enqueueMany(Array.from({ length: 50 }, () => ({ type: "announced", payload: {} })));
  await database.pool.query("select pg_notify('runledger_jobs', 'last')");
  await until(() => heard.includes("last"));

  expect(heard).toEqual([null, "", "last"]);
  end?.();
  expect(createLedger({ db: database.db }).onJobs(() => {})).toBeNull();
});

/** Its socket is gone before the answer to LISTEN: the client's error event comes before the statement's own. */
function breakingClient(): pg.Client {
  const broken = client();
  broken.query = new Proxy(broken.query, {
    apply: (query, self, args: unknown[]) => {
      const answer = Reflect.apply(query, self, args);
      broken.connection.stream.destroy();
      return answer;
    },
  });
  return broken;
}

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

/** A subscription with what it heard; `told` resolves when it was told by null to look, for the first or nth time. */
function subscribed(listener: Listener, channel: string) {
  const heard: (string | null)[] = [];
  const end = listener.subscribe(channel, (payload) => heard.push(payload));
  const told = (times = 1) => until(() => heard.filter((payload) => payload === null).length >= times);
  return { heard, end, told };
}

async function connections(): Promise<number[]> {
  const { rows } = await database.pool.query<{ pid: number }>(
    "select pid from pg_stat_activity where application_name = $1 and datname = current_database()",
    [NAME],
  );
  return rows.map(({ pid }) => pid);
}
