/**
 * Who the server runs as. PostgreSQL refuses to run as root, so for root (containers, CI machines) it
 * runs as the system user `postgres`, which is created where it does not exist.
 */
import { execFile } from "node:child_process";
import { chown, readFile, stat } from "node:fs/promises";
import { dirname } from "node:path";
import { promisify } from "node:util";

const run = promisify(execFile);

/** A system user and its group. */
export interface SystemUser {
  readonly uid: number;
  readonly gid: number;
}

/** A program with its arguments, and the spawn options that make it run as the right user. */
export interface Command {
  readonly file: string;
  readonly args: readonly string[];
  readonly options: { readonly uid?: number; readonly gid?: number };
}

/** The user to run the server as, or `undefined` for the present one. */
export async function serverUser(): Promise<SystemUser | undefined> {
  if (process.getuid?.() !== 0) return undefined;
  return (await lookUp("postgres")) ?? (await create("postgres"));
}

/** Makes a file or directory the user's own. */
export async function giveTo(user: SystemUser | undefined, path: string): Promise<void> {
  if (user !== undefined) await chown(path, user.uid, user.gid);
}

/**
 * How to run a program as the user. Binaries or data below a directory that is closed to that user (a
 * checkout in root's home, a directory of `mktemp -d`) need one capability kept: searching directories.
 */
export async function commandAs(
  user: SystemUser | undefined,
  file: string,
  args: readonly string[],
  paths: readonly string[],
): Promise<Command> {
  if (user === undefined) return { file, args, options: {} };
  if (await allReachable([file, ...paths], user)) return { file, args, options: user };

  const identity = ["--reuid", String(user.uid), "--regid", String(user.gid), "--clear-groups"];
  const search = await searchCapability();
  const keepSearch = ["--inh-caps", `+${search}`, "--ambient-caps", `+${search}`];
  // initdb asks access(2), which by default judges as if the process had no capability at all.
  const alsoInQuestions = ["--securebits", "+no_setuid_fixup"];
  return { file: "setpriv", args: [...identity, ...keepSearch, ...alsoInQuestions, "--", file, ...args], options: {} };
}

/** The narrow capability where this process has it; containers as a rule have only the wide one. */
async function searchCapability(): Promise<"dac_read_search" | "dac_override"> {
  const status = await readFile("/proc/self/status", "utf8").catch(() => "");
  const effective = BigInt(`0x${/^CapEff:\s*([0-9a-f]+)/m.exec(status)?.[1] ?? "0"}`);
  return (effective & (1n << 2n)) === 0n ? "dac_override" : "dac_read_search";
}

async function lookUp(name: string): Promise<SystemUser | undefined> {
  try {
    const [uid, gid] = await Promise.all([run("id", ["-u", name]), run("id", ["-g", name])]);
    return { uid: Number(uid.stdout), gid: Number(gid.stdout) };
  } catch {
    return undefined;
  }
}

async function create(name: string): Promise<SystemUser> {
  const created = await run("useradd", ["--system", "--user-group", "--no-create-home", name]).catch(
    (error: unknown) => error,
  );
  const user = await lookUp(name);
  if (user !== undefined) return user;
  throw new Error(`PostgreSQL does not run as root, and the system user "${name}" could not be created.`, {
    cause: created,
  });
}

async function allReachable(paths: readonly string[], user: SystemUser): Promise<boolean> {
  const directories = new Set(paths.flatMap(ancestors));
  const answers = await Promise.all([...directories].map((directory) => maySearch(directory, user)));
  return answers.every(Boolean);
}

function ancestors(path: string): string[] {
  const parent = dirname(path);
  return parent === path ? [path] : [parent, ...ancestors(parent)];
}

async function maySearch(directory: string, user: SystemUser): Promise<boolean> {
  const { uid, gid, mode } = await stat(directory);
  if (uid === user.uid) return (mode & 0o100) !== 0;
  if (gid === user.gid) return (mode & 0o010) !== 0;
  return (mode & 0o001) !== 0;
}
