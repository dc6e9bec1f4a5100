/** Parts of a page that are made, not written: what stands between `<!-- name: begin -->` and `<!-- name: end -->`. */
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";

export const performancePage = join(import.meta.dirname, "performance.md");

/** The page with another such part. Throws when it has none of that name. */
export function withPart(page: string, name: string, part: string): string {
  const [begin, end] = [`<!-- ${name}: begin -->`, `<!-- ${name}: end -->`];
  const [before, rest] = page.split(begin);
  const after = rest?.split(end)[1];
  if (before === undefined || after === undefined) throw new Error(`The page has no ${begin} … ${end}`);
  return `${before}${begin}\n\n${part}\n\n${end}${after}`;
}

export async function writePart(path: string, name: string, part: string): Promise<void> {
  await writeFile(path, withPart(await readFile(path, "utf8"), name, part));
}
