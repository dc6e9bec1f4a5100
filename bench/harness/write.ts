/** Where results go: a file each time, and the documentation when that is asked for. */
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { performancePage, writePart } from "../../docs/parts.ts";
import { works } from "../works/all.ts";
import { type Circumstances, type Conditions, type Line, markdown, measuredOn } from "./report.ts";
import { sizes } from "./sizes.ts";

const RESULTS = new URL("../results/", import.meta.url);

/** Answers the path of the JSON; the table is beside it. */
export async function writeResults(lines: readonly Line[], about: Conditions): Promise<string> {
  await mkdir(RESULTS, { recursive: true });
  const name = about.at.replaceAll(/[:.]/g, "-");
  const file = new URL(`${name}.json`, RESULTS);
  await writeFile(file, json(lines, about));
  await writeFile(new URL(`${name}.md`, RESULTS), `${markdown(lines, about)}\n`);
  return fileURLToPath(file);
}

/**
 * Puts the table between the markers of the page, and the figures behind it into `results/docs.json`. Works that were not
 * run this time keep their lines: what is compared is compared within a work.
 */
export async function writeDocs(page: string, lines: readonly Line[], about: Conditions): Promise<void> {
  const file = new URL("docs.json", RESULTS);
  const known: { readonly lines: readonly Line[] } = JSON.parse(await readFile(file, "utf8"));
  const anew = new Set(lines.map(({ work }) => work));
  const all = works(sizes.full).flatMap(({ id }) =>
    (anew.has(id) ? lines : known.lines).filter(({ work }) => work === id),
  );
  await writePart(page, "bench", markdown(all, about));
  await writeFile(file, json(all, about));
}

/**
 * Of a measurement that compares us with ourselves. With a `part` for the documentation that goes into its page, and the
 * figures behind it into `results/docs-<name>.json`, which is kept.
 */
export async function writeFigures(
  name: string,
  about: Circumstances,
  figures: Readonly<Record<string, unknown>>,
  part: string | undefined,
): Promise<string> {
  await mkdir(RESULTS, { recursive: true });
  const text = `${JSON.stringify({ ...about, ...figures }, null, 2)}\n`;
  const file = new URL(`${name}-${about.at.replaceAll(/[:.]/g, "-")}.json`, RESULTS);
  await writeFile(file, text);
  if (part !== undefined) {
    await writeFile(new URL(`docs-${name}.json`, RESULTS), text);
    await writePart(performancePage, name, `${measuredOn(about)}.\n\n${part}`);
  }
  return fileURLToPath(file);
}

function json(lines: readonly Line[], about: Conditions): string {
  return `${JSON.stringify({ ...about, lines }, null, 2)}\n`;
}
