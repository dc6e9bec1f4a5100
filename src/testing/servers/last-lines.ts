import type { Readable } from "node:stream";

const KEPT_LINES = 40;

/** Reads program output quietly, and keeps its last lines for an error message. */
export function lastLines(...streams: readonly Readable[]): () => string {
  let lines: string[] = [];
  for (const stream of streams) {
    stream.setEncoding("utf8");
    stream.on("data", (text: string) => {
      lines = [...lines, ...text.split("\n").filter((line) => line.trim() !== "")].slice(-KEPT_LINES);
    });
  }
  return () => lines.join("\n");
}
