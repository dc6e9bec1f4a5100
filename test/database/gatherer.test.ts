/** Calls that share statements: who may wait for whom. */
import { expect, test } from "@jest/globals";
import { Gatherer } from "../../src/database/gatherer.ts";
import { until } from "../support/waiting.ts";

test("where nothing ends, every item goes all the same, however many there are", async () => {
  const sent: number[][] = [];
  const gatherer = new Gatherer<number>((items) => {
    sent.push([...items]);
    return new Promise(() => {});
  });
  for (let n = 0; n < 1200; n += 1) void gatherer.add(n);
  await until(() => sent.flat().length === 1200);

  expect(sent.map(({ length }) => length)).toEqual([1, 1, 500, 500, 198]);
});
