/** How the small programs run: flags, a service with one worker, and an exit code. */
import { setTimeout as sleep } from "node:timers/promises";
import { type ParseArgsConfig, parseArgs } from "node:util";
import type { Kysely } from "kysely";
import type { Ledger, Run, RunledgerDatabase, RunStatus } from "../../src/index.ts";
import type { Handler, WorkerEvent } from "../../src/worker/index.ts";
import { type Service, startService, startWorkers, stopWorkers } from "./service.ts";

export const exitCodes = {
  done: 0,
  /** An error, or an outcome that is one. */
  failed: 1,
  usage: 2,
  /** The run ended as it was told to, without what was asked for. */
  undone: 3,
} as const;

export interface Program<Tables> {
  /** Makes the program's own tables where they are not there. */
  readonly createTables?: (db: Kysely<RunledgerDatabase & Tables>) => Promise<void>;
  readonly handlers: (service: Service<Tables>) => readonly Handler[];
  /** Answers the exit code. */
  readonly main: (service: Service<Tables>) => Promise<number>;
}

/** Where every program keeps its data, unless the environment names a server. */
const DATA = ".runledger/pg18";
const CONCURRENCY = 8;

/** Runs `main` beside a worker, and closes everything however that ends. */
export async function runProgram<Tables = unknown>({ createTables, handlers, main }: Program<Tables>): Promise<void> {
  const service = await startService<Tables>(DATA);
  console.log(`${service.where}.`);
  try {
    await createTables?.(service.db);
    const options = { workers: 1, concurrency: CONCURRENCY, onEvent: reportRetries };
    const workers = await startWorkers(service.ledger, handlers(service), options);
    try {
      process.exitCode = await main(service);
    } finally {
      await stopWorkers(workers);
    }
  } finally {
    await service.close();
  }
}

/** A bug in a handler looks like any other failure: the attempt is made again. Here somebody should see it. */
function reportRetries(event: WorkerEvent): void {
  if (event.type !== "retried") return;
  const { job, failure } = event;
  console.error(`${job.type}, attempt ${job.attempt} of ${job.maxAttempts}: ${failure.code}: ${failure.message}`);
}

/** The flags of the command line; one that makes no sense ends the program. */
export function flagsOf<const Options extends NonNullable<ParseArgsConfig["options"]>>(options: Options) {
  try {
    return parseArgs({ options }).values;
  } catch (error) {
    return refuse(error instanceof Error ? error.message : String(error));
  }
}

export function refuse(message: string): never {
  console.error(message);
  process.exit(exitCodes.usage);
}

const LOOK_MS = 50;

/** The run, once it has ended in whatever way. */
export async function ended({ runs }: Ledger, runId: string): Promise<Run> {
  const scope = { global: true } as const;
  while (!isTerminal((await runs.getStatus(runId, scope)).status)) await sleep(LOOK_MS);
  return runs.get(runId, scope);
}

export function isTerminal(status: RunStatus): boolean {
  return status !== "RUNNING" && status !== "WAITING_FOR_EXTERNAL";
}
