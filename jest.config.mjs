/**
 * Native ESM, because Kysely and uuid have no CommonJS build. swc only strips types; `npm run typecheck`
 * checks them.
 *
 * RUNLEDGER_TEST_KYSELY=0.28    runs the suite on the oldest supported Kysely
 * RUNLEDGER_TEST_POSTGRES=15    runs it on PostgreSQL 15
 */
const oldestKysely = {
  "^kysely$": "kysely-028",
  "^kysely/(.*)$": "kysely-028/$1",
};

/** @type {import("jest").Config} */
export default {
  testEnvironment: "node",
  roots: ["<rootDir>/test"],
  testMatch: ["**/*.test.ts"],
  extensionsToTreatAsEsm: [".ts"],
  transform: {
    "\\.ts$": ["@swc/jest", { jsc: { parser: { syntax: "typescript" }, target: "es2023" }, module: { type: "es6" } }],
  },
  moduleNameMapper: process.env.RUNLEDGER_TEST_KYSELY === "0.28" ? oldestKysely : {},
  globalSetup: "<rootDir>/test/support/global-setup.mjs",
  globalTeardown: "<rootDir>/test/support/global-teardown.mjs",
  // PostgreSQL shares the two cores that most machines in CI have.
  maxWorkers: 2,
  testTimeout: 30_000,
};
