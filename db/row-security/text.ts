/** Names and values inside of DDL, which takes no parameters. */

/** A quoted name, qualified by the ones before it. */
export function identifier(...names: readonly string[]): string {
  return names.map((name) => `"${name.replaceAll('"', '""')}"`).join(".");
}

export function literal(value: string): string {
  return `'${value.replaceAll("'", "''")}'`;
}
