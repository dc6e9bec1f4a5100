/** The canonical text is the same where PostgreSQL finds jsonb equal, and only there. */
import { expect, test } from "@jest/globals";
import fc from "fast-check";
import { canonical } from "../../src/database/values/canonical.ts";
import { createTestDatabase } from "../support/database.ts";

const database = await createTestDatabase();

test("equal jsonb, equal text", async () => {
  const json = fc.jsonValue({ maxDepth: 3 }).filter((value) => !/\\u(0000|d[89a-f])/i.test(JSON.stringify(value)));
  const similar = json.chain((value) => fc.tuple(fc.constant(value), fc.oneof(fc.constant(value), json)));
  await fc.assert(
    fc.asyncProperty(similar, async ([one, two]) => {
      const { rows } = await database.pool.query("select $1::jsonb = $2::jsonb as same, $2::jsonb::text as back", [
        JSON.stringify(one),
        JSON.stringify(two),
      ]);

      expect(canonical(JSON.stringify(one)) === canonical(JSON.stringify(two))).toBe(rows[0].same);
      expect(canonical(rows[0].back)).toBe(canonical(JSON.stringify(two)));
    }),
    { numRuns: 100 },
  );
});

test.each([
  ["1 and 1.0", '{"n":1}', '{ "n": 1.0 }'],
  ["the order of keys", '{"b":1,"a":{"d":1,"c":2}}', '{"a":{"c":2,"d":1},"b":1}'],
  ["0 and -0", "[0]", "[-0]"],
  ["exponents", "100", "1e2"],
  ["escapes", '"\\u00fc"', '"ü"'],
  ["the last of equal keys", '{"a":1,"a":2}', '{"a":2}'],
  ["a key called __proto__", '{"__proto__":1,"a":2}', '{"a":2,"__proto__":1}'],
])("%s makes no difference", (_what, one, two) => {
  expect(canonical(one)).toBe(canonical(two));
});

test.each([
  ["the order of a list", "[1,2]", "[2,1]"],
  ["a number and its text", "1", '"1"'],
  ["null and nothing", '{"a":null}', "{}"],
  ["a key called __proto__ and none", '{"__proto__":1}', "{}"],
])("%s makes a difference", (_what, one, two) => {
  expect(canonical(one)).not.toBe(canonical(two));
});
