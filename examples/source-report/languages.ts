/** A file's language, by its name. */
import { basename, extname } from "node:path";

const byExtension: Readonly<Record<string, string>> = {
  ".c": "C",
  ".cjs": "JavaScript",
  ".css": "CSS",
  ".go": "Go",
  ".h": "C",
  ".html": "HTML",
  ".java": "Java",
  ".js": "JavaScript",
  ".json": "JSON",
  ".jsx": "JavaScript",
  ".md": "Markdown",
  ".mjs": "JavaScript",
  ".mts": "TypeScript",
  ".py": "Python",
  ".rb": "Ruby",
  ".rs": "Rust",
  ".sh": "Shell",
  ".snap": "Snapshot",
  ".sql": "SQL",
  ".toml": "TOML",
  ".ts": "TypeScript",
  ".tsx": "TypeScript",
  ".txt": "Text",
  ".yaml": "YAML",
  ".yml": "YAML",
};

export function languageOf(path: string, binary: boolean): string {
  if (binary) return "Binary";
  return byExtension[extname(path).toLowerCase()] ?? (basename(path).includes(".") ? "Other" : "Text");
}
