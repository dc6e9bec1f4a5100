/** The keys of a map step's items: `ship[0]`, `ship[1]` and so on, made where the step expands (`maps.ts`). */

/** The key of the map step that an item of this key belongs to, if it has the form of one. */
export function mapKeyOf(key: string): string | undefined {
  return /^(.*)\[\d+\]$/s.exec(key)?.[1];
}

/** What the keys of the items of a map step begin with. */
export function itemPrefix(mapKey: string): string {
  return `${mapKey}[`;
}
