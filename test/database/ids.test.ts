/** Ids are UUIDv7 that ascend within a process, whatever its clock does (DESIGN §4). */
import { afterEach, expect, jest, test } from "@jest/globals";
import { validate, version } from "uuid";
import { newId, newIds } from "../../src/database/ids.ts";

afterEach(() => {
  jest.restoreAllMocks();
});

test("ids ascend and differ, many within one millisecond", () => {
  const ids = [...newIds(2000), newId(), ...newIds(1000)];

  expect([...ids].sort()).toEqual(ids);
  expect(new Set(ids).size).toBe(ids.length);
  expect(ids.every((id) => validate(id) && version(id) === 7)).toBe(true);
});

test("ids ascend when the clock goes back", () => {
  const before = newId();
  jest.spyOn(Date, "now").mockReturnValue(Date.now() - 60_000);
  const [first = "", second = ""] = newIds(2);

  expect(first > before).toBe(true);
  expect(second > first).toBe(true);
});

test("an id says when it was made", () => {
  const at = Date.now() + 3_600_000;
  jest.spyOn(Date, "now").mockReturnValue(at);

  expect(Number.parseInt(newId().replaceAll("-", "").slice(0, 12), 16)).toBe(at);
});

test("what follows in the next millisecond comes after all of this one", () => {
  const at = Date.now() + 7_200_000;
  jest.spyOn(Date, "now").mockReturnValue(at);
  const last = newIds(10).at(-1) ?? "";
  jest.spyOn(Date, "now").mockReturnValue(at + 1);

  expect(newId() > last).toBe(true);
});
