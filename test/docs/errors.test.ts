/** docs/errors.md is made from the table of codes. */
import { readFile } from "node:fs/promises";
import { expect, test } from "@jest/globals";
import { errorsPage, errorsText } from "../../docs/generate-errors.ts";

test("docs/errors.md is what the table of codes says (else: npx tsx docs/generate-errors.ts)", async () => {
  expect(await readFile(errorsPage, "utf8")).toBe(errorsText());
});
