/** Files on the disk: which there are, what is in one of them, and a fingerprint of them all. */
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { readdir, stat } from "node:fs/promises";
import { join } from "node:path";
import { languageOf } from "./languages.ts";

export interface SourceFile {
  /** Below the root, with `/`. */
  readonly path: string;
  readonly bytes: number;
}

export interface FileFacts extends SourceFile {
  readonly sha256: string;
  readonly language: string;
  /** Null for a binary file. */
  readonly lines: number | null;
  readonly words: number | null;
}

const IGNORED = new Set([".git", ".hg", ".svn", ".runledger", ".DS_Store", "node_modules", "dist", "coverage"]);

/**
 * The files below the root, sorted by path. A link to a file counts as that file, a link to a folder is
 * not followed, and what cannot be read at all (a link to nowhere, a closed folder) is listed with no
 * bytes: finding that out is the work of its step. Pipes, sockets and devices are left out.
 */
export async function listFiles(root: string): Promise<SourceFile[]> {
  const files = await filesBelow(root, "");
  return files.sort((a, b) => (a.path < b.path ? -1 : 1));
}

async function filesBelow(root: string, folder: string): Promise<SourceFile[]> {
  const entries = await readdir(join(root, folder), { withFileTypes: true }).catch((error: unknown) => {
    if (folder === "") throw error;
    return null;
  });
  if (entries === null) return [{ path: folder, bytes: 0 }];
  const kept = entries.filter(({ name }) => !IGNORED.has(name));
  const found = await Promise.all(
    kept.map(async (entry): Promise<SourceFile[]> => {
      const path = folder === "" ? entry.name : `${folder}/${entry.name}`;
      if (entry.isDirectory()) return filesBelow(root, path);
      const target = await stat(join(root, path)).catch(() => null);
      if (target === null) return [{ path, bytes: 0 }];
      return target.isFile() ? [{ path, bytes: target.size }] : [];
    }),
  );
  return found.flat();
}

/** One hash over the names and sizes: whether the files are still those that were listed. */
export function namesHash(files: readonly SourceFile[]): string {
  const hash = createHash("sha256");
  for (const { path, bytes } of files) hash.update(`${path}\0${bytes}\0`);
  return hash.digest("hex");
}

/** One hash over the names and contents: the same for the same files, whenever they were written. */
export async function contentHash(root: string, files: readonly SourceFile[]): Promise<string> {
  const hash = createHash("sha256");
  const AT_ONCE = 16;
  for (let start = 0; start < files.length; start += AT_ONCE) {
    const slice = files.slice(start, start + AT_ONCE);
    const hashes = await Promise.all(slice.map(({ path }) => examineFile(root, path).catch(() => null)));
    for (const [place, { path }] of slice.entries()) hash.update(`${path}\0${hashes[place]?.sha256 ?? "-"}\0`);
  }
  return hash.digest("hex");
}

/** Reads a file once, in chunks, whatever its size. Throws the system's error, such as ENOENT. */
export async function examineFile(root: string, path: string, signal?: AbortSignal): Promise<FileFacts> {
  const file = join(root, path);
  const kind = await stat(file);
  // Opening a pipe would wait for its other end.
  if (!kind.isFile()) {
    throw Object.assign(new Error("This is not a file."), { code: kind.isDirectory() ? "EISDIR" : "ENOTFILE" });
  }
  const hash = createHash("sha256");
  const text = new TextCounter();
  for await (const chunk of createReadStream(file, { highWaterMark: 256 * 1024, ...(signal && { signal }) })) {
    hash.update(chunk);
    text.add(chunk);
  }
  const { bytes, binary, lines, words } = text;
  return {
    path,
    bytes,
    sha256: hash.digest("hex"),
    language: languageOf(path, binary),
    lines: binary ? null : lines,
    words: binary ? null : words,
  };
}

const NUL = 0x00;
const NEWLINE = 0x0a;
const SPACE = 0x20;
/** A file with a NUL byte this early is binary, as for git. */
const BINARY_HEAD_BYTES = 8000;

/** Counts over chunks, however they cut the text. */
class TextCounter {
  bytes = 0;
  binary = false;
  words = 0;
  #newlines = 0;
  #last = NEWLINE;

  /** The last line counts with or without its newline. */
  get lines(): number {
    return this.#newlines + (this.#last === NEWLINE ? 0 : 1);
  }

  add(chunk: Buffer): void {
    const head = chunk.subarray(0, Math.max(0, BINARY_HEAD_BYTES - this.bytes));
    this.binary ||= head.includes(NUL);
    this.bytes += chunk.length;
    if (this.binary) return;
    for (const byte of chunk) {
      if (byte === NEWLINE) this.#newlines += 1;
      if (!isSpace(byte) && isSpace(this.#last)) this.words += 1;
      this.#last = byte;
    }
  }
}

/** ASCII white space: the bytes of other characters in UTF-8 are never among these. */
function isSpace(byte: number): boolean {
  return byte === SPACE || (byte >= 0x09 && byte <= 0x0d);
}
