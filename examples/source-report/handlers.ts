/** What each step does. Every one may be run again after a crash and then gives the same. */
import { mkdir, rename, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type Kysely, sql } from "kysely";
import type { RunledgerDatabase } from "../../src/index.ts";
import { type Handler, handle, TerminalError } from "../../src/worker/index.ts";
import { examineFile, type FileFacts, listFiles, namesHash } from "./files.ts";
import { examine, publish, type Report, report, scan } from "./graph.ts";
import { makeReport, reportText } from "./report.ts";

export function handlers(db: Kysely<RunledgerDatabase>): Handler[] {
  return [
    handle(scan, async ({ payload }) => {
      const files = await listFiles(payload.root);
      if (namesHash(files) === payload.namesHash) return payload;
      throw new TerminalError("source.changed", "The files changed between the listing and the scan.");
    }),

    handle(examine, async ({ payload, signal }) => {
      const { root, path } = payload;
      return examineFile(root, path, signal).catch((error: unknown) => {
        // An abort is not the file's fault.
        signal.throwIfAborted();
        throw new TerminalError("source.unreadable", unreadable(error), { cause: error });
      });
    }),

    handle(report, async ({ prerequisites, lease }) => {
      const { scan: snapshot, ...files } = prerequisites;
      const sources = Object.values<FileFacts | undefined>(files).filter((facts) => facts !== undefined);
      return makeReport(snapshot, sources, await unreadFiles(db, lease.workflowRunId));
    }),

    handle(publish, async ({ payload, prerequisites, lease }) => {
      const { folder, format } = payload;
      const text = reportText(prerequisites.report, prerequisites.approve.approvedBy, format);
      const file = join(folder, `${lease.workflowRunId}.${format === "json" ? "json" : "md"}`);
      await mkdir(folder, { recursive: true });
      // Under its name there is either nothing or the whole report.
      await writeFile(`${file}.part`, text);
      await rename(`${file}.part`, file);
      return { file, bytes: Buffer.byteLength(text) };
    }),
  ];
}

/** The service's own typed query on the ledger's tables: outputs come to the handler, errors are looked up. */
async function unreadFiles(db: Kysely<RunledgerDatabase>, runId: string | null): Promise<Report["unread"]> {
  const rows = await db
    .selectFrom("runledger.workflow_steps")
    .where("run_id", "=", runId)
    .where("job_type", "=", examine.type)
    .where("status", "!=", "SUCCEEDED")
    .select([sql<string>`payload ->> 'path'`.as("path"), "error_message"])
    .orderBy("id")
    .execute();
  return rows.map(({ path, error_message }) => ({ path, reason: error_message ?? "It was not examined." }));
}

const reasons: Readonly<Record<string, string>> = {
  EACCES: "Permission denied.",
  EISDIR: "The folder cannot be listed.",
  ELOOP: "The link leads in a circle.",
  ENOENT: "The file does not exist.",
  ENOTFILE: "It is not a file.",
};

/** The system's own words would repeat the path. */
function unreadable(error: unknown): string {
  const { code = "unknown error" } = error as { code?: string };
  return reasons[code] ?? `It could not be read (${code}).`;
}
