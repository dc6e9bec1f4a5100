/** From the facts of the files to a report, and from a report to a file's text. */
import type { FileFacts } from "./files.ts";
import type { LanguageTotal, Report, ReportFormat, Snapshot } from "./graph.ts";
import { printable } from "./terminal.ts";

export function makeReport(snapshot: Snapshot, sources: readonly FileFacts[], unread: Report["unread"]): Report {
  const { root, files, namesHash } = snapshot;
  return {
    root,
    files,
    namesHash,
    bytes: sum(sources, ({ bytes }) => bytes),
    lines: sum(sources, ({ lines }) => lines ?? 0),
    words: sum(sources, ({ words }) => words ?? 0),
    languages: languageTotals(sources),
    unread,
    sources: [...sources].sort((a, b) => (a.path < b.path ? -1 : 1)),
  };
}

export function reportText(report: Report, approvedBy: string, format: ReportFormat): string {
  if (format === "json") return `${JSON.stringify({ ...report, approvedBy }, null, 2)}\n`;
  return markdown(report, approvedBy);
}

function languageTotals(sources: readonly FileFacts[]): LanguageTotal[] {
  const languages = [...new Set(sources.map(({ language }) => language))];
  const totals = languages.map((language) => {
    const own = sources.filter((source) => source.language === language);
    return {
      language,
      files: own.length,
      lines: sum(own, ({ lines }) => lines ?? 0),
      bytes: sum(own, ({ bytes }) => bytes),
    };
  });
  return totals.sort((a, b) => b.bytes - a.bytes || (a.language < b.language ? -1 : 1));
}

function markdown(report: Report, approvedBy: string): string {
  const { root, files, bytes, lines, words, languages, unread, sources } = report;
  const sections = [
    "# Source report",
    `${root}: ${files} files, ${lines} lines, ${words} words, ${bytes} bytes. Approved by ${approvedBy}.`,
    "## Languages",
    table(
      ["language", "files", "lines", "bytes"],
      languages.map((total) => [total.language, total.files, total.lines, total.bytes]),
    ),
    unread.length === 0 ? "" : `## Not read\n\n${unread.map((it) => `- ${code(it.path)}: ${it.reason}`).join("\n")}`,
    "## Files",
    table(
      ["file", "language", "lines", "words", "bytes", "sha-256"],
      sources.map((it) => [code(it.path), it.language, it.lines ?? "", it.words ?? "", it.bytes, it.sha256]),
    ),
  ];
  return `${sections.filter((section) => section !== "").join("\n\n")}\n`;
}

function table(head: readonly string[], rows: readonly (readonly (string | number)[])[]): string {
  return [head, head.map(() => "---"), ...rows].map((cells) => `| ${cells.join(" | ")} |`).join("\n");
}

/** A path as code, with nothing in it that would end the cell or the line. */
function code(path: string): string {
  return `\`${printable(path).replaceAll("`", "?").replaceAll("|", "\\|")}\``;
}

function sum<T>(items: readonly T[], value: (item: T) => number): number {
  return items.reduce((total, item) => total + value(item), 0);
}
