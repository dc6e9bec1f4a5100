/** A codec with what Node has: AES-256-GCM, keys by id. */
import { createCipheriv, createDecipheriv, createHmac, hkdfSync, randomBytes } from "node:crypto";
import { LedgerError } from "../../errors.ts";
import type { ValueCodec } from "./codec.ts";

export interface AesGcmOptions {
  /** Keys of 32 bytes by id: letters, digits, `_` and `-`, at most 64. Those of earlier values stay for as long as there are such values. */
  readonly keys: Readonly<Record<string, Uint8Array>>;
  /** The id of the key that new values are encoded with. */
  readonly current: string;
}

const NONCE_BYTES = 12;
const TAG_BYTES = 16;
const KEY_BYTES = 32;
const CIPHER = "aes-256-gcm";

/**
 * Encrypts values with AES-256-GCM under a random nonce each, and digests requests with HMAC-SHA-256 under a key that is
 * derived from the same one. What is stored says the id of its key, so keys can be rotated: add a key, make it `current`,
 * and keep the old one. Its length, and that of an array, can be seen. Throws `config.invalid`.
 */
export function aesGcmCodec({ keys, current }: AesGcmOptions): ValueCodec {
  const ring = new Map(Object.entries(keys).map(([id, key]) => [validId(id), keysOf(id, key)]));
  if (!ring.has(current)) throw invalid("aesGcmCodec: current must be the id of one of the keys.");
  const keyOf = (id: string): Keys => {
    const found = ring.get(id);
    if (found === undefined) throw new Error(`the key ${JSON.stringify(id)} is not known`);
    return found;
  };
  return {
    encode: (text) => `${current}.${encrypted(keyOf(current), current, text).toString("base64url")}`,
    decode(stored) {
      const id = idOf(stored);
      return decrypted(keyOf(id), id, Buffer.from(stored.slice(id.length + 1), "base64url"));
    },
    digest(text, like) {
      const id = like === undefined ? current : idOf(like);
      return `${id}.${createHmac("sha256", keyOf(id).digest).update(text).digest("base64url")}`;
    },
  };
}

interface Keys {
  readonly cipher: Uint8Array;
  readonly digest: Uint8Array;
}

function keysOf(id: string, key: Uint8Array): Keys {
  if (!(key instanceof Uint8Array) || key.length !== KEY_BYTES) {
    throw invalid(`aesGcmCodec: the key ${id} must have ${KEY_BYTES} bytes.`);
  }
  const cipher = Uint8Array.from(key);
  return { cipher, digest: new Uint8Array(hkdfSync("sha256", cipher, "", "runledger request digest", KEY_BYTES)) };
}

function validId(id: string): string {
  if (!/^[\w-]{1,64}$/.test(id)) throw invalid("aesGcmCodec: a key id is 1 to 64 letters, digits, _ and -.");
  return id;
}

function idOf(stored: string): string {
  return stored.slice(0, Math.max(0, stored.indexOf(".")));
}

function encrypted({ cipher: key }: Keys, id: string, text: string): Buffer {
  const nonce = randomBytes(NONCE_BYTES);
  const cipher = createCipheriv(CIPHER, key, nonce).setAAD(Buffer.from(id));
  return Buffer.concat([nonce, cipher.update(text, "utf8"), cipher.final(), cipher.getAuthTag()]);
}

function decrypted({ cipher: key }: Keys, id: string, bytes: Buffer): string {
  if (bytes.length < NONCE_BYTES + TAG_BYTES) throw new Error("the encoded value is too short");
  const decipher = createDecipheriv(CIPHER, key, bytes.subarray(0, NONCE_BYTES), { authTagLength: TAG_BYTES });
  decipher.setAAD(Buffer.from(id)).setAuthTag(bytes.subarray(-TAG_BYTES));
  return decipher.update(bytes.subarray(NONCE_BYTES, -TAG_BYTES), undefined, "utf8") + decipher.final("utf8");
}

function invalid(message: string): LedgerError {
  return new LedgerError("config.invalid", { message });
}
