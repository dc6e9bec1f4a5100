/**
 * npm start: a report on a folder's files, made by a workflow run. See `--help`.
 *
 * The run lives in the database, not in this process: stop it at any moment, start it again, and it goes on.
 */
import { relative } from "node:path";
import type { Run, RunStatus } from "../../src/index.ts";
import { isTerminal } from "../support/program.ts";
import { type Service, startService, startWorkers, stopWorkers } from "../support/service.ts";
import { Canceler } from "./canceler.ts";
import { evidenceOf } from "./evidence.ts";
import { answerGate } from "./gate.ts";
import { type Publication, sourceReport } from "./graph.ts";
import { handlers } from "./handlers.ts";
import { exitCodes, help, type Options, parseOptions, UsageError } from "./options.ts";
import { watchRun } from "./progress.ts";
import { keyFor, requestFor } from "./request.ts";
import { duration, showRun } from "./table.ts";
import { Terminal } from "./terminal.ts";

const scope = { global: true } as const;
const terminal = new Terminal();
const interruption = new AbortController();

process.exitCode = await main().catch((error: unknown) => {
  if (error instanceof UsageError) {
    console.error(`${error.message}\nnpm start -- --help shows the options.`);
    return exitCodes.usage;
  }
  console.error(error);
  return exitCodes.failed;
});

async function main(): Promise<number> {
  const options = parseOptions(process.argv.slice(2));
  if (options === null) {
    terminal.line(help);
    return exitCodes.published;
  }
  refuseWithoutAnswer(options);
  process.once("SIGINT", interrupted).once("SIGTERM", interrupted);
  try {
    return await reported(options);
  } catch (error) {
    if (!interruption.signal.aborted) throw error;
    terminal.line("Interrupted. The run stays in the database: the command goes on with it (without --again).");
    return exitCodes.interrupted;
  }
}

function refuseWithoutAnswer({ answer, cancelAfter }: Options): void {
  if (terminal.interactive || answer !== null || cancelAfter !== null) return;
  throw new UsageError("The report needs an approval and this is not a terminal: give --yes or --reject.");
}

/** The second signal ends the process as it would without this; PostgreSQL is stopped with it. */
function interrupted(signal: NodeJS.Signals): void {
  process.removeAllListeners("SIGINT").removeAllListeners("SIGTERM");
  process.once("SIGINT", () => process.exit(exitCodes.interrupted));
  terminal.line();
  terminal.line(`${signal}: stopping; running steps finish.`);
  interruption.abort();
}

async function reported(options: Options): Promise<number> {
  const { input, contentKey } = await requestFor(options);
  const { root, files, bytes } = input.snapshot;
  terminal.line(`${files} files, ${bytes} bytes below ${root}.`);
  const service = await startService(`${options.home}/pg18`);
  terminal.line(`${service.where}.`);
  try {
    interruption.signal.throwIfAborted();
    const idempotencyKey = await keyFor(service.db, contentKey, options.again);
    const enqueued = await service.ledger.runs.enqueue(sourceReport, input, { idempotencyKey });
    terminal.line(greeting(enqueued));
    if (!isTerminal(enqueued.status)) await carriedOut(service, enqueued.id, options);
    const run = await service.ledger.runs.get(enqueued.id, scope);
    showRun(terminal, run, options);
    if (run.status === "CANCELED") await showEvidence(service, run);
    return conclusion(run);
  } finally {
    await service.close();
  }
}

function greeting({ id, status, disposition }: { id: string; status: RunStatus; disposition: string }): string {
  if (disposition === "inserted") return `Run ${id} is enqueued.`;
  if (isTerminal(status)) return `The same content was reported before, by run ${id}; --again makes a new one.`;
  return `Run ${id} for the same content is still ${status}: it goes on.`;
}

/** Works on the run until it has ended. */
async function carriedOut(service: Service, runId: string, options: Options): Promise<void> {
  const { db, ledger } = service;
  const { signal } = interruption;
  const failures = new AbortController();
  const canceler = new Canceler({ ledger, terminal, runId, after: options.cancelAfter });
  const workers = await startWorkers(ledger, handlers(db), {
    workers: options.workers,
    concurrency: options.concurrency,
    onEvent: (event) => canceler.see(event),
  });
  for (const worker of workers) worker.done.catch((error: unknown) => failures.abort(error));
  const watch = () => watchRun({ db, ledger, terminal, runId, signal: AbortSignal.any([signal, failures.signal]) });
  try {
    if ((await watch()) === "gate") {
      if (options.cancelAfter !== null) await canceler.cancel();
      else await answerGate({ ledger, terminal, runId, answer: options.answer, signal });
      await watch();
    }
    await canceler.settled();
  } catch (error) {
    throw failures.signal.aborted ? failures.signal.reason : error;
  } finally {
    await stopWorkers(workers);
  }
}

async function showEvidence({ db }: Service, run: Run): Promise<void> {
  const { endedAt, lastStartMsBefore, startedAfterwards, liveJobs } = await evidenceOf(db, run.id);
  const last = lastStartMsBefore === null ? "none" : `${duration(Math.round(lastStartMsBefore))} before that`;
  terminal.line("After the cancel, says the database:");
  terminal.line(`  run ended:                  ${endedAt?.toISOString() ?? "not yet"}`);
  terminal.line(`  last start of a step:       ${last}`);
  terminal.line(`  steps started afterwards:   ${startedAfterwards}`);
  terminal.line(`  live jobs of the run:       ${liveJobs}`);
}

/** The last line, and the exit code. A file that could not be read does not make a report less published. */
function conclusion(run: Run): number {
  const step = (key: string) => run.steps.find((candidate) => candidate.key === key);
  const published = step("publish");
  if (published?.status === "SUCCEEDED") {
    const { file } = published.output as unknown as Publication;
    terminal.line(`The report is ${relative("", file)}`);
    return exitCodes.published;
  }
  const meant = run.status === "CANCELED" || step("approve")?.status === "FAILED";
  terminal.line(meant ? "No report was published." : "No report was published: see the failed steps.");
  return meant ? exitCodes.notPublished : exitCodes.failed;
}
