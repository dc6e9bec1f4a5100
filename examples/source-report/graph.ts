/** The workflow: its jobs with the shapes of their payloads and outputs, and how its steps depend on each other. */
import { createHash } from "node:crypto";
import { defineJob, defineWorkflow, typed } from "../../src/index.ts";
import type { FileFacts } from "./files.ts";

export const reportFormats = ["markdown", "json"] as const;
export type ReportFormat = (typeof reportFormats)[number];

/** What the file list was when the run was enqueued. */
export interface Snapshot {
  readonly root: string;
  readonly files: number;
  readonly bytes: number;
  readonly namesHash: string;
}

export interface LanguageTotal {
  readonly language: string;
  readonly files: number;
  readonly lines: number;
  readonly bytes: number;
}

export interface Report extends Snapshot {
  readonly lines: number;
  readonly words: number;
  readonly languages: readonly LanguageTotal[];
  readonly unread: readonly { readonly path: string; readonly reason: string }[];
  readonly sources: readonly FileFacts[];
}

export interface Approval {
  readonly approvedBy: string;
}

export interface Publication {
  readonly file: string;
  readonly bytes: number;
}

export type FileKey = `file:${string}`;

export const scan = defineJob("source-report.scan", { input: typed<Snapshot>(), output: typed<Snapshot>() });

export const examine = defineJob("source-report.file", {
  input: typed<{ readonly root: string; readonly path: string }>(),
  output: typed<FileFacts>(),
});

export const report = defineJob("source-report.report", {
  input: typed<{ readonly files: number }>(),
  output: typed<Report>(),
  // Of the files only those that could be read have an output.
  prerequisites: typed<{ readonly scan: Snapshot } & { readonly [file: FileKey]: FileFacts | undefined }>(),
});

export const publish = defineJob("source-report.publish", {
  input: typed<{ readonly folder: string; readonly format: ReportFormat }>(),
  output: typed<Publication>(),
  prerequisites: typed<{ readonly report: Report; readonly approve: Approval }>(),
});

export interface SourceReportInput {
  readonly snapshot: Snapshot;
  readonly paths: readonly string[];
  readonly folder: string;
  readonly format: ReportFormat;
}

export const GATE = "approve";

export const sourceReport = defineWorkflow("source-report", {
  input: typed<SourceReportInput>(),
  build(graph, { snapshot, paths, folder, format }) {
    const { root, files } = snapshot;
    const scanned = graph.job("scan", scan, snapshot);
    const examined = paths.map((path) => graph.job(fileKey(path), examine, { root, path }, { onSuccess: [scanned] }));
    // ON_TERMINAL: a file that cannot be read is a line of the report, not the end of it.
    const reported = graph.job("report", report, { files }, { onSuccess: [scanned], onTerminal: examined });
    const approved = graph.external<Approval, typeof GATE>(GATE, { onSuccess: [reported] });
    return graph.job("publish", publish, { folder, format }, { onSuccess: [reported, approved] });
  },
});

const MAX_KEY_BYTES = 512;

/** The step of a file. A step key has at most 512 bytes, a path may have more. */
export function fileKey(path: string): FileKey {
  const key: FileKey = `file:${path}`;
  if (Buffer.byteLength(key) <= MAX_KEY_BYTES) return key;
  return `file:${createHash("sha256").update(path).digest("hex")}`;
}
