/** Runs PostgreSQL in a container, through testcontainers, where that optional package is installed. */
import { isMissingModule } from "./error-code.ts";
import { type PostgresServer, type PostgresSettings, serverSettings, settingFlags } from "./server.ts";

/** Options of {@link startContainerPostgres}. */
export interface ContainerPostgresOptions {
  readonly image?: string;
  readonly durable?: boolean;
  readonly settings?: PostgresSettings;
}

/** Starts a container, or answers `undefined` when `@testcontainers/postgresql` is not installed. */
export async function startContainerPostgres(options: ContainerPostgresOptions): Promise<PostgresServer | undefined> {
  const testcontainers = await importTestcontainers();
  if (testcontainers === undefined) return undefined;

  const settings = serverSettings(options.durable ?? false, options.settings);
  const container = await new testcontainers.PostgreSqlContainer(options.image ?? "postgres:18-alpine")
    .withDatabase("postgres")
    .withCommand(["postgres", ...settingFlags(settings)])
    .start();

  let stopped: Promise<unknown> | undefined;
  return {
    url: container.getConnectionUri(),
    kind: "container",
    stop: async () => {
      stopped ??= container.stop();
      await stopped;
    },
  };
}

async function importTestcontainers() {
  try {
    return await import("@testcontainers/postgresql");
  } catch (error) {
    if (isMissingModule(error)) return undefined;
    throw error;
  }
}
