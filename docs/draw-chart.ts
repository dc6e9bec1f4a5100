/**
 * npm run docs:chart    draws docs/performance-chart.svg from what `npm run bench:claim-cost -- --docs` has measured
 *
 * A test fails when the chart is not what the figures say.
 */
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";

export const chartFile = join(import.meta.dirname, "performance-chart.svg");
const FIGURES = join(import.meta.dirname, "../bench/results/docs-claim-cost.json");

/** The part of the figures that is drawn. */
export interface ClaimCost {
  readonly scenes: readonly {
    readonly pending: number;
    readonly finished: number;
    readonly held: boolean;
    readonly jobsPerSecond: number;
  }[];
}

interface Line {
  readonly label: string;
  readonly className: string;
  /** From left to right. The first is the empty system's. */
  readonly points: readonly Point[];
}

interface Point {
  readonly rows: number;
  readonly jobsPerSecond: number;
}

const [WIDTH, HEIGHT] = [720, 360];
const PLOT = { left: 72, right: 700, top: 56, bottom: 300 };

export async function claimCost(): Promise<ClaimCost> {
  return JSON.parse(await readFile(FIGURES, "utf8"));
}

export function chart({ scenes }: ClaimCost): string {
  const own = scenes.filter(({ held }) => !held);
  const along = (rows: (scene: ClaimCost["scenes"][number]) => number, others: typeof rows): Point[] =>
    own
      .filter((scene) => others(scene) === 0)
      .map((scene) => ({ rows: rows(scene), jobsPerSecond: scene.jobsPerSecond }))
      .sort((a, b) => a.rows - b.rows);
  const [pending, finished] = [
    (scene: ClaimCost["scenes"][number]) => scene.pending,
    (scene: ClaimCost["scenes"][number]) => scene.finished,
  ];
  return svg([
    { label: "jobs that wait", className: "backlog", points: along(pending, finished) },
    { label: "jobs that have ended", className: "history", points: along(finished, pending) },
  ]);
}

function svg(lines: readonly Line[]): string {
  const all = lines.flatMap(({ points }) => points);
  const axes = new Axes(all);
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-labelledby="title">`,
    '<title id="title">Jobs a second of one session that claims and settles 100 at a time, against the number of jobs that wait and that have ended</title>',
    `<style>${STYLE}</style>`,
    `<rect class="paper" width="${WIDTH}" height="${HEIGHT}" rx="6"/>`,
    text(PLOT.left, 26, "Jobs a second, one session, claim and settle of 100", "heading"),
    ...axes
      .ticksOfRates()
      .flatMap((rate) => [
        `<line class="grid" x1="${PLOT.left}" x2="${PLOT.right}" y1="${axes.y(rate)}" y2="${axes.y(rate)}"/>`,
        text(PLOT.left - 8, axes.y(rate) + 4, spaced(rate), "end"),
      ]),
    ...axes.ticksOfRows().map((rows) => text(axes.x(rows), PLOT.bottom + 20, short(rows), "middle")),
    text((PLOT.left + PLOT.right) / 2, PLOT.bottom + 42, "rows beside the jobs that are drained", "middle"),
    ...lines.flatMap((line, place) => drawn(line, place, axes)),
    "</svg>",
    "",
  ].join("\n");
}

function drawn({ label, className, points }: Line, place: number, axes: Axes): string[] {
  const at = points.map(({ rows, jobsPerSecond }) => ({ x: axes.x(rows), y: axes.y(jobsPerSecond) }));
  const legendX = PLOT.left + place * 150;
  return [
    `<polyline class="${className}" points="${at.map(({ x, y }) => `${x},${y}`).join(" ")}"/>`,
    ...at.map(({ x, y }) => `<circle class="${className}" cx="${x}" cy="${y}" r="4"/>`),
    `<circle class="${className}" cx="${legendX + 5}" cy="42" r="4"/>`,
    text(legendX + 14, 46, label, ""),
  ];
}

/** Rates from 0, rows by powers of ten with none at the left edge. */
class Axes {
  readonly #most: number;
  readonly #powers: { readonly least: number; readonly most: number };

  constructor(points: readonly Point[]) {
    this.#most = Math.max(...points.map(({ jobsPerSecond }) => jobsPerSecond)) * 1.1;
    const powers = points.filter(({ rows }) => rows > 0).map(({ rows }) => Math.log10(rows));
    this.#powers = { least: Math.floor(Math.min(...powers)) - 1, most: Math.ceil(Math.max(...powers) - 1e-9) };
  }

  x(rows: number): number {
    const { least, most } = this.#powers;
    const share = rows === 0 ? 0 : (Math.log10(rows) - least) / (most - least);
    return Math.round(PLOT.left + 12 + share * (PLOT.right - PLOT.left - 40));
  }

  y(rate: number): number {
    return Math.round(PLOT.bottom - (rate / this.#most) * (PLOT.bottom - PLOT.top));
  }

  ticksOfRates(): number[] {
    const unit = 10 ** Math.floor(Math.log10(this.#most));
    const step = [unit / 5, unit / 2, unit, unit * 2].find((size) => this.#most / size <= 6) ?? unit;
    return Array.from({ length: Math.floor(this.#most / step) + 1 }, (_, n) => n * step);
  }

  ticksOfRows(): number[] {
    const { least, most } = this.#powers;
    return [0, ...Array.from({ length: most - least }, (_, n) => 10 ** (least + 1 + n))];
  }
}

function text(x: number, y: number, content: string, className: string): string {
  return `<text x="${x}" y="${y}"${className === "" ? "" : ` class="${className}"`}>${content}</text>`;
}

function short(rows: number): string {
  if (rows >= 1e6) return `${rows / 1e6} million`;
  return rows === 0 ? "none" : spaced(rows);
}

function spaced(count: number): string {
  return count.toLocaleString("en-US").replaceAll(",", " ");
}

/** By the reader's own choice of light or dark: an image cannot see the page's. */
const STYLE = `
  text { font: 13px system-ui, sans-serif; fill: #1f2328; }
  .heading { font-weight: 600; font-size: 14px; }
  .end { text-anchor: end; }
  .middle { text-anchor: middle; }
  .paper { fill: #ffffff; }
  .grid { stroke: #d1d9e0; }
  polyline { fill: none; stroke-width: 2.5; }
  polyline.backlog { stroke: #0969da; }
  circle.backlog { fill: #0969da; }
  polyline.history { stroke: #bc4c00; }
  circle.history { fill: #bc4c00; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; }
    .paper { fill: #0d1117; }
    .grid { stroke: #3d444d; }
    polyline.backlog { stroke: #4493f8; }
    circle.backlog { fill: #4493f8; }
    polyline.history { stroke: #f0883e; }
    circle.history { fill: #f0883e; }
  }
`;

if (import.meta.filename === process.argv[1]) await writeFile(chartFile, chart(await claimCost()));
