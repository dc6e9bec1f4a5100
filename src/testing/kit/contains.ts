/** Whether a value has what is expected in it, as `@>` of jsonb has it, and where it has not. */
import type { JsonObject, JsonValue } from "../../index.ts";

/** One line for each place that differs; none when `actual` contains `expected`. */
export function differences(actual: JsonValue | undefined, expected: JsonValue, path: string): string[] {
  if (Array.isArray(expected)) return inArray(actual, expected, path);
  if (isObject(expected)) return inObject(actual, expected, path);
  return actual === expected ? [] : [difference(path, actual, expected)];
}

function inObject(actual: JsonValue | undefined, expected: JsonObject, path: string): string[] {
  if (!isObject(actual)) return [difference(path, actual, expected)];
  return Object.entries(expected).flatMap(([key, value]) =>
    differences(Object.hasOwn(actual, key) ? actual[key] : undefined, value, `${path}.${key}`),
  );
}

/** The order does not matter, nor does what there is besides. */
function inArray(actual: JsonValue | undefined, expected: readonly JsonValue[], path: string): string[] {
  if (!Array.isArray(actual)) return [difference(path, actual, expected)];
  const elements: readonly JsonValue[] = actual;
  return expected
    .filter((wanted) => !elements.some((element) => differences(element, wanted, path).length === 0))
    .map((wanted) => `${path} has no element ${shown(wanted)}`);
}

function isObject(value: JsonValue | undefined): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function difference(path: string, actual: JsonValue | undefined, expected: JsonValue): string {
  return `${path} is ${actual === undefined ? "missing" : shown(actual)}, expected ${shown(expected)}`;
}

const MAX_SHOWN = 200;

function shown(value: JsonValue): string {
  const text = JSON.stringify(value);
  return text.length > MAX_SHOWN ? `${text.slice(0, MAX_SHOWN)}…` : text;
}
