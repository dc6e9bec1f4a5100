/** How a PostgreSQL server was found. */
export type PostgresServerKind = "url" | "container" | "embedded";

/** A running PostgreSQL server that tests, examples and tools may create databases on. */
export interface PostgresServer {
  /** Connection string of a superuser to a maintenance database. */
  readonly url: string;
  readonly kind: PostgresServerKind;
  /** Stops the server, when this process started it. May be called more than once. */
  stop(): Promise<void>;
}

/** Server settings as they would stand in `postgresql.conf`. */
export type PostgresSettings = Readonly<Record<string, string>>;

/**
 * The settings every started server gets. A throw-away server may lose its data when the machine
 * fails, so it skips every wait for the disk.
 */
export function serverSettings(durable: boolean, settings: PostgresSettings = {}): PostgresSettings {
  const speed: PostgresSettings = durable ? {} : { fsync: "off", synchronous_commit: "off", full_page_writes: "off" };
  return { max_connections: "200", timezone: "UTC", ...speed, ...settings };
}

/** The settings as `-c name=value` arguments of `postgres`. */
export function settingFlags(settings: PostgresSettings): string[] {
  return Object.entries(settings).flatMap(([name, value]) => ["-c", `${name}=${value}`]);
}
