/** What holds the attempts of a worker. */
import { expect, test } from "@jest/globals";
import fc from "fast-check";
import { Bag } from "../../src/worker/bag.ts";

test("a bag holds what a set holds, whatever comes and goes", () => {
  fc.assert(
    fc.property(fc.array(fc.nat(7), { maxLength: 60 }), (touched) => {
      const items = Array.from({ length: 8 }, (_, n) => ({ n, at: -1 }));
      const bag = new Bag<(typeof items)[number], "at">("at");
      const set = new Set<(typeof items)[number]>();
      for (const item of touched.flatMap((n) => items[n] ?? [])) {
        const wasIn = set.delete(item);
        expect(bag.delete(item)).toBe(wasIn);
        if (wasIn) continue;
        set.add(item);
        bag.add(item);
      }
      expect(new Set(bag.toArray())).toEqual(set);
      expect(bag.size).toBe(set.size);
    }),
  );
});
