/** A worker's options from environment variables, and the table of them in docs/worker.md (FEATURES F-R4). */
import { readFile } from "node:fs/promises";
import { resolve } from "node:path";
import { describe, expect, test } from "@jest/globals";
import { createLedger } from "../../src/index.ts";
import { variables } from "../../src/worker/environment.ts";
import { createWorker, type WorkerOptions, workerOptionsFrom } from "../../src/worker/index.ts";
import { settingsOf } from "../../src/worker/options.ts";
import { createTestDatabase } from "../support/database.ts";

const database = await createTestDatabase();
const ledger = createLedger({ db: database.db });

const everything = {
  RUNLEDGER_WORKER_CONCURRENCY: "7",
  RUNLEDGER_WORKER_LEASE_SECONDS: "30",
  RUNLEDGER_WORKER_POLL_INTERVAL_MS: "250",
  RUNLEDGER_WORKER_BATCH_SIZE: "40",
  RUNLEDGER_WORKER_PREFETCH: "0",
  RUNLEDGER_WORKER_ID: "pod-3",
  RUNLEDGER_WORKER_REAP: "on",
  RUNLEDGER_WORKER_REAP_INTERVAL_MS: "1000",
  RUNLEDGER_WORKER_SCHEDULE: "on",
  RUNLEDGER_WORKER_SCHEDULE_INTERVAL_MS: "2000",
  RUNLEDGER_WORKER_MAINTAIN: "on",
  RUNLEDGER_WORKER_MAINTAIN_INTERVAL_MS: "3000",
  RUNLEDGER_WORKER_MAINTAIN_RETENTION_INTERVAL_MS: "4000",
};

test("each variable sets its option, and together they are all there are", () => {
  expect(Object.keys(everything)).toEqual(Object.values(variables));
  expect(workerOptionsFrom(everything)).toEqual({
    concurrency: 7,
    leaseSeconds: 30,
    pollIntervalMs: 250,
    batchSize: 40,
    prefetch: 0,
    workerId: "pod-3",
    reap: { intervalMs: 1000 },
    schedule: { intervalMs: 2000 },
    maintain: { intervalMs: 3000, retentionIntervalMs: 4000 },
  });
});

test("what is not set is left to the code", () => {
  expect(Object.keys(workerOptionsFrom({ PATH: "/bin", RUNLEDGER_WORKER_BATCH_SIZE: undefined }))).toEqual([]);
  const settings = settingsOf({
    ledger,
    handlers: [],
    concurrency: 3,
    batchSize: 5,
    ...workerOptionsFrom({ RUNLEDGER_WORKER_CONCURRENCY: "4" }),
  });

  expect(settings).toMatchObject({ concurrency: 4, batchSize: 5, leaseSeconds: 60 });
});

test("without an argument it reads those of the process", () => {
  process.env.RUNLEDGER_WORKER_CONCURRENCY = "11";
  try {
    expect(workerOptionsFrom()).toEqual({ concurrency: 11 });
  } finally {
    delete process.env.RUNLEDGER_WORKER_CONCURRENCY;
  }
});

test("a role is switched on or off, whatever its interval", () => {
  const off = { RUNLEDGER_WORKER_REAP: "off", RUNLEDGER_WORKER_SCHEDULE: "off", RUNLEDGER_WORKER_MAINTAIN: "off" };
  const on = { RUNLEDGER_WORKER_REAP: "on", RUNLEDGER_WORKER_SCHEDULE: "on", RUNLEDGER_WORKER_MAINTAIN: "on" };
  const none = { reapIntervalMs: null, scheduleIntervalMs: null, maintain: null };

  expect(settingsFrom(off)).toMatchObject(none);
  expect(settingsFrom({ ...everything, ...off })).toMatchObject(none);
  expect(settingsFrom(on)).toEqual(settingsFrom({}));
});

describe("a variable is refused by its name", () => {
  const noInteger = ["", " ", "ten", "1.5", "-1", "+1", " 5", "5 ", "5\n", "0x10", "1e3", "1_000", "Infinity"];
  const noSwitch = ["", "true", "false", "1", "0", "yes", "ON", "on "];
  const role = /_(REAP|SCHEDULE|MAINTAIN)$/;
  const valuesOf = (name: string) => {
    if (name === "RUNLEDGER_WORKER_ID") return ["", "  ", "a\0b", "ü".repeat(257)];
    return role.test(name) ? noSwitch : noInteger;
  };

  test.each(Object.values(variables))("%s", (name) => {
    for (const value of valuesOf(name)) {
      const wrong = refusal({ ...everything, [name]: value });

      expect([value, wrong]).toMatchObject([value, { code: "config.invalid" }]);
      expect(String(wrong)).toContain(`${name} must be`);
    }
  });

  test("also where its role is off", () => {
    const wrong = { RUNLEDGER_WORKER_REAP: "off", RUNLEDGER_WORKER_REAP_INTERVAL_MS: "soon" };

    expect(String(refusal(wrong))).toContain("RUNLEDGER_WORKER_REAP_INTERVAL_MS must be");
  });

  test("and when there is none of that name, but for those that Kubernetes makes", () => {
    const links = {
      RUNLEDGER_WORKER_SERVICE_HOST: "10.0.0.7",
      RUNLEDGER_WORKER_SERVICE_PORT: "80",
      RUNLEDGER_WORKER_SERVICE_PORT_HTTP: "80",
      RUNLEDGER_WORKER_PORT: "tcp://10.0.0.7:80",
      RUNLEDGER_WORKER_PORT_80_TCP_ADDR: "10.0.0.7",
    };

    expect(workerOptionsFrom(links)).toEqual({});
    for (const name of ["RUNLEDGER_WORKER_CONCURENCY", "RUNLEDGER_WORKER_", "RUNLEDGER_WORKER_PORTS"]) {
      const wrong = refusal({ ...links, [name]: "5" });

      expect(wrong).toMatchObject({ code: "config.invalid", message: `There is no variable ${name}.` });
    }
  });
});

describe("the table in docs/worker.md", () => {
  test("has each variable with its option", async () => {
    const rows = await documented();

    expect(rows.map(({ option, name }) => [option, name])).toEqual(Object.entries(variables));
  });

  test("has the ranges that are checked", async () => {
    const ranges = (await documented()).flatMap(({ name, values }) => {
      const [, from, to] = /^([\d ]+) to ([\d ]+)$/.exec(values) ?? [];
      return from === undefined || to === undefined ? [] : [{ name, from: numberOf(from), to: numberOf(to) }];
    });

    expect(ranges).toHaveLength(9);
    for (const { name, from, to } of ranges) {
      const refused = (value: number) => refusal({ [name]: String(value) }) !== undefined;

      expect([name, [from, to].map(refused)]).toEqual([name, [false, false]]);
      expect([name, [from - 1, to + 1].map(refused)]).toEqual([name, [true, true]]);
    }
  });

  test("has the defaults", async () => {
    for (const { name, standard } of await documented()) {
      if (name === variables.workerId) continue;
      const value = standard.replaceAll(/[ `]/g, "");

      expect([name, settingsFrom({ [name]: value })]).toEqual([name, settingsFrom({})]);
    }
  });
});

/** A worker's settings, without what differs from one to the next. */
function settingsFrom(environment: Record<string, string>) {
  const options: WorkerOptions = { ledger, handlers: [], workerId: "one", ...workerOptionsFrom(environment) };
  const { onEvent: _onEvent, ...settings } = settingsOf(options);
  createWorker(options);
  return settings;
}

function refusal(environment: Record<string, string>): unknown {
  try {
    workerOptionsFrom(environment);
    return undefined;
  } catch (error) {
    return error;
  }
}

interface Row {
  readonly name: string;
  readonly option: string;
  readonly values: string;
  readonly standard: string;
}

async function documented(): Promise<Row[]> {
  const page = await readFile(resolve(import.meta.dirname, "../../docs/worker.md"), "utf8");
  const rows = [...page.matchAll(/^\| `(RUNLEDGER_\w+)` *\| `([\w.]+)` *\| (.*?) *\| (.*?) *\|$/gm)];
  return rows.map(([, name = "", option = "", values = "", standard = ""]) => ({ name, option, values, standard }));
}

function numberOf(text: string): number {
  return Number(text.replaceAll(" ", ""));
}
