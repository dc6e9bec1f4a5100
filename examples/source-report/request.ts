/** From a folder to the request for a run: its file list, and a key that the same content always gets. */
import { createHash, randomUUID } from "node:crypto";
import { realpath } from "node:fs/promises";
import { join } from "node:path";
import { contentHash, listFiles, namesHash } from "./files.ts";
import type { SourceReportInput } from "./graph.ts";
import { type Options, UsageError } from "./options.ts";

export interface ReportRequest {
  readonly input: SourceReportInput;
  readonly idempotencyKey: string;
}

/** Throws UsageError when the folder cannot be listed, or holds too few files for `--cancel-after`. */
export async function requestFor(options: Options): Promise<ReportRequest> {
  const { home, format, again, cancelAfter } = options;
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
  const parts = [root, input.folder, format, input.snapshot.namesHash, content, again ? randomUUID() : ""];
  return { input, idempotencyKey: createHash("sha256").update(parts.join("\0")).digest("hex") };
}

function refuseFolder(folder: string) {
  return (error: unknown): never => {
    const { code = "unknown error" } = error as { code?: string };
    throw new UsageError(`${folder} is not a folder that can be read (${code}).`);
  };
}
