/**
 * `npm run bench:claim-cost`: what a claim costs on an empty system, beside a backlog, behind a long history, and while a
 * transaction is held open. Each has a database of its own on one server, and they take turns: claim 100, settle 100.
 *
 *   npm run bench:claim-cost -- --quick     small: to see where things stand
 *   --pending 1000000 --finished 10000000   the largest backlog and history; a tenth and a hundredth of them are measured too
 *   --jobs 30000                            how many jobs one drain has
 *   --repetitions 5
 *   --docs                                  writes them into docs/performance.md; `npm run docs:chart` draws the chart from them
 */
import { parseArgs } from "node:util";
import { Kysely, PostgresDialect } from "kysely";
import pg from "pg";
import { migrate } from "../db/index.ts";
import { table as markdownTable } from "../docs/markdown.ts";
import { createTemplate, startPostgres } from "../src/testing/index.ts";
import { BATCH, type Scene, Stage, type Turn } from "./claims/stage.ts";
import { circumstances } from "./harness/report.ts";
import { settingsOf } from "./harness/server.ts";
import { writeFigures } from "./harness/write.ts";
import { median, type Spread, spread } from "./measure.ts";

const { values } = parseArgs({
  options: {
    quick: { type: "boolean", default: false },
    pending: { type: "string" },
    finished: { type: "string" },
    jobs: { type: "string" },
    repetitions: { type: "string" },
    docs: { type: "boolean", default: false },
  },
});
const size = values.quick ? "quick" : "full";
const standard = {
  quick: { pending: 20_000, finished: 50_000, jobs: 2_000, repetitions: 2 },
  full: { pending: 1_000_000, finished: 10_000_000, jobs: 30_000, repetitions: 5 },
}[size];
const pending = Number(values.pending ?? standard.pending);
const finished = Number(values.finished ?? standard.finished);
const jobs = Number(values.jobs ?? standard.jobs);
const repetitions = Number(values.repetitions ?? standard.repetitions);
/** How much slower than on an empty system a claim may be. */
const TARGET = { beside: 1.15, held: 2 };
/** Some turns at the end and at the beginning of a drain are counted in pages instead of timed. */
const [FIRST, LAST] = [1, Math.floor(jobs / BATCH) - 2];

const empty: Scene = { title: "empty", pending: 0, finished: 0, held: false };
const steps = [100, 10, 1];
const scenes: readonly Scene[] = [
  empty,
  ...steps.map((part) => ({
    ...empty,
    title: `${spaced(pending / part)} pending`,
    pending: Math.round(pending / part),
  })),
  ...steps.map((part) => ({
    ...empty,
    title: `${spaced(finished / part)} finished`,
    finished: Math.round(finished / part),
  })),
  { ...empty, title: "transaction held open", held: true },
];

/** What one drain of a scene was like. */
interface Drain {
  readonly claimMs: number;
  readonly settleMs: number;
  /** Of the last tenth of the claims: what a drain leaves behind is in the way at its end. */
  readonly lateClaimMs: number;
  readonly pages: { readonly first: number; readonly last: number };
  /** The share of the claims that were planned for their own values: each costs as much again as it takes to run. */
  readonly planned: number;
}

const server = await startPostgres({ url: false, durable: true, container: false });
try {
  const about = circumstances(await settingsOf(server.url), size, repetitions);
  const stages = await openAll(server.url);
  const drains = new Map(stages.map(({ scene }) => [scene, [] as Drain[]]));
  // The first drain finds cold pages and is not counted.
  for (let repetition = 0; repetition <= repetitions; repetition += 1) {
    for (const [scene, drain] of await drainAll(stages)) if (repetition > 0) drains.get(scene)?.push(drain);
  }
  for (const stage of stages) await stage.close();
  const results = scenes.map((scene) => figuresOf(scene, drains));
  print(table(results));
  const figures = { jobs, batch: BATCH, target: TARGET, scenes: results };
  print(await writeFigures("claim-cost", about, figures, values.docs ? markdown(results) : undefined));
} finally {
  await server.stop();
}

async function openAll(url: string): Promise<Stage[]> {
  const { name } = await createTemplate(url, "claim_cost", async (template) => {
    const db = new Kysely<unknown>({
      dialect: new PostgresDialect({ pool: new pg.Pool({ connectionString: template }) }),
    });
    await migrate(db).finally(() => db.destroy());
  });
  const stages: Stage[] = [];
  for (const scene of scenes) stages.push(await Stage.open(url, name, scene));
  return stages;
}

/** Claim by claim in turns, so that a noisy machine is noisy for all; and never the same before the same. */
async function drainAll(stages: readonly Stage[]): Promise<Map<Scene, Drain>> {
  const turns = new Map<Scene, Turn[]>();
  const pages = new Map<Scene, number[]>();
  const plans = new Map<Scene, number>();
  for (const stage of stages) {
    await stage.begin(jobs);
    plans.set(stage.scene, await stage.customPlans());
  }
  for (let turn = 0; turn < Math.floor(jobs / BATCH); turn += 1) {
    for (const stage of rotated(stages, turn)) {
      if (turn === FIRST || turn === LAST)
        pages.set(stage.scene, [...(pages.get(stage.scene) ?? []), await stage.pages()]);
      const timed = await stage.turn();
      turns.set(stage.scene, [...(turns.get(stage.scene) ?? []), timed]);
    }
  }
  const drains = new Map<Scene, Drain>();
  for (const stage of stages) {
    const { scene } = stage;
    const planned = (await stage.customPlans()) - (plans.get(scene) ?? 0);
    drains.set(scene, drainOf(turns.get(scene) ?? [], pages.get(scene) ?? [], planned));
    await stage.end();
  }
  return drains;
}

function drainOf(
  turns: readonly Turn[],
  [first = Number.NaN, last = Number.NaN]: readonly number[],
  planned: number,
): Drain {
  const claims = turns.map(({ claimMs }) => claimMs);
  return {
    claimMs: median(claims),
    settleMs: median(turns.map(({ settleMs }) => settleMs)),
    lateClaimMs: median(claims.slice(-Math.ceil(claims.length / 10))),
    pages: { first, last },
    planned: planned / turns.length,
  };
}

function rotated<T>(items: readonly T[], by: number): T[] {
  const at = by % items.length;
  return [...items.slice(at), ...items.slice(0, at)];
}

interface Figures extends Scene {
  readonly claimMs: Spread;
  readonly settleMs: Spread;
  /** To the empty system in the same drain. */
  readonly claimRatio: Spread;
  readonly lateClaimRatio: Spread;
  readonly bothRatio: Spread;
  readonly jobsPerSecond: number;
  readonly pages: Drain["pages"];
  readonly planned: number;
}

function figuresOf(scene: Scene, drains: ReadonlyMap<Scene, readonly Drain[]>): Figures {
  const own = drains.get(scene) ?? [];
  const ratio = (of: (drain: Drain) => number) =>
    spread(own.map((drain, place) => of(drain) / of(drains.get(empty)?.[place] ?? drain)));
  const both = ({ claimMs, settleMs }: Drain) => claimMs + settleMs;
  return {
    ...scene,
    claimMs: spread(own.map(({ claimMs }) => claimMs)),
    settleMs: spread(own.map(({ settleMs }) => settleMs)),
    claimRatio: ratio(({ claimMs }) => claimMs),
    lateClaimRatio: ratio(({ lateClaimMs }) => lateClaimMs),
    bothRatio: ratio(both),
    jobsPerSecond: Math.round((BATCH * 1000) / median(own.map(both))),
    pages: { first: median(own.map(({ pages }) => pages.first)), last: median(own.map(({ pages }) => pages.last)) },
    planned: median(own.map(({ planned }) => planned)),
  };
}

function table(results: readonly Figures[]): string {
  const head = [
    "",
    "claim ms",
    "settle ms",
    "claim ×",
    "at the end ×",
    "both ×",
    "jobs/s",
    "pages, first",
    "last",
    "planned anew",
    "",
  ];
  const rows = results.map((one) => [
    one.title,
    one.claimMs.median.toFixed(2),
    one.settleMs.median.toFixed(2),
    `${one.claimRatio.median.toFixed(2)} (${one.claimRatio.least.toFixed(2)}–${one.claimRatio.most.toFixed(2)})`,
    one.lateClaimRatio.median.toFixed(2),
    one.bothRatio.median.toFixed(2),
    String(one.jobsPerSecond),
    String(one.pages.first),
    String(one.pages.last),
    percent(one.planned),
    verdict(one),
  ]);
  return [head, ...rows]
    .map(([title = "", ...cells]) => `${title.padEnd(24)}${cells.map((cell) => cell.padStart(18)).join("")}`)
    .join("\n");
}

function markdown(results: readonly Figures[]): string {
  const head = [
    "",
    `claim of ${BATCH}, ms`,
    "×",
    "× at the end",
    "× with settle",
    "jobs/s",
    "pages a claim touches",
    "planned anew",
  ];
  const rows = results.map(
    ({ title, claimMs, claimRatio, lateClaimRatio, bothRatio, jobsPerSecond, pages, planned }) => [
      title,
      claimMs.median.toFixed(1),
      ...[claimRatio, lateClaimRatio, bothRatio].map(({ median }) => median.toFixed(2)),
      String(jobsPerSecond),
      `${pages.first} to ${pages.last}`,
      percent(planned),
    ],
  );
  return `Median of ${repetitions} drains of ${spaced(jobs)} jobs each.\n\n${markdownTable(head, rows)}`;
}

function percent(share: number): string {
  return `${Math.round(share * 100)} %`;
}

function spaced(count: number): string {
  return Math.round(count).toLocaleString("en-US").replaceAll(",", " ");
}

function verdict({ held, claimRatio }: Figures): string {
  const target = held ? TARGET.held : TARGET.beside;
  return claimRatio.median <= target ? `within ${target}` : `over ${target}`;
}

function print(text: string): void {
  process.stdout.write(`${text}\n`);
}
