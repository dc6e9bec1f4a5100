/** The server of a test run: found or started once, in the runner's global set-up, for all of its test files. */
import { randomBytes } from "node:crypto";
import pg from "pg";
import type { PostgresServer } from "../servers/server.ts";
import { type StartPostgresOptions, startPostgres } from "../servers/start-postgres.ts";
import { dropDatabasesOf, dropLeftovers, sessionName } from "./leftovers.ts";
import { announcedRun, announceRun, type TestRun, withdrawRun } from "./test-run.ts";

/**
 * Starts (or finds, see {@link StartPostgresOptions}) the server for a test run and tells `testDatabase` of it, in this
 * process and in those that it starts from now on. Call it in the runner's global set-up. Where a run has
 * a server already, that one is answered, and it is left to whoever started it to stop it.
 *
 * A server that was started for this ends with the process, however the process ends. On one that was there before, `stop`
 * drops the run's databases; those of a run that was killed are dropped by the next run. Templates are kept
 * there for the next run, and dropped when none has used them for a week.
 *
 * ```ts
 * // global-setup.mjs, for jest and for vitest; without options `runledger/testing/setup` is such a file
 * import { startTestServer } from "runledger/testing";
 *
 * export default async () => {
 *   const server = await startTestServer({ image: "postgres:16-alpine" });
 *   return server.stop; // vitest calls it in the end; under jest a server of its own ends with the process
 * };
 * ```
 */
export async function startTestServer(options: StartPostgresOptions = {}): Promise<PostgresServer> {
  const known = announcedRun();
  if (known !== undefined) return { url: known.url, kind: "url", stop: async () => {} };
  const server = await startPostgres(options);
  try {
    const run: TestRun = { id: randomBytes(6).toString("hex"), url: server.url };
    const session = server.kind === "url" ? await holdSession(run) : undefined;
    announceRun(run);
    return { ...server, stop: once(() => stopRun(run, server, session)) };
  } catch (error) {
    await server.stop();
    throw error;
  }
}

async function stopRun(run: TestRun, server: PostgresServer, session: pg.Client | undefined): Promise<void> {
  withdrawRun();
  try {
    if (session !== undefined) await dropDatabasesOf(session, run);
  } finally {
    await session?.end();
    await server.stop();
  }
}

/** A session that is there as long as this process: by its name others see that the run's databases are in use. */
async function holdSession(run: TestRun): Promise<pg.Client> {
  const session = new pg.Client({ connectionString: run.url, application_name: sessionName(run), keepAlive: true });
  session.on("error", () => {});
  await session.connect();
  try {
    await dropLeftovers(session);
  } catch (error) {
    await session.end();
    throw error;
  }
  // A program that forgets to stop its server must still be able to end.
  if ("unref" in session && typeof session.unref === "function") session.unref();
  return session;
}

function once(action: () => Promise<void>): () => Promise<void> {
  let done: Promise<void> | undefined;
  return () => {
    done ??= action();
    return done;
  };
}
