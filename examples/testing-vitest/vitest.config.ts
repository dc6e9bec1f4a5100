import { fileURLToPath } from "node:url";
import { defineConfig } from "vitest/config";

// Here `runledger` is the source of this repository. A project that has it installed needs no alias, and no
// file for the global set-up: `globalSetup: "runledger/testing/setup"` will do.
const source = (path: string) => fileURLToPath(new URL(`../../${path}`, import.meta.url));

export default defineConfig({
  resolve: {
    alias: [
      { find: /^runledger$/, replacement: source("src/index.ts") },
      { find: /^runledger\/worker$/, replacement: source("src/worker/index.ts") },
      { find: /^runledger\/testing$/, replacement: source("src/testing/index.ts") },
      { find: /^runledger\/testing\/setup$/, replacement: source("src/testing/setup.ts") },
    ],
  },
  test: {
    globalSetup: "test/global-setup.ts",
    // The first test of a file may wait for the template.
    testTimeout: 30_000,
    hookTimeout: 60_000,
  },
});
