/** What every figure depends on: the server's settings. */
import pg from "pg";

const NAMES = ["server_version", "fsync", "synchronous_commit", "shared_buffers", "max_wal_size"];

export async function settingsOf(url: string): Promise<Record<string, string>> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  const { rows } = await client
    .query<{ name: string; setting: string }>(
      "select name, current_setting(name) as setting from unnest($1::text[]) as name",
      [NAMES],
    )
    .finally(() => client.end());
  const settings = Object.fromEntries(rows.map(({ name, setting }) => [name, setting]));
  return { ...settings, version: settings.server_version ?? "unknown" };
}
