/** The codec that comes with the package: AES-256-GCM with keys by id. */
import { randomBytes } from "node:crypto";
import { expect, test } from "@jest/globals";
import { aesGcmCodec } from "../../src/index.ts";
import { codec, keys, rotated } from "./support.ts";

const kind = { kind: "payload" } as const;
const text = JSON.stringify({ text: "grüße 😀", n: 1 });
const encode = async () => String(await codec.encode(text, kind));

test("what is encoded comes back, and looks different each time", async () => {
  const [one, two] = [await encode(), await encode()];

  expect(one).not.toBe(two);
  expect(one).toMatch(/^k1\.[\w-]+$/);
  expect([codec.decode(one, kind), codec.decode(two, { kind: "output" })]).toEqual([text, text]);
  expect(codec.decode(String(await codec.encode("", kind)), kind)).toBe("");
});

test("a changed text, another key under the same id, and an unknown id do not decode", async () => {
  const one = await encode();
  const other = aesGcmCodec({ keys: { k1: randomBytes(32) }, current: "k1" });
  const place = one.length - 5;
  const changed = one.slice(0, place) + (one[place] === "A" ? "B" : "A") + one.slice(place + 1);

  for (const bad of [
    changed,
    one.slice(0, -8),
    `k2${one.slice(2)}`,
    "k1.",
    "k1.AAAA",
    "",
    "plain",
    `${one}.x`.slice(3),
  ]) {
    expect(() => rotated.decode(bad, kind)).toThrow();
  }
  expect(() => other.decode(one, kind)).toThrow();
});

test("an old key decodes what it encoded, the current one encodes", async () => {
  expect(rotated.decode(await encode(), kind)).toBe(text);
  expect(rotated.encode(text, kind)).toMatch(/^k2\./);
});

test("a digest is the same for the same text and key, and follows an earlier one", () => {
  const digest = String(codec.digest(text));

  expect(codec.digest(text)).toBe(digest);
  expect(codec.digest(`${text} `)).not.toBe(digest);
  expect(rotated.digest(text)).not.toBe(digest);
  expect(rotated.digest(text, digest)).toBe(digest);
  expect(() => codec.digest(text, String(rotated.digest(text)))).toThrow('the key "k2" is not known');
});

test.each([
  ["no key", { keys: {}, current: "k1" }],
  ["an unknown current key", { keys, current: "k3" }],
  ["a short key", { keys: { k1: randomBytes(16) }, current: "k1" }],
  ["an id with a dot", { keys: { "k.1": randomBytes(32) }, current: "k.1" }],
])("%s is refused", (_what, options) => {
  expect(() => aesGcmCodec(options)).toThrow(expect.objectContaining({ code: "config.invalid" }));
});

test("a key that the service wipes goes on to serve", () => {
  const key = randomBytes(32);
  const own = aesGcmCodec({ keys: { k1: key }, current: "k1" });
  const encoded = String(own.encode(text, kind));
  key.fill(0);

  expect(own.decode(encoded, kind)).toBe(text);
});
