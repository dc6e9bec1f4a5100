/** Where results go: a file each time, and the documentation when that is asked for. */
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { type Circumstances, type Conditions, type Line, markdown } from "./report.ts";

const RESULTS = new URL("../results/", import.meta.url);
const BEGIN = "<!-- bench: begin -->";
const END = "<!-- bench: end -->";

/** Answers the path of the JSON; the table is beside it. */
export async function writeResults(lines: readonly Line[], about: Conditions): Promise<string> {
  await mkdir(RESULTS, { recursive: true });
  const name = about.at.replaceAll(/[:.]/g, "-");
  const file = new URL(`${name}.json`, RESULTS);
  await writeFile(file, json(lines, about));
  await writeFile(new URL(`${name}.md`, RESULTS), `${markdown(lines, about)}\n`);
  return fileURLToPath(file);
}

/** Puts the table between the markers of the page, and the figures behind it into `results/docs.json`. */
export async function writeDocs(page: string, lines: readonly Line[], about: Conditions): Promise<void> {
  const text = await readFile(page, "utf8");
  const [before, rest] = text.split(BEGIN);
  const after = rest?.split(END)[1];
  if (before === undefined || after === undefined) throw new Error(`${page} has no ${BEGIN} … ${END}`);
  await writeFile(page, `${before}${BEGIN}\n\n${markdown(lines, about)}\n\n${END}${after}`);
  await writeFile(new URL("docs.json", RESULTS), json(lines, about));
}

/** Of a measurement that compares us with ourselves. With `docs` a copy goes to `results/docs-<name>.json`, which is kept. */
export async function writeFigures(
  name: string,
  about: Circumstances,
  figures: Readonly<Record<string, unknown>>,
  docs: boolean,
): Promise<string> {
  await mkdir(RESULTS, { recursive: true });
  const text = `${JSON.stringify({ ...about, ...figures }, null, 2)}\n`;
  const file = new URL(`${name}-${about.at.replaceAll(/[:.]/g, "-")}.json`, RESULTS);
  await writeFile(file, text);
  if (docs) await writeFile(new URL(`docs-${name}.json`, RESULTS), text);
  return fileURLToPath(file);
}

function json(lines: readonly Line[], about: Conditions): string {
  return `${JSON.stringify({ ...about, lines }, null, 2)}\n`;
}
