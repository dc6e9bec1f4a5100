/** List a folder, a checksum for each of its files, one digest of them all. */
import { defineJob, defineWorkflow, typed } from "../../src/index.ts";

/** A file as `list` finds it: the payload of its `checksum`. */
export interface FoundFile {
  readonly root: string;
  /** Below the root, with `/`. */
  readonly path: string;
}

export interface Checksum {
  readonly path: string;
  readonly sha256: string;
}

export interface Digest {
  readonly files: number;
  readonly sha256: string;
}

export const list = defineJob("checksums.list", {
  input: typed<{ readonly root: string }>(),
  output: typed<readonly FoundFile[]>(),
});

export const checksum = defineJob("checksums.file", { input: typed<FoundFile>(), output: typed<Checksum>() });

export const digest = defineJob("checksums.digest", {
  input: typed<null>(),
  output: typed<Digest>(),
  prerequisites: typed<{ readonly checksum: readonly Checksum[] }>(),
});

export const checksums = defineWorkflow("checksums", {
  input: typed<{ readonly root: string }>(),
  build(graph, { root }) {
    const listed = graph.job("list", list, { root });
    // The list is not known yet: checksum[0], checksum[1] and so on are made when it is.
    const each = graph.map("checksum", checksum, { over: listed });
    return graph.job("digest", digest, null, { onSuccess: [each] });
  },
});
