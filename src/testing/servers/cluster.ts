/** The data directory of an embedded server: made once, then used again. */
import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { readFile, rename, rm, writeFile } from "node:fs/promises";
import { platform } from "node:os";
import { join } from "node:path";
import type { PostgresBinaries } from "./embedded-binaries.ts";
import type { Guard } from "./guard.ts";
import { lastLines } from "./last-lines.ts";
import { commandAs, giveTo, type SystemUser } from "./server-user.ts";

/** An initialised data directory. */
export interface Cluster {
  readonly data: string;
  readonly password: string;
}

/** What {@link initialiseCluster} works with. */
export interface ClusterOptions {
  readonly binaries: PostgresBinaries;
  readonly user: SystemUser | undefined;
  /** The server's own directory; it holds `data` and the superuser's `password`. */
  readonly directory: string;
  readonly durable: boolean;
  readonly guard: Guard;
}

/** Answers the cluster in the directory; runs `initdb` when there is none yet. */
export async function initialiseCluster(options: ClusterOptions): Promise<Cluster> {
  const data = join(options.directory, "data");
  const passwordFile = join(options.directory, "password");
  const known = await readFile(join(data, "PG_VERSION"), "utf8").catch(() => undefined);
  if (known !== undefined) return { data, password: await readFile(passwordFile, "utf8") };

  const password = randomBytes(18).toString("hex");
  await writeFile(passwordFile, password, { mode: 0o600 });
  await giveTo(options.user, passwordFile);

  // initdb works beside the final place: a directory under that name is always complete.
  const unfinished = join(options.directory, "initdb");
  await rm(unfinished, { recursive: true, force: true });
  await runInitdb(options, unfinished, passwordFile);
  await rename(unfinished, data);
  return { data, password };
}

async function runInitdb(options: ClusterOptions, data: string, passwordFile: string): Promise<void> {
  const { binaries, user, directory, durable, guard } = options;
  const args = [
    `--pgdata=${data}`,
    "--username=postgres",
    `--pwfile=${passwordFile}`,
    "--auth=scram-sha-256",
    "--encoding=UTF8",
    `--locale=${platform() === "linux" ? "C.UTF-8" : "C"}`,
    "--lc-messages=C",
    ...(durable ? [] : ["--no-sync"]),
  ];
  const command = await commandAs(user, binaries.initdb, args, [join(directory, "data")]);
  const child = spawn(command.file, command.args, {
    ...command.options,
    cwd: "/",
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, LC_ALL: "C" },
  });
  const output = lastLines(child.stdout, child.stderr);
  await new Promise<void>((resolve, reject) => {
    child.on("error", (error) => reject(new Error(`${command.file} could not be run`, { cause: error })));
    child.on("close", (code, signal) =>
      code === 0 ? resolve() : reject(new Error(`initdb failed (${signal ?? code}):\n${output()}`)),
    );
    guard.watch(child.pid);
  }).finally(() => guard.watch(undefined));
}
