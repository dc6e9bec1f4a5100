/** A run as a table: all of a small one; of a big one the frame, the slowest file steps and the failed ones. */
import type { Run, Step, StepStatus } from "../../src/index.ts";
import { examine } from "./graph.ts";
import { type Colour, printable, type Terminal } from "./terminal.ts";

export interface TableOptions {
  readonly all: boolean;
  readonly slowest: number;
}

/** A run with at most this many file steps is shown whole. */
const SMALL = 20;
const MAX_FAILED = 20;

export function showRun(terminal: Terminal, run: Run, options: TableOptions): void {
  const steps = options.all ? run.steps : chosen(run.steps, options.slowest);
  const cells = steps.map((step) => row(run, step));
  const head = ["step", "status", "started", "took", ""];
  const widths = head.map((name, column) => Math.max(name.length, ...cells.map((line) => line[column]?.length ?? 0)));
  const padded = (line: readonly string[]) => line.map((cell, column) => pad(cell, column, widths[column] ?? 0));

  terminal.line();
  terminal.line(terminal.paint(padded(head).join("  ").trimEnd(), "dim"));
  for (const [place, line] of cells.entries()) {
    const status = steps[place]?.status;
    const [step, state = "", ...rest] = padded(line);
    terminal.line([step, status ? terminal.paint(state, colours[status]) : state, ...rest].join("  ").trimEnd());
  }
  const left = run.steps.length - steps.length;
  if (left > 0) terminal.line(terminal.paint(`${left} more file steps are left out; --all shows them.`, "dim"));
  terminal.line();
  terminal.line(summary(terminal, run));
}

const colours: Readonly<Record<StepStatus, Colour>> = {
  BLOCKED: "dim",
  WAITING_FOR_EXTERNAL: "yellow",
  ENQUEUED: "dim",
  RUNNING: "yellow",
  SUCCEEDED: "green",
  FAILED: "red",
  CANCELED: "yellow",
};

/** In the run's own order, which is topological. */
function chosen(steps: readonly Step[], slowest: number): readonly Step[] {
  const files = steps.filter(({ jobType }) => jobType === examine.type);
  if (files.length <= SMALL) return steps;
  const slow = [...files].sort((a, b) => (tookMs(b) ?? -1) - (tookMs(a) ?? -1)).slice(0, slowest);
  const failed = files.filter(({ status }) => status === "FAILED").slice(0, MAX_FAILED);
  const kept = new Set([...slow, ...failed]);
  return steps.filter((step) => step.jobType !== examine.type || kept.has(step));
}

function row(run: Run, step: Step): string[] {
  const since = step.startedAt === null ? "" : `+${duration(step.startedAt.getTime() - run.createdAt.getTime())}`;
  const took = tookMs(step);
  return [shortened(printable(step.key)), step.status, since, took === null ? "" : duration(took), note(step)];
}

function note(step: Step): string {
  if (step.kind === "EXTERNAL" && step.completedBy !== null) {
    return printable(`by ${step.completedBy}${step.reason === null ? "" : `: ${step.reason}`}`);
  }
  return printable(step.errorMessage ?? step.errorCode ?? step.reason ?? "");
}

function summary(terminal: Terminal, run: Run): string {
  const count = (status: StepStatus) => run.steps.filter((step) => step.status === status).length;
  const counts = `${count("SUCCEEDED")} succeeded, ${count("FAILED")} failed, ${count("CANCELED")} canceled`;
  const took = run.endedAt === null ? "" : ` in ${duration(run.endedAt.getTime() - run.createdAt.getTime())}`;
  const status = terminal.paint(run.status, run.status === "SUCCEEDED" ? "green" : "yellow");
  return `Run ${run.id}: ${status}${took}; ${run.stepCount} steps: ${counts}.`;
}

function tookMs({ startedAt, endedAt }: Step): number | null {
  return startedAt === null || endedAt === null ? null : endedAt.getTime() - startedAt.getTime();
}

export function duration(ms: number): string {
  if (ms < 1000) return `${ms} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  return `${Math.floor(ms / 60_000)} min ${Math.floor((ms % 60_000) / 1000)} s`;
}

const MAX_KEY = 60;

/** The end of a path says more than its beginning. */
function shortened(key: string): string {
  return key.length <= MAX_KEY ? key : `…${key.slice(1 - MAX_KEY)}`;
}

const RIGHT = new Set([2, 3]);

function pad(cell: string, column: number, width: number): string {
  return RIGHT.has(column) ? cell.padStart(width) : cell.padEnd(width);
}
