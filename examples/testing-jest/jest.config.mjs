import { fileURLToPath } from "node:url";

// Here `runledger` is the source of this repository. A project that has it installed needs no mapping, no tsx, and no
// file for the global set-up: `globalSetup: "runledger/testing/setup"` will do.
const source = (path) => fileURLToPath(new URL(`../../${path}`, import.meta.url));

/** @type {import("jest").Config} */
export default {
  moduleNameMapper: {
    "^runledger$": source("src/index.ts"),
    "^runledger/worker$": source("src/worker/index.ts"),
    "^runledger/testing$": source("src/testing/index.ts"),
  },
  globalSetup: "<rootDir>/test/global-setup.mjs",
  testMatch: ["<rootDir>/test/**/*.test.ts"],
  // Kysely has no CommonJS build: tests are native modules, which is what --experimental-vm-modules is for.
  extensionsToTreatAsEsm: [".ts"],
  transform: {
    "\\.ts$": ["@swc/jest", { jsc: { parser: { syntax: "typescript" }, target: "es2023" }, module: { type: "es6" } }],
  },
  // The first test of a file may wait for the template.
  testTimeout: 30_000,
};
