/** From a folder to the request for a run: its file list, and a key by which the same content finds it again. */
import { createHash } from "node:crypto";
import { realpath } from "node:fs/promises";
import { join } from "node:path";
import { type Kysely, sql } from "kysely";
import type { RunledgerDatabase } from "../../src/index.ts";
import { contentHash, listFiles, namesHash } from "./files.ts";
import { type SourceReportInput, sourceReport } from "./graph.ts";
import { type Options, UsageError } from "./options.ts";

export interface ReportRequest {
  readonly input: SourceReportInput;
  /** The same for the same content, and for no other. */
  readonly contentKey: string;
}

/** Throws UsageError when the folder cannot be listed, or holds too few files for `--cancel-after`. */
export async function requestFor(options: Options): Promise<ReportRequest> {
  const { home, format, cancelAfter } = options;
  const root = await realpath(options.root).catch(refuseFolder(options.root));
  const files = await listFiles(root).catch(refuseFolder(root));
  if (cancelAfter !== null && cancelAfter > files.length) {
    throw new UsageError(`--cancel-after ${cancelAfter}: the folder has only ${files.length} files.`);
  }
  const bytes = files.reduce((sum, file) => sum + file.bytes, 0);
  const input: SourceReportInput = {
    snapshot: { root, files: files.length, bytes, namesHash: namesHash(files) },
    paths: files.map(({ path }) => path),
    folder: join(home, "reports"),
    format,
  };
  const content = await contentHash(root, files);
  // The key stands for everything that the payloads say: the same key with other payloads is a conflict.
  const parts = [root, input.folder, format, input.snapshot.namesHash, content];
  return { input, contentKey: createHash("sha256").update(parts.join("\0")).digest("hex") };
}

/** The idempotency key of the latest run for this content; with `again` the one after it. */
export async function keyFor(db: Kysely<RunledgerDatabase>, contentKey: string, again: boolean): Promise<string> {
  const { runs } = await db
    .selectFrom("runledger.workflow_idempotency_keys")
    .where("type", "=", sourceReport.type)
    .where("key", "like", `${contentKey}-%`)
    .select(sql<number>`count(*)::int`.as("runs"))
    .executeTakeFirstOrThrow();
  return `${contentKey}-${again ? runs + 1 : Math.max(1, runs)}`;
}

function refuseFolder(folder: string) {
  return (error: unknown): never => {
    const { code = "unknown error" } = error as { code?: string };
    throw new UsageError(`${folder} is not a folder that can be read (${code}).`);
  };
}
