/** What is printed and written: medians, spread, and how runledger compares. */
import { cpus, totalmem } from "node:os";
import { table } from "../../docs/markdown.ts";
import { median, spread } from "../measure.ts";
import type { Outcome, Result } from "./compare.ts";
import { benchNode } from "./node.ts";
import { type Entry, OURS, versionOf } from "./roster.ts";
import type { SizeName } from "./sizes.ts";
import type { Metric } from "./work.ts";

/** One line: a metric of a work, with everybody who did it. */
export interface Line {
  readonly work: string;
  readonly title: string;
  readonly metric: string;
  readonly better: Metric["better"];
  readonly contestants: Readonly<Record<string, Figures | Failed>>;
}

export interface Figures {
  readonly median: number;
  readonly least: number;
  readonly most: number;
  /** How many times better runledger is: the median over the repetitions, each against its own turn. */
  readonly ratio: number | null;
  readonly values: readonly number[];
}

export interface Failed {
  readonly error: string;
}

/** On what was measured. */
export interface Circumstances {
  readonly at: string;
  readonly size: SizeName;
  readonly repetitions: number;
  readonly machine: { readonly cpu: string; readonly cores: number; readonly memoryGiB: number };
  readonly postgres: Readonly<Record<string, string>>;
  readonly node: string;
}

export interface Conditions extends Circumstances {
  readonly contestants: readonly Pick<Entry, "name" | "tuned" | "source">[];
}

export function conditions(
  entries: readonly Entry[],
  postgres: Readonly<Record<string, string>>,
  size: SizeName,
  repetitions: number,
): Conditions {
  return {
    ...circumstances(postgres, size, repetitions, benchNode().version),
    contestants: entries.map((entry) => ({
      name: entry.name,
      version: versionOf(entry),
      tuned: entry.tuned,
      source: entry.source,
    })),
  };
}

export function circumstances(
  postgres: Readonly<Record<string, string>>,
  size: SizeName,
  repetitions: number,
  node: string = process.versions.node,
): Circumstances {
  return {
    at: new Date().toISOString(),
    size,
    repetitions,
    machine: {
      cpu: cpus()[0]?.model ?? "unknown",
      cores: cpus().length,
      memoryGiB: Math.round(totalmem() / 2 ** 30),
    },
    postgres,
    node,
  };
}

export function linesOf({ work, outcomes }: Result): Line[] {
  return work.metrics.map(({ name, better }, place) => {
    const ours = outcomes.find(({ contestant }) => contestant === OURS);
    const contestants = outcomes.map((outcome) => [outcome.contestant, figures(outcome, ours, place, better)] as const);
    return { work: work.id, title: work.title, metric: name, better, contestants: Object.fromEntries(contestants) };
  });
}

function figures(
  { contestant, values, error }: Outcome,
  ours: Outcome | undefined,
  place: number,
  better: Metric["better"],
): Figures | Failed {
  if (error !== undefined) return { error };
  const own = values.map((metrics) => metrics[place] ?? Number.NaN);
  const ratios = own.flatMap((value, turn) => {
    const our = ours?.values[turn]?.[place];
    return our === undefined ? [] : [better === "more" ? our / value : value / our];
  });
  const ratio = contestant === OURS || ratios.length === 0 ? null : median(ratios);
  return { ...spread(own), ratio, values: own };
}

/** For the terminal, while it goes on. */
export function printed(lines: readonly Line[]): string {
  return lines
    .flatMap((line) => [
      `${line.title}, ${line.metric}`,
      ...Object.entries(line.contestants).map(([name, figures]) => `  ${name.padEnd(16)} ${described(figures)}`),
    ])
    .join("\n");
}

function described(figures: Figures | Failed): string {
  if ("error" in figures) return `failed: ${figures.error.split("\n")[0]}`;
  const { median, least, most, ratio } = figures;
  const compared = ratio === null ? "" : `runledger ×${ratio.toFixed(2)}`;
  return `${short(median).padStart(8)} ${`(${short(least)}–${short(most)})`.padEnd(18)} ${compared}`.trimEnd();
}

/** One row for each line, one column for each contestant. */
export function markdown(lines: readonly Line[], about: Conditions): string {
  const names = about.contestants.map(({ name }) => name);
  const rows = lines.map((line) => [
    line.title,
    line.metric,
    ...names.map((name) => cell(line.contestants[name], name === OURS)),
  ]);
  return [
    `${measuredOn(about)}, for everybody. Median of ${about.repetitions}; in brackets how many times better runledger is.`,
    "",
    table(["work", "", ...names], rows),
  ].join("\n");
}

/** When and on what. */
export function measuredOn({ at, machine, postgres, node }: Circumstances): string {
  const { version, fsync, synchronous_commit } = postgres;
  return (
    `${at.slice(0, 10)}, ${machine.cores} × ${machine.cpu}, ${machine.memoryGiB} GiB; PostgreSQL ${version}, ` +
    `fsync ${fsync}, synchronous_commit ${synchronous_commit}; Node ${node}`
  );
}

function cell(figures: Figures | Failed | undefined, ours: boolean): string {
  if (figures === undefined) return "–";
  if ("error" in figures) return "failed";
  const { median, ratio } = figures;
  if (ours) return `**${short(median)}**`;
  return ratio === null ? short(median) : `${short(median)} (×${ratio.toFixed(2)})`;
}

function short(value: number): string {
  return value >= 100 ? String(Math.round(value)) : value.toPrecision(3);
}
