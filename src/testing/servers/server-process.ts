/** Runs `postgres` on a free port of this machine and waits until it takes connections. */
import { type ChildProcess, spawn } from "node:child_process";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Cluster } from "./cluster.ts";
import type { PostgresBinaries } from "./embedded-binaries.ts";
import { freePort } from "./free-port.ts";
import type { Guard } from "./guard.ts";
import { lastLines } from "./last-lines.ts";
import { type PostgresSettings, settingFlags } from "./server.ts";
import { commandAs, type SystemUser } from "./server-user.ts";
import { clearStaleLock } from "./stale-lock.ts";

const START_PATIENCE_MS = 60_000;
const PORT_ATTEMPTS = 3;

/** What {@link startServerProcess} works with. */
export interface ServerProcessOptions {
  readonly binaries: PostgresBinaries;
  readonly user: SystemUser | undefined;
  readonly cluster: Cluster;
  readonly guard: Guard;
  readonly settings: PostgresSettings;
}

/** Starts the server; the guard owns it from here on. */
export async function startServerProcess(options: ServerProcessOptions): Promise<{ readonly port: number }> {
  await clearStaleLock(options.cluster.data);
  for (let attempt = 1; ; attempt += 1) {
    const port = await freePort();
    const failure = await startOnPort(options, port);
    if (failure === undefined) return { port };
    // Another process may have taken the port since it was found free.
    if (attempt === PORT_ATTEMPTS || !failure.includes("Address already in use")) {
      throw new Error(`PostgreSQL did not start:\n${failure}`);
    }
  }
}

async function startOnPort(options: ServerProcessOptions, port: number): Promise<string | undefined> {
  const { binaries, user, cluster, guard } = options;
  // No Unix socket: its directory would be one more thing to find, to secure and to clean up.
  const place = { listen_addresses: "127.0.0.1", port: String(port), unix_socket_directories: "" };
  const args = ["-D", cluster.data, ...settingFlags({ ...options.settings, ...place })];
  const command = await commandAs(user, binaries.postgres, args, [cluster.data]);
  const server = spawn(command.file, command.args, {
    ...command.options,
    cwd: "/",
    detached: true,
    stdio: ["ignore", "ignore", "pipe"],
    env: { ...process.env, LC_ALL: "C" },
  });
  guard.watch(server.pid);
  const output = lastLines(server.stderr);

  let ended: string | undefined;
  server.on("error", (error) => {
    ended = `${command.file} could not be run: ${error.message}`;
  });
  server.on("close", (code, signal) => {
    ended ??= `postgres ended (${signal ?? code})`;
    guard.watch(undefined);
  });

  const deadline = Date.now() + START_PATIENCE_MS;
  while (ended === undefined && Date.now() < deadline) {
    if (await isReady(cluster.data, server)) {
      letGo(server);
      return undefined;
    }
    await sleep(10);
  }
  return `${ended ?? `not ready after ${START_PATIENCE_MS} ms`}\n${output()}`;
}

/** `postmaster.pid` is how `pg_ctl` knows it too: the first line names the server, the eighth its state. */
async function isReady(data: string, server: ChildProcess): Promise<boolean> {
  const lines = (await readFile(join(data, "postmaster.pid"), "utf8").catch(() => "")).split("\n");
  return Number(lines[0]) === server.pid && lines[7]?.trim() === "ready";
}

/** A program that forgets to stop its server must still be able to end. */
function letGo(server: ChildProcess): void {
  server.unref();
  if (server.stderr !== null && "unref" in server.stderr && typeof server.stderr.unref === "function") {
    server.stderr.unref();
  }
}
