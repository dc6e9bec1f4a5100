/** What comes and goes thousands of times a second, in no order. */

const OUT = -1;

/**
 * `Field` is where an item keeps its place in this bag; -1 while it is not in it.
 *
 * Not a `Set`: that leaves outgrown tables behind, each linked to the next one, and once one of them is old, V8's young
 * collections keep all that was in the later ones.
 */
export class Bag<Item extends Record<Field, number>, Field extends string> {
  readonly #items: Item[] = [];
  readonly #field: Field;

  constructor(field: Field) {
    this.#field = field;
  }

  get size(): number {
    return this.#items.length;
  }

  add(item: Item): void {
    this.#place(item, this.#items.push(item) - 1);
  }

  /** Whether it was in the bag. */
  delete(item: Item): boolean {
    const place = item[this.#field];
    if (place === OUT) return false;
    const last = this.#items.pop();
    if (last !== undefined && last !== item) {
      this.#items[place] = last;
      this.#place(last, place);
    }
    this.#place(item, OUT);
    return true;
  }

  toArray(): Item[] {
    return [...this.#items];
  }

  #place(item: Record<Field, number>, place: number): void {
    item[this.#field] = place;
  }
}
