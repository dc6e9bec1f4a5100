/**
 * `npm run bench`: runledger, a hand-written floor and other systems do the same works on one server in one run, in turns.
 *
 *   npm run bench:install            the other systems, and the Node they need, into bench/node_modules
 *   npm run bench -- --quick         about a minute, small, fewer works: to see where things stand
 *   npm run bench -- --smoke         tiny: does everything still work? Its figures mean nothing
 *   --only drain,latency             works with this id, else those whose ids begin so; --list names them
 *   --peers pg-boss,dbos             of the others only these; `--peers none`: only runledger and the floor
 *   --repetitions 3                  instead of those of the size
 *   --docs                           puts what was run into the table of docs/performance.md, or of the page of --page
 */
import { parseArgs } from "node:util";
import { startPostgres } from "../src/testing/index.ts";
import { compare } from "./harness/compare.ts";
import { benchNode } from "./harness/node.ts";
import { conditions, linesOf, printed } from "./harness/report.ts";
import { type Entry, FLOOR, OURS, roster, versionOf } from "./harness/roster.ts";
import { settingsOf } from "./harness/server.ts";
import { type SizeName, sizes } from "./harness/sizes.ts";
import { writeDocs, writeResults } from "./harness/write.ts";
import { works } from "./works/all.ts";

const { values } = parseArgs({
  options: {
    quick: { type: "boolean", default: false },
    smoke: { type: "boolean", default: false },
    list: { type: "boolean", default: false },
    only: { type: "string" },
    peers: { type: "string" },
    repetitions: { type: "string" },
    docs: { type: "boolean", default: false },
    page: { type: "string", default: "docs/performance.md" },
  },
});

const size: SizeName = values.smoke ? "smoke" : values.quick ? "quick" : "full";
const repetitions = Number(values.repetitions ?? sizes[size].repetitions);
const all = works(sizes[size]);
const chosen = all.filter(({ id }) => {
  const beginsSo = (prefix: string) => id.startsWith(prefix);
  const isMeant = (name: string) => (all.some((work) => work.id === name) ? id === name : beginsSo(name));
  return values.only?.split(",").some(isMeant) ?? !sizes[size].skip.some(beginsSo);
});

if (values.list) print(chosen.map(({ id, title }) => `${id.padEnd(24)} ${title}`).join("\n"));
else await bench();

async function bench(): Promise<void> {
  const entries = roster.filter(isAsked).filter(isRunnable);
  const began = performance.now();
  // Durable: a queue that may lose jobs is not what is measured.
  const server = await startPostgres({ url: false, durable: true, container: false });
  try {
    const about = conditions(entries, await settingsOf(server.url), size, repetitions);
    print(
      `everybody on Node ${about.node}, PostgreSQL ${about.postgres.version}, ${size}, ${repetitions} repetitions\n`,
    );
    const onResult = (result: Parameters<typeof linesOf>[0]) => print(`${printed(linesOf(result))}\n`);
    const results = await compare({ server: server.url, works: chosen, entries, size, repetitions, onResult });
    const lines = results.flatMap(linesOf);
    print(`${Math.round((performance.now() - began) / 1_000)} s; ${await writeResults(lines, about)}`);
    if (values.docs) await writeDocs(values.page, lines, about);
    if (results.some(({ outcomes }) => outcomes.some(({ error }) => error !== undefined))) process.exitCode = 1;
  } finally {
    await server.stop();
  }
}

function isAsked({ name }: Entry): boolean {
  return name === OURS || name === FLOOR || values.peers === undefined || values.peers.split(",").includes(name);
}

function isRunnable(entry: Entry): boolean {
  const { version } = benchNode();
  if (versionOf(entry) === undefined) print(`without ${entry.name}: npm run bench:install brings it`);
  else if (Number.parseInt(version, 10) < entry.node)
    print(`without ${entry.name}: needs Node ${entry.node}, not ${version}`);
  else return true;
  return false;
}

function print(text: string): void {
  process.stdout.write(`${text}\n`);
}
