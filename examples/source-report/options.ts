/** What the command line says. */
import { resolve } from "node:path";
import { parseArgs } from "node:util";
import { type ReportFormat, reportFormats } from "./graph.ts";

export interface Options {
  /** The folder to report on. */
  readonly root: string;
  /** Where the server's data and the reports are kept. */
  readonly home: string;
  /** What to answer at the gate; null asks on the terminal. */
  readonly answer: "approve" | "reject" | null;
  /** Cancel the run after so many file steps have succeeded. */
  readonly cancelAfter: number | null;
  /** Start a new run even if the same content was reported before. */
  readonly again: boolean;
  /** Show every step in the table. */
  readonly all: boolean;
  readonly slowest: number;
  readonly format: ReportFormat;
  readonly workers: number;
  readonly concurrency: number;
}

/** The command line makes no sense; the message says why. */
export class UsageError extends Error {
  override readonly name = "UsageError";
}

export const exitCodes = { published: 0, failed: 1, usage: 2, notPublished: 3, interrupted: 130 } as const;

export const help = `Reports on the files of a folder, as a workflow run in PostgreSQL.

  npm start                       this project's own sources
  npm start -- ../other --yes     any folder, approved in advance

Steps: scan -> one step for each file -> report -> approve (a gate) -> publish

  --yes               approve the report
  --reject            refuse the report: publish is cancelled
  --cancel-after <n>  cancel the run once n file steps have succeeded
  --again             a new run, even if this content was reported before
  --format <format>   markdown (default) or json
  --workers <n>       workers in this process, 1 to 16 (default 2)
  --concurrency <n>   handlers that each worker runs at once, 1 to 256 (default 16)
  --slowest <n>       file steps to show in the table of a big run (default 5)
  --all               show every step in the table
  --help              this text

The server is PostgreSQL 18 from npm with its data in .runledger/pg18, or the one that
RUNLEDGER_TEST_DATABASE_URL names. Reports are written to .runledger/reports.

Exit codes:
    0  the report was published (it names the files that could not be read)
    1  something failed
    2  wrong options, or nobody there to approve
    3  the run ended without a report: refused or cancelled
  130  interrupted; the run goes on when the same command is started again
`;

/** Null when help was asked for. Throws UsageError. */
export function parseOptions(args: readonly string[]): Options | null {
  const { values, positionals } = parsedArguments(args);
  if (values.help) return null;
  if (values.yes && values.reject) throw new UsageError("--yes and --reject exclude each other.");
  if (positionals.length > 1) throw new UsageError(`One folder at most; given: ${positionals.join(", ")}.`);
  // npm runs the script in the package's folder and says where it was called from.
  const from = process.env.npm_lifecycle_event === "start" ? (process.env.INIT_CWD ?? ".") : ".";
  const [folder] = positionals;
  return {
    root: folder === undefined ? process.cwd() : resolve(from, folder),
    home: resolve(".runledger"),
    answer: values.yes ? "approve" : values.reject ? "reject" : null,
    cancelAfter: values["cancel-after"] === undefined ? null : integer(values["cancel-after"], "cancel-after", 1e6),
    again: values.again,
    all: values.all,
    slowest: integer(values.slowest, "slowest", 1e6),
    format: formatOf(values.format),
    workers: integer(values.workers, "workers", 16),
    concurrency: integer(values.concurrency, "concurrency", 256),
  };
}

function parsedArguments(args: readonly string[]) {
  try {
    return parseArgs({
      args: [...args],
      allowPositionals: true,
      options: {
        yes: { type: "boolean", default: false },
        reject: { type: "boolean", default: false },
        "cancel-after": { type: "string" },
        again: { type: "boolean", default: false },
        all: { type: "boolean", default: false },
        slowest: { type: "string", default: "5" },
        format: { type: "string", default: "markdown" },
        workers: { type: "string", default: "2" },
        concurrency: { type: "string", default: "16" },
        help: { type: "boolean", short: "h", default: false },
      },
    });
  } catch (error) {
    throw new UsageError(error instanceof Error ? error.message : String(error));
  }
}

function integer(text: string, option: string, maximum: number): number {
  const value = Number(text);
  if (/^\d+$/.test(text) && value >= 1 && value <= maximum) return value;
  throw new UsageError(`--${option} takes a whole number from 1 to ${maximum}, not "${text}".`);
}

function formatOf(text: string): ReportFormat {
  const format = reportFormats.find((known) => known === text);
  if (format === undefined) throw new UsageError(`--format is ${reportFormats.join(" or ")}, not "${text}".`);
  return format;
}
